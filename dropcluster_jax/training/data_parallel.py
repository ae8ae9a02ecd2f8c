"""Data parallelism with `jit` over a mesh, `shard_map` or `pmap`."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from dropcluster_jax.sharding import check_automatic, shard_batch
from dropcluster_jax.training.steps import Batch, Metrics, Steps, TrainState

Strategy = Literal["jit", "shard_map", "pmap"]


def _mesh_of_all_devices() -> Mesh:
    return jax.make_mesh((jax.device_count(),), ("batch",), axis_types=(AxisType.Auto,))


@dataclasses.dataclass(frozen=True)
class DataParallel:
    """Runs steps on several devices, with sharded batches and replicated parameters.

    With `"jit"`, a step equals that of one device on the whole batch up to rounding, including BatchNorm. With
    `"shard_map"` and `"pmap"`, each replica draws separate masks for its part of the batch, and BatchNorm normalizes
    over that part unless it has the axis name. Create the steps and the `DropCluster` layers with `axis_name`;
    `"shard_map"` raises an error if a layer lacks it, `"pmap"` does not. A run can switch between the strategies.

    Attributes:
        strategy: `"jit"`, `"shard_map"` or `"pmap"`.
        mesh: Mesh with one automatic axis. Defaults to all devices of all processes.
        shard_optimizer: Whether to shard the optimizer state instead of replicating it. Requires `"jit"`.

    Raises:
        ValueError: If `strategy` is unknown, `mesh` does not have a single automatic axis, or `shard_optimizer` is set
            without `"jit"`.

    References:
        Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", SC 2020,
        arXiv:1910.02054, stage 1 (sharded optimizer states).

    Example:
        >>> import flax.linen as nn
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from dropcluster_jax import KMeans
        >>> from dropcluster_jax.linen import DropCluster
        >>> from dropcluster_jax.training import make_steps
        >>> parallel = DataParallel("shard_map")
        >>> class Net(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x, train=False, rate=0.0, update_clusters=False):
        ...         drop = DropCluster(KMeans(cluster_size=4), axis_name=parallel.axis_name)
        ...         return nn.Dense(10)(drop(nn.Conv(8, (3, 3))(x), rate, not train, update_clusters).mean((1, 2)))
        >>> steps = parallel.compile(make_steps(Net(), optax.sgd(0.1), rate=0.1, axis_name=parallel.axis_name))
        >>> batch = parallel.shard_batch({"image": jnp.ones((8, 8, 8, 1)), "label": jnp.zeros(8, jnp.int32)})
        >>> batch["image"].sharding.num_devices == jax.device_count()
        True
        >>> state = steps.init(jax.random.key(0), batch)
        >>> state, metrics = steps.train(state, batch)
        >>> int(state.step), float(steps.evaluate(state, batch)["count"])  # summed over devices
        (1, 8.0)
    """

    strategy: Strategy = "jit"
    mesh: Mesh = dataclasses.field(default_factory=_mesh_of_all_devices)
    shard_optimizer: bool = False
    _compiled: dict[Steps, Steps] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.strategy not in get_args(Strategy):
            raise ValueError(f"strategy must be one of {', '.join(get_args(Strategy))}, got {self.strategy!r}")
        if len(self.mesh.axis_names) != 1:
            raise ValueError(f"mesh must have one axis, got {self.mesh.axis_names}")
        check_automatic(self.mesh)
        if self.shard_optimizer and self.strategy != "jit":
            raise ValueError(f"shard_optimizer requires strategy 'jit', got {self.strategy!r}")

    @property
    def axis_name(self) -> str | None:
        """Axis name for `make_steps`, `DropCluster` and BatchNorm: None with `"jit"`."""
        return None if self.strategy == "jit" else self.mesh.axis_names[0]

    @property
    def batch_sharding(self) -> NamedSharding:
        """Sharding of batches: along the first axis."""
        return NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names[0]))

    @property
    def replicated(self) -> NamedSharding:
        """Sharding of arrays that each device holds completely."""
        return NamedSharding(self.mesh, PartitionSpec())

    def shard_batch(self, batch: Batch) -> Batch:
        """Moves a host batch to the devices. With multiple processes, it is the part of this process.

        The number of devices must divide the batch size.
        """
        return shard_batch(dict(batch), self.batch_sharding)

    def compile(self, steps: Steps) -> Steps:
        """Compiles steps, which then take batches sharded by `batch_sharding`. `train` donates the state's buffers.

        Compiled steps are cached: calling this again with the same steps is cheap and returns the same object.

        Raises:
            ValueError: If the steps were made with another `axis_name`, or a mesh with explicit axes is set.
        """
        if explicit := jax.sharding.get_abstract_mesh().explicit_axes:
            raise ValueError(
                f"jax.set_mesh must not set explicit axes, got {', '.join(explicit)}: with them, pass the steps to "
                "jax.jit instead, and batches that are sharded over them"
            )
        if steps.axis_name != self.axis_name:
            raise ValueError(
                f"steps must be made with axis_name={self.axis_name!r} for strategy {self.strategy!r}, "
                f"got {steps.axis_name!r}"
            )
        if steps not in self._compiled:
            self._compiled[steps] = self._compile(steps)
        return self._compiled[steps]

    def _compile(self, steps: Steps) -> Steps:
        def init(key: Array, batch: Batch) -> TrainState:
            return self._constrain_opt_state(steps.init(key, batch))

        def train(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
            state, metrics = steps.train(state, batch)
            return self._constrain_opt_state(state), metrics

        def update_clusters(state: TrainState, batch: Batch) -> PyTree:
            return steps.update_clusters(state, batch).clusters

        compiled_update = self._jit(update_clusters, out_shardings=self.replicated)

        return Steps(
            init=jax.jit(init, out_shardings=self._state_sharding()),
            train=self._jit(train, out_shardings=(self._state_sharding(), self.replicated), donate_argnums=0),
            # Returns only the clusters from the compiled function, so that no other array is copied.
            update_clusters=lambda state, batch: state._replace(clusters=compiled_update(state, batch)),
            evaluate=self._jit(steps.evaluate, out_shardings=self.replicated),
            axis_name=steps.axis_name,
            skip_nonfinite=steps.skip_nonfinite,
        )

    def _jit(
        self, function: Callable[..., Any], out_shardings: Any, donate_argnums: int | tuple[int, ...] = ()
    ) -> Callable[..., Any]:
        """Compiles a function of a replicated state and a sharded batch with the strategy."""
        if self.strategy == "pmap":
            mapped = jax.pmap(
                function,
                axis_name=self.axis_name,
                in_axes=(None, 0),
                out_axes=None,
                donate_argnums=donate_argnums,
                devices=list(self.mesh.devices.flat),
            )
            split = jax.jit(lambda batch: jax.tree.map(lambda x: x.reshape(self.mesh.size, -1, *x.shape[1:]), batch))
            return lambda state, batch: self._make_global(mapped(state, split(batch)))
        if self.strategy == "shard_map":
            function = jax.shard_map(
                function,
                mesh=self.mesh,
                in_specs=(self.replicated.spec, self.batch_sharding.spec),
                out_specs=self.replicated.spec,
            )
        return jax.jit(
            function,
            in_shardings=(None, self.batch_sharding),
            out_shardings=out_shardings,
            donate_argnums=donate_argnums,
        )

    def _make_global(self, results: PyTree) -> PyTree:
        """Returns replicated results of `pmap`, which are on the devices of this process, as arrays on all devices."""
        if self.mesh.is_multi_process:
            return multihost_utils.host_local_array_to_global_array(results, self.mesh, self.replicated.spec)
        return results

    def abstract_state(self, steps: Steps, key: Array, batch: Batch) -> TrainState:
        """Returns the state as `jax.ShapeDtypeStruct`s with shardings, e.g. to restore a checkpoint into.

        Only the shapes and dtypes of the batch are used, and the type of the key.
        """
        state = jax.eval_shape(steps.init, key, batch)
        abstract = jax.tree.map(lambda leaf: _with_sharding(leaf, self.replicated), state)
        if not self.shard_optimizer:
            return abstract
        opt_state = jax.tree.map(lambda leaf: _with_sharding(leaf, self._shard(leaf.shape)), state.opt_state)
        return abstract._replace(opt_state=opt_state)

    def _state_sharding(self) -> Any:
        """Returns the output sharding of a state. A sharded optimizer state has constraints instead."""
        shardings: dict[str, Any] = dict.fromkeys(TrainState._fields, self.replicated)
        return TrainState(**{**shardings, "opt_state": None} if self.shard_optimizer else shardings)

    def _constrain_opt_state(self, state: TrainState) -> TrainState:
        """Shards the optimizer state, if requested."""
        if not self.shard_optimizer:
            return state
        opt_state = jax.tree.map(
            lambda leaf: jax.lax.with_sharding_constraint(leaf, self._shard(leaf.shape)), state.opt_state
        )
        return state._replace(opt_state=opt_state)

    def _shard(self, shape: tuple[int, ...]) -> NamedSharding:
        """Returns a sharding along the first axis that the number of devices divides; replicated if there is none."""
        axis = next((i for i, length in enumerate(shape) if length and length % self.mesh.size == 0), None)
        spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, self.mesh.axis_names[0])
        return NamedSharding(self.mesh, spec)


def _with_sharding(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
