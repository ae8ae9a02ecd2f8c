"""The layers for Flax NNX: they hold state and keys, then make one call of a pure function.

Clusters are `ClusterVariable`s, plain arrays. They change when `update_clusters` is called and at no other time. The
masks are in `dropcluster_jax.masking`, the clusterings in `dropcluster_jax.clustering`.
"""

import abc
from typing import Any

from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Float

from dropcluster_jax import masking
from dropcluster_jax.clustering import Clusterer, ClusterState
from dropcluster_jax.masking.common import Rate, Rescale, check_rate, check_units
from dropcluster_jax.masking.drop_block import Seeding

__all__ = ["ClusterVariable", "Cutout", "DropBlock", "DropCluster", "DropPath", "Dropout", "SpatialDropout"]

Rngs = nnx.Rngs | nnx.RngStream


class ClusterVariable(nnx.Variable[Any]):
    """An array of a layer's clusters, a field of `ClusterState`. Filter by this type to split, save or replicate them.

    Example:
        >>> from dropcluster_jax import KMeans
        >>> layer = DropCluster(KMeans(num_clusters=4), (8, 8, 3), rngs=nnx.Rngs(0))
        >>> sorted(nnx.state(layer, ClusterVariable))
        ['explained_variance', 'labels', 'num_skipped', 'num_updates', 'sizes']
    """


class _Drop(nnx.Module):
    """What every layer does: decide whether to drop and at which rate, get a key, drop.

    The arguments of a call go before those of the construction, as in Flax's own layers.
    """

    def __init__(
        self, rate: Rate | None, deterministic: bool | None, rng_collection: str, rngs: Rngs | None, **options: Any
    ) -> None:
        self.rate = None if rate is None else _number(rate)
        self.deterministic = deterministic
        self.rng_collection = rng_collection
        if not isinstance(rngs, nnx.Rngs | nnx.RngStream | None):
            raise TypeError(f"rngs must be nnx.Rngs, an nnx.RngStream or None, got {rngs!r}")
        stream = rngs[rng_collection] if isinstance(rngs, nnx.Rngs) else rngs
        self.rngs = nnx.data(None) if stream is None else stream.fork()
        self.option_names = tuple(options)
        for name, value in options.items():
            setattr(self, name, value)

    def __call__(
        self,
        x: Float[Array, "batch ..."],
        *,
        rate: Rate | None = None,
        deterministic: bool | None = None,
        rngs: Rngs | Array | None = None,
        rng: Array | None = None,
    ) -> Float[Array, "batch ..."]:
        """Drop of `x`, unless deterministic.

        Args:
            x: activations, `(batch, *spatial, channels)`, or as the layer's function takes them.
            rate: instead of the layer's own; may be traced.
            deterministic: instead of the layer's own.
            rngs: where the key comes from, instead of the layer's own: `nnx.Rngs`, a stream, or a key itself.
            rng: a PRNG key, which goes before all others.

        Returns:
            An array like `x`; `x` itself where deterministic, or at the Python number 0 for a rate.

        Raises:
            TypeError: `x` is not of a floating-point type, `rate` no number, or `rngs` none of the three.
            ValueError: as the class says.
        """
        check_units(x, least_ndim=1)
        if _first("deterministic", deterministic, self.deterministic):
            return x
        share: Rate = _first("rate", rate, self.rate)
        if isinstance(share, (int, float)) and share == 0:
            return x
        check_rate(share)
        if rng is None:
            rngs = self.rngs if rngs is None else rngs
            if rngs is None:
                raise ValueError(
                    f"{type(self).__name__} has no rngs to draw from: give rngs=nnx.Rngs(...) at construction or at "
                    "call, rng=key at call, or deterministic=True"
                )
            if isinstance(rngs, nnx.Rngs | nnx.RngStream):
                rng = rngs[self.rng_collection]() if isinstance(rngs, nnx.Rngs) else rngs()
            elif isinstance(rngs, Array):
                rng = rngs
            else:
                raise TypeError(f"rngs must be nnx.Rngs, an nnx.RngStream or a key, got {rngs!r}")
        return self._drop(rng, x, share, **{name: getattr(self, name) for name in self.option_names})

    @abc.abstractmethod
    def _drop(self, key: Array, x: Array, rate: Rate, **options: Any) -> Array:
        """One call of a pure function: what sets the layers apart."""

    def set_view(self, deterministic: bool | None = None, rate: Rate | None = None) -> None:
        """What `nnx.view` sets.

        Args:
            deterministic: if True nothing is dropped; None leaves it as it is.
            rate: the probability of being dropped, in [0, 1], a Python number; None leaves it as it is.

        Raises:
            TypeError: `rate` is no Python number.
            ValueError: `rate` is outside [0, 1].
        """
        if deterministic is not None:
            self.deterministic = deterministic
        if rate is not None:
            self.rate = _number(rate)


