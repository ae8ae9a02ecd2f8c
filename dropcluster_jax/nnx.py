"""Dropout layers for Flax NNX.

Each layer holds a PRNG stream and the options of the function of the same name in `dropcluster_jax`, which it calls.
Arguments of the call take precedence over those of the constructor, as in Flax.

`DropCluster` keeps its clusters in `ClusterVariable`s. They change only in `update_clusters` and `set_clusters`.
"""

from collections.abc import Callable
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
        """Sets the mode and the rate, a Python number in [0, 1]. Used by `nnx.view`."""
        if deterministic is not None:
            self.deterministic = deterministic
        if rate is not None:
            self.rate = _as_float(rate)


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

    Args:
        clusterer: Clusterer that updates the clusters: `KMeans(...)`, `ReNA(...)`, or `Grid(...)`.
        shape: Shape of the activations without the batch, `(*spatial, channels)`.
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
    shape: InitVar[tuple[int, ...]]
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

    def __post_init__(self, shape: tuple[int, ...]) -> None:
        super().__post_init__()
        if not isinstance(self.clusterer, Clusterer) or isinstance(self.clusterer, type):
            raise TypeError(f"clusterer must be a clusterer such as KMeans(num_clusters=16), got {self.clusterer!r}")
        state = self.clusterer.init(tuple(shape))
        self.labels = ClusterVariable(state.labels)
        self.sizes = ClusterVariable(state.sizes)
        self.explained_variance = ClusterVariable(state.explained_variance)
        self.num_updates = ClusterVariable(state.num_updates)
        self.num_skipped = ClusterVariable(state.num_skipped)

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
