"""The clusters of a run over the course of training: `clusters.jsonl`, a line for each update."""

import base64
import os
import pathlib
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from dropcluster_jax.clustering import ClusterState
from dropcluster_jax.training.folder import read_records

FILE = "clusters.jsonl"


def record(step: int, clusters: Mapping[str, ClusterState]) -> dict[str, Any]:
    """A line: the step, and for each layer its labels, compressed.

    Args:
        step: after which the clusters were learned; 0 for those that a run begins with.
        clusters: for each layer's name its state.

    Example:
        >>> from dropcluster_jax import Grid
        >>> line = record(20, {"stage1": Grid(num_clusters=4).init((4, 4, 8))})
        >>> line["step"], line["layers"]["stage1"]["shape"]
        (20, [4, 4, 1])
    """
    return {"step": step, "layers": {layer: _encoded(np.asarray(state.labels)) for layer, state in clusters.items()}}


def read_history(folder: str | os.PathLike[str]) -> dict[str, list[tuple[int, np.ndarray]]]:
    r"""The clusters of a run over the course of training, as `viz.cluster_history_figure` takes them.

    Args:
        folder: of the run, finished or not.

    Returns:
        For each place, from the input to the output, its `(step, labels)`: first the grid at step 0, then what each
        update made of it; labels are int32 `(height, width, 1 or channels)`.

    Raises:
        FileNotFoundError: there is no such file, as in runs without clusters.
        ValueError: it is damaged.

    Example:
        >>> import json, tempfile
        >>> from dropcluster_jax import Grid
        >>> state = Grid(num_clusters=4).init((4, 4, 8))
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / FILE).write_text(json.dumps(record(20, {"stage1": state})) + "\n")
        >>> [(step, labels)] = read_history(folder)["stage1"]
        >>> step, bool((labels == state.labels).all())
        (20, True)
    """
    path = pathlib.Path(folder) / FILE
    found: dict[str, list[tuple[int, np.ndarray]]] = {}
    try:
        for step, labels in steps(read_records(path)):
            for layer, each in labels.items():
                found.setdefault(layer, []).append((step, each))
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from None
    return found


def steps(lines: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Of each line the step, and for each layer its labels."""
    for line in lines:
        yield line["step"], {layer: _decoded(encoded) for layer, encoded in line["layers"].items()}


def _encoded(labels: np.ndarray) -> dict[str, Any]:
    packed = zlib.compress(labels.astype("<i4").tobytes())
    return {"shape": list(labels.shape), "labels": base64.b64encode(packed).decode()}


def _decoded(encoded: Mapping[str, Any]) -> np.ndarray:
    flat = np.frombuffer(zlib.decompress(base64.b64decode(encoded["labels"])), "<i4")
    return flat.reshape(encoded["shape"]).astype(np.int32)
