"""Dropout layers for Flax NNX.

Each layer holds a PRNG stream and the options of the function of the same name in `dropcluster_jax`, which it calls.
Arguments of the call take precedence over those of the constructor, as in Flax.

`DropCluster` keeps its clusters in `ClusterVariable`s. They change only in `update_clusters` and `set_clusters`.
"""

import fnmatch
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from dropcluster_jax import masking, uncertainty
from dropcluster_jax.clustering import Clusterer, ClusterState
from dropcluster_jax.masking._corr_drop import CorrVariant
from dropcluster_jax.masking._drop_block import Seeding
from dropcluster_jax.masking._focused_dropout import FocusedRescale
from dropcluster_jax.masking.common import Rate, Rescale, check_input, check_rate, options_of
from dropcluster_jax.masking.fill import Fill
from dropcluster_jax.uncertainty import Link, MonteCarloPrediction

__all__ = [
    "ClusterVariable",
    "CorrDrop",
    "Cutout",
    "DropBlock",
    "DropCluster",
    "DropPath",
    "Dropout",
    "FocusedDropout",
    "SpatialDropout",
    "insert_after",
    "mc_predict",
]

Rngs = nnx.Rngs | nnx.RngStream


@nnx.register_variable_name("clusters")
class ClusterVariable(nnx.Variable[Any]):
    """An array of a `ClusterState`. Filter by this type to split, save, or replicate clusters.

    Example:
        >>> from dropcluster_jax import KMeans
        >>> layer = DropCluster(KMeans(num_clusters=4), (8, 8, 3))
        >>> sorted(nnx.state(layer, ClusterVariable))
        ['explained_variance', 'labels', 'num_skipped', 'num_updates', 'sizes']
    """


class _DropLayer(nnx.Module):
    """Base class of the layers: dataclasses with these fields, and without `eq` and `repr` to keep those of Flax."""

    rate: Rate | None
    deterministic: bool | None
    rng_collection: str
    rngs: Rngs | None

    _function: ClassVar[Callable[..., Array]]

    def __post_init__(self) -> None:
        self.rate = nnx.static(None if self.rate is None else _as_float(self.rate))
        if not isinstance(self.rngs, nnx.Rngs | nnx.RngStream | None):
            raise TypeError(f"rngs must be nnx.Rngs, nnx.RngStream, or None, got {self.rngs!r}")
        stream = self.rngs[self.rng_collection] if isinstance(self.rngs, nnx.Rngs) else self.rngs
        self.rngs = nnx.data(None) if stream is None else stream.fork()

    def __call__(
        self,
        x: Float[Array, "batch ..."],
        *,
        rate: Rate | None = None,
        deterministic: bool | None = None,
        rngs: Rngs | Array | None = None,
    ) -> Float[Array, "batch ..."]:
        """Drops units of `x`. Returns `x` itself if deterministic or if the rate is a Python number equal to 0.

        Arguments default to those of the constructor. `rate` may be traced, and `rngs` may be a PRNG key.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If an argument is invalid, or passed neither to the constructor nor to the call.
        """
        check_input(x, min_ndim=1)
        deterministic = self.deterministic if deterministic is None else deterministic
        if deterministic is None:
            raise ValueError("deterministic must be passed to the constructor or at call time")
        if deterministic:
            return x
        rate = self.rate if rate is None else rate
        if rate is None:
            raise ValueError("rate must be passed to the constructor or at call time")
        check_rate(rate)
        if isinstance(rate, (int, float)) and rate == 0:
            return x
        return self._function(self._key(rngs), x, rate, *self._arguments(), **options_of(self, self._function))

    def _arguments(self) -> tuple[ClusterState, ...]:
        """Returns the other positional arguments of the layer's function."""
        return ()

    def _key(self, rngs: Rngs | Array | None) -> Array:
        rngs = self.rngs if rngs is None else rngs
        if isinstance(rngs, nnx.Rngs):
            return rngs[self.rng_collection]()
        if isinstance(rngs, nnx.RngStream):
            return rngs()
        if isinstance(rngs, Array):
            return rngs
        if rngs is None:
            raise ValueError(
                f"{type(self).__name__} needs a PRNG key. Pass rngs=nnx.Rngs(...) to the constructor or at call time, "
                "or deterministic=True"
            )
        raise TypeError(f"rngs must be nnx.Rngs, nnx.RngStream, or a PRNG key, got {rngs!r}")

    def set_view(self, deterministic: bool | None = None, rate: Rate | None = None) -> None:
        """Sets the mode and the rate. Used by `nnx.view`, whose result may have a traced rate."""
        if deterministic is not None:
            self.deterministic = deterministic
        if rate is not None:
            check_rate(rate)
            self.rate = nnx.static(float(rate)) if isinstance(rate, (int, float)) else nnx.data(rate)


