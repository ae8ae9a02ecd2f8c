"""The pure steps on many devices: `jit` over a mesh, `shard_map` or `pmap`. Three ways, one face.

The state is the same under all three, replicated and not stacked, so one may go on where another stopped.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from dropcluster_jax.sharding import check_automatic, shard_batch
from dropcluster_jax.training.steps import Batch, Metrics, Steps, TrainState

Strategy = Literal["jit", "shard_map", "pmap"]

_AXIS = "batch"


@dataclasses.dataclass(frozen=True)
class DataParallel:
    """How steps run on many devices: the batch is divided over them, each holds the parameters.

    Under `"jit"` XLA divides the work: a step is the step of one device on the whole batch, up to rounding, with
    BatchNorm over the whole batch. Under `"shard_map"` and `"pmap"` each replica takes its part of the batch, draws
    masks of its own, and BatchNorm averages over it alone, or over all if the network has the axis's name. Make the
    steps, and `DropCluster` layers, with `axis_name`; `"shard_map"` says where a layer lacks it, `"pmap"` does not.

    Attributes:
        strategy: `"jit"`, `"shard_map"` or `"pmap"`.
        mesh: the devices, along one axis; None is all of them, those of other processes too.
        shard_optimizer: whether each device holds a part of the optimizer's state only; under `"jit"`.

    Raises:
        ValueError: an unknown way; a mesh of several axes, or one that is not automatic; `shard_optimizer` with
            another way; `"pmap"` with devices of several processes.

    References:
        Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", SC 2020,
        arXiv:1910.02054: dividing the optimizer's state is its first stage.

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
        >>> int(state.step), float(steps.evaluate(state, batch)["count"])  # of all devices together
        (1, 8.0)
    """

    strategy: Strategy = "jit"
    mesh: Mesh = None  # pyright: ignore[reportAssignmentType] - is set below
    shard_optimizer: bool = False

    def __post_init__(self) -> None:
        if self.strategy not in get_args(Strategy):
            raise ValueError(f"strategy must be one of {', '.join(get_args(Strategy))}, got {self.strategy!r}")
        if self.mesh is None:
            mesh = jax.make_mesh((jax.device_count(),), (_AXIS,), axis_types=(AxisType.Auto,))
            object.__setattr__(self, "mesh", mesh)
        if len(self.mesh.axis_names) != 1:
            raise ValueError(f"mesh must have one axis, over which the batch is divided, got {self.mesh.axis_names}")
        check_automatic(self.mesh)
        if self.shard_optimizer and self.strategy != "jit":
            raise ValueError(f"shard_optimizer needs strategy 'jit', got {self.strategy!r}")
        if self.strategy == "pmap" and len({device.process_index for device in self.mesh.devices.flat}) > 1:
            raise ValueError(
                "strategy 'pmap' is for the devices of one process; 'shard_map' takes the same steps on all"
            )

    @property
    def axis_name(self) -> str | None:
        """What `make_steps`, `DropCluster` and BatchNorm take as `axis_name`: None under `"jit"`."""
        return None if self.strategy == "jit" else self.mesh.axis_names[0]

    @property
    def batch_sharding(self) -> NamedSharding:
        """Divides arrays over the devices along their first axis."""
        return NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names[0]))

    @property
    def replicated(self) -> NamedSharding:
        """Gives each device the whole of an array."""
        return NamedSharding(self.mesh, PartitionSpec())

    def shard_batch(self, batch: Batch) -> Batch:
        """A batch from the host (of several processes: each one's part of it) on the devices.

        Args:
            batch: arrays `(batch, ...)`, where `batch` is a multiple of the devices.

        Returns:
            The same as JAX arrays, divided along their first axis; of several processes, of all their parts together.

        Raises:
            ValueError: it is not.
        """
        return shard_batch(dict(batch), self.batch_sharding)

    @functools.lru_cache(maxsize=4)  # noqa: B019 - so that a run traces and compiles its steps once
    def compile(self, steps: Steps) -> Steps:
        """The steps, compiled, for states and batches on these devices; the same object for the same steps.

        Args:
            steps: made with this `axis_name`.

        Returns:
            Steps that take batches as `shard_batch` gives them, and states as their `init` does. `train` gives the buffers of
            its state away.

        Raises:
            ValueError: the steps were made with another `axis_name`: their replicas would not know of each other.
        """
        if steps.axis_name != self.axis_name:
            raise ValueError(
                f"steps must be made with axis_name={self.axis_name!r} for strategy {self.strategy!r}, "
                f"got {steps.axis_name!r}"
            )

        def init(key: Array, batch: Batch) -> TrainState:
            return self._divided(steps.init(key, batch))

        def train(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
            state, metrics = steps.train(state, batch)
            return self._divided(state), metrics

        def clusters(state: TrainState, batch: Batch) -> PyTree:
            return steps.update_clusters(state, batch).clusters

        learn = self._compiled(clusters, self.replicated)

        def update_clusters(state: TrainState, batch: Batch) -> TrainState:
            return state._replace(clusters=learn(state, batch))  # all else stays where it is

        return Steps(
            jax.jit(init, out_shardings=self._state_sharding()),
            self._compiled(train, (self._state_sharding(), self.replicated), donate=True),
            update_clusters,
            self._compiled(steps.evaluate, self.replicated),
            steps.axis_name,
        )

    def _compiled(self, function: Callable[..., Any], outputs: Any, donate: bool = False) -> Callable[..., Any]:
        """A function of a state and a batch, with outputs so placed, this way."""
        given_away = 0 if donate else ()
        if self.strategy == "pmap":
            mapped = jax.pmap(
                function,
                axis_name=self.axis_name,
                in_axes=(None, 0),
                out_axes=None,  # pyright: ignore[reportArgumentType]
                donate_argnums=given_away,
                devices=list(self.mesh.devices.flat),
            )
            split = jax.jit(lambda batch: jax.tree.map(lambda x: x.reshape(self.mesh.size, -1, *x.shape[1:]), batch))
            return lambda state, batch: mapped(state, split(batch))
        batches = self.batch_sharding
        if self.strategy == "shard_map":
            everywhere = PartitionSpec()
            function = jax.shard_map(
                function, mesh=self.mesh, in_specs=(everywhere, batches.spec), out_specs=everywhere
            )
        return jax.jit(function, in_shardings=(None, batches), out_shardings=outputs, donate_argnums=given_away)

    def abstract_state(self, steps: Steps, key: Array, batch: Batch) -> TrainState:
        """The state that `init` would give, without its arrays; such as `Checkpointer.restore` takes.

        Args:
            steps: made with this `axis_name`.
            key: a PRNG key; only its type matters.
            batch: arrays or shapes; only their shapes and types matter.

        Returns:
            A state of `jax.ShapeDtypeStruct`s with where each array would lie.
        """
        state = jax.eval_shape(steps.init, key, batch)
        placed = jax.tree.map(lambda leaf: self._struct(leaf, self.replicated), state)
        if not self.shard_optimizer:
            return placed
        return placed._replace(
            opt_state=jax.tree.map(lambda leaf: self._struct(leaf, self._part(leaf.shape)), state.opt_state)
        )

    def _struct(self, leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def _state_sharding(self) -> Any:
        shardings: dict[str, Any] = dict.fromkeys(TrainState._fields, self.replicated)
        return TrainState(**{**shardings, "opt_state": None} if self.shard_optimizer else shardings)

    def _divided(self, state: TrainState) -> TrainState:
        """With the optimizer's state divided over the devices."""
        if not self.shard_optimizer:
            return state
        divided = jax.tree.map(
            lambda leaf: jax.lax.with_sharding_constraint(leaf, self._part(leaf.shape)), state.opt_state
        )
        return state._replace(opt_state=divided)

    def _part(self, shape: tuple[int, ...]) -> NamedSharding:
        """Divides an array along the first axis that can be."""
        axis = next((i for i, length in enumerate(shape) if length and length % self.mesh.size == 0), None)
        spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, self.mesh.axis_names[0])
        return NamedSharding(self.mesh, spec)
