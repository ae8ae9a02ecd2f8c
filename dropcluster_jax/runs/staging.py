"""Local copies of folders in object stores, for files that are appended to or that other packages write."""

import pathlib
import tempfile
from collections.abc import Iterable
from typing import Self

from dropcluster_jax.runs.paths import AnyPath, as_os_error, children, file_system, remove_folder


class Staging:
    """A local folder whose files are uploaded to a folder in an object store; a context manager.

    Objects cannot be appended to, so each upload replaces the objects of the files that have changed. For a local
    folder, `local` is the folder itself, and nothing is copied.

    Args:
        folder: Local folder, or folder in an object store.

    Attributes:
        local: Folder to write to; a temporary one for object stores.
    """

    def __init__(self, folder: AnyPath) -> None:
        self._remote: AnyPath | None = None
        self._uploaded: dict[pathlib.Path, tuple[int, int]] = {}
        if isinstance(folder, pathlib.Path):
            self.local = folder
            return
        self._remote = folder
        self._temporary = tempfile.TemporaryDirectory(prefix="dropcluster-")
        self.local = pathlib.Path(self._temporary.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes the temporary folder, including what was not uploaded."""
        if self._remote is not None:
            self._temporary.cleanup()

    def download(self, names: Iterable[str]) -> None:
        """Downloads files and folders, if they exist."""
        if self._remote is None:
            return
        with as_os_error(self._remote):
            store, root = file_system(self._remote)
            files = [file for name in names for file in store.find(f"{root}/{name}")]
            targets = [self.local / pathlib.PurePosixPath(file).relative_to(root) for file in files]
            for target in targets:
                target.parent.mkdir(parents=True, exist_ok=True)
            store.get(files, [str(target) for target in targets])
        self._uploaded |= {target: _signature(target) for target in targets}

    def upload(self, last: str) -> None:
        """Uploads new and changed files; those named `last`, which mark the others as complete, after all others."""
        if self._remote is None:
            return
        files = [path for path in self.local.rglob("*") if path.is_file()]
        changed = {path: _signature(path) for path in files if self._uploaded.get(path) != _signature(path)}
        with as_os_error(self._remote):
            store, root = file_system(self._remote)
            for batch in ([p for p in changed if p.name != last], [p for p in changed if p.name == last]):
                targets = [f"{root}/{path.relative_to(self.local).as_posix()}" for path in batch]
                store.put([str(path) for path in batch], targets)
        self._uploaded |= changed

    def remove_missing_folders(self) -> None:
        """Removes folders from the object store that the local folder does not contain."""
        if self._remote is None:
            return
        for path in children(self._remote):
            if not (self.local / path.name).exists():
                remove_folder(path)


def _signature(path: pathlib.Path) -> tuple[int, int]:
    """Returns the size and modification time of a file, which change when it is written to."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns
