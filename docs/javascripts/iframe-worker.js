// The site's search runs in a Worker, which browsers do not allow on pages opened from a file. On such pages, this class
// runs the script in a hidden iframe with the same API. The search script looks for `parent.IFrameWorker`.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      const frameWindow = this.frame.contentWindow
      this.ready = new Promise((resolve) => {
        const page = frameWindow.document
        page.open()
        page.write("<!doctype html><meta charset=utf-8><body>")
        page.close()
        frameWindow.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }))
        frameWindow.importScripts = async (...urls) => {
          for (const url of urls) await load(page, url)
        }
        resolve(load(page, url))
      })
    }

    postMessage(data) {
      const frameWindow = this.frame.contentWindow
      this.ready.then(() => frameWindow.dispatchEvent(new frameWindow.MessageEvent("message", { data: frameWindow.structuredClone(data) })))
    }

    terminate() {
      this.frame.remove()
    }
  }

  function load(page, url) {
    return new Promise((resolve, reject) => {
      const script = page.createElement("script")
      script.src = url
      script.onload = resolve
      script.onerror = reject
      page.body.append(script)
    })
  }

  window.Worker = window.IFrameWorker
}
