"""Datasets of image files with one folder per class."""

import pathlib
import unicodedata

import numpy as np

from dropcluster_jax.data.config import DataConfig
from dropcluster_jax.data.dataset import Dataset
from dropcluster_jax.data.decoding import CorruptImageError
from dropcluster_jax.data.examples import FileExamples

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
# Names of the splits, in any case; of several test folders, the first is used.
_TRAIN_FOLDERS = ("train", "training")
_TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")
# What operating systems and network storage leave behind, in any case; ignored like hidden files.
_SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir")


def load_folder(config: DataConfig) -> Dataset:
    """Lists the images of a folder; those that are not in the folder of a class are an error or `skipped`.

    Without a test split, `test` is `train`.
    """
    root = config.path
    if not root.is_dir():
        raise FileNotFoundError(f"{config.name!r} was not found: {root} is not a folder with one folder per class")
    train_folder = _find_folder(root, _TRAIN_FOLDERS)
    test_folder = _find_folder(root, _TEST_FOLDERS if config.test_split is None else (config.test_split.lower(),))
    if config.test_split is not None and (train_folder is None or test_folder is None):
        raise ValueError(f"test_split must be a folder next to train in {root}, got {config.test_split!r}")
    if train_folder is None or test_folder is None:
        if train_folder is not None and any(entry.is_dir() for entry in _visible(train_folder)):
            raise ValueError(
                f"{root} contains {train_folder.name} but no test split: add a folder {', '.join(_TEST_FOLDERS[:-1])} "
                f"or {_TEST_FOLDERS[-1]}, or split the training images with folder:{train_folder}"
            )
        train_folder, test_folder = root, None
    files, problems = _list_classes(train_folder)
    classes = tuple(sorted(files))
    train = test = _label(files, classes)
    if test_folder is not None:
        test_files, test_problems = _list_classes(test_folder)
        if unknown := sorted(set(test_files) - set(files)):
            raise ValueError(
                f"{unknown[0]} in {test_folder} is not a class of {train_folder}, which has {', '.join(classes)}"
            )
        problems, test = problems + test_problems, _label(test_files, classes)
    if problems and not config.skip_corrupt:
        raise CorruptImageError(problems[0])
    return Dataset(config.name, train, test, classes, config.image_size, skipped=tuple(problems))


def _visible(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the entries of a folder by name, without hidden files and those of the system."""
    names = sorted(path.name for path in folder.iterdir())
    return [folder / name for name in names if not name.startswith(".") and name.lower() not in _SYSTEM_FILES]


def _find_folder(root: pathlib.Path, names: tuple[str, ...]) -> pathlib.Path | None:
    folders = {path.name.lower(): path for path in _visible(root) if path.is_dir()}
    return next((folders[name] for name in names if name in folders), None)


def _list_classes(folder: pathlib.Path) -> tuple[dict[str, list[str]], list[str]]:
    """Returns the image files of each class, and what is wrong with anything else that is visible."""
    classes: dict[str, list[str]] = {}
    problems = []
    for entry in _visible(folder):
        if not entry.is_dir():
            problems.append(f"{entry} is not in the folder of a class")
            continue
        images = []
        for file in _files(entry, (folder.resolve(),)):
            if file.suffix.lower() in _SUFFIXES and (file.is_file() or not file.exists()):
                images.append(str(file))
            else:
                problems.append(f"{file} is not a file with the suffix of a JPEG, PNG or WebP image")
        if images:  # Names that only look the same are one class, e.g. of files copied from macOS.
            classes.setdefault(unicodedata.normalize("NFC", entry.name), []).extend(images)
        else:
            problems.append(f"{entry} is the folder of a class but contains no images")
    if not classes:
        raise ValueError(f"{folder} contains no folders with images")
    return classes, problems


def _files(folder: pathlib.Path, parents: tuple[pathlib.Path, ...] = ()) -> list[pathlib.Path]:
    """Returns what a folder and its subfolders contain, in order; links to a parent are not followed."""
    parents = (*parents, folder.resolve())
    entries = [(entry, entry.is_dir()) for entry in _visible(folder)]
    return [
        file
        for entry, is_folder in entries
        if not is_folder or entry.resolve() not in parents
        for file in (_files(entry, parents) if is_folder else [entry])
    ]


def _label(files: dict[str, list[str]], classes: tuple[str, ...]) -> FileExamples:
    labeled = [(path, label) for label, name in enumerate(classes) for path in files.get(name, [])]
    return FileExamples([path for path, _ in labeled], np.array([label for _, label in labeled], np.int32))
