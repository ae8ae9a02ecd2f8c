"""The layers for Flax Linen: they hold state and keys, then make one call of a pure function.

Clusters are the variables of the collection "clusters", as plain arrays. They change when a layer is called with
`update_clusters=True` and at no other time. The masks are in `dropcluster_jax.masking`, the clusterings in
`dropcluster_jax.clustering`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, PyTree

from dropcluster_jax import masking
from dropcluster_jax.clustering import Clusterer, ClusterState
from dropcluster_jax.clustering import resize_clusters as resize_layer_clusters
from dropcluster_jax.masking.common import Rate, Rescale, check_rate, check_units
from dropcluster_jax.masking.drop_block import Seeding

__all__ = [
    "Cutout",
    "DropBlock",
    "DropCluster",
    "DropPath",
    "Dropout",
    "SpatialDropout",
    "cluster_inputs",
    "cluster_states",
    "init_clusters",
    "resize_clusters",
]

_COLLECTION = "clusters"


class Dropout(nn.Module):
    """Drop single units; see `dropcluster_jax.dropout`.

    Every argument is given at construction or at call.

    Attributes:
        rate: the probability of being dropped, in [0, 1]; may be traced.
        deterministic: if True the layer is the identity and needs no key.
        per_channel: whether each channel draws for itself; else whole positions are dropped.
        per_example: whether each example draws for itself; else all share one mask.
        rescale: `"rate"`, `"kept"`, `"batch"` or `"none"`.
        rng_collection: the name of the keys' collection.

    Raises:
        TypeError: `x` is not of a floating-point type, or `rate` no number.
        ValueError: an argument is given twice or never, or is out of range.
        flax.errors.InvalidRngError: no key: pass `rngs={"dropout": key}` to `apply`, or `rng=key` to the call.

    Example:
        >>> import jax.numpy as jnp
        >>> layer = Dropout(rate=0.5)
        >>> y = layer.apply({}, jnp.ones((1, 4, 4, 2)), deterministic=False, rngs={"dropout": jax.random.key(0)})
        >>> sorted(set(y.ravel().tolist()))
        [0.0, 2.0]
    """

    rate: Rate | None = None
    deterministic: bool | None = None
    per_channel: bool = True
    per_example: bool = True
    rescale: Rescale = "rate"
    rng_collection: str = "dropout"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch ..."],
        rate: Rate | None = None,
        deterministic: bool | None = None,
        rng: Array | None = None,
    ) -> Float[Array, "batch ..."]:
        """Drop units of `x`, unless deterministic.

        Args:
            x: activations `(batch, ...)`.
            rate: where the field is None.
            deterministic: where the field is None.
            rng: a PRNG key; if not given, one is made of the collection `rng_collection`.

        Returns:
            An array like `x`; `x` itself where deterministic, or at the Python number 0 for a rate.

        Raises:
            TypeError, ValueError, flax.errors.InvalidRngError: as the class says.
        """

        def drop(key: Array, rate: Rate) -> Array:
            return masking.dropout(key, x, rate, **_options(self, "per_channel", "per_example", "rescale"))

        return _drop_layer(self, x, rate, deterministic, rng, drop)


class SpatialDropout(nn.Module):
    """Drop whole channels; see `dropcluster_jax.spatial_dropout`.

    Every argument is given at construction or at call.

    Attributes:
        rate: the probability of being dropped, in [0, 1]; may be traced.
        deterministic: if True the layer is the identity and needs no key.
        per_example: whether each example draws for itself; else all share one mask.
        rescale: `"rate"`, `"kept"`, `"batch"` or `"none"`.
        rng_collection: the name of the keys' collection.

    Raises:
        TypeError: `x` is not of a floating-point type, or `rate` no number.
        ValueError: an argument is given twice or never, or is out of range.
        flax.errors.InvalidRngError: no key: pass `rngs={"dropout": key}` to `apply`, or `rng=key` to the call.

    Example:
        >>> import jax.numpy as jnp
        >>> layer = SpatialDropout(rate=0.5, deterministic=False)
        >>> layer.apply({}, jnp.ones((1, 2, 1, 4)), rng=jax.random.key(2)).tolist()
        [[[[0.0, 2.0, 2.0, 0.0]], [[0.0, 2.0, 2.0, 0.0]]]]
    """

    rate: Rate | None = None
    deterministic: bool | None = None
    per_example: bool = True
    rescale: Rescale = "rate"
    rng_collection: str = "dropout"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *spatial channels"],
        rate: Rate | None = None,
        deterministic: bool | None = None,
        rng: Array | None = None,
    ) -> Float[Array, "batch *spatial channels"]:
        """Drop channels of `x`, unless deterministic.

        Args:
            x: activations `(batch, *spatial, channels)`.
            rate: where the field is None.
            deterministic: where the field is None.
            rng: a PRNG key; if not given, one is made of the collection `rng_collection`.

        Returns:
            An array like `x`; `x` itself where deterministic, or at the Python number 0 for a rate.

        Raises:
            TypeError, ValueError, flax.errors.InvalidRngError: as the class says.
        """

        def drop(key: Array, rate: Rate) -> Array:
            return masking.spatial_dropout(key, x, rate, **_options(self, "per_example", "rescale"))

        return _drop_layer(self, x, rate, deterministic, rng, drop)


class DropBlock(nn.Module):
    """Drop contiguous blocks of positions; see `dropcluster_jax.drop_block`.

    Every argument is given at construction or at call.

    Attributes:
        rate: the share of units dropped in expectation, in [0, 1]; may be traced.
        deterministic: if True the layer is the identity and needs no key.
        block_size: the side of a block, at most that of the map.
        per_channel: whether each channel draws blocks of its own.
        per_example: whether each example draws for itself; else all share one mask.
        seeding: `"exact"` or `"paper"`.
        rescale: `"kept"`, `"rate"`, `"batch"` or `"none"`.
        rng_collection: the name of the keys' collection.

    Raises:
        TypeError: `x` is not of a floating-point type, or `rate` no number.
        ValueError: an argument is given twice or never, or is out of range.
        flax.errors.InvalidRngError: no key: pass `rngs={"dropout": key}` to `apply`, or `rng=key` to the call.

    Example:
        >>> import jax.numpy as jnp
        >>> layer = DropBlock(rate=0.3, block_size=3)
        >>> y = layer.apply({}, jnp.ones((1, 8, 8, 2)), deterministic=False, rngs={"dropout": jax.random.key(0)})
        >>> round(float(y.sum()), 3)
        128.0
    """

    rate: Rate | None = None
    deterministic: bool | None = None
    block_size: int = 7
    per_channel: bool = False
    per_example: bool = True
    seeding: Seeding = "exact"
    rescale: Rescale = "kept"
    rng_collection: str = "dropout"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *spatial channels"],
        rate: Rate | None = None,
        deterministic: bool | None = None,
        rng: Array | None = None,
    ) -> Float[Array, "batch *spatial channels"]:
        """Drop blocks of `x`, unless deterministic.

        Args:
            x: activations `(batch, *spatial, channels)`.
            rate: where the field is None.
            deterministic: where the field is None.
            rng: a PRNG key; if not given, one is made of the collection `rng_collection`.

        Returns:
            An array like `x`; `x` itself where deterministic, or at the Python number 0 for a rate.

        Raises:
            TypeError, ValueError, flax.errors.InvalidRngError: as the class says.
        """

        def drop(key: Array, rate: Rate) -> Array:
            names = ("block_size", "per_channel", "per_example", "seeding", "rescale")
            return masking.drop_block(key, x, rate, **_options(self, *names))

        return _drop_layer(self, x, rate, deterministic, rng, drop)


class DropPath(nn.Module):
    """Drop whole examples of a residual branch (stochastic depth); see `dropcluster_jax.drop_path`.

    Every argument is given at construction or at call.

    Attributes:
        rate: the probability of being dropped, in [0, 1]; may be traced.
        deterministic: if True the layer is the identity and needs no key.
        per_example: whether each example draws for itself; else all share one draw.
        rescale: `"rate"`, `"kept"`, `"batch"` or `"none"`.
        rng_collection: the name of the keys' collection.

    Raises:
        TypeError: `x` is not of a floating-point type, or `rate` no number.
        ValueError: an argument is given twice or never, or is out of range.
        flax.errors.InvalidRngError: no key: pass `rngs={"dropout": key}` to `apply`, or `rng=key` to the call.

    Example:
        >>> import jax.numpy as jnp
        >>> layer = DropPath(rate=0.5, deterministic=False)
        >>> layer.apply({}, jnp.ones((4, 1, 1, 1)), rng=jax.random.key(1)).ravel().tolist()
        [0.0, 0.0, 0.0, 2.0]
    """

    rate: Rate | None = None
    deterministic: bool | None = None
    per_example: bool = True
    rescale: Rescale = "rate"
    rng_collection: str = "dropout"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch ..."],
        rate: Rate | None = None,
        deterministic: bool | None = None,
        rng: Array | None = None,
    ) -> Float[Array, "batch ..."]:
        """Drop examples of `x`, unless deterministic.

        Args:
            x: activations `(batch, ...)`.
            rate: where the field is None.
            deterministic: where the field is None.
            rng: a PRNG key; if not given, one is made of the collection `rng_collection`.

        Returns:
            An array like `x`; `x` itself where deterministic, or at the Python number 0 for a rate.

        Raises:
            TypeError, ValueError, flax.errors.InvalidRngError: as the class says.
        """

        def drop(key: Array, rate: Rate) -> Array:
            return masking.drop_path(key, x, rate, **_options(self, "per_example", "rescale"))

        return _drop_layer(self, x, rate, deterministic, rng, drop)


class Cutout(nn.Module):
    """Drop one box of positions; see `dropcluster_jax.cutout`.

    Every argument is given at construction or at call.

    Attributes:
        rate: the share of units dropped in expectation, in [0, 1]; may be traced.
        deterministic: if True the layer is the identity and needs no key.
        per_channel: whether each channel has a box of its own.
        per_example: whether each example has a box of its own; else all share one mask.
        rescale: `"none"`, `"kept"`, `"batch"` or `"rate"`.
        rng_collection: the name of the keys' collection.

    Raises:
        TypeError: `x` is not of a floating-point type, or `rate` no number.
        ValueError: an argument is given twice or never, or is out of range.
        flax.errors.InvalidRngError: no key: pass `rngs={"dropout": key}` to `apply`, or `rng=key` to the call.

    Example:
        >>> import jax.numpy as jnp
        >>> layer = Cutout(rate=0.25, deterministic=False)
        >>> layer.apply({}, jnp.ones((1, 8, 1)), rng=jax.random.key(0)).astype(int).ravel().tolist()
        [0, 0, 1, 1, 1, 1, 1, 1]
    """

    rate: Rate | None = None
    deterministic: bool | None = None
    per_channel: bool = False
    per_example: bool = True
    rescale: Rescale = "none"
    rng_collection: str = "dropout"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *spatial channels"],
        rate: Rate | None = None,
        deterministic: bool | None = None,
        rng: Array | None = None,
    ) -> Float[Array, "batch *spatial channels"]:
        """Drop a box of `x`, unless deterministic.

        Args:
            x: activations `(batch, *spatial, channels)`.
            rate: where the field is None.
            deterministic: where the field is None.
            rng: a PRNG key; if not given, one is made of the collection `rng_collection`.

        Returns:
            An array like `x`; `x` itself where deterministic, or at the Python number 0 for a rate.

        Raises:
            TypeError, ValueError, flax.errors.InvalidRngError: as the class says.
        """

        def drop(key: Array, rate: Rate) -> Array:
            return masking.cutout(key, x, rate, **_options(self, "per_channel", "per_example", "rescale"))

        return _drop_layer(self, x, rate, deterministic, rng, drop)


class DropCluster(nn.Module):
    """Drop learned clusters of units; see `dropcluster_jax.drop_cluster`.

    Every argument is given at construction or at call. The clusters are variables of the collection "clusters":
    `labels`, `sizes`, `explained_variance`, `num_updates`, `num_skipped`, as in `ClusterState`. `init` lays a regular grid of tiles.

    Attributes:
        clusterer: what learns the clusters, `KMeans(...)`, `ReNA(...)` or `Grid(...)`.
        rate: the probability of being dropped, in [0, 1]; may be traced.
        deterministic: if True nothing is dropped: the layer is the identity, needs no key and no clusters, and takes
            any resolution.
        update_clusters: if True the clusters are learned from this `x` first, which should be activations in
            evaluation mode; the collection must be mutable. False if given nowhere.
        axis_name: a mapped axis over which the batch is split (`pmap`, `shard_map`), if any, for the update.
        per_channel: whether each channel draws for itself also where all share the labels.
        per_example: whether each example draws for itself; else all share one mask.
        min_explained: in [0, 1]. A channel (with shared labels: the layer) whose clusters explain less of the variance
            is left alone. The dropped share is then `rate` times the share of the other channels. 0: off.
        rescale: `"kept"`, `"rate"`, `"batch"` or `"none"`.
        rng_collection: the name of the keys' collection.

    Raises:
        TypeError: `x` is not of a floating-point type, `rate` no number, or `clusterer` no clusterer.
        ValueError: an argument is given twice or never, or is out of range; there are no clusters (see
            `init_clusters`), or they are of another spatial shape (see `resize_clusters`).
        flax.errors.InvalidRngError: no key: pass `rngs={"dropout": key}` to `apply`, or `rng=key` to the call.
        flax.errors.ModifyScopeVariableError: an update, but `mutable=["clusters"]` is not among `apply`'s arguments.

    References:
        Chen, Gautier, Aydore, "DropCluster: A structured dropout for convolutional networks", arXiv:2002.02997v1.

    Example:
        >>> from dropcluster_jax import KMeans
        >>> layer = DropCluster(KMeans(num_clusters=4))
        >>> x = jax.random.normal(jax.random.key(0), (16, 8, 8, 3))
        >>> variables = layer.init(jax.random.key(1), x, deterministic=True)
        >>> _, variables = layer.apply(variables, x, deterministic=True, update_clusters=True, mutable=["clusters"])
        >>> variables["clusters"]["labels"].shape, int(variables["clusters"]["num_updates"])
        ((8, 8, 1), 1)
        >>> y = layer.apply(variables, x, rate=0.5, deterministic=False, rngs={"dropout": jax.random.key(2)})
        >>> dropped = (y == 0)[:, variables["clusters"]["labels"][..., 0] == 0]  # the units of cluster 0
        >>> bool((dropped.any((1, 2)) == dropped.all((1, 2))).all()), int(dropped.all((1, 2)).sum())  # of 16 examples
        (True, 10)
    """

    clusterer: Clusterer
    rate: Rate | None = None
    deterministic: bool | None = None
    update_clusters: bool | None = None
    axis_name: str | None = None
    per_channel: bool = False
    per_example: bool = True
    min_explained: float = 0.0
    rescale: Rescale = "kept"
    rng_collection: str = "dropout"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *spatial channels"],
        rate: Rate | None = None,
        deterministic: bool | None = None,
        update_clusters: bool | None = None,
        rng: Array | None = None,
    ) -> Float[Array, "batch *spatial channels"]:
        """Update the clusters if asked to; then drop some, unless deterministic.

        Args:
            x: activations `(batch, *spatial, channels)`.
            rate: where the field is None.
            deterministic: where the field is None.
            update_clusters: where the field is None; False if given nowhere.
            rng: a PRNG key; if not given, one is made of the collection `rng_collection`.

        Returns:
            An array like `x`; `x` itself where deterministic, or at the Python number 0 for a rate.

        Raises:
            TypeError, ValueError: as the class says.
            flax.errors.InvalidRngError, flax.errors.ModifyScopeVariableError: as the class says.
        """
        check_units(x)
        if not isinstance(self.clusterer, Clusterer) or isinstance(self.clusterer, type):
            raise TypeError(f"clusterer must be one, such as KMeans(num_clusters=16), got {self.clusterer!r}")
        if self.update_clusters is None and update_clusters is None:
            update_clusters = False
        update_clusters = nn.merge_param("update_clusters", self.update_clusters, update_clusters)

        if self.is_initializing():
            if not self.has_variable(_COLLECTION, "labels"):
                self._store(self.clusterer.init(x.shape[1:]))
        elif update_clusters:
            self._store(self.clusterer.update(self._clusters(), x, axis_name=self.axis_name))

        def drop(key: Array, rate: Rate) -> Array:
            names = ("per_channel", "per_example", "min_explained", "rescale")
            return masking.drop_cluster(key, x, rate, self._clusters(), **_options(self, *names))

        return _drop_layer(self, x, rate, deterministic, rng, drop)

    def _clusters(self) -> ClusterState:
        if not self.has_variable(_COLLECTION, "labels"):
            where = "/".join(self.path) or "this layer"
            raise ValueError(
                f"{where} has no clusters. If the variables come from a network without them, add the collection: "
                "variables = dropcluster_jax.linen.init_clusters(model, variables, x)"
            )
        return ClusterState(*(self.get_variable(_COLLECTION, name) for name in ClusterState._fields))

    def _store(self, state: ClusterState) -> None:
        for name, value in state._asdict().items():
            self.put_variable(_COLLECTION, name, value)


def _options(layer: nn.Module, *names: str) -> dict[str, Any]:
    """The layer's attributes that its function takes."""
    return {name: getattr(layer, name) for name in names}