def _as_float(rate: Any) -> float:
    """Converts a rate to a Python number, so that it is not saved with the parameters."""
    check_rate(rate)
    if isinstance(rate, Tracer):
        raise TypeError("rate must be a Python number in the constructor; pass a traced rate at call time")
    return float(rate)


@dataclass(eq=False, repr=False)
class Dropout(_DropLayer):
    """Drops single units. See `dropcluster_jax.dropout`, whose arguments are also arguments of the constructor.

    Args:
        rate: Python number in [0, 1]. Pass a traced rate at call time.
        deterministic: If True, `x` is returned unchanged without a key. Set by `model.train()` and `model.eval()`.
        rng_collection: Name of the PRNG stream.
        rngs: `nnx.Rngs` or `nnx.RngStream`. The layer keeps a fork of its stream.

    Raises:
        TypeError: If `rate` is traced or not a number, or `rngs` is of another type.
        ValueError: If `rate` is outside [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> layer = Dropout(0.5, rngs=nnx.Rngs(0))
        >>> sorted(set(layer(jnp.ones((1, 4, 4, 2))).ravel().tolist()))
        [0.0, 2.0]
    """

    rate: Rate | None = None
    _: KW_ONLY
    deterministic: bool | None = False
    per_channel: bool = True
    per_example: bool = True
    fill: Fill = "zero"
    rescale: Rescale | None = None
    rng_collection: str = "dropout"
    rngs: Rngs | None = None

    _function = staticmethod(masking.dropout)


@dataclass(eq=False, repr=False)
class SpatialDropout(_DropLayer):
    """Drops whole channels. See `dropcluster_jax.spatial_dropout` and `Dropout`."""

    rate: Rate | None = None
    _: KW_ONLY
    deterministic: bool | None = False
    per_example: bool = True
    fill: Fill = "zero"
    rescale: Rescale | None = None
    rng_collection: str = "dropout"
    rngs: Rngs | None = None

    _function = staticmethod(masking.spatial_dropout)


@dataclass(eq=False, repr=False)
class DropPath(_DropLayer):
    """Drops whole examples of a residual branch. See `dropcluster_jax.drop_path` and `Dropout`."""

    rate: Rate | None = None
    _: KW_ONLY
    deterministic: bool | None = False
    per_example: bool = True
    rescale: Rescale = "rate"
    rng_collection: str = "dropout"
    rngs: Rngs | None = None

    _function = staticmethod(masking.drop_path)


@dataclass(eq=False, repr=False)
class Cutout(_DropLayer):
    """Drops one box of positions. See `dropcluster_jax.cutout` and `Dropout`."""

    rate: Rate | None = None
    _: KW_ONLY
    deterministic: bool | None = False
    per_channel: bool = False
    per_example: bool = True
    fill: Fill = "zero"
    rescale: Rescale | None = None
    rng_collection: str = "dropout"
    rngs: Rngs | None = None

    _function = staticmethod(masking.cutout)


@dataclass(eq=False, repr=False)
class DropBlock(_DropLayer):
    """Drops contiguous blocks of positions. See `dropcluster_jax.drop_block` and `Dropout`."""

    rate: Rate | None = None
    _: KW_ONLY
    deterministic: bool | None = False
    block_size: int = 7
    per_channel: bool = False
    per_example: bool = True
    seeding: Seeding = "exact"
    fill: Fill = "zero"
    rescale: Rescale | None = None
    rng_collection: str = "dropout"
    rngs: Rngs | None = None

    _function = staticmethod(masking.drop_block)


