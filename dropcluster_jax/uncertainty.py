"""How sure a network is, from the answers it gives under many masks."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

__all__ = ["MonteCarloPrediction", "mc_predict"]


class MonteCarloPrediction(NamedTuple):
    """What `mc_predict` gives, all float32.

    Attributes:
        mean: the probability of each class, the mean over masks; `(..., classes)`, in [0, 1].
        variance: the variance of that probability over masks; `(..., classes)`, in [0, 1/4].
        entropy: the entropy of the mean, in nats: all there is to doubt; `(...)`, in [0, log(classes)].
        mutual_information: the entropy of the mean less the mean entropy, in nats: how much the masks disagree, which
            is the doubt about the parameters; `(...)`, in [0, entropy].

    Example:
        >>> from dropcluster_jax import drop_path
        >>> def apply(variables, x, rngs):  # two masks in five leave nothing to tell classes by
        ...     return drop_path(rngs["dropout"], x, 0.4)
        >>> prediction = mc_predict(apply, {}, jnp.array([[0.0, 0.0], [9.0, -9.0]]), jax.random.key(0), samples=500)
        >>> prediction.entropy.shape, [round(float(p), 1) for p in prediction.mean[:, 0]]
        ((2,), [0.5, 0.8])
        >>> [round(float(nats), 1) for nats in prediction.mutual_information]  # the first is unsure under every mask
        [0.0, 0.2]
    """

    mean: Float[Array, "... classes"]
    variance: Float[Array, "... classes"]
    entropy: Float[Array, "..."]
    mutual_information: Float[Array, "..."]


def mc_predict(
    apply: Callable[..., Array], variables: PyTree, x: PyTree, key: Array, samples: int, *, chunk: int = 1
) -> MonteCarloPrediction:
    """Predict under many masks: Monte Carlo dropout, with any drop layers.

    Args:
        apply: called as `apply(variables, x, rngs={"dropout": key})`, gives logits `(..., classes)`. Of a Flax network
            `functools.partial(model.apply, ...)` with masks on and BatchNorm frozen, such as `train=False,
            deterministic=False, rate=0.1`; as no collection is mutable, a BatchNorm that would learn raises. Where no
            mask is on, all variances are 0. It is compiled once for each such object: make it once.
        variables: the network's, clusters included.
        x: its input, any pytree of arrays.
        key: a PRNG key; each mask has a key split from it.
        samples: the number of masks, at least 1.
        chunk: how many masks are computed together, which takes as much more memory; what is kept of them are sums.

    Returns:
        Mean, variance, entropy and mutual information, of the leading shape of the logits.

    Raises:
        ValueError: `samples` or `chunk` is below 1.

    References:
        Gal, Ghahramani, "Dropout as a Bayesian Approximation: Representing Model Uncertainty in Deep Learning", ICML
        2016, arXiv:1506.02142.
        Houlsby et al., "Bayesian Active Learning for Classification and Preference Learning", arXiv:1112.5745: the
        mutual information.

    Example:
        >>> from dropcluster_jax import dropout
        >>> def apply(variables, x, rngs):
        ...     return dropout(rngs["dropout"], x, 0.5) @ variables["kernel"]
        >>> variables = {"kernel": jnp.array([[2.0, -2.0], [1.0, -1.0]])}
        >>> x = jnp.array([[1.0, 1.0], [0.0, 0.0]])
        >>> prediction = mc_predict(apply, variables, x, jax.random.key(0), samples=1000, chunk=100)
        >>> [[round(p, 1) for p in row] for row in prediction.mean.tolist()]
        [[0.9, 0.1], [0.5, 0.5]]
        >>> [round(nats, 2) for nats in prediction.mutual_information.tolist()]
        [0.18, 0.0]
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

    def one(key: Array) -> tuple[Array, Array]:
        logits = apply(variables, x, rngs={"dropout": key})
        probabilities = jax.nn.softmax(logits.astype(jnp.float32))
        return probabilities, _entropy(probabilities)

    def add(total: Any, keys: Array) -> tuple[Any, None]:
        """Welford's update, by which the variance keeps its digits, of a chunk at a time."""
        number, mean, squares, entropy = total
        probabilities, entropies = jax.vmap(one)(keys)
        new = number + len(keys)
        here = jnp.mean(probabilities, axis=0)
        off = here - mean
        squares += jnp.sum(jnp.square(probabilities - here), axis=0) + jnp.square(off) * number * len(keys) / new
        return (new, mean + off * len(keys) / new, squares, entropy + jnp.sum(entropies, axis=0)), None

    probabilities, entropies = jax.eval_shape(one, keys[0])
    shapes = (), probabilities.shape, probabilities.shape, entropies.shape
    total = tuple(jnp.zeros(shape, jnp.float32) for shape in shapes)
    whole = samples - samples % chunk
    total, _ = jax.lax.scan(add, total, keys[:whole].reshape(-1, chunk))
    if whole < samples:
        total, _ = add(total, keys[whole:])
    number, mean, squares, entropy = total
    of_mean = _entropy(mean)
    return MonteCarloPrediction(mean, squares / number, of_mean, jnp.maximum(of_mean - entropy / number, 0.0))


def _entropy(probabilities: Float[Array, "... classes"]) -> Float[Array, "..."]:
    """In nats. NaN stays NaN: what has diverged is not sure of itself."""
    return jnp.sum(jax.scipy.special.entr(probabilities), axis=-1)