def _drop_layer(
    layer: nn.Module,
    x: Array,
    rate: Rate | None,
    deterministic: bool | None,
    rng: Array | None,
    drop: Callable[[Array, Rate], Array],
) -> Array:
    """What every layer does: merge the arguments of construction and call, get a key, drop."""
    check_units(x, least_ndim=1)
    if nn.merge_param("deterministic", layer.deterministic, deterministic):
        return x
    rate = nn.merge_param("rate", layer.rate, rate)
    if isinstance(rate, (int, float)) and rate == 0:
        return x
    check_rate(rate)
    return drop(layer.make_rng(layer.rng_collection) if rng is None else rng, rate)


def init_clusters(
    model: nn.Module,
    variables: Mapping[str, Any],
    x: Float[Array, "batch *spatial channels"],
    *args: Any,
    **kwargs: Any,
) -> dict[str, Any]:
    """Add clusters to the variables of a network that was trained without.

    Args:
        model: the network, now with `DropCluster` layers.
        variables: its variables; clusters that are there are kept.
        x: an input of the network, `(batch, *spatial, channels)`; only its shape and type matter.
        args: further arguments of the model's call, as for `model.init`.
        kwargs: likewise.

    Returns:
        The variables, with the collection "clusters" in which each layer that had none holds a regular grid.

    Example:
        >>> import jax.numpy as jnp
        >>> from dropcluster_jax import KMeans
        >>> plain = nn.Sequential([nn.Conv(4, (3, 3))])
        >>> x = jnp.ones((2, 8, 8, 3))
        >>> variables = plain.init(jax.random.key(0), x)  # trained, say
        >>> model = nn.Sequential([nn.Conv(4, (3, 3)), DropCluster(KMeans(num_clusters=4), deterministic=True)])
        >>> init_clusters(model, variables, x)["clusters"]["layers_1"]["labels"].shape
        (8, 8, 1)
    """
    made = flatten_dict(_grid_clusters(model, x, *args, **kwargs))
    there = flatten_dict(dict(variables.get(_COLLECTION, {})))
    return {**variables, _COLLECTION: unflatten_dict({**made, **there})}


