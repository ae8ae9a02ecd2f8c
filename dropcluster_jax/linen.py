"""Dropout layers for Flax Linen.

Each layer gets a PRNG key and calls the function of the same name in `dropcluster_jax`, whose arguments are the
attributes of the layer. `rate` and `deterministic` are passed to the constructor or to the call, as in Flax.

`DropCluster` keeps its clusters in the collection "clusters". They change only when the layer is called with
`update_clusters=True`.
"""

import dataclasses
import fnmatch
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, PyTree

from dropcluster_jax import masking
from dropcluster_jax.clustering import Clusterer, ClusterState
from dropcluster_jax.clustering import resize_clusters as resize_state
from dropcluster_jax.masking._corr_drop import CorrVariant
from dropcluster_jax.masking._drop_block import Seeding
from dropcluster_jax.masking._focused_dropout import FocusedRescale
from dropcluster_jax.masking.common import Rate, Rescale, check_input, check_rate, options_of
from dropcluster_jax.masking.fill import Fill

__all__ = [
    "CorrDrop",
    "Cutout",
    "DropBlock",
    "DropCluster",
    "DropPath",
    "Dropout",
    "FocusedDropout",
    "SpatialDropout",
    "cluster_inputs",
    "cluster_states",
    "init_clusters",
    "insert_after",
    "resize_clusters",
]

_COLLECTION = "clusters"
_INSERTED = "drop"  # name of layers of `insert_after`


