"""Figures of a run: its clusters, their history, masks, and learning curves."""

import dataclasses
import io
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float, PyTree

from dropcluster_jax import viz
from dropcluster_jax.clustering import ClusterState
from dropcluster_jax.data import normalize
from dropcluster_jax.linen import DropCluster, cluster_inputs, cluster_states
from dropcluster_jax.masking import drop_block_mask, drop_cluster_mask, dropout_mask, spatial_dropout_mask
from dropcluster_jax.models import ResNet
from dropcluster_jax.runs import folder as run_folder
from dropcluster_jax.runs.config import DropConfig, as_path
from dropcluster_jax.runs.load import load_run, open_run_data
from dropcluster_jax.runs.log import read_entries, read_history
from dropcluster_jax.training.cluster_metrics import mean_adjusted_rand_index

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 130
_NUM_CANDIDATE_MASKS = 32


def clusters_by_place(model: ResNet, clusters: PyTree) -> dict[str, ClusterState]:
    """Returns the clusters of each place on the host, given the collection "clusters" of the variables."""
    states = cluster_states(jax.device_get(clusters))
    return {place: states[name] for place, name in model.drop_layer_names.items() if name in states}


def clusters_and_inputs(
    model: ResNet, variables: PyTree, images: Float[Array, "batch height width channels"]
) -> dict[str, tuple[ClusterState, np.ndarray]]:
    """Returns, for each place, the clusters and the input activations in evaluation mode, for `viz.cluster_figure`."""
    inputs = jax.device_get(jax.jit(lambda variables, x: cluster_inputs(model, variables, x))(variables, images))
    clusters = clusters_by_place(model, variables["clusters"])
    return {place: (state, inputs[model.drop_layer_names[place]]) for place, state in clusters.items()}


def summarize_clusters(model: ResNet, clusters: PyTree) -> dict[str, dict[str, Any]]:
    """Returns statistics of each place's clusters; `ari_with_grid` is the adjusted Rand index with the initial grid."""
    return {
        place: {
            "num_updates": int(np.max(state.num_updates)),
            "num_skipped": int(np.max(state.num_skipped)),
            "explained_variance": float(np.mean(state.explained_variance)),
            "ari_with_grid": mean_adjusted_rand_index(state, _initial_clusters(model, place, state)),
        }
        for place, state in clusters_by_place(model, clusters).items()
    }


def _initial_clusters(model: ResNet, place: str, state: ClusterState) -> ClusterState:
    layer = model.drop[place]
    assert isinstance(layer, DropCluster)
    return jax.device_get(layer.clusterer.init(state.labels.shape))


def save_figure(figure: "Figure", path: epath.Path, dpi: int = DPI) -> None:
    """Writes a figure to a file, which stays as it is if that fails. The suffix determines the format."""
    content = io.BytesIO()
    figure.savefig(content, dpi=dpi, format=path.suffix.removeprefix(".") or None)
    run_folder.write_file(path, content.getvalue())