@dataclass(eq=False, repr=False)
class CorrDrop(_DropLayer):
    """Drops cells of a grid or channels by their correlation. See `dropcluster_jax.corr_drop` and `Dropout`."""

    rate: Rate | None = None
    _: KW_ONLY
    deterministic: bool | None = False
    variant: CorrVariant = "spatial"
    block_size: int = 7
    fill: Fill = "zero"
    rescale: Rescale | None = None
    rng_collection: str = "dropout"
    rngs: Rngs | None = None

    _function = staticmethod(masking.corr_drop)


@dataclass(eq=False, repr=False)
class FocusedDropout(_DropLayer):
    """Keeps only strong positions, in a fraction of the calls. See `dropcluster_jax.focused_dropout` and `Dropout`.

    `rate` is the fraction of calls in which units are dropped, not the fraction of dropped units.
    """

    rate: Rate | None = None
    _: KW_ONLY
    deterministic: bool | None = False
    threshold_range: tuple[float, float] = (0.3, 0.6)
    rescale: FocusedRescale = "none"
    rng_collection: str = "dropout"
    rngs: Rngs | None = None

    _function = staticmethod(masking.focused_dropout)


@dataclass(eq=False, repr=False)
class DropCluster(_DropLayer):
    """Drops learned clusters of units. See `dropcluster_jax.drop_cluster` and `Dropout`.

    The fields of a `ClusterState` are attributes of the layer. They start as a regular grid of tiles.

    `nnx.view(net, update_clusters=True)` returns a view of a network whose calls first update its clusters.

    Args:
        clusterer: Clusterer that updates the clusters: `KMeans(...)`, `ReNA(...)`, or `Grid(...)`.
        shape: Shape of the activations without the batch, `(*spatial, channels)`, or activations `(batch, *spatial,
            channels)` with this shape. None for a layer that is passed to `insert_after`.
        deterministic: If True, `x` is returned unchanged and may have any resolution.
        axis_name: Mapped axis over which the batch is split (`pmap`, `shard_map`), used by the update.

    Raises:
        TypeError: If `clusterer` is not a clusterer, or as for `Dropout`.
        ValueError: If `rate` is outside [0, 1].

    References:
        Chen, Gautier, Aydore, "DropCluster: A structured dropout for convolutional networks", arXiv:2002.02997v1.

    Example:
        >>> import jax
        >>> from dropcluster_jax import KMeans
        >>> layer = DropCluster(KMeans(num_clusters=4), (8, 8, 3), rngs=nnx.Rngs(0))
        >>> x = jax.random.normal(jax.random.key(0), (16, 8, 8, 3))
        >>> layer.update_clusters(x)
        >>> layer.labels.shape, int(layer.num_updates[...])
        ((8, 8, 1), 1)
        >>> dropped = (layer(x, rate=0.5) == 0)[:, layer.labels[..., 0] == 0]  # units of cluster 0
        >>> bool((dropped.any((1, 2)) == dropped.all((1, 2))).all())  # dropped together in each example
        True
    """

    clusterer: Clusterer
    shape: InitVar[tuple[int, ...] | Array | None] = None
    rate: Rate | None = None
    _: KW_ONLY
    deterministic: bool | None = False
    axis_name: str | None = None
    per_channel: bool = False
    per_example: bool = True
    min_explained_variance: float = 0.0
    fill: Fill = "zero"
    rescale: Rescale | None = None
    rng_collection: str = "dropout"
    rngs: Rngs | None = None
    labels: ClusterVariable = field(init=False)
    sizes: ClusterVariable = field(init=False)
    explained_variance: ClusterVariable = field(init=False)
    num_updates: ClusterVariable = field(init=False)
    num_skipped: ClusterVariable = field(init=False)

    _function = staticmethod(masking.drop_cluster)

    def __post_init__(self, shape: tuple[int, ...] | Array | None) -> None:
        super().__post_init__()
        if not isinstance(self.clusterer, Clusterer) or isinstance(self.clusterer, type):
            raise TypeError(f"clusterer must be a clusterer such as KMeans(num_clusters=16), got {self.clusterer!r}")
        self._is_updating = False
        if shape is not None:
            self.init_clusters(shape if isinstance(shape, tuple | list) else shape.shape[1:])

    def init_clusters(self, shape: Sequence[int]) -> None:
        """Creates a regular grid of tiles for activations of this shape, `(*spatial, channels)`."""
        for name, value in self.clusterer.init(tuple(shape))._asdict().items():
            setattr(self, name, ClusterVariable(value))

    def __call__(
        self,
        x: Float[Array, "batch *spatial channels"],
        *,
        rate: Rate | None = None,
        deterministic: bool | None = None,
        rngs: Rngs | Array | None = None,
    ) -> Float[Array, "batch *spatial channels"]:
        """Drops clusters of `x`. See `Dropout`."""
        if self._is_updating:
            self.update_clusters(x)
        return super().__call__(x, rate=rate, deterministic=deterministic, rngs=rngs)

    def set_view(
        self, deterministic: bool | None = None, rate: Rate | None = None, update_clusters: bool | None = None
    ) -> None:
        """Sets the mode, the rate, and whether calls update the clusters. Used by `nnx.view`."""
        super().set_view(deterministic, rate)
        if update_clusters is not None:
            self._is_updating = update_clusters

    @property
    def clusters(self) -> ClusterState:
        """The clusters as a `ClusterState`."""
        return ClusterState(*(getattr(self, name)[...] for name in ClusterState._fields))

    def set_clusters(self, state: ClusterState) -> None:
        """Replaces the clusters, e.g. by `dropcluster_jax.resize_clusters(layer.clusters, spatial)`."""
        for name, value in state._asdict().items():
            getattr(self, name).set_value(value)

    def update_clusters(self, x: Float[Array, "batch *spatial channels"]) -> None:
        """Updates the clusters on `x`, the input of this layer in evaluation mode for a probe batch."""
        self.set_clusters(self.clusterer.update(self.clusters, x, axis_name=self.axis_name))

    def _arguments(self) -> tuple[ClusterState, ...]:
        return (self.clusters,)