def _number(rate: Any) -> float:
    """A rate that stands at construction: no array, which would be saved with the parameters."""
    check_rate(rate)
    if isinstance(rate, Tracer):
        raise TypeError("rate must be a Python number at construction; give a traced one at call")
    return float(rate)


def _first(name: str, call: Any, construction: Any) -> Any:
    if call is None and construction is None:
        raise ValueError(f"{name} is given neither at construction nor at call")
    return construction if call is None else call


class Dropout(_Drop):
    """Drop single units; see `dropcluster_jax.dropout`.

    Args:
        rate: the probability of being dropped, in [0, 1], a Python number; a traced one is given at call.
        deterministic: if True the layer is the identity and needs no key; `model.train()` and `model.eval()` set it.
        per_channel: whether each channel draws for itself; else whole positions are dropped.
        per_example: whether each example draws for itself; else all share one mask.
        rescale: `"rate"`, `"kept"`, `"batch"` or `"none"`.
        rng_collection: the name of the stream of keys.
        rngs: where keys come from, if not from the call.

    Raises:
        TypeError: `rate` is no number, `rngs` of another type, or `x` not of a floating-point type.
        ValueError: an argument is given nowhere, or is out of range; there is no key.

    Example:
        >>> import jax.numpy as jnp
        >>> layer = Dropout(0.5, rngs=nnx.Rngs(0))
        >>> sorted(set(layer(jnp.ones((1, 4, 4, 2))).ravel().tolist()))
        [0.0, 2.0]
    """

    def __init__(
        self,
        rate: Rate | None = None,
        *,
        deterministic: bool | None = False,
        per_channel: bool = True,
        per_example: bool = True,
        rescale: Rescale = "rate",
        rng_collection: str = "dropout",
        rngs: Rngs | None = None,
    ) -> None:
        options = {"per_channel": per_channel, "per_example": per_example, "rescale": rescale}
        super().__init__(rate, deterministic, rng_collection, rngs, **options)

    def _drop(self, key: Array, x: Array, rate: Rate, **options: Any) -> Array:
        return masking.dropout(key, x, rate, **options)


class SpatialDropout(_Drop):
    """Drop whole channels; see `dropcluster_jax.spatial_dropout`.

    Args:
        rate: the probability of being dropped, in [0, 1], a Python number; a traced one is given at call.
        deterministic: if True the layer is the identity and needs no key; `model.train()` and `model.eval()` set it.
        per_example: whether each example draws for itself; else all share one mask.
        rescale: `"rate"`, `"kept"`, `"batch"` or `"none"`.
        rng_collection: the name of the stream of keys.
        rngs: where keys come from, if not from the call.

    Raises:
        TypeError: `rate` is no number, `rngs` of another type, or `x` not of a floating-point type.
        ValueError: an argument is given nowhere, or is out of range; there is no key.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> SpatialDropout(0.5)(jnp.ones((1, 2, 1, 4)), rng=jax.random.key(2)).tolist()
        [[[[0.0, 2.0, 2.0, 0.0]], [[0.0, 2.0, 2.0, 0.0]]]]
    """

    def __init__(
        self,
        rate: Rate | None = None,
        *,
        deterministic: bool | None = False,
        per_example: bool = True,
        rescale: Rescale = "rate",
        rng_collection: str = "dropout",
        rngs: Rngs | None = None,
    ) -> None:
        super().__init__(rate, deterministic, rng_collection, rngs, per_example=per_example, rescale=rescale)

    def _drop(self, key: Array, x: Array, rate: Rate, **options: Any) -> Array:
        return masking.spatial_dropout(key, x, rate, **options)


