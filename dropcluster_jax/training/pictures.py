"""Pictures of what a run has learned: what `dropcluster clusters` and `dropcluster plot` draw."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from dropcluster_jax.clustering import ClusterState
from dropcluster_jax.data import normalize
from dropcluster_jax.masking import drop_block_mask, drop_cluster_mask, dropout_mask, spatial_dropout_mask
from dropcluster_jax.training import history, layers
from dropcluster_jax.training.config import DropConfig
from dropcluster_jax.training.folder import read_config, read_records
from dropcluster_jax.training.run import open_data
from dropcluster_jax.training.saved import load_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 130


def draw_clusters_of(
    folder: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    best: bool = False,
    rate: float = 0.3,
    data_dir: pathlib.Path | None = None,
    tell: Callable[[str], None] = lambda what: None,
    say: Callable[[str], None] = print,
) -> list[pathlib.Path]:
    """Draw the clusters of a run: over activations, over the course of training, and what a mask drops.

    Args:
        folder: of the run, finished or not.
        out: where the pictures go; else `pictures/` in the run folder.
        best: take the checkpoint with the best test accuracy, not the newest.
        rate: the share that the masks drop which are drawn side by side, in [0, 1].
        data_dir: where TFDS has prepared the data, if not where the run had it.
        tell: called with what is going on, before each part that takes long.
        say: called with a message where a checkpoint is damaged.

    Returns:
        The files: `clusters.png`; `masks-PLACE.png` of each place; and, of runs that were trained by this version,
        `history.png`, `history.gif` and `quality.png`.

    Raises:
        ValueError: the run has no clusters.
        FileNotFoundError, NoSoundCheckpointError, ImportError: as of `load_run` and `run.prepare`.
    """
    from dropcluster_jax import viz

    path = pathlib.Path(folder)
    config, _ = read_config(path)
    if config.drop.method != "cluster":
        raise ValueError(f"{path} has no clusters: it was trained with drop.method {config.drop.method}")
    tell("opening the run")
    run = load_run(path, best=best, say=say)
    if data_dir is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, dir=data_dir))
    tell("opening its images")
    _, road = open_data(config)
    images = np.asarray(road.probe(config.drop.probe_size, 0)["image"])
    tell("drawing")
    found = layers.cluster_layers(run.model, run.variables["clusters"])
    maps = layers.activations(run.model, run.variables, normalize(images, run.mean, run.std))
    title = f"{config.model} on {config.data.name}, step {run.step:,}"
    figures = {"clusters.png": viz.cluster_figure({place: (found[place], maps[place]) for place in found}, title=title)}
    for place, clusters in found.items():
        masks = example_masks(maps[place][:1], clusters, rate, config.drop)
        figures[f"masks-{place}.png"] = viz.mask_figure(
            maps[place][0], masks, np.asarray(clusters.labels), images[0], title=f"{place}, asked to drop {rate:g}"
        )

    pictures = pathlib.Path(out) if out is not None else path / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    animated = []
    if (path / history.FILE).is_file():
        labels = history.read_history(path)
        figures["history.png"] = viz.cluster_history_figure(labels, title=f"{config.model} on {config.data.name}")
        tell("drawing the animation")
        viz.cluster_animation(pictures / "history.gif", labels, title=config.data.name)
        animated.append(pictures / "history.gif")
    records = read_records(path / "metrics.jsonl")
    if any(record["event"] == "clusters" for record in records):
        figures["quality.png"] = viz.quality_figure(records, title=f"{config.model} on {config.data.name}")
    for name, figure in figures.items():
        figure.savefig(pictures / name, dpi=_DPI)
    return sorted([*(pictures / name for name in figures), *animated])


def example_masks(x: np.ndarray, clusters: ClusterState, rate: float, drop: DropConfig) -> dict[str, np.ndarray]:
    """What each method would drop of one example: a mask `(height, width, channels or 1)` for its name.

    Args:
        x: activations `(1, height, width, channels)`.
        clusters: of the layer.
        rate: the share that is dropped, in [0, 1].
        drop: the size of blocks, and whether each channel has its own.
    """
    key, units, clusters = jax.random.key(0), jnp.asarray(x), jax.device_put(clusters)
    side = min(drop.block_size, *x.shape[1:3])
    masks = {
        "dropout": dropout_mask(key, units, rate),
        "spatial dropout": spatial_dropout_mask(key, units, rate),
        f"DropBlock {side}x{side}": drop_block_mask(key, units, rate, block_size=side, per_channel=drop.per_channel),
        "DropCluster": drop_cluster_mask(key, units, rate, clusters),
    }
    return {name: np.asarray(mask)[0] for name, mask in masks.items()}


def draw_curves_of(folders: Iterable[str | os.PathLike[str]]) -> "Figure":
    """The learning curves of runs, finished or not, each named by its folder.

    Args:
        folders: of the runs.

    Raises:
        FileNotFoundError: a folder holds no run.
        ValueError: a run has no record of training yet, or its files are damaged.
        ImportError: Matplotlib is not installed.
    """
    from dropcluster_jax.viz import curve_figure

    paths = [pathlib.Path(folder) for folder in folders]
    for path in paths:
        read_config(path)
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return curve_figure({name: read_records(path / "metrics.jsonl") for name, path in zip(names, paths, strict=True)})
