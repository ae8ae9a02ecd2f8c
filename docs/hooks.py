"""What the site has beyond the files in docs/: notebooks with their outputs, and pages that lie elsewhere.

Notebooks are executed while the site is built; a cell that fails ends the build.
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

# Pages of the site that lie elsewhere in the repository, by what they are in docs/.
ELSEWHERE = {
    "benchmarks.md": "benchmarks/README.md",
    "experiments.md": "experiments/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}


class Notebook(File):
    """A notebook as a page of Markdown, at its own address."""

    def is_documentation_page(self) -> bool:
        """It is."""
        return True


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put notebooks and pages from elsewhere among the files."""
    root = pathlib.Path(config.config_file_path).parent
    for page, path in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(root / path).read_text()))
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            files.remove(file)
            content, pictures = _execute(pathlib.Path(file.abs_src_path))
            files.append(Notebook.generated(config, file.src_uri, content=content))
            for name, picture in pictures.items():
                folder = posixpath.dirname(file.src_uri)
                files.append(File.generated(config, posixpath.join(folder, name), content=picture))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that are right in the repository into links that are right in the site."""
    pages = {path: name for name, path in ELSEWHERE.items()}
    here = ELSEWHERE.get(page.file.src_uri, posixpath.join("docs", page.file.src_uri))

    def turned(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), match[1]))
        if target not in pages and not target.startswith("docs/"):
            raise PluginError(f"{page.file.src_uri} links to {target}, which the site does not have")
        to = pages.get(target, posixpath.relpath(target, "docs"))
        return f"]({posixpath.relpath(to, posixpath.dirname(page.file.src_uri) or '.')}{match[2]})"

    return re.sub(r"\]\((?![a-z]+:|#)([^)#\s]+)([^)\s]*)\)", turned, markdown)


def _execute(path: pathlib.Path) -> tuple[str, dict[str, bytes]]:
    """A notebook with its outputs as Markdown, and its pictures by their file names."""
    notebook = nbformat.read(path, as_version=4)
    quiet = ["--log-level=ERROR"]
    try:
        NotebookClient(notebook, timeout=600, kernel_name="python3", extra_arguments=quiet).execute(cwd=path.parent)
    except CellExecutionError as error:
        raise PluginError(f"{path.name}: {error}") from error
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            data = output.get("data", {})
            if kind := next((kind for kind in ("gif", "png") if f"image/{kind}" in data), None):
                name = f"{path.stem}-{len(pictures) + 1}.{kind}"
                pictures[name] = base64.b64decode(data[f"image/{kind}"])
                parts.append(f"![What the cell above draws.]({name})")
            elif output.get("name") == "stdout" or "text/plain" in data:
                text = data.get("text/plain", output.get("text", ""))
                parts.append(f"```{{.text .output}}\n{text.rstrip()}\n```")
    return "\n\n".join(parts), pictures
