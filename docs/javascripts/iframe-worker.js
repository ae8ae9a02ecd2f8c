// The search of the site runs in a Worker, which browsers refuse to pages that are opened from a file. There a hidden
// iframe does its work, with the same face. The site's own worker looks for `parent.IFrameWorker`.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      const inside = this.frame.contentWindow
      this.ready = new Promise((resolve) => {
        const page = inside.document
        page.open()
        page.write("<!doctype html><meta charset=utf-8><body>")
        page.close()
        inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }))
        inside.importScripts = async (...urls) => {
          for (const each of urls) await load(page, each)
        }
        resolve(load(page, url))
      })
    }

    postMessage(data) {
      const inside = this.frame.contentWindow
      this.ready.then(() => inside.dispatchEvent(new inside.MessageEvent("message", { data: inside.structuredClone(data) })))
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