def draw_run_clusters(
    folder: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    best: bool = False,
    rate: float = 0.3,
    data_dir: str | None = None,
    allow_changed_data: bool = False,
    on_progress: Callable[[str], None] = lambda task: None,
    notify: Callable[[str], None] = print,
) -> list[epath.Path]:
    """Draws the clusters of a run: over activations, over the course of training, and as masks at a rate.

    Returns the files in `out`, by default `pictures/` in the run folder: `clusters.png`, `masks-PLACE.png` for each
    place, `quality.png`, `history.png` and `history.gif`. `on_progress` is called before each long task.

    Raises:
        ValueError: If the run has no clusters, `out` is a file, or the data have changed, unless that is allowed.
        FileNotFoundError, CorruptCheckpointError, ImportError: As in `load_run` and `data.load`.
    """
    path = as_path(folder)
    config, _ = run_folder.read_config(path)
    if config.drop.method != "drop_cluster":
        raise ValueError(f"{path} has no clusters: it was trained with drop.method {config.drop.method}")
    pictures = as_path(out) if out is not None else path / run_folder.PICTURES
    if pictures.exists() and not pictures.is_dir():
        raise ValueError(f"out must be a folder, got the file {pictures}")
    on_progress("loading the run")
    loaded = load_run(path, best=best, notify=notify)
    if data_dir is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, dir=data_dir))
    on_progress("loading images")
    _, loader, _ = open_run_data(config, loaded.spec, allow_changed_data, notify)
    images = np.asarray(loader.probe(config.drop.probe_size, 0)["image"])
    on_progress("drawing")
    title = f"{config.model} on {config.data.name}"
    normalized = normalize(images, loaded.spec.mean, loaded.spec.std)
    drawn = clusters_and_inputs(loaded.model, loaded.variables, normalized)
    files: list[epath.Path] = []

    def save(name: str, figure: "Figure") -> None:
        files.append(pictures / name)
        save_figure(figure, files[-1])

    save("clusters.png", viz.cluster_figure(drawn, title=f"{title}, step {loaded.step:,}"))
    for place, (clusters, x) in drawn.items():
        masks = _example_masks(x[:1], clusters, rate, config.drop)
        mask_title = f"{place}: one image, one mask per method at rate {rate:g}"
        figure = viz.mask_figure(x[0], masks, np.asarray(clusters.labels), images[0], title=mask_title)
        save(f"masks-{place}.png", figure)
    entries = read_entries(path / run_folder.METRICS)
    if any(entry["event"] == "clusters" for entry in entries):
        save("quality.png", viz.quality_figure(entries, title=title))
    if (path / run_folder.CLUSTERS).exists() and (history := read_history(path)):
        if config.drop.per_channel:
            title += ", channel 0"
        save("history.png", viz.cluster_history_figure(history, title=title))
        on_progress("drawing the animation")
        files.append(pictures / "history.gif")
        with tempfile.TemporaryDirectory() as temporary:
            animation = pathlib.Path(temporary, "history.gif")
            viz.cluster_animation(animation, history, title=title)
            run_folder.write_file(files[-1], animation.read_bytes())
    return sorted(files)


def _example_masks(x: np.ndarray, clusters: ClusterState, rate: float, drop: DropConfig) -> dict[str, np.ndarray]:
    """Returns a mask `(height, width, channels)` of one example for each method.

    Of several random masks it is the one whose dropped fraction is closest to the rate, over all channels and over the
    two that are drawn.
    """
    units, clusters = jnp.asarray(x), jax.device_put(clusters)
    side = min(drop.block_size, *x.shape[1:3])
    drawn_channels = np.argsort(x[0].std(axis=(0, 1)), kind="stable")[-2:]
    methods: dict[str, Callable[[jax.Array], jax.Array]] = {
        "dropout": lambda key: dropout_mask(key, units, rate),
        "spatial dropout": lambda key: spatial_dropout_mask(key, units, rate),
        f"DropBlock {side}x{side}": lambda key: drop_block_mask(
            key, units, rate, block_size=side, per_channel=drop.per_channel
        ),
        "DropCluster": lambda key: drop_cluster_mask(
            key, units, rate, clusters, min_explained_variance=drop.min_explained_variance
        ),
    }
    chosen = {}
    for name, draw in methods.items():
        masks = np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(0), _NUM_CANDIDATE_MASKS)))[:, 0]
        masks = np.broadcast_to(masks, (_NUM_CANDIDATE_MASKS, *x.shape[1:]))
        fractions = [1 - masks.mean(axis=(1, 2, 3)), 1 - masks[..., drawn_channels].mean(axis=(1, 2, 3))]
        chosen[name] = masks[np.argmin(sum(np.abs(fraction - rate) for fraction in fractions))]
    return chosen


def draw_run_curves(folders: Iterable[str | os.PathLike[str]]) -> "Figure":
    """Draws the learning curves of runs, labeled by their folders."""
    runs = list(dict.fromkeys(map(as_path, folders)))
    for path in runs:
        if not run_folder.is_run(path):
            raise FileNotFoundError(f"{path} is not a run folder: it has no {run_folder.CONFIG} of a run")
        if not (path / run_folder.METRICS).exists():
            raise ValueError(f"{path} has nothing to draw yet: no {run_folder.METRICS}")
    names = [path.resolve().name for path in runs]
    if len(set(names)) < len(names):
        names = [str(path) for path in runs]
    entries = [read_entries(path / run_folder.METRICS) for path in runs]
    try:
        return viz.curve_figure(dict(zip(names, entries, strict=True)))
    except (KeyError, TypeError) as error:
        raise ValueError(f"the {run_folder.METRICS} of a run is damaged: {error!r}") from None