def insert_after(net: nnx.Module, layers: Mapping[str, _DropLayer], *args: Any, **kwargs: Any) -> None:
    """Inserts drop layers after modules of a network, in place, without editing its code.

    Each module that a pattern matches gets a copy of the layer, with a PRNG stream of its own, as its attribute `drop`,
    and its class becomes a subclass whose call ends with it. Paths of parameters do not change. `net.train()`,
    `net.eval()` and `nnx.view(net, rate=rate, update_clusters=True)` reach all layers; the rate may be traced.

    Args:
        net: Network.
        layers: Drop layers of this module by pattern. A pattern is a path of attributes, e.g. `"layer3"` or
            `"blocks/0"`, in which `*` stands for any characters. The first pattern that matches counts.
        args: Input of the network, from which the shapes of clusters are found without computing anything.
        kwargs: Further keyword arguments of its call.

    Raises:
        ValueError: If a pattern matches no module, or a module that it matches was not called.

    Example:
        >>> from dropcluster_jax import KMeans
        >>> rngs = nnx.Rngs(0)
        >>> net = nnx.Sequential(nnx.Conv(3, 4, (3, 3), rngs=rngs), nnx.relu)
        >>> x = jnp.ones((2, 8, 8, 3))
        >>> insert_after(net, {"layers/0": DropCluster(KMeans(num_clusters=4), rngs=rngs)}, x)
        >>> net.layers[0].drop.labels.shape, nnx.view(net, rate=0.5)(x).shape
        ((8, 8, 1), (2, 8, 8, 4))
    """
    modules = _modules_by_path(net)
    matches: dict[str, str] = {}
    for path in modules:
        if pattern := next((pattern for pattern in layers if fnmatch.fnmatchcase(path, pattern)), None):
            matches[path] = pattern
    if unmatched := set(layers) - set(matches.values()):
        raise ValueError(f"layers has the pattern {min(unmatched)!r}, which matches none of {', '.join(modules)}")
    shapes = _output_shapes(net, list(matches), args, kwargs)
    for path, pattern in matches.items():
        layer = nnx.clone(layers[pattern])
        if isinstance(stream := layers[pattern].rngs, nnx.RngStream):
            layer.rngs = stream.fork()
        if isinstance(layer, DropCluster):
            layer.init_clusters(shapes[path])
        _append(modules[path], layer)


