"""The clusterings in plain NumPy, float64: one loop for each thing, no masks, no broadcasting tricks."""

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


def grid_neighbours(spatial: tuple[int, ...]) -> list[tuple[int, int]]:
    """Pairs of positions that are one step apart, dimension by dimension."""
    positions = np.arange(np.prod(spatial)).reshape(spatial)
    pairs = []
    for axis in range(len(spatial)):
        ahead = np.moveaxis(positions, axis, 0)
        pairs += list(zip(ahead[:-1].ravel(), ahead[1:].ravel(), strict=True))
    return pairs


def rena(x: np.ndarray, num_clusters: int, rounds: list[int] | None = None) -> np.ndarray:
    """Recursive nearest agglomeration with labels shared by all channels: `(positions,)`. All units live.

    The number of clusters after each round is added to `rounds`.
    """
    vectors, live = correlation_vectors(x)
    assert live.all()
    labels = np.arange(len(vectors))
    means = {label: vectors[label] for label in labels}
    while len(means) > num_clusters:
        best: dict[int, tuple[float, int, int]] = {}  # for each cluster the distance to the nearest, and both ends
        for a, b in grid_neighbours(x.shape[1:-1]):
            a, b = int(labels[a]), int(labels[b])
            if a != b:
                distance = np.square(means[a] - means[b]).sum(-1).mean()
                for one in (a, b):
                    if one not in best or distance < best[one][0]:
                        best[one] = (distance, min(a, b), max(a, b))
        merges = sorted(set(best.values()))[: len(means) - num_clusters]
        into = {label: label for label in means}
        for _, a, b in merges:
            into = {label: into[a] if root == into[b] else root for label, root in into.items()}
        parts = {root: [label for label in means if into[label] == root] for root in set(into.values())}
        means = {root: np.mean([means[label] for label in labels_], axis=0) for root, labels_ in parts.items()}
        labels = np.array([into[label] for label in labels])
        if rounds is not None:
            rounds.append(len(means))
    return np.unique(labels, return_inverse=True)[1]
