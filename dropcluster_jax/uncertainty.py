"""Monte Carlo dropout: predictive uncertainty from many masks."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

__all__ = ["MonteCarloPrediction", "mc_predict"]


class MonteCarloPrediction(NamedTuple):
    """Result of `mc_predict`. All arrays are float32.

    Attributes:
        mean: Mean class probabilities, `(..., classes)`, in [0, 1].
        variance: Variance of the class probabilities, `(..., classes)`, in [0, 1/4].
        entropy: Entropy of the mean in nats, `(...)`, in [0, log(classes)]: the total uncertainty.
        mutual_information: Entropy of the mean minus the mean entropy in nats, `(...)`, in [0, entropy]: the
            disagreement of the masks, i.e. the uncertainty about the parameters.
    """

    mean: Float[Array, "... classes"]
    variance: Float[Array, "... classes"]
    entropy: Float[Array, "..."]
    mutual_information: Float[Array, "..."]


def mc_predict(
    apply: Callable[..., Array], variables: PyTree, x: PyTree, key: Array, samples: int, *, chunk: int = 1
) -> MonteCarloPrediction:
    """Predicts class probabilities under many dropout masks (Monte Carlo dropout).

    Args:
        apply: Called as `apply(variables, x, rngs={"dropout": key})`. Returns logits `(..., classes)`. For a Flax
            network, use `functools.partial(model.apply, ...)` with dropout on and BatchNorm frozen, e.g. with
            `train=False, deterministic=False, rate=0.1`. Compiled once per object, so create it once.
        variables: Variables of the network, including clusters.
        x: Input, a pytree of arrays.
        key: PRNG key, split into one key per mask.
        samples: Number of masks, at least 1.
        chunk: Number of masks computed in parallel, at least 1. Memory grows with `chunk` but not with `samples`.

    Returns:
        Moments of the probabilities over the masks.

    Raises:
        ValueError: If `samples` or `chunk` is below 1.

    References:
        Gal, Ghahramani, "Dropout as a Bayesian Approximation: Representing Model Uncertainty in Deep Learning", ICML
        2016, arXiv:1506.02142. Mutual information: Houlsby et al., "Bayesian Active Learning for Classification and
        Preference Learning", arXiv:1112.5745.

    Example:
        >>> from dropcluster_jax import dropout
        >>> def apply(variables, x, rngs):
        ...     return dropout(rngs["dropout"], x, 0.5) @ variables["kernel"]
        >>> variables = {"kernel": jnp.array([[2.0, -2.0], [1.0, -1.0]])}
        >>> x = jnp.array([[1.0, 1.0], [0.0, 0.0]])
        >>> prediction = mc_predict(apply, variables, x, jax.random.key(0), samples=1000, chunk=100)
        >>> prediction.mean.shape, bool(prediction.mean[0, 0] > 0.8)
        ((2, 2), True)
    """
    for name, value in (("samples", samples), ("chunk", chunk)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    return _mc_predict(apply, samples, min(chunk, samples), variables, x, key)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _mc_predict(
    apply: Callable[..., Array], samples: int, chunk: int, variables: PyTree, x: PyTree, key: Array
) -> MonteCarloPrediction:
    keys = jax.random.split(key, samples)

    def predict(key: Array) -> tuple[Array, Array]:
        logits = apply(variables, x, rngs={"dropout": key})
        probabilities = jax.nn.softmax(logits.astype(jnp.float32))
        return probabilities, _entropy(probabilities)

    def add_chunk(moments: Any, keys: Array) -> tuple[Any, None]:
        """Adds a chunk to the running moments by Welford's algorithm, which avoids cancellation errors."""
        count, mean, squares, entropy = moments
        probabilities, entropies = jax.vmap(predict)(keys)
        new_count = count + len(keys)
        chunk_mean = jnp.mean(probabilities, axis=0)
        delta = chunk_mean - mean
        chunk_squares = jnp.sum(jnp.square(probabilities - chunk_mean[None]), axis=0)
        squares += chunk_squares + jnp.square(delta) * count * len(keys) / new_count
        return (new_count, mean + delta * len(keys) / new_count, squares, entropy + jnp.sum(entropies, axis=0)), None

    probabilities, entropies = jax.eval_shape(predict, keys[0])
    shapes = (), probabilities.shape, probabilities.shape, entropies.shape
    moments = tuple(jnp.zeros(shape, jnp.float32) for shape in shapes)
    whole = samples - samples % chunk
    # Old-style keys have a trailing dimension.
    moments, _ = jax.lax.scan(add_chunk, moments, keys[:whole].reshape(-1, chunk, *keys.shape[1:]))
    if whole < samples:
        moments, _ = add_chunk(moments, keys[whole:])
    count, mean, squares, entropy = moments
    total = _entropy(mean)
    return MonteCarloPrediction(mean, squares / count, total, jnp.maximum(total - entropy / count, 0.0))


def _entropy(probabilities: Float[Array, "... classes"]) -> Float[Array, "..."]:
    """Returns the entropy in nats. NaN is propagated, so that a diverged network does not appear certain."""
    return jnp.sum(jax.scipy.special.entr(probabilities), axis=-1)