def cluster_inputs(
    model: nn.Module,
    variables: Mapping[str, Any],
    x: Float[Array, "batch *spatial channels"],
    *args: Any,
    **kwargs: Any,
) -> dict[str, Array]:
    """What comes to each `DropCluster` layer: with `cluster_states` what `dropcluster_jax.viz` draws.

    Args:
        model: the network, in evaluation mode: by its default, or by what is given here.
        variables: its variables.
        x: an input of the network, `(batch, *spatial, channels)`.
        args: further arguments of the model's call, as for `model.apply`.
        kwargs: likewise.

    Returns:
        For each layer's path, as in `cluster_states`, its activations `(batch, *spatial, channels)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from dropcluster_jax import KMeans
        >>> model = nn.Sequential([nn.Conv(4, (3, 3)), DropCluster(KMeans(num_clusters=4), deterministic=True)])
        >>> x = jnp.ones((2, 8, 8, 3))
        >>> {name: maps.shape for name, maps in cluster_inputs(model, model.init(jax.random.key(0), x), x).items()}
        {'layers_1': (2, 8, 8, 4)}
    """
    found: dict[str, Array] = {}

    def note(call: Callable[..., Any], inputs: Any, options: Any, context: Any) -> Any:
        if isinstance(context.module, DropCluster) and context.method_name == "__call__":
            found["/".join(context.module.path)] = inputs[0] if inputs else options["x"]
        return call(*inputs, **options)

    with nn.intercept_methods(note):
        model.apply(variables, x, *args, **kwargs)
    return found


