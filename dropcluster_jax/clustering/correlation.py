"""The correlation geometry: responses of units as vectors of length 1, whose dot products are correlations.

A unit is one (position, channel); its vector is its response over the examples of a probe batch. Here also the sums
that clusterings are made of. Each is a sum over examples, so that replicas which hold parts of the batch need only
add them up; and each is made for a few channels at a time, which bounds the memory and keeps a CPU in its cache.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

# A unit whose deviation is below this share of its largest value varies by rounding alone.
_MIN_DEVIATION = 1e-6
# How many bytes of activations are worked on together: on a CPU what its cache holds, elsewhere enough to keep every
# core busy. It changes the speed alone.
_BYTES_AT_ONCE = {"cpu": 2 * 2**20}
_BYTES_AT_ONCE_ELSEWHERE = 256 * 2**20


@dataclasses.dataclass(frozen=True)
class Group:
    """Units that share their labels: those of one channel, or of all.

    Attributes:
        vectors: centered over the (whole) batch, length 1; zero for a unit that does not vary.
        varying: whether the unit varies.
        axis_name: the mapped axis over which the batch is split, if any.
    """

    vectors: Float[Array, "members positions batch"]
    varying: Bool[Array, "members positions"]
    axis_name: str | None

    def sum(self, partial: Callable[..., Float[Array, "..."]], *rest: Array) -> Float[Array, "..."]:
        """Add up `partial(vectors, varying, *rest)` of each member, over all members and replicas.

        Args:
            partial: a function of one member's vectors, `(positions, batch)`, its `varying`, and its part of the rest.
            rest: more arrays with the members first.
        """

        def some(members: tuple[Array, ...]) -> Array:
            alone = len(members[0]) == 1  # without a dimension of length 1, which slows XLA down
            parts = partial(*(each[0] for each in members)) if alone else jax.vmap(partial)(*members)
            total = parts if alone else jnp.sum(parts, axis=0)
            return total if self.axis_name is None else jax.lax.psum(total, self.axis_name)

        members = (self.vectors, self.varying, *rest)
        shape = jax.eval_shape(partial, *(each[0] for each in members))
        chunk = _chunk(len(self.vectors), self.vectors[0].size + shape.size)
        if chunk == len(self.vectors):
            return some(members)

        def add(i: Array, total: Array) -> Array:
            return total + some(_chunks(members, i, chunk))

        return jax.lax.fori_loop(0, len(self.vectors) // chunk, add, jnp.zeros(shape.shape, shape.dtype))


def correlation_units(
    x: Float[Array, "channels positions batch"], axis_name: str | None = None
) -> tuple[Float[Array, "channels positions batch"], Bool[Array, "channels positions"], Bool[Array, ""]]:
    """Centre each unit's response over the examples and scale it to length 1.

    Then `<u_p, u_q>` is the correlation of units p and q, and `|u_p - u_q|^2 = 2 (1 - correlation)`.

    Args:
        x: activations, float32.
        axis_name: a mapped axis over which the batch is split, if any.

    Returns:
        The vectors, zero for units that do not vary; which units vary; and whether all activations are finite (and
        none so large that its square is not).

    Example:
        >>> x = jnp.array([[[1.0, 2.0, 3.0], [5.0, 3.0, 1.0], [0.0, 0.0, 0.0]]])  # 1 channel, 3 positions, 3 examples
        >>> vectors, varying, finite = correlation_units(x)
        >>> round(float(vectors[0, 0] @ vectors[0, 1]), 4), varying[0].tolist()
        (-1.0, [True, True, False])
    """
    # Relative to its largest value a constant unit is exactly 0, in whatever order replicas add up.
    largest = jnp.max(x, axis=-1)
    if axis_name is not None:
        largest = jax.lax.pmax(largest, axis_name)
    x = x - largest[..., None]
    total, examples = jnp.sum(x, axis=-1), x.shape[-1]
    if axis_name is not None:
        total, examples = jax.lax.psum((total, examples), axis_name)
    x = x - (total / examples)[..., None]
    square = jnp.sum(jnp.square(x), axis=-1)
    if axis_name is not None:
        square = jax.lax.psum(square, axis_name)
    varying = square > examples * jnp.square(_MIN_DEVIATION * largest)
    scale = jnp.where(varying, jax.lax.rsqrt(jnp.where(varying, square, 1.0)), 0.0)
    return x * scale[..., None], varying, jnp.all(jnp.isfinite(square))


def map_groups(
    function: Callable[..., PyTree[Array]],
    x: Float[Array, "batch *spatial channels"],
    *parts: Shaped[Array, "groups ..."],
    axis_name: str | None,
    per_position: int,
) -> tuple[PyTree[Array], Bool[Array, ""]]:
    """Do `function(group, *parts)` for each group of units, a few at a time.

    With labels per channel there are `channels` groups of one member each, else one group with all channels as
    members.

    Args:
        function: of a `Group` and its part of each array.
        x: activations.
        parts: arrays with the groups first; they say how many there are.
        axis_name: the mapped axis over which the batch is split, if any.
        per_position: how many numbers the function holds for each position, beside the activations.

    Returns:
        The results with the groups first; and whether all activations were finite.

    Raises:
        ValueError: there is no example.
    """
    batch, channels, groups = x.shape[0], x.shape[-1], len(parts[0])
    positions = math.prod(x.shape[1:-1])
    if batch < 1:
        raise ValueError(f"x must hold at least one example, got the shape {x.shape}")
    # Transposed in the shape that it has: reshaped before, XLA would copy it once more.
    x = jnp.transpose(x.astype(jnp.float32), (x.ndim - 1, *range(1, x.ndim - 1), 0)).reshape(channels, positions, batch)
    if groups == 1:
        vectors, varying, finite = _correlation_units_in_place(x, axis_name)
        result = function(Group(vectors, varying, axis_name), *(each[0] for each in parts))
        return jax.tree.map(lambda each: each[None], result), finite

    def one(vectors: Array, varying: Array, *parts: Array) -> PyTree[Array]:
        return function(Group(vectors[None], varying[None], axis_name), *parts)

    def some(i: Array) -> tuple[PyTree[Array], Array]:
        some_x, *some_parts = _chunks((x, *parts), i, chunk)
        vectors, varying, finite = correlation_units(some_x, axis_name)
        return jax.vmap(one)(vectors, varying, *some_parts), finite

    chunk = _chunk(groups, positions * (batch + per_position))
    results, finite = jax.lax.map(some, jnp.arange(groups // chunk))
    return jax.tree.map(lambda each: each.reshape(groups, *each.shape[2:]), results), jnp.all(finite)


def by_group(labels: Int[Array, "*spatial groups"]) -> Int[Array, "groups positions"]:
    """The labels of each group, in a row."""
    return labels.reshape(-1, labels.shape[-1]).T


def _correlation_units_in_place(
    x: Float[Array, "channels positions batch"], axis_name: str | None
) -> tuple[Float[Array, "channels positions batch"], Bool[Array, "channels positions"], Bool[Array, ""]]:
    """`correlation_units` of a few channels at a time, so that no second copy of all is held."""
    channels, positions, batch = x.shape
    chunk = _chunk(channels, positions * batch)

    def step(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        vectors, varying, finite = carry
        (some,) = _chunks((vectors,), i, chunk)
        some, some_live, some_finite = correlation_units(some, axis_name)
        return (
            jax.lax.dynamic_update_slice_in_dim(vectors, some, i * chunk, axis=0),
            jax.lax.dynamic_update_slice_in_dim(varying, some_live, i * chunk, axis=0),
            finite & some_finite,
        )

    return jax.lax.fori_loop(0, channels // chunk, step, (x, jnp.zeros((channels, positions), bool), jnp.array(True)))


def _chunk(number: int, elements: int) -> int:
    """How many things of so many float32 numbers to work on together: a divisor of their number, at least 1."""
    bytes_at_once = _BYTES_AT_ONCE.get(jax.default_backend(), _BYTES_AT_ONCE_ELSEWHERE)
    most = max(1, bytes_at_once // (4 * elements))
    return next(chunk for chunk in range(min(most, number), 0, -1) if number % chunk == 0)


def _chunks(arrays: tuple[Array, ...], i: Array, chunk: int) -> tuple[Array, ...]:
    """The i-th part of each array. A reshape, of which a loop takes the i-th row, would make XLA copy them all."""
    return tuple(jax.lax.dynamic_slice_in_dim(each, i * chunk, chunk) for each in arrays)


def apply_if(
    predicate: Bool[Array, ""], function: Callable[[PyTree[Array]], PyTree[Array]], operand: PyTree[Array]
) -> Any:
    """`function(operand)` where the predicate holds, else `operand`.

    A loop of at most one turn: under `vmap` it is left out where no example needs it; `lax.cond` would always run it.
    """
    return jax.lax.while_loop(
        lambda carry: carry[0], lambda carry: (jnp.array(False), function(carry[1])), (predicate, operand)
    )[1]


def depend_on(x: Float[Array, "..."], index: Int[Array, "..."]) -> Float[Array, "..."]:
    """`x`, but not before `index` is known, integers of at least 0.

    Where `psum` is used within one process, on several CPU devices, XLA crashes when two of them run at once (all carry
    the same channel). So what sums over replicas is made to depend on what did so before. An optimization barrier does
    not varying long enough for that.
    """
    return jnp.where(index.ravel()[0] >= 0, x, 0.0)


def membership(labels: Int[Array, " positions"], num_clusters: int) -> Float[Array, "clusters positions"]:
    """1 where the position belongs to the cluster. A label outside `[0, num_clusters)` belongs to none."""
    return (labels == jnp.arange(num_clusters)[:, None]).astype(jnp.float32)


def product(left: Float[Array, "..."], right: Float[Array, "..."]) -> Float[Array, "..."]:
    """The matrix product in full float32: by default accelerators would round to bfloat16 or tf32."""
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def squared_distances(
    group: Group, points: Callable[[Array, Array], Float[Array, "points batch"]]
) -> Float[Array, "positions points"]:
    """The squared distance of each position to each point: the mean over channels, over a position's varying ones.

    Channels without any varying unit do not count.

    Args:
        group: the units.
        points: gives the points in one channel, centroids or units, from its vectors and their liveness.
    """

    def partial(vectors: Array, varying: Array) -> Array:
        there = points(vectors, varying)
        square = jnp.sum(jnp.square(there), axis=1)
        return jnp.where(varying[:, None], square, 0.0) - 2.0 * product(vectors, there.T)

    own = jnp.sum(group.varying, axis=0, dtype=jnp.float32)
    channels = jnp.sum(jnp.any(group.varying, axis=1), dtype=jnp.float32)
    # Rounding can take a distance of 0 below it.
    return jnp.maximum(own[:, None] + group.sum(partial), 0.0) / jnp.maximum(channels, 1.0)


def centroids(
    member: Float[Array, "clusters positions"],
) -> Callable[[Array, Array], Float[Array, "clusters batch"]]:
    """In one channel, the mean of each cluster's varying units; zero where it has none."""

    def points(vectors: Array, varying: Array) -> Array:
        counts = product(member, varying.astype(jnp.float32))
        return product(member, vectors) / jnp.maximum(counts, 1.0)[:, None]

    return points


