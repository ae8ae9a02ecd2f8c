"""The laws of dropout as functions, to hold your own masks and layers to.

A drop is any function `(key, x) -> y`; of a mask the same laws hold but for those of means. A layer becomes one by
`lambda key, x: layer.apply(variables, x, rate=0.1, deterministic=False, rng=key)`. Statistical laws take many keys; the
keys are fixed, so a test that passes keeps passing. They need some events to count: `samples` should be at least 100
times `1 / rate` and `1 / (1 - rate)`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

__all__ = [
    "assert_constant_within_clusters",
    "assert_mean_preserved",
    "assert_pure",
    "assert_rate",
    "assert_sum_preserved",
]

Drop = Callable[[Array, Array], Array]

_AT_ONCE = 64


def assert_mean_preserved(
    drop: Drop, x: Float[Array, "batch ..."], *, samples: int = 2048, sigmas: float = 5.5, seed: int = 0
) -> None:
    """Each unit's mean over keys is its value, as rescaling by `1 / (1 - rate)` makes it.

    Args:
        drop: `(key, x) -> y`.
        x: activations `(batch, ...)`; best without zeros.
        samples: the number of keys, at least 1, rounded up to a multiple of 64.
        sigmas: how many standard errors, as measured in the samples, a mean may be off.
        seed: of the keys.

    Raises:
        AssertionError: a unit's mean is off; the message names the worst.
        ValueError: `samples` is below 1.

    Example:
        >>> import dropcluster_jax as dc
        >>> x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
        >>> assert_mean_preserved(lambda key, x: dc.dropout(key, x, 0.3), x)
        >>> assert_mean_preserved(lambda key, x: dc.dropout(key, x, 0.3, rescale="none"), x)
        Traceback (most recent call last):
        ...
        AssertionError: unit (0, 2, 2, 2) has the mean -0.01381 +- 0.00022 over 2048 keys, its value is -0.02072
    """
    mean, error, number = _moments(lambda key: drop(key, x), samples, seed)
    values = np.asarray(x, np.float64)
    # A unit's own samples may hold too few events to tell its error: the error relative to the value, over all units.
    pooled = np.sqrt(np.mean(np.square(error[values != 0] / values[values != 0]))) if values.any() else 0.0
    off = np.abs(mean - values) / np.maximum(np.maximum(error, pooled * np.abs(values)), 1e-6 * np.abs(values) + 1e-30)
    worst = np.unravel_index(np.argmax(off), off.shape)
    if not off[worst] <= sigmas:  # NaN is off, too
        raise AssertionError(
            f"unit {tuple(map(int, worst))} has the mean {mean[worst]:.4g} +- {error[worst]:.2g} over {number} keys, "
            f"its value is {float(x[worst]):.4g}"
        )


def assert_sum_preserved(drop: Drop, x: Float[Array, "batch ..."], *, samples: int = 64, seed: int = 0) -> None:
    """A constant map keeps its sum in each example unless all of it is dropped, as rescaling by what is kept makes it.

    Args:
        drop: `(key, x) -> y`.
        x: activations `(batch, ...)`; only their shape and type matter, the law is tried with ones.
        samples: the number of keys, at least 1, rounded up to a multiple of 64.
        seed: of the keys.

    Raises:
        AssertionError: an example's sum is off by more than 1e-5 of it (for types of lower precision: 3 of their
            roundings); or in all samples nothing is kept.
        ValueError: `samples` is below 1.

    Example:
        >>> import dropcluster_jax as dc
        >>> assert_sum_preserved(lambda key, x: dc.drop_block(key, x, 0.3, block_size=3), jnp.ones((2, 8, 8, 3)))
    """
    ones = jnp.ones_like(x)
    tolerance = max(1e-5, 3 * float(jnp.finfo(x.dtype).eps))
    units = x[0].size

    def sums(key: Array) -> Array:
        return jnp.sum(drop(key, ones).astype(jnp.float32).reshape(len(x), -1), axis=1)

    found = np.asarray(jax.lax.map(sums, _keys(samples, seed), batch_size=_AT_ONCE))
    if not found.any():
        raise AssertionError(f"nothing is kept with any of {len(found)} keys")
    off = np.abs(np.where(found == 0, units, found) - units)
    worst = np.unravel_index(np.argmax(off), off.shape)
    if not off[worst] <= tolerance * units:
        raise AssertionError(f"ones of the sum {units} have the sum {found[worst]:.6g} afterwards, with key {worst[0]}")


def assert_rate(
    drop: Drop,
    x: Float[Array, "batch ..."],
    rate: float,
    *,
    samples: int = 2048,
    sigmas: float = 5.5,
    tolerance: float = 0.0,
    seed: int = 0,
) -> None:
    """The share that is dropped is `rate` in expectation.

    Args:
        drop: `(key, x) -> y`, or a mask.
        x: activations `(batch, ...)`; only their shape and type matter, the law is tried with ones.
        rate: what the share should be, in [0, 1].
        samples: the number of keys, at least 1, rounded up to a multiple of 64.
        sigmas: how many standard errors, as measured in the samples, the share may be off.
        tolerance: what it may be off beside that, relative to `rate`.
        seed: of the keys.

    Raises:
        AssertionError: the share is off.
        ValueError: `samples` is below 1.

    Example:
        >>> import dropcluster_jax as dc
        >>> x = jnp.ones((4, 14, 14, 1))
        >>> assert_rate(lambda key, x: dc.drop_block(key, x, 0.3), x, 0.3)
        >>> assert_rate(lambda key, x: dc.drop_block(key, x, 0.3, seeding="paper"), x, 0.3)
        Traceback (most recent call last):
        ...
        AssertionError: the share 0.2410 +- 0.0020 is dropped over 2048 keys, the rate is 0.3
    """
    ones = jnp.ones_like(x)

    def dropped(key: Array) -> Array:
        y = drop(key, ones)
        return jnp.where(jnp.all(jnp.isfinite(y)), jnp.mean(y == 0, dtype=jnp.float32), jnp.nan)

    share, error, number = _moments(dropped, samples, seed)
    error = max(error, np.sqrt(rate * (1 - rate) / (number * ones.size)))
    if not abs(share - rate) <= sigmas * error + tolerance * rate + 1e-6:
        raise AssertionError(f"the share {share:.4f} +- {error:.4f} is dropped over {number} keys, the rate is {rate}")


def assert_constant_within_clusters(
    drop: Drop,
    x: Float[Array, "batch *spatial channels"],
    labels: Int[Array, "*spatial maps"],
    *,
    samples: int = 64,
    seed: int = 0,
) -> None:
    """All units of a cluster fall together, in each example and channel.

    Args:
        drop: `(key, x) -> y`, or a mask.
        x: activations `(batch, *spatial, channels)`; only their shape and type matter, the law is tried with ones.
        labels: the clusters, `ClusterState.labels`: int32 `(*spatial, 1)`, of all channels, or `(*spatial, channels)`.
        samples: the number of keys, at least 1, rounded up to a multiple of 64.
        seed: of the keys.

    Raises:
        AssertionError: a cluster is dropped in part; or in all samples nothing or everything is dropped.
        ValueError: `samples` is below 1.

    Example:
        >>> import dropcluster_jax as dc
        >>> x = jnp.ones((2, 8, 8, 3))
        >>> state = dc.Grid(num_clusters=4).init(x.shape[1:])
        >>> assert_constant_within_clusters(lambda key, x: dc.drop_cluster(key, x, 0.3, state), x, state.labels)
        >>> assert_constant_within_clusters(lambda key, x: dc.dropout(key, x, 0.3), x, state.labels)
        Traceback (most recent call last):
        ...
        AssertionError: cluster 0 of channel 0 is dropped in part: 3 of its 16 units, in example 0 with key 0
    """
    ones = jnp.ones_like(x)
    dropped = jax.lax.map(
        lambda key: jnp.broadcast_to(drop(key, ones) == 0, x.shape), _keys(samples, seed), batch_size=8
    )
    dropped = np.asarray(dropped).reshape(len(dropped), len(x), -1, x.shape[-1])
    if dropped.all() or not dropped.any():
        raise AssertionError(
            f"{'everything' if dropped.all() else 'nothing'} is dropped with each of {len(dropped)} keys"
        )
    flat = np.broadcast_to(labels, x.shape[1:]).reshape(-1, x.shape[-1])
    for channel in range(x.shape[-1]):
        for cluster in np.unique(flat[:, channel]):
            members = dropped[:, :, flat[:, channel] == cluster, channel]
            number, size = members.sum(axis=-1), members.shape[-1]
            partly = np.argwhere((number > 0) & (number < size))
            if len(partly):
                key, example = partly[0]
                raise AssertionError(
                    f"cluster {cluster} of channel {channel} is dropped in part: {number[key, example]} of its {size} "
                    f"units, in example {example} with key {key}"
                )


def assert_pure(drop: Drop, x: Float[Array, "batch ..."], *, seed: int = 0, rtol: float | None = None) -> None:
    """The same key gives the same answer, under `jit`, under `vmap` and without either; other keys give others.

    Args:
        drop: `(key, x) -> y`, or a mask.
        x: activations `(batch, ...)`.
        seed: of the keys.
        rtol: by how much results may differ relative to each other, where compilation rounds differently; 1e-6 if not
            given, for types of lower precision 3 of their roundings.

    Raises:
        AssertionError: two answers differ, or those of different keys are all the same.

    Example:
        >>> import itertools
        >>> import dropcluster_jax as dc
        >>> assert_pure(lambda key, x: dc.drop_path(key, x, 0.5), jnp.ones((8, 2, 2, 1)))
        >>> calls = itertools.count()
        >>> def impure(key, x):
        ...     return dc.dropout(jax.random.fold_in(key, next(calls)), x, 0.5)
        >>> assert_pure(impure, jnp.ones((8, 2, 2, 1)))
        Traceback (most recent call last):
        ...
        AssertionError: called again with the same key, 23 of 32 units differ, by up to 2
    """
    many = np.asarray(jax.lax.map(lambda key: drop(key, x), _keys(_AT_ONCE, seed), batch_size=8)).astype(np.float64)
    if np.array_equal(many, np.broadcast_to(many[0], many.shape), equal_nan=True):
        raise AssertionError(f"the answers to {len(many)} different keys are all the same")
    rtol = max(1e-6, 3 * float(jnp.finfo(x.dtype).eps)) if rtol is None else rtol
    keys = jax.random.split(jax.random.key(seed, impl="threefry2x32"), 3)
    plain = [drop(key, x) for key in keys]
    mapped = jax.vmap(drop, in_axes=(0, None))(keys, x)
    answers = {
        "called again with the same key": [drop(key, x) for key in keys],
        "under jit": [jax.jit(drop)(key, x) for key in keys],
        "under vmap": list(mapped),
        "under jit of vmap": list(jax.jit(jax.vmap(drop, in_axes=(0, None)))(keys, x)),
    }
    for how, answer in answers.items():
        first, second = (np.stack(each).astype(np.float64) for each in (plain, answer))
        differs = ~np.isclose(first, second, rtol=rtol, atol=0, equal_nan=True)
        if differs.any():
            worst = np.abs(first - second)[differs].max()
            number, size = differs[np.argmax(differs.reshape(len(keys), -1).any(1))].sum(), first[0].size
            raise AssertionError(f"{how}, {number} of {size} units differ, by up to {worst:.3g}")


def _keys(samples: int, seed: int) -> Array:
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    # Under rbg keys, `vmap` draws something else than a loop does.
    return jax.random.split(jax.random.key(seed, impl="threefry2x32"), -(-samples // _AT_ONCE) * _AT_ONCE)


def _moments(function: Callable[[Array], Array], samples: int, seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """The mean of `function(key)` over keys, its standard error, and the number of keys; some keys at a time."""
    keys = _keys(samples, seed)

    def some(keys: Array) -> tuple[Array, Array]:
        values = jax.vmap(function)(keys).astype(jnp.float32)
        return jnp.mean(values, axis=0), jnp.var(values, axis=0)

    # The means of blocks are put together in float64: in float32 a long sum would lose what is looked for.
    means, variances = (np.asarray(each, np.float64) for each in jax.lax.map(some, keys.reshape(-1, _AT_ONCE)))
    variance = variances.mean(axis=0) + means.var(axis=0)
    return means.mean(axis=0), np.sqrt(variance / len(keys)), len(keys)
