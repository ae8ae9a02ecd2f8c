"""Measures of a clustering, as plain functions of labels and activations."""

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