class DropPath(_Drop):
    """Drop whole examples of a residual branch (stochastic depth); see `dropcluster_jax.drop_path`.

    Args:
        rate: the probability of being dropped, in [0, 1], a Python number; a traced one is given at call.
        deterministic: if True the layer is the identity and needs no key; `model.train()` and `model.eval()` set it.
        per_example: whether each example draws for itself; else all share one draw.
        rescale: `"rate"`, `"kept"`, `"batch"` or `"none"`.
        rng_collection: the name of the stream of keys.
        rngs: where keys come from, if not from the call.

    Raises:
        TypeError: `rate` is no number, `rngs` of another type, or `x` not of a floating-point type.
        ValueError: an argument is given nowhere, or is out of range; there is no key.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> DropPath(0.5)(jnp.ones((4, 1, 1, 1)), rng=jax.random.key(1)).ravel().tolist()
        [0.0, 0.0, 0.0, 2.0]
    """

    def __init__(
        self,
        rate: Rate | None = None,
        *,
        deterministic: bool | None = False,
        per_example: bool = True,
        rescale: Rescale = "rate",
        rng_collection: str = "dropout",
        rngs: Rngs | None = None,
    ) -> None:
        super().__init__(rate, deterministic, rng_collection, rngs, per_example=per_example, rescale=rescale)

    def _drop(self, key: Array, x: Array, rate: Rate, **options: Any) -> Array:
        return masking.drop_path(key, x, rate, **options)


class Cutout(_Drop):
    """Drop one box of positions; see `dropcluster_jax.cutout`.

    Args:
        rate: the share of units dropped in expectation, in [0, 1], a Python number; a traced one is given at call.
        deterministic: if True the layer is the identity and needs no key; `model.train()` and `model.eval()` set it.
        per_channel: whether each channel has a box of its own.
        per_example: whether each example has a box of its own; else all share one mask.
        rescale: `"none"`, `"kept"`, `"batch"` or `"rate"`.
        rng_collection: the name of the stream of keys.
        rngs: where keys come from, if not from the call.

    Raises:
        TypeError: `rate` is no number, `rngs` of another type, or `x` not of a floating-point type.
        ValueError: an argument is given nowhere, or is out of range; there is no key.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> Cutout(0.25)(jnp.ones((1, 8, 1)), rng=jax.random.key(0)).astype(int).ravel().tolist()
        [0, 0, 1, 1, 1, 1, 1, 1]
    """

    def __init__(
        self,
        rate: Rate | None = None,
        *,
        deterministic: bool | None = False,
        per_channel: bool = False,
        per_example: bool = True,
        rescale: Rescale = "none",
        rng_collection: str = "dropout",
        rngs: Rngs | None = None,
    ) -> None:
        options = {"per_channel": per_channel, "per_example": per_example, "rescale": rescale}
        super().__init__(rate, deterministic, rng_collection, rngs, **options)

    def _drop(self, key: Array, x: Array, rate: Rate, **options: Any) -> Array:
        return masking.cutout(key, x, rate, **options)


class DropBlock(_Drop):
    """Drop contiguous blocks of positions; see `dropcluster_jax.drop_block`.

    Args:
        rate: the share of units dropped in expectation, in [0, 1], a Python number; a traced one is given at call.
        deterministic: if True the layer is the identity and needs no key; `model.train()` and `model.eval()` set it.
        block_size: the side of a block, at most that of the map.
        per_channel: whether each channel draws blocks of its own.
        per_example: whether each example draws for itself; else all share one mask.
        seeding: `"exact"` or `"paper"`.
        rescale: `"kept"`, `"rate"`, `"batch"` or `"none"`.
        rng_collection: the name of the stream of keys.
        rngs: where keys come from, if not from the call.

    Raises:
        TypeError: `rate` is no number, `rngs` of another type, or `x` not of a floating-point type.
        ValueError: an argument is given nowhere, or is out of range; there is no key.

    Example:
        >>> import jax.numpy as jnp
        >>> layer = DropBlock(0.3, block_size=3, rngs=nnx.Rngs(0))
        >>> round(float(layer(jnp.ones((1, 8, 8, 2))).sum()), 3)
        128.0
    """

    def __init__(
        self,
        rate: Rate | None = None,
        *,
        deterministic: bool | None = False,
        block_size: int = 7,
        per_channel: bool = False,
        per_example: bool = True,
        seeding: Seeding = "exact",
        rescale: Rescale = "kept",
        rng_collection: str = "dropout",
        rngs: Rngs | None = None,
    ) -> None:
        options = {"block_size": block_size, "per_channel": per_channel, "per_example": per_example}
        super().__init__(rate, deterministic, rng_collection, rngs, **options, seeding=seeding, rescale=rescale)

    def _drop(self, key: Array, x: Array, rate: Rate, **options: Any) -> Array:
        return masking.drop_block(key, x, rate, **options)