class Dropout(nn.Module):
    """Drops single units. See `dropcluster_jax.dropout`, whose arguments are attributes of the layer.

    Attributes:
        deterministic: If True, the input is returned unchanged and no key is needed.
        rng_collection: Name of the PRNG collection.

    Raises:
        TypeError: If `x` is not floating-point, or `rate` is not a number.
        ValueError: If an argument is invalid, or if `rate` or `deterministic` is passed twice or not at all.
        flax.errors.InvalidRngError: If no key is available. Pass `rngs={"dropout": key}` to `apply`, or `rng=key` to
            the call.

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
    fill: Fill = "zero"
    rescale: Rescale | None = None
    rng_collection: str = "dropout"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch ..."],
        rate: Rate | None = None,
        deterministic: bool | None = None,
        *,
        rng: Array | None = None,
    ) -> Float[Array, "batch ..."]:
        """Drops units of `x`. Returns `x` itself if deterministic or if the rate is a Python number equal to 0.

        `rng` is a PRNG key, by default `make_rng(rng_collection)`.
        """
        return _drop(self, masking.dropout, x, rate, deterministic, rng)


class SpatialDropout(nn.Module):
    """Drops whole channels. See `dropcluster_jax.spatial_dropout` and `Dropout`."""

    rate: Rate | None = None
    deterministic: bool | None = None
    per_example: bool = True
    fill: Fill = "zero"
    rescale: Rescale | None = None
    rng_collection: str = "dropout"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *spatial channels"],
        rate: Rate | None = None,
        deterministic: bool | None = None,
        *,
        rng: Array | None = None,
    ) -> Float[Array, "batch *spatial channels"]:
        """Drops channels of the input. See `Dropout.__call__`."""
        return _drop(self, masking.spatial_dropout, x, rate, deterministic, rng)


class DropPath(nn.Module):
    """Drops whole examples of a residual branch. See `dropcluster_jax.drop_path` and `Dropout`."""

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
        *,
        rng: Array | None = None,
    ) -> Float[Array, "batch ..."]:
        """Drops examples of the input. See `Dropout.__call__`."""
        return _drop(self, masking.drop_path, x, rate, deterministic, rng)


class Cutout(nn.Module):
    """Drops one box of positions. See `dropcluster_jax.cutout` and `Dropout`."""

    rate: Rate | None = None
    deterministic: bool | None = None
    per_channel: bool = False
    per_example: bool = True
    fill: Fill = "zero"
    rescale: Rescale | None = None
    rng_collection: str = "dropout"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *spatial channels"],
        rate: Rate | None = None,
        deterministic: bool | None = None,
        *,
        rng: Array | None = None,
    ) -> Float[Array, "batch *spatial channels"]:
        """Drops a box of the input. See `Dropout.__call__`."""
        return _drop(self, masking.cutout, x, rate, deterministic, rng)


class DropBlock(nn.Module):
    """Drops contiguous blocks of positions. See `dropcluster_jax.drop_block` and `Dropout`."""

    rate: Rate | None = None
    deterministic: bool | None = None
    block_size: int = 7
    per_channel: bool = False
    per_example: bool = True
    seeding: Seeding = "exact"
    fill: Fill = "zero"
    rescale: Rescale | None = None
    rng_collection: str = "dropout"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *spatial channels"],
        rate: Rate | None = None,
        deterministic: bool | None = None,
        *,
        rng: Array | None = None,
    ) -> Float[Array, "batch *spatial channels"]:
        """Drops blocks of the input. See `Dropout.__call__`."""
        return _drop(self, masking.drop_block, x, rate, deterministic, rng)


class CorrDrop(nn.Module):
    """Drops cells of a grid or channels by their correlation. See `dropcluster_jax.corr_drop` and `Dropout`."""

    rate: Rate | None = None
    deterministic: bool | None = None
    variant: CorrVariant = "spatial"
    block_size: int = 7
    fill: Fill = "zero"
    rescale: Rescale | None = None
    rng_collection: str = "dropout"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *spatial channels"],
        rate: Rate | None = None,
        deterministic: bool | None = None,
        *,
        rng: Array | None = None,
    ) -> Float[Array, "batch *spatial channels"]:
        """Drops cells or channels of the input. See `Dropout.__call__`."""
        return _drop(self, masking.corr_drop, x, rate, deterministic, rng)


class FocusedDropout(nn.Module):
    """Keeps only strong positions, in a fraction of the calls. See `dropcluster_jax.focused_dropout` and `Dropout`.

    `rate` is the fraction of calls in which units are dropped, not the fraction of dropped units.
    """

    rate: Rate | None = None
    deterministic: bool | None = None
    threshold_range: tuple[float, float] = (0.3, 0.6)
    rescale: FocusedRescale = "none"
    rng_collection: str = "dropout"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *spatial channels"],
        rate: Rate | None = None,
        deterministic: bool | None = None,
        *,
        rng: Array | None = None,
    ) -> Float[Array, "batch *spatial channels"]:
        """Drops weak positions of the input. See `Dropout.__call__`."""
        return _drop(self, masking.focused_dropout, x, rate, deterministic, rng)


class DropCluster(nn.Module):
    """Drops learned clusters of units. See `dropcluster_jax.drop_cluster` and `Dropout`.

    The collection "clusters" holds the fields of a `ClusterState`. `init` creates a regular grid of tiles.

    Attributes:
        clusterer: Clusterer that updates the clusters: `KMeans(...)`, `ReNA(...)`, or `Grid(...)`.
        deterministic: If True, nothing is dropped. No key and no clusters are needed, and `x` may have any resolution.
        update_clusters: If True (default False), the clusters are updated on `x` before units are dropped. `x` should
            come from a network in evaluation mode.
        axis_name: Mapped axis over which the batch is split (`pmap`, `shard_map`), used by the update.

    Raises:
        TypeError: If `clusterer` is not a clusterer, or as for `Dropout`.
        ValueError: If there are no clusters (see `init_clusters`), their shape does not match `x` (see
            `resize_clusters`), or as for `Dropout`.
        flax.errors.ModifyScopeVariableError: If `apply` updates clusters without `mutable=["clusters"]`.

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
        >>> dropped = (y == 0)[:, variables["clusters"]["labels"][..., 0] == 0]  # units of cluster 0
        >>> bool((dropped.any((1, 2)) == dropped.all((1, 2))).all())  # dropped together in each example
        True
    """

    clusterer: Clusterer
    rate: Rate | None = None
    deterministic: bool | None = None
    update_clusters: bool | None = None
    axis_name: str | None = None
    per_channel: bool = False
    per_example: bool = True
    min_explained_variance: float = 0.0
    fill: Fill = "zero"
    rescale: Rescale | None = None
    rng_collection: str = "dropout"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *spatial channels"],
        rate: Rate | None = None,
        deterministic: bool | None = None,
        update_clusters: bool | None = None,
        *,
        rng: Array | None = None,
    ) -> Float[Array, "batch *spatial channels"]:
        """Updates the clusters if `update_clusters`, then drops clusters of the input. See `Dropout.__call__`."""
        check_input(x)
        if not isinstance(self.clusterer, Clusterer) or isinstance(self.clusterer, type):
            raise TypeError(f"clusterer must be a clusterer such as KMeans(num_clusters=16), got {self.clusterer!r}")
        if self.update_clusters is None and update_clusters is None:
            update_clusters = False
        update_clusters = nn.merge_param("update_clusters", self.update_clusters, update_clusters)

        if self.is_initializing():
            if not self.has_variable(_COLLECTION, "labels"):
                self._store_clusters(self.clusterer.init(x.shape[1:]))
        elif update_clusters:
            self._store_clusters(self.clusterer.update(self._load_clusters(), x, axis_name=self.axis_name))

        return _drop(self, masking.drop_cluster, x, rate, deterministic, rng, self._load_clusters)

    def _load_clusters(self) -> ClusterState:
        if not self.has_variable(_COLLECTION, "labels"):
            raise ValueError(
                f"{'/'.join(self.path) or 'this layer'} has no clusters. To add them to the variables of a network "
                "trained without DropCluster, use "
                "variables = dropcluster_jax.linen.init_clusters(model, variables, x)"
            )
        return ClusterState(*(self.get_variable(_COLLECTION, name) for name in ClusterState._fields))

    def _store_clusters(self, state: ClusterState) -> None:
        for name, value in state._asdict().items():
            self.put_variable(_COLLECTION, name, value)


def _drop(
    layer: Any,
    function: Callable[..., Array],
    x: Array,
    rate: Rate | None,
    deterministic: bool | None,
    key: Array | None,
    load_clusters: Callable[[], ClusterState] | None = None,
) -> Array:
    """Merges the arguments of the constructor and of the call, and calls the function unless it is the identity."""
    check_input(x, min_ndim=1)
    if nn.merge_param("deterministic", layer.deterministic, deterministic):
        return x
    rate = nn.merge_param("rate", layer.rate, rate)
    check_rate(rate)
    if isinstance(rate, (int, float)) and rate == 0:
        return x
    key = layer.make_rng(layer.rng_collection) if key is None else key
    clusters = () if load_clusters is None else (load_clusters(),)
    return function(key, x, rate, *clusters, **options_of(layer, function))


def insert_after(model: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """Returns a model with drop layers after modules of another model, which is not edited.

    The new model is called like the original one, and also accepts

    - `rate`, that of the layers that were created without one: a scalar, by default 0, or one rate by pattern;
    - `update_clusters`, whether `DropCluster` layers update their clusters;
    - `deterministic`, whether to disable the layers. By default, they follow the argument `train`, `training`,
      `is_training` or `deterministic` of the original call.

    Paths of variables do not change, so pretrained parameters fit. Clusters are added to the module that a layer
    follows, under the name "drop"; `init_clusters` creates them for existing variables.

    Args:
        model: The original model.
        layers: Drop layers of this module by pattern. A pattern is a path of names, e.g. `"stage3"` or
            `"encoder/Block_1"`, in which `*` stands for any characters, e.g. `"ResNetBlock_*"`; a layer is copied for
            each module that a pattern matches. The first pattern that matches counts. Modules inside `nn.scan` need the
            collection "clusters" in its `variable_axes`, and the PRNG of the layers in its `split_rngs`.

    Raises:
        ValueError: In the call, if a pattern matches no module, or neither `deterministic` nor one of the arguments
            above is passed.

    Example:
        >>> import jax.numpy as jnp
        >>> from dropcluster_jax import KMeans
        >>> original = nn.Sequential([nn.Conv(4, (3, 3)), nn.relu, nn.Conv(2, (3, 3))])
        >>> model = insert_after(original, {"layers_0": DropCluster(KMeans(num_clusters=4))})
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 8, 8, 3)), deterministic=True)
        >>> sorted(variables["params"]), variables["clusters"]["layers_0"]["drop"]["labels"].shape
        (['layers_0', 'layers_2'], (8, 8, 1))
    """
    return _InsertAfter(_Parts(model, tuple(layers.items())))


@dataclasses.dataclass(frozen=True)
class _Parts:
    """A model, and drop layers by pattern; hidden from Flax, which would adopt them as submodules."""

    model: nn.Module
    layers: tuple[tuple[str, nn.Module], ...]


class _InsertAfter(nn.Module):
    parts: _Parts

    @nn.compact
    def __call__(
        self,
        *args: Any,
        rate: Rate | Mapping[str, Rate] = 0.0,
        update_clusters: bool = False,
        deterministic: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        model: Any = self.parts.model.clone(parent=self.scope)  # with the same scope, variables keep their paths
        call = inspect.signature(model.__call__).bind(*args, **kwargs)
        call.apply_defaults()
        if deterministic is None:
            deterministic = _is_deterministic(call.arguments)
        depth = len(self.path)
        called: dict[str, str] = {}  # paths of modules, and the patterns that match them

        def drop(function: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            y = function(*args, **kwargs)
            scope: Any = context.module.scope
            path = "/".join(scope.path[depth:])
            if context.method_name != "__call__" or not path or path.rpartition("/")[2] == _INSERTED:
                return y
            items = self.parts.layers
            pattern, layer = next((item for item in items if fnmatch.fnmatchcase(path, item[0])), ("", None))
            called[path] = pattern
            if layer is None:
                return y
            arguments: dict[str, Any] = {"deterministic": deterministic}
            if layer.rate is None:
                arguments["rate"] = rate[pattern] if isinstance(rate, Mapping) else rate
            if isinstance(layer, DropCluster):
                arguments["update_clusters"] = update_clusters
            return layer.clone(parent=scope.push(_INSERTED, reuse=True))(y, **arguments)

        with nn.intercept_methods(drop):
            result = model(*call.args, **call.kwargs)
        for pattern, _ in self.parts.layers:
            if pattern not in called.values():
                raise ValueError(f"layers has the pattern {pattern!r}, which matches none of {', '.join(called)}")
        return result


def _is_deterministic(arguments: Mapping[str, Any]) -> bool:
    """Returns whether the arguments of a call are those of evaluation."""
    if "deterministic" in arguments:
        return arguments["deterministic"]
    modes = [arguments[name] for name in ("train", "training", "is_training") if name in arguments]
    if not modes:
        raise ValueError("deterministic must be passed: the model has no argument train, training or is_training")
    return not modes[0]


def init_clusters(
    model: nn.Module,
    variables: Mapping[str, Any],
    x: Float[Array, "batch *spatial channels"],
    *args: Any,
    **kwargs: Any,
) -> dict[str, Any]:
    """Adds clusters to the variables of a network that was trained without DropCluster.

    Args:
        model: Network with `DropCluster` layers.
        variables: Variables of the network. Existing clusters are kept.
        x: Input of the network, `(batch, *spatial, channels)`. Only its shape and dtype matter.
        args: Further arguments of the model's call.
        kwargs: Further keyword arguments of the model's call.

    Returns:
        The variables with the collection "clusters", in which each layer without clusters has a regular grid.

    Example:
        >>> import jax.numpy as jnp
        >>> from dropcluster_jax import KMeans
        >>> pretrained = nn.Sequential([nn.Conv(4, (3, 3))])
        >>> x = jnp.ones((2, 8, 8, 3))
        >>> variables = pretrained.init(jax.random.key(0), x)
        >>> model = nn.Sequential([nn.Conv(4, (3, 3)), DropCluster(KMeans(num_clusters=4), deterministic=True)])
        >>> init_clusters(model, variables, x)["clusters"]["layers_1"]["labels"].shape
        (8, 8, 1)
    """
    grids = flatten_dict(_initial_clusters(model, x, *args, **kwargs))
    existing = flatten_dict(dict(variables.get(_COLLECTION, {})))
    return {**variables, _COLLECTION: unflatten_dict({**grids, **existing})}


def cluster_inputs(
    model: nn.Module,
    variables: Mapping[str, Any],
    x: Float[Array, "batch *spatial channels"],
    *args: Any,
    **kwargs: Any,
) -> dict[str, Array]:
    """Returns the input of each `DropCluster` layer, e.g. for the figures of `dropcluster_jax.viz`.

    The model must run in evaluation mode, by default or by the arguments passed here; `train=False` is passed if the
    model's call has this argument. See `init_clusters`.

    Returns:
        Activations `(batch, *spatial, channels)` by the path of the layer, as in `cluster_states`; those of the last
        call if a layer is called several times. Layers inside `nn.scan` have a leading axis.

    Raises:
        ValueError: If a layer with clusters was not called, or its input cannot be returned from a transformation.

    Example:
        >>> import jax.numpy as jnp
        >>> from dropcluster_jax import KMeans
        >>> model = nn.Sequential([nn.Conv(4, (3, 3)), DropCluster(KMeans(num_clusters=4), deterministic=True)])
        >>> x = jnp.ones((2, 8, 8, 3))
        >>> {name: maps.shape for name, maps in cluster_inputs(model, model.init(jax.random.key(0), x), x).items()}
        {'layers_1': (2, 8, 8, 4)}
    """

    def is_drop_cluster(module: nn.Module, method: str) -> bool:
        return isinstance(module, DropCluster) and method == "__call__"

    original = model.parts.model if isinstance(model, _InsertAfter) else model
    call = inspect.signature(original.__call__)
    if "train" in call.parameters and "train" not in call.bind_partial(x, *args, **kwargs).arguments:
        kwargs["train"] = False
    # In evaluation mode, the output of the layer is its input. Unlike method interceptors, this works in `nn.remat`.
    result: Any = model.apply(
        variables, x, *args, capture_intermediates=is_drop_cluster, mutable=["intermediates"], **kwargs
    )
    outputs: Any = flatten_dict(dict(result[1].get("intermediates", {})))
    inputs = {"/".join(path[:-1]): calls[-1] for path, calls in outputs.items()}
    if missing := sorted(set(cluster_states(variables.get(_COLLECTION, {}))) - set(inputs)):
        raise ValueError(
            f"the inputs of {', '.join(missing)} are unknown: the layers were not called, or are inside nn.scan or "
            'nn.vmap, whose variable_axes must include "intermediates": 0'
        )
    return inputs


def resize_clusters(
    model: nn.Module,
    variables: Mapping[str, Any],
    x: Float[Array, "batch *spatial channels"],
    *args: Any,
    **kwargs: Any,
) -> dict[str, Any]:
    """Resizes the clusters of a network to another input resolution, by nearest neighbor.

    For a single `ClusterState`, use `dropcluster_jax.resize_clusters`. See `init_clusters` for the arguments; `x` has
    the new resolution.

    Returns:
        The variables with resized clusters. Each layer keeps its number of clusters.

    Raises:
        ValueError: If `variables` has clusters for other layers than the model.

    Example:
        >>> import jax.numpy as jnp
        >>> from dropcluster_jax import KMeans
        >>> model = DropCluster(KMeans(num_clusters=4), deterministic=True)
        >>> variables = model.init(jax.random.key(0), jnp.ones((2, 8, 8, 3)))
        >>> resize_clusters(model, variables, jnp.ones((2, 12, 10, 3)))["clusters"]["labels"].shape
        (12, 10, 1)
    """
    targets = _states(_initial_clusters(model, x, *args, **kwargs))
    states = _states(variables.get(_COLLECTION, {}))
    if set(states) != set(targets):
        names = ["/".join(path) for path in sorted(set(states) ^ set(targets))]
        raise ValueError(
            "variables must have clusters for exactly the DropCluster layers of the model, but differ in "
            f"{', '.join(names)}; init_clusters adds missing clusters"
        )
    resized = {}
    for path, state in states.items():
        stack_dims = state.num_updates.ndim  # leading dimensions added by `nn.scan` or `vmap`
        resize = functools.partial(resize_state, spatial=targets[path].labels.shape[stack_dims:-1])
        for _ in range(stack_dims):
            resize = jax.vmap(resize)
        resized |= {(*path, name): value for name, value in resize(state)._asdict().items()}
    return {**variables, _COLLECTION: unflatten_dict(resized)}


def cluster_states(clusters: Mapping[str, Any]) -> dict[str, ClusterState]:
    """Returns the `ClusterState` of each layer in a collection "clusters".

    Returns:
        States by the path of the layer, e.g. `"drop_stage1"` or `"encoder/drop"`. The arrays of layers stacked by
        `nn.scan` or `vmap` have additional leading dimensions.

    Example:
        >>> import jax.numpy as jnp
        >>> from dropcluster_jax import Grid
        >>> model = nn.Sequential([DropCluster(Grid(num_clusters=4), deterministic=True)])
        >>> variables = model.init(jax.random.key(0), jnp.ones((2, 8, 8, 3)))
        >>> cluster_states(variables["clusters"])["layers_0"].labels.shape
        (8, 8, 1)
    """
    return {"/".join(path): state for path, state in _states(clusters).items()}


def _states(clusters: Mapping[str, Any]) -> dict[tuple[str, ...], ClusterState]:
    leaves: Any = flatten_dict(dict(clusters))
    layers: Any = dict.fromkeys(path[:-1] for path in leaves)
    return {layer: ClusterState(*(leaves[(*layer, name)] for name in ClusterState._fields)) for layer in layers}


def _initial_clusters(model: nn.Module, x: Array, *args: Any, **kwargs: Any) -> PyTree:
    """Returns the clusters that `model.init` creates. Under `jit`, so that XLA removes all other computation."""
    return jax.jit(lambda x: model.init(jax.random.key(0), x, *args, **kwargs).get(_COLLECTION, {}))(x)
