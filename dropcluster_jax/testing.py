"""Assertions that check properties of dropout, for tests of your own masks and layers.

All functions take activations `x`, with the batch first, and a `drop` function, `(key, x) -> y`. For a layer, `drop` is
`lambda key, x: layer.apply(variables, x, rate=0.1, deterministic=False, rng=key)`. `assert_rate`,
`assert_constant_within_clusters`, and `assert_pure` also accept a mask function.

Statistical properties are checked over many keys. The keys are fixed, so results are reproducible. `samples` should be
at least `100 / rate` and `100 / (1 - rate)`.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

__all__ = [
    "assert_constant_within_clusters",
    "assert_mean_preserved",
    "assert_pure",
    "assert_rate",
    "assert_sum_preserved",
]

Drop = Callable[[Array, Array], Array]

_CHUNK = 64  # number of keys processed in parallel


def assert_mean_preserved(
    drop: Drop, x: Float[Array, "batch ..."], *, samples: int = 2048, sigmas: float = 5.5, seed: int = 0
) -> None:
    """Checks that the mean of each unit over keys is its value, as with `rescale="rate"`.

    Args:
        drop: Function `(key, x) -> y`.
        x: Activations `(batch, ...)`, preferably without zeros.
        samples: Number of keys, at least 1. Rounded up to a multiple of 64.
        sigmas: Allowed deviation of a mean, in standard errors.
        seed: Seed of the keys.

    Raises:
        AssertionError: If a mean deviates. The message names the worst unit.
        ValueError: If `samples` is below 1.

    Example:
        >>> import dropcluster_jax as dc
        >>> x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
        >>> assert_mean_preserved(lambda key, x: dc.dropout(key, x, 0.3), x)
        >>> assert_mean_preserved(lambda key, x: dc.dropout(key, x, 0.3, rescale="none"), x)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        AssertionError: mean of unit (...) over 2048 keys is ... +- ..., expected ...
    """
    mean, error, count = _moments(lambda key: drop(key, x), x, samples, seed)
    expected = np.asarray(x, np.float64)
    # The samples of one unit may contain too few events to estimate its error. Pool the relative error over units.
    nonzero = expected != 0
    pooled = np.sqrt(np.mean(np.square(error[nonzero] / expected[nonzero]))) if nonzero.any() else 0.0
    error_floor = np.maximum(pooled * np.abs(expected), 1e-6 * np.abs(expected) + 1e-30)
    deviation = np.abs(mean - expected) / np.maximum(error, error_floor)
    worst = np.unravel_index(np.argmax(deviation), deviation.shape)
    if not deviation[worst] <= sigmas:  # also fails for NaN
        raise AssertionError(
            f"mean of unit {tuple(map(int, worst))} over {count} keys is {mean[worst]:.4g} +- {error[worst]:.2g}, "
            f"expected {expected[worst]:.4g}"
        )


def assert_sum_preserved(drop: Drop, x: Float[Array, "batch ..."], *, samples: int = 64, seed: int = 0) -> None:
    """Checks that each example of ones keeps its sum unless all of it is dropped, as with `rescale="kept"`.

    See `assert_mean_preserved`. Only the shape and dtype of `x` matter.

    Raises:
        AssertionError: If the relative error of a sum exceeds 1e-5 (3 machine epsilons for lower precision),
            or if everything is dropped with all keys.

    Example:
        >>> import dropcluster_jax as dc
        >>> assert_sum_preserved(lambda key, x: dc.drop_block(key, x, 0.3, block_size=3), jnp.ones((2, 8, 8, 3)))
    """
    ones = jnp.ones_like(x)
    tolerance = max(1e-5, 3 * float(jnp.finfo(x.dtype).eps))
    units = math.prod(x.shape[1:])

    def example_sums(key: Array) -> Array:
        return jnp.sum(drop(key, ones).astype(jnp.float32).reshape(len(x), -1), axis=1)

    sums = np.asarray(jax.lax.map(example_sums, _keys(x, samples, seed), batch_size=_CHUNK))
    if not sums.any():
        raise AssertionError(f"everything is dropped with each of {len(sums)} keys")
    deviation = np.abs(np.where(sums == 0, units, sums) - units)
    worst = np.unravel_index(np.argmax(deviation), deviation.shape)
    if not deviation[worst] <= tolerance * units:
        raise AssertionError(f"sum of {units} ones is {sums[worst]:.6g} after dropping, with key {worst[0]}")


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
    """Checks that the expected fraction of dropped units is `rate`.

    See `assert_mean_preserved`. Only the shape and dtype of `x` matter. `tolerance`, relative to `rate`, is a deviation
    allowed in addition to `sigmas` standard errors.

    Raises:
        AssertionError: If the fraction deviates.

    Example:
        >>> import dropcluster_jax as dc
        >>> assert_rate(lambda key, x: dc.drop_block(key, x, 0.3), jnp.ones((4, 14, 14, 1)), 0.3)
    """
    ones = jnp.ones_like(x)

    def dropped_fraction(key: Array) -> Array:
        y = drop(key, ones)
        return jnp.where(jnp.all(jnp.isfinite(y)), jnp.mean(y == 0, dtype=jnp.float32), jnp.nan)

    fraction, error, count = _moments(dropped_fraction, x, samples, seed)
    error = max(error, np.sqrt(rate * (1 - rate) / (count * ones.size)))
    if not abs(fraction - rate) <= sigmas * error + tolerance * rate + 1e-6:
        raise AssertionError(f"dropped fraction over {count} keys is {fraction:.4f} +- {error:.4f}, expected {rate}")


def assert_constant_within_clusters(
    drop: Drop,
    x: Float[Array, "batch *spatial channels"],
    labels: Int[Array, "*spatial maps"],
    *,
    samples: int = 64,
    seed: int = 0,
) -> None:
    """Checks that all units of a cluster are dropped together, in each example and channel.

    See `assert_mean_preserved`. Only the shape and dtype of `x` matter. `labels` is `ClusterState.labels`.

    Raises:
        AssertionError: If a cluster is partly dropped, or if all keys drop nothing or everything.

    Example:
        >>> import dropcluster_jax as dc
        >>> x = jnp.ones((2, 8, 8, 3))
        >>> state = dc.Grid(num_clusters=4).init(x.shape[1:])
        >>> assert_constant_within_clusters(lambda key, x: dc.drop_cluster(key, x, 0.3, state), x, state.labels)
    """
    ones = jnp.ones_like(x)
    dropped = jax.lax.map(
        lambda key: jnp.broadcast_to(drop(key, ones) == 0, x.shape), _keys(x, samples, seed), batch_size=8
    )
    dropped = np.asarray(dropped).reshape(len(dropped), len(x), -1, x.shape[-1])
    if dropped.all() or not dropped.any():
        raise AssertionError(
            f"{'everything' if dropped.all() else 'nothing'} is dropped with each of {len(dropped)} keys"
        )
    flat_labels = np.broadcast_to(labels, x.shape[1:]).reshape(-1, x.shape[-1])
    for channel in range(x.shape[-1]):
        for cluster in np.unique(flat_labels[:, channel]):
            members = dropped[:, :, flat_labels[:, channel] == cluster, channel]
            count, size = members.sum(axis=-1), members.shape[-1]
            partly_dropped = np.argwhere((count > 0) & (count < size))
            if len(partly_dropped):
                key, example = partly_dropped[0]
                raise AssertionError(
                    f"cluster {cluster} of channel {channel} is partly dropped: {count[key, example]} of {size} units "
                    f"in example {example} with key {key}"
                )


def assert_pure(drop: Drop, x: Float[Array, "batch ..."], *, seed: int = 0, rtol: float | None = None) -> None:
    """Checks that `drop` is a pure function of its key, with and without `jit` and `vmap`.

    See `assert_mean_preserved`. `rtol` defaults to 1e-6, or 3 machine epsilons for lower precision.

    Raises:
        AssertionError: If two results for the same key differ, or if the results for all keys are the same.

    Example:
        >>> import dropcluster_jax as dc
        >>> assert_pure(lambda key, x: dc.drop_path(key, x, 0.5), jnp.ones((8, 2, 2, 1)))
    """
    results = np.asarray(jax.lax.map(lambda key: drop(key, x), _keys(x, _CHUNK, seed), batch_size=8)).astype(np.float64)
    if np.array_equal(results, np.broadcast_to(results[0], results.shape), equal_nan=True):
        raise AssertionError(f"results for {len(results)} keys are all the same")
    rtol = max(1e-6, 3 * float(jnp.finfo(x.dtype).eps)) if rtol is None else rtol
    keys = jax.random.split(jax.random.key(seed, impl="threefry2x32"), 3)
    eager = [drop(key, x) for key in keys]
    variants = {
        "a second call": [drop(key, x) for key in keys],
        "jit": [jax.jit(drop)(key, x) for key in keys],
        "vmap": list(jax.vmap(drop, in_axes=(0, None))(keys, x)),
        "jit of vmap": list(jax.jit(jax.vmap(drop, in_axes=(0, None)))(keys, x)),
    }
    for name, variant in variants.items():
        expected, actual = (np.stack(ys).astype(np.float64) for ys in (eager, variant))
        differs = ~np.isclose(expected, actual, rtol=rtol, atol=0, equal_nan=True)
        if differs.any():
            largest = np.abs(expected - actual)[differs].max()
            count, size = differs[np.argmax(differs.reshape(len(keys), -1).any(1))].sum(), expected[0].size
            raise AssertionError(f"results of {name} differ in {count} of {size} units, by up to {largest:.3g}")


def _keys(x: Array, samples: int, seed: int) -> Array:
    if isinstance(x, Tracer):
        raise TypeError("assertions need concrete arrays: map or compile `drop` instead of the assertion")
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    # Not the default implementation: with rbg keys, `vmap` and a loop draw different numbers.
    return jax.random.split(jax.random.key(seed, impl="threefry2x32"), -(-samples // _CHUNK) * _CHUNK)


def _moments(
    function: Callable[[Array], Array], x: Array, samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns the mean of `function(key)` over keys, its standard error, and the number of keys."""
    keys = _keys(x, samples, seed)

    def chunk_moments(keys: Array) -> tuple[Array, Array]:
        values = jax.vmap(function)(keys).astype(jnp.float32)
        return jnp.mean(values, axis=0), jnp.var(values, axis=0)

    # Combine chunks in float64, because the rounding errors of a long float32 sum would mask small deviations.
    chunks = jax.lax.map(chunk_moments, keys.reshape(-1, _CHUNK))
    means, variances = (np.asarray(moment, np.float64) for moment in chunks)
    variance = variances.mean(axis=0) + means.var(axis=0)
    return means.mean(axis=0), np.sqrt(variance / len(keys)), len(keys)