class DropCluster(_Drop):
    """Drop learned clusters of units; see `dropcluster_jax.drop_cluster`.

    The clusters are `ClusterVariable`s: `labels`, `sizes`, `explained_variance`, `num_updates`, `num_skipped`, as in `ClusterState`. They
    start as a regular grid of tiles; `update_clusters` learns them.

    Args:
        clusterer: what learns the clusters, `KMeans(...)`, `ReNA(...)` or `Grid(...)`.
        shape: `(*spatial, channels)`, the shape of the activations without the batch.
        rate: the probability of being dropped, in [0, 1], a Python number; a traced one is given at call.
        deterministic: if True the layer is the identity, needs no key and takes any resolution; `model.train()` and
            `model.eval()` set it.
        axis_name: a mapped axis over which the batch is split (`pmap`, `shard_map`), if any, for the update.
        per_channel: whether each channel draws for itself also where all share the labels.
        per_example: whether each example draws for itself; else all share one mask.
        min_explained: in [0, 1]. A channel (with shared labels: the layer) whose clusters explain less of the variance
            is left alone. The dropped share is then `rate` times the share of the other channels. 0: off.
        rescale: `"kept"`, `"rate"`, `"batch"` or `"none"`.
        rng_collection: the name of the stream of keys.
        rngs: where keys come from, if not from the call.

    Raises:
        TypeError: `clusterer` or `rngs` is none, `rate` no number, or `x` not of a floating-point type.
        ValueError: an argument is given nowhere, or is out of range; there is no key; `x` has another shape.

    References:
        Chen, Gautier, Aydore, "DropCluster: A structured dropout for convolutional networks", arXiv:2002.02997v1.

    Example:
        >>> import jax
        >>> from dropcluster_jax import KMeans
        >>> layer = DropCluster(KMeans(num_clusters=4), (8, 8, 3), rate=0.1, rngs=nnx.Rngs(0))
        >>> x = jax.random.normal(jax.random.key(0), (16, 8, 8, 3))
        >>> layer.update_clusters(x)
        >>> layer.labels.shape, int(layer.num_updates[...])
        ((8, 8, 1), 1)
        >>> y = layer(x, rate=0.5)
        >>> dropped = (y == 0)[:, layer.labels[..., 0] == 0]  # the units of cluster 0
        >>> bool((dropped.any((1, 2)) == dropped.all((1, 2))).all()), int(dropped.all((1, 2)).sum())  # of 16 examples
        (True, 9)
    """

    def __init__(
        self,
        clusterer: Clusterer,
        shape: tuple[int, ...],
        rate: Rate | None = None,
        *,
        deterministic: bool | None = False,
        axis_name: str | None = None,
        per_channel: bool = False,
        per_example: bool = True,
        min_explained: float = 0.0,
        rescale: Rescale = "kept",
        rng_collection: str = "dropout",
        rngs: Rngs | None = None,
    ) -> None:
        if not isinstance(clusterer, Clusterer) or isinstance(clusterer, type):
            raise TypeError(f"clusterer must be one, such as KMeans(num_clusters=16), got {clusterer!r}")
        options = {"per_channel": per_channel, "per_example": per_example, "min_explained": min_explained}
        super().__init__(rate, deterministic, rng_collection, rngs, **options, rescale=rescale)
        self.clusterer = clusterer
        self.axis_name = axis_name
        for name, value in clusterer.init(tuple(shape))._asdict().items():
            setattr(self, name, ClusterVariable(value))

    @property
    def clusters(self) -> ClusterState:
        """The clusters as the pure functions take them: labels `(*spatial, 1 or channels)` and what belongs to them."""
        return ClusterState(*(getattr(self, name)[...] for name in ClusterState._fields))

    def set_clusters(self, state: ClusterState) -> None:
        """Take these clusters.

        Args:
            state: such as `dropcluster_jax.resize_clusters(layer.clusters, spatial)` for another resolution.
        """
        for name, value in state._asdict().items():
            getattr(self, name).set_value(value)

    def update_clusters(self, x: Float[Array, "batch *spatial channels"]) -> None:
        """Learn the clusters from a probe batch.

        Args:
            x: activations `(batch, *spatial, channels)` of this layer's place, which should be of evaluation mode.

        Raises:
            TypeError: `x` is not of a floating-point type.
            ValueError: `x` has another shape than the clusters.
        """
        self.set_clusters(self.clusterer.update(self.clusters, x, axis_name=self.axis_name))

    def _drop(self, key: Array, x: Array, rate: Rate, **options: Any) -> Array:
        return masking.drop_cluster(key, x, rate, self.clusters, **options)
