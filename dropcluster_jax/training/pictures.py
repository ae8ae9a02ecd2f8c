"""Pictures of what a run has learned: what `dropcluster clusters` and `dropcluster plot` draw."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from dropcluster_jax import viz
from dropcluster_jax.clustering import ClusterState
from dropcluster_jax.data import normalize
from dropcluster_jax.masking import drop_block_mask, drop_cluster_mask, dropout_mask, spatial_dropout_mask
from dropcluster_jax.training import history, layers
from dropcluster_jax.training.config import DropConfig
from dropcluster_jax.training.folder import is_run, read_config, read_records
from dropcluster_jax.training.run import open_data
from dropcluster_jax.training.saved import load_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DRAWS = 32


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
        ValueError: the run has no clusters, or `out` is a file.
        FileNotFoundError, NoSoundCheckpointError, ImportError: as of `load_run` and `run.prepare`.
    """
    path = pathlib.Path(folder)
    config, _ = read_config(path)
    if config.drop.method != "cluster":
        raise ValueError(f"{path} has no clusters: it was trained with drop.method {config.drop.method}")
    pictures = pathlib.Path(out) if out is not None else path / "pictures"
    if pictures.exists() and not pictures.is_dir():
        raise ValueError(f"out must be a folder, got the file {pictures}")
    tell("opening the run")
    run = load_run(path, best=best, say=say)
    if data_dir is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, dir=data_dir))
    tell("opening its images")
    _, road = open_data(config)
    images = np.asarray(road.probe(config.drop.probe_size, 0)["image"])
    tell("drawing")
    files = []

    def save(name: str, figure: "Figure") -> None:
        pictures.mkdir(parents=True, exist_ok=True)
        files.append(pictures / name)
        figure.savefig(files[-1], dpi=layers.DPI)

    name = f"{config.model} on {config.data.name}"
    drawn = layers.clusters_and_maps(run.model, run.variables, normalize(images, run.mean, run.std))
    save("clusters.png", viz.cluster_figure(drawn, title=f"{name}, step {run.step:,}"))
    for place, (clusters, x) in drawn.items():
        title = f"{place}: one image, one draw at the rate {rate:g}"
        masks = _masks(x[:1], clusters, rate, config.drop)
        save(f"masks-{place}.png", viz.mask_figure(x[0], masks, np.asarray(clusters.labels), images[0], title=title))
    records = read_records(path / "metrics.jsonl")
    if any(record["event"] == "clusters" for record in records):
        save("quality.png", viz.quality_figure(records, title=name))
    if (path / history.FILE).is_file() and (labels := history.read_history(path)):
        if config.drop.per_channel:
            name += ", channel 0"
        save("history.png", viz.cluster_history_figure(labels, title=name))
        tell("drawing the animation")
        files.append(pictures / "history.gif")
        viz.cluster_animation(files[-1], labels, title=name)
    return sorted(files)


def _masks(x: np.ndarray, clusters: ClusterState, rate: float, drop: DropConfig) -> dict[str, np.ndarray]:
    """What each method would drop of one example: a mask `(height, width, channels or 1)` for its name.

    Of several draws the one whose share is nearest to the rate, over all channels and over the two that are drawn.
    """
    units, clusters = jnp.asarray(x), jax.device_put(clusters)
    side = min(drop.block_size, *x.shape[1:3])
    drawn = np.argsort(x[0].std(axis=(0, 1)), kind="stable")[-2:]
    methods: dict[str, Callable[[jax.Array], jax.Array]] = {
        "dropout": lambda key: dropout_mask(key, units, rate),
        "spatial dropout": lambda key: spatial_dropout_mask(key, units, rate),
        f"DropBlock {side}x{side}": lambda key: drop_block_mask(
            key, units, rate, block_size=side, per_channel=drop.per_channel
        ),
        "DropCluster": lambda key: drop_cluster_mask(key, units, rate, clusters, min_explained=drop.min_explained),
    }
    found = {}
    for name, draw in methods.items():
        masks = np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(0), _DRAWS)))[:, 0]
        masks = np.broadcast_to(masks, (_DRAWS, *x.shape[1:]))
        shares = [1 - masks.mean(axis=(1, 2, 3)), 1 - masks[..., drawn].mean(axis=(1, 2, 3))]
        found[name] = masks[np.argmin(sum(np.abs(share - rate) for share in shares))]
    return found


def draw_curves_of(folders: Iterable[str | os.PathLike[str]]) -> "Figure":
    """The learning curves of runs, finished or not, each named by its folder.

    Args:
        folders: of the runs.

    Raises:
        FileNotFoundError: a folder holds no run.
        ValueError: a run has no record of training yet, or its files are damaged.
        ImportError: Matplotlib is not installed.
    """
    paths = list(dict.fromkeys(pathlib.Path(folder) for folder in folders))
    for path in paths:
        if not is_run(path):
            raise FileNotFoundError(f"{path} holds no run: there is no config.json of one")
        if not (path / "metrics.jsonl").is_file():
            raise ValueError(f"{path} has nothing to draw yet: there is no metrics.jsonl")
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return viz.curve_figure(
        {name: read_records(path / "metrics.jsonl") for name, path in zip(names, paths, strict=True)}
    )