def resize_clusters(
    model: nn.Module,
    variables: Mapping[str, Any],
    x: Float[Array, "batch *spatial channels"],
    *args: Any,
    **kwargs: Any,
) -> dict[str, Any]:
    """Resample a network's clusters to the maps that another input resolution gives, by nearest neighbor.

    Args:
        model: the network.
        variables: its variables, with clusters.
        x: an input of the new resolution, `(batch, *spatial, channels)`; only its shape and type matter.
        args: further arguments of the model's call, as for `model.init`.
        kwargs: likewise.

    Returns:
        The variables; each layer keeps its number of clusters. See `dropcluster_jax.resize_clusters`.

    Raises:
        ValueError: the variables' layers with clusters are not the model's.

    Example:
        >>> import jax.numpy as jnp
        >>> from dropcluster_jax import KMeans
        >>> model = DropCluster(KMeans(num_clusters=4), deterministic=True)
        >>> variables = model.init(jax.random.key(0), jnp.ones((2, 8, 8, 3)))
        >>> resize_clusters(model, variables, jnp.ones((2, 12, 10, 3)))["clusters"]["labels"].shape
        (12, 10, 1)
    """
    new = _states(_grid_clusters(model, x, *args, **kwargs))
    old = _states(variables.get(_COLLECTION, {}))
    if set(old) != set(new):
        names = ["/".join(layer) for layer in sorted(set(old) ^ set(new))]
        raise ValueError(
            f"variables must have clusters for exactly the layers of the model, they differ in {', '.join(names)}; "
            "init_clusters adds those that are missing"
        )
    resized = {}
    for layer, state in old.items():
        stacked = state.num_updates.ndim  # dimensions that `nn.scan` or `vmap` put in front
        spatial = new[layer].labels.shape[stacked:-1]
        resample = functools.partial(resize_layer_clusters, spatial=spatial)
        for _ in range(stacked):
            resample = jax.vmap(resample)
        resized |= {(*layer, name): value for name, value in resample(state)._asdict().items()}
    return {**variables, _COLLECTION: unflatten_dict(resized)}


