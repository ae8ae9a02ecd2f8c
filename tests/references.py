"""k-means in plain NumPy, float64: one loop for each thing, no masks, no broadcasting tricks."""

import numpy as np


def correlation_vectors(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(positions, channels, batch)` vectors of length 1 (0 where dead), and `(positions, channels)` liveness."""
    x = np.asarray(x, np.float64)
    x = x.reshape(len(x), -1, x.shape[-1]).transpose(1, 2, 0)
    x = x - x.mean(-1, keepdims=True)
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    live = length[..., 0] > 1e-6
    return np.where(live[..., None], x / np.where(length > 0, length, 1), 0), live


def lloyd(
    x: np.ndarray,
    labels: np.ndarray,
    num_clusters: int,
    spatial: np.ndarray | None = None,
    weight: float = 0.0,
):
    """One iteration from shared `(positions,)` labels: the new labels. All units live, no cluster emptied."""
    vectors, live = correlation_vectors(x)
    assert live.all()
    distances = np.empty((len(vectors), num_clusters))
    for k in range(num_clusters):
        centroid = vectors[labels == k].mean(0)
        distances[:, k] = np.square(vectors - centroid).sum(-1).mean(-1)  # the mean over channels
        if spatial is not None:
            distances[:, k] += weight * np.square(spatial - spatial[labels == k].mean(0)).sum(-1)
    return distances.argmin(1)


def explained(x: np.ndarray, labels: np.ndarray) -> float:
    """1 - within / total over the live units, labels shared by all channels."""
    vectors, live = correlation_vectors(x)
    within = total = 0.0
    for c in range(vectors.shape[1]):
        units, own = vectors[live[:, c], c], labels[live[:, c]]
        if len(units):
            total += np.square(units - units.mean(0)).sum()
        for k in np.unique(own):
            within += np.square(units[own == k] - units[own == k].mean(0)).sum()
    return 1 - within / total if total else 0.0