def _modules_by_path(net: nnx.Module) -> dict[str, Any]:
    return {"/".join(map(str, path)): module for path, module in nnx.iter_modules(net) if path}


def _output_shapes(
    net: nnx.Module, paths: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of modules' outputs, without the batch, in an abstract call of a copy of the network."""
    shapes: dict[str, tuple[int, ...]] = {}
    graphdef, state = nnx.split(net)

    def call(state: Any, args: Any, kwargs: Any) -> None:
        copy: Any = nnx.merge(graphdef, state)
        modules = _modules_by_path(copy)
        for path in paths:
            _append(modules[path], _Recorder(path, shapes))
        copy(*args, **kwargs)

    jax.eval_shape(call, state, args, kwargs)
    if missing := set(paths) - set(shapes):
        raise ValueError(f"{min(missing)} was not called")
    return shapes


def _append(module: Any, layer: Callable[[Array], Array]) -> None:
    if hasattr(module, "drop"):
        raise ValueError(f"{type(module).__name__} must not have the attribute drop, to which the layer is assigned")
    module.__class__ = _class_with_layer(type(module))
    module.drop = nnx.data(layer)


@functools.cache
def _class_with_layer(kind: Any) -> Any:
    """Returns a subclass, the same one for each class, so that equal networks share compiled programs."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Array:
        return self.drop(kind.__call__(self, *args, **kwargs))

    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__call__": call}
    return type(kind)(kind.__name__, (kind,), names)


@dataclass(frozen=True)
class _Recorder:
    """Records the shape of an output instead of dropping units."""

    path: str
    shapes: dict[str, tuple[int, ...]] = field(hash=False)

    def __call__(self, x: Array) -> Array:
        self.shapes[self.path] = x.shape[1:]
        return x


def mc_predict(
    module: nnx.Module,
    x: PyTree,
    key: Array,
    samples: int,
    *,
    link: Link = "softmax",
    chunk: int = 1,
    **kwargs: Any,
) -> MonteCarloPrediction:
    """Predicts under many dropout masks (Monte Carlo dropout). See `dropcluster_jax.mc_predict`.

    Each mask has a key of its own in every stream of the module, whatever its streams hold. The module is not changed.

    Args:
        module: Network with dropout on and BatchNorm frozen, e.g. `nnx.view(net, deterministic=False,
            use_running_average=True)`.
        x: Input, a pytree of arrays.
        key: PRNG key, split into one key per mask.
        samples: Number of masks, at least 1.
        link: See `dropcluster_jax.mc_predict`.
        chunk: Number of masks computed in parallel, at least 1.
        **kwargs: Hashable keyword arguments of the module's call, e.g. `rate=0.1`.

    Raises:
        ValueError: See `dropcluster_jax.mc_predict`.

    Example:
        >>> rngs = nnx.Rngs(0)
        >>> net = nnx.Sequential(Dropout(0.5, deterministic=False, rngs=rngs), nnx.Linear(4, 3, rngs=rngs))
        >>> prediction = mc_predict(net, jnp.ones((2, 4)), jax.random.key(0), 10)
        >>> prediction.mean.shape, bool((prediction.mutual_information > 0).all())
        ((2, 3), True)
    """
    graphdef, streams, variables = nnx.split(module, nnx.RngState, ...)
    apply = _Apply(graphdef, tuple(kwargs.items()))
    return uncertainty.mc_predict(apply, (streams, variables), x, key, samples, link=link, chunk=chunk)


@dataclass(frozen=True)
class _Apply:
    """Calls a module with new keys in all its streams. Hashable, so that equal modules share a compiled program."""

    graphdef: Any
    kwargs: tuple[tuple[str, Any], ...]

    def __call__(self, variables: tuple[PyTree, PyTree], x: PyTree, rngs: dict[str, Array]) -> Any:
        streams, rest = variables
        leaves, structure = jax.tree.flatten(streams)
        seeded = [
            jax.random.fold_in(rngs["dropout"], index)
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else jnp.zeros_like(leaf)  # the number of keys that a stream has given
            for index, leaf in enumerate(leaves)
        ]
        return nnx.merge(self.graphdef, jax.tree.unflatten(structure, seeded), rest)(x, **dict(self.kwargs))
