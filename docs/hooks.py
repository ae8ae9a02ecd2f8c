"""MkDocs hooks that add executed notebooks and pages from outside docs/ to the site.

Notebooks are executed during the build. A failing cell fails the build.
"""

import base64
import pathlib
import posixpath
import re

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

# Maps pages of the site to files outside docs/.
EXTERNAL_PAGES = {
    "benchmarks.md": "benchmarks/README.md",
    "experiments.md": "experiments/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}


class Notebook(File):
    """A notebook that is rendered as a Markdown page."""

    def is_documentation_page(self) -> bool:
        """Returns True although the file does not end in `.md`."""
        return True


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replaces notebooks with executed pages and adds the external pages."""
    root = pathlib.Path(config.config_file_path).parent
    for page, path in EXTERNAL_PAGES.items():
        files.append(File.generated(config, page, content=(root / path).read_text()))
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            files.remove(file)
            content, images = _execute(pathlib.Path(file.abs_src_path))
            files.append(Notebook.generated(config, file.src_uri, content=content))
            for name, image in images.items():
                folder = posixpath.dirname(file.src_uri)
                files.append(File.generated(config, posixpath.join(folder, name), content=image))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites links between files of the repository to links between pages of the site."""
    pages = {path: name for name, path in EXTERNAL_PAGES.items()}
    source = EXTERNAL_PAGES.get(page.file.src_uri, posixpath.join("docs", page.file.src_uri))

    def rewrite(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        if target not in pages and not target.startswith("docs/"):
            raise PluginError(f"{page.file.src_uri} links to {target}, which is not part of the site")
        destination = pages.get(target, posixpath.relpath(target, "docs"))
        return f"]({posixpath.relpath(destination, posixpath.dirname(page.file.src_uri) or '.')}{match[2]})"

    return re.sub(r"\]\((?![a-z]+:|#)([^)#\s]+)([^)\s]*)\)", rewrite, markdown)


def _execute(path: pathlib.Path) -> tuple[str, dict[str, bytes]]:
    """Executes a notebook; returns it as Markdown, and its images by file name."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", extra_arguments=["--log-level=ERROR"])
    try:
        client.execute(cwd=path.parent)
    except CellExecutionError as error:
        raise PluginError(f"{path.name}: {error}") from error
    parts: list[str] = []
    images: dict[str, bytes] = {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            data = output.get("data", {})
            if kind := next((kind for kind in ("gif", "png") if f"image/{kind}" in data), None):
                name = f"{path.stem}-{len(images) + 1}.{kind}"
                images[name] = base64.b64decode(data[f"image/{kind}"])
                parts.append(f"![Output of the cell above.]({name})")
            elif output.get("name") == "stdout" or "text/plain" in data:
                text = data.get("text/plain", output.get("text", ""))
                parts.append(f"```{{.text .output}}\n{text.rstrip()}\n```")
    return "\n\n".join(parts), images
