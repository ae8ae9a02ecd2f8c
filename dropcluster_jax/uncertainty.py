"""Monte Carlo dropout: predictive uncertainty from many masks."""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, PyTree

__all__ = ["MonteCarloPrediction", "mc_predict"]

Link = Literal["softmax", "sigmoid", "identity"]


class MonteCarloPrediction(NamedTuple):
    """Result of `mc_predict`. All arrays are float32.

    Attributes:
        mean: Mean over the masks, `(..., outputs)`: of probabilities, in [0, 1], or of outputs for the identity.
        variance: Variance over the masks, `(..., outputs)`, at most 1/4 for probabilities.
        entropy: Entropy of the mean in nats, the total uncertainty: `(...)`, in [0, log(classes)], for softmax,
            `(..., outputs)`, in [0, log(2)], for the sigmoid, and None for the identity.
        mutual_information: Entropy of the mean minus the mean entropy in nats, in [0, entropy], of the same shape: the
            disagreement of the masks, i.e. the uncertainty about the parameters.
    """

    mean: Float[Array, "... outputs"]
    variance: Float[Array, "... outputs"]
    entropy: Float[Array, "..."] | None
    mutual_information: Float[Array, "..."] | None


def mc_predict(
    apply: Callable[..., Array],
    variables: PyTree,
    x: PyTree,
    key: Array,
    samples: int,
    *,
    link: Link = "softmax",
    chunk: int = 1,
) -> MonteCarloPrediction:
    """Predicts under many dropout masks (Monte Carlo dropout).

    Args:
        apply: Called as `apply(variables, x, rngs={"dropout": key})`. Returns logits `(..., classes)`, or other outputs
            for other links. For a Flax network, use `functools.partial(model.apply, ...)` with dropout on and BatchNorm
            frozen, e.g. with `train=False, deterministic=False, rate=0.1`. Compiled once per object, so create it once.
            For NNX, see `dropcluster_jax.nnx.mc_predict`.
        variables: Variables of the network, including clusters.
        x: Input, a pytree of arrays.
        key: PRNG key, split into one key per mask.
        samples: Number of masks, at least 1.
        link: Function from outputs to predictions: `"softmax"` over at least two classes, `"sigmoid"` for separate
            labels or two classes with one logit, or `"identity"` for regression.
        chunk: Number of masks computed in parallel, at least 1. Memory grows with `chunk` but not with `samples`.

    Returns:
        Moments of the predictions over the masks.

    Raises:
        ValueError: If `samples` or `chunk` is below 1, `link` is unknown, there is a single class, or all outputs are
            equal under all masks, as with dropout off. The last is not checked under a transformation.

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
    if link not in _LINKS:
        raise ValueError(f"link must be one of {', '.join(map(repr, _LINKS))}, got {link!r}")
    prediction, differ = _mc_predict(apply, samples, min(chunk, samples), link, variables, x, key)
    if samples > 1 and not isinstance(differ, Tracer) and not differ:
        raise ValueError(
            f"apply returned the same outputs under all {samples} masks: dropout is off, its rate is 0, or apply does "
            'not use rngs["dropout"]'
        )
    return prediction


class _Moments(NamedTuple):
    """Running moments over masks: sums of squared deviations and of entropies, and whether outputs differ."""

    num_masks: Float[Array, ""]
    mean: Float[Array, "..."]
    squares: Float[Array, "..."]
    entropy: Float[Array, "..."]
    differ: Bool[Array, ""]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _mc_predict(
    apply: Callable[..., Array], samples: int, chunk: int, link: Link, variables: PyTree, x: PyTree, key: Array
) -> tuple[MonteCarloPrediction, Bool[Array, ""]]:
    keys = jax.random.split(key, samples)
    function, entropy = _LINKS[link]

    def predict(key: Array) -> tuple[Array, Array, Array]:
        outputs = apply(variables, x, rngs={"dropout": key}).astype(jnp.float32)
        if link == "softmax" and outputs.shape[-1] < 2:
            raise ValueError(f'logits must have at least two classes, got shape {outputs.shape}; pass link="sigmoid"')
        predictions = function(outputs)
        return outputs, predictions, entropy(predictions)

    def moments_of(keys: Array, first: Array | None) -> tuple[_Moments, Array]:
        """Returns the moments of a chunk, and the outputs with which those of other masks are compared."""
        outputs, predictions, entropies = jax.vmap(predict)(keys)
        first = outputs[0] if first is None else first
        mean = jnp.mean(predictions, axis=0)
        squares = jnp.sum(jnp.square(predictions - mean[None]), axis=0)
        differ = jnp.any((outputs != first[None]) | jnp.isnan(outputs))
        return _Moments(jnp.float32(len(keys)), mean, squares, jnp.sum(entropies, axis=0), differ), first

    # Starts from the first chunk, because zeros would have another sharding than the predictions on explicit meshes.
    remainder = samples % chunk or chunk
    moments, first = moments_of(keys[:remainder], None)

    def add_chunk(total: _Moments, keys: Array) -> tuple[_Moments, None]:
        """Combines moments by Welford's algorithm, which avoids cancellation errors."""
        new, _ = moments_of(keys, first)
        num_masks, delta = total.num_masks + new.num_masks, new.mean - total.mean
        squares = total.squares + new.squares + jnp.square(delta) * (total.num_masks * new.num_masks / num_masks)
        mean = total.mean + delta * (new.num_masks / num_masks)
        return _Moments(num_masks, mean, squares, total.entropy + new.entropy, total.differ | new.differ), None

    # Old-style keys have a trailing dimension.
    moments, _ = jax.lax.scan(add_chunk, moments, keys[remainder:].reshape(-1, chunk, *keys.shape[1:]))
    variance = moments.squares / moments.num_masks
    if link == "identity":
        return MonteCarloPrediction(moments.mean, variance, None, None), moments.differ
    total = entropy(moments.mean)
    information = jnp.maximum(total - moments.entropy / moments.num_masks, 0.0)
    return MonteCarloPrediction(moments.mean, variance, total, information), moments.differ


def _entropy(probabilities: Float[Array, "... classes"]) -> Float[Array, "..."]:
    """Returns the entropy in nats. NaN is propagated, so that a diverged network does not appear certain."""
    return jnp.sum(jax.scipy.special.entr(probabilities), axis=-1)


def _binary_entropy(probabilities: Float[Array, "..."]) -> Float[Array, "..."]:
    return jax.scipy.special.entr(probabilities) + jax.scipy.special.entr(1 - probabilities)


_LINKS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "softmax": (jax.nn.softmax, _entropy),
    "sigmoid": (jax.nn.sigmoid, _binary_entropy),
    "identity": (lambda outputs: outputs, jnp.zeros_like),
}
