"""Measures of a clustering, as plain functions of labels and activations."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dropcluster_jax.clustering import units as geometry


def explained_variance(
    labels: Int[Array, "*spatial groups"],
    x: Float[Array, "batch *spatial channels"],
    num_clusters: int,
    axis_name: str | None = None,
) -> Float[Array, " groups"]:
    """The share of the units' variance that lies between clusters: `1 - within / total`, over live units.

    In the correlation geometry: each unit's response over the batch, centred and scaled to length 1.

    Args:
        labels: int32 labels; `groups` is 1 (shared by all channels) or the number of channels.
        x: activations of the same spatial shape.
        num_clusters: the number of clusters; labels lie in `[0, num_clusters)`.
        axis_name: a mapped axis over which the batch is split, if any.

    Returns:
        float32 in [0, 1], one for each group; 0 where no unit varies.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> signal = jax.random.normal(jax.random.key(0), (50, 2))
        >>> x = signal[:, jnp.array([0, 0, 1, 1]), None]  # positions 0, 1 and positions 2, 3 respond alike
        >>> [round(float(explained_variance(jnp.array(l)[:, None], x, 2)[0]), 2) for l in ([0, 0, 1, 1], [0, 0, 0, 0])]
        [1.0, 0.0]
    """
    units = geometry.correlation_units(x, labels.shape[-1] > 1, axis_name)
    return geometry.explained(units, labels.reshape(-1, labels.shape[-1]).T, num_clusters)


def agreement(
    labels: Int[Array | np.ndarray, "*spatial groups"],
    other: Int[Array | np.ndarray, "*spatial groups"],
    num_clusters: int,
) -> Float[Array, " groups"]:
    """The adjusted Rand index of two clusterings of the same positions, whatever the names of their clusters.

    With `n_ij` the positions in cluster i of the one and j of the other, `a_i` and `b_j` its sums, n all positions,
    `C(m) = m (m - 1) / 2` and `e = sum C(a_i) sum C(b_j) / C(n)`:
    `(sum C(n_ij) - e) / ((sum C(a_i) + sum C(b_j)) / 2 - e)`.

    Args:
        labels: int32 labels.
        other: of the same shape.
        num_clusters: labels of both lie in `[0, num_clusters)`.

    Returns:
        float32, one for each group: 1 for equal partitions, about 0 for unrelated ones.

    References:
        Hubert, Arabie, "Comparing partitions", Journal of Classification 2, 1985.

    Example:
        >>> one, renamed, half = (jnp.array(l)[:, None] for l in ([0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 1]))
        >>> agreement(one, renamed, 2).tolist(), agreement(one, half, 2).tolist()
        ([1.0], [0.0])
    """

    def pairs(counts: Array | float) -> Array | float:
        return counts * (counts - 1) / 2

    member, member_other = (
        jax.nn.one_hot(jnp.asarray(each).reshape(-1, each.shape[-1]), num_clusters) for each in (labels, other)
    )
    counts = jnp.einsum("pgi,pgj->gij", member, member_other, precision=jax.lax.Precision.HIGHEST)
    together = jnp.sum(pairs(counts), axis=(1, 2))
    first, second = (jnp.sum(pairs(jnp.sum(counts, axis=axis)), axis=1) for axis in (2, 1))
    expected = first * second / max(pairs(member.shape[0]), 1)
    most = (first + second) / 2
    # Both put all positions together, or each by itself: they agree, and chance could do nothing else.
    trivial = most - expected <= 1e-6 * most
    return jnp.where(trivial, 1.0, (together - expected) / jnp.where(trivial, 1.0, most - expected))