def explained(group: Group, labels: Int[Array, " positions"], num_clusters: int) -> Float[Array, ""]:
    """1 - (variance within clusters) / (total variance) over the group's varying units; 0 where nothing varies."""

    def partial(vectors: Array, varying: Array) -> Array:
        counts = jax.ops.segment_sum(varying.astype(jnp.float32), labels, num_clusters)
        sums = jax.ops.segment_sum(vectors, labels, num_clusters)
        each = jnp.sum(jnp.sum(jnp.square(sums), axis=1) / jnp.maximum(counts, 1.0))
        overall = jnp.sum(jnp.square(jnp.sum(sums, axis=0))) / jnp.maximum(jnp.sum(counts), 1.0)
        return jnp.stack([each, overall])

    each, overall = group.sum(partial)
    units = jnp.sum(group.varying, dtype=jnp.float32)
    # Units that all agree leave nothing to explain, but for rounding.
    varies = units - overall > 1e-6 * units
    return jnp.where(varies, jnp.clip((each - overall) / jnp.where(varies, units - overall, 1.0), 0.0, 1.0), 0.0)


def within_correlation(group: Group, labels: Int[Array, " positions"], num_clusters: int) -> Float[Array, ""]:
    """The mean correlation of two different varying units of one channel and one cluster; 0 where there are none."""
    counts = jax.vmap(lambda varying: jax.ops.segment_sum(varying, labels, num_clusters))(
        group.varying.astype(jnp.float32)
    )
    squares = group.sum(lambda vectors, _: jnp.sum(jnp.square(jax.ops.segment_sum(vectors, labels, num_clusters))))
    pairs = jnp.sum(counts * (counts - 1.0))
    mean = (squares - jnp.sum(group.varying, dtype=jnp.float32)) / jnp.maximum(pairs, 1.0)
    return jnp.where(pairs > 0, jnp.clip(mean, -1.0, 1.0), 0.0)