def cluster_states(clusters: Mapping[str, Any]) -> dict[str, ClusterState]:
    """The clusters of each layer, by the layer's path in the network.

    Args:
        clusters: the collection "clusters", nested by the network's layers.

    Returns:
        For each layer's path, such as `"drop_stage1"` or `"encoder/drop"`, its state. Where `nn.scan` or `vmap` has
        stacked layers, its arrays have their dimensions in front.

    Example:
        >>> import jax.numpy as jnp
        >>> from dropcluster_jax import KMeans
        >>> model = nn.Sequential([nn.Conv(4, (3, 3)), DropCluster(KMeans(num_clusters=4), deterministic=True)])
        >>> variables = model.init(jax.random.key(0), jnp.ones((2, 8, 8, 3)))
        >>> {layer: state.labels.shape for layer, state in cluster_states(variables["clusters"]).items()}
        {'layers_1': (8, 8, 1)}
    """
    return {"/".join(layer): state for layer, state in _states(clusters).items()}


def _states(clusters: Mapping[str, Any]) -> dict[tuple[str, ...], ClusterState]:
    leaves: Any = flatten_dict(dict(clusters))
    layers: Any = dict.fromkeys(path[:-1] for path in leaves)
    return {layer: ClusterState(*(leaves[(*layer, name)] for name in ClusterState._fields)) for layer in layers}


def _grid_clusters(model: nn.Module, x: Array, *args: Any, **kwargs: Any) -> PyTree:
    """The clusters that `model.init` makes; compiled, so that XLA leaves all else out."""
    return jax.jit(lambda x: model.init(jax.random.key(0), x, *args, **kwargs).get(_COLLECTION, {}))(x)
