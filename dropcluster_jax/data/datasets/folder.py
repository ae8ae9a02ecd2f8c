"""Images from a folder: a sub-folder for each class, in folders for training and test or undivided."""

import pathlib

import numpy as np

from dropcluster_jax.cache import cached, fingerprint
from dropcluster_jax.data.dataset import Dataset
from dropcluster_jax.data.decoding import CorruptImageError
from dropcluster_jax.data.examples import ArrayExamples, FileExamples, decode_all, unequal
from dropcluster_jax.data.subsets import stratified_split

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_TEST_FOLDERS = ("test", "val", "validation")


def load_folder(
    name: str, root: pathlib.Path, *, test_fraction: float | None, image_size: int | None, skip_corrupt: bool
) -> Dataset:
    """The images as files; without an `image_size`, decoded into memory, or from the cache."""
    if not root.is_dir():
        raise FileNotFoundError(f"{name!r} is not there: {root} is no folder; it should hold a folder for each class")
    skipped: list[str] = []
    tests = [root / folder for folder in _TEST_FOLDERS if (root / folder).is_dir()]
    divided = (root / "train").is_dir() and bool(tests)
    if divided and test_fraction is not None:
        raise ValueError(f"test_fraction is for examples that come undivided, {root} has train and {tests[0].name}")
    if divided:
        files = _list_classes(root / "train", skip_corrupt, skipped)
        test_files = _list_classes(tests[0], skip_corrupt, skipped)
        classes = tuple(sorted(files))
        if strange := sorted(set(test_files) - set(files)):
            raise ValueError(f"{tests[0] / strange[0]} is no class of {root / 'train'}, which has {', '.join(classes)}")
        train, test = (_examples(part, classes) for part in (files, test_files))
    else:
        files = _list_classes(root, skip_corrupt, skipped)
        classes = tuple(sorted(files))
        whole = _examples(files, classes)
        train, test = (
            whole.take(part) for part in stratified_split(whole.labels, 0.2 if test_fraction is None else test_fraction)
        )
    if image_size is not None:
        return Dataset(name, train, test, classes, image_size, skipped=tuple(skipped))
    (train, bad), (test, also_bad) = (
        _decode(f"{name}, {part}", examples, len(classes), skip_corrupt)
        for part, examples in (("train", train), ("test", test))
    )
    if train.shape != test.shape:
        raise unequal(name, [train.shape, test.shape])
    return Dataset(name, train, test, classes, skipped=(*skipped, *bad, *also_bad))


def _list_classes(folder: pathlib.Path, skip_corrupt: bool, skipped: list[str]) -> dict[str, list[str]]:
    """The image files of each class; what is neither adds to `skipped`, or is refused. Hidden files do not count."""

    def refuse(message: str) -> None:
        if not skip_corrupt:
            raise CorruptImageError(message)
        skipped.append(message)

    classes: dict[str, list[str]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            refuse(f"{entry} lies beside the folders of classes")
            continue
        files = []
        for file in sorted(entry.iterdir()):
            if file.name.startswith("."):
                continue
            if file.suffix.lower() in _SUFFIXES and not file.is_dir():
                files.append(str(file))
            else:
                refuse(f"{file} is no JPEG, PNG or WebP image by its name")
        if files:
            classes[entry.name] = files
        else:
            refuse(f"{entry} is the folder of a class, and holds no image")
    if not classes:
        raise ValueError(f"{folder} holds no folder of a class with images")
    return classes


def _examples(files: dict[str, list[str]], classes: tuple[str, ...]) -> FileExamples:
    labeled = [(path, label) for label, name in enumerate(classes) for path in files.get(name, [])]
    paths, labels = zip(*labeled, strict=True)
    return FileExamples(list(paths), np.array(labels, np.int32))


def _decode(name: str, examples: FileExamples, num_classes: int, skip_corrupt: bool) -> tuple[ArrayExamples, list[str]]:
    def decoded() -> dict[str, np.ndarray]:
        arrays, skipped = decode_all(name, examples, 3, num_classes, skip_corrupt)
        return {"images": arrays.images, "labels": arrays.labels, "skipped": np.array(skipped, str)}

    key = [skip_corrupt, [fingerprint(path) for path in examples.paths], examples.labels.tolist()]
    found = cached("folder", key, decoded)
    return ArrayExamples(found["images"], found["labels"]), found["skipped"].tolist()
