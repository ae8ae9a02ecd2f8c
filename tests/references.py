"""Reference implementations in NumPy and float64, with plain loops."""

import numpy as np


def correlation_vectors(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns vectors of length 1 (0 for constant units), `(positions, channels, batch)`, and which units vary."""
    x = np.asarray(x, np.float64)
    x = x.reshape(len(x), -1, x.shape[-1]).transpose(1, 2, 0)
    x = x - x.mean(-1, keepdims=True)
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    varying = norm[..., 0] > 1e-6
    return np.where(varying[..., None], x / np.where(norm > 0, norm, 1), 0), varying


def lloyd(
    x: np.ndarray,
    labels: np.ndarray,
    num_clusters: int,
    coordinates: np.ndarray | None = None,
    weight: float = 0.0,
):
    """Runs one Lloyd iteration from labels `(positions,)`. All units must vary, and no cluster may become empty."""
    vectors, varying = correlation_vectors(x)
    assert varying.all()
    distances = np.empty((len(vectors), num_clusters))
    for k in range(num_clusters):
        centroid = vectors[labels == k].mean(0)
        distances[:, k] = np.square(vectors - centroid).sum(-1).mean(-1)  # mean over channels
        if coordinates is not None:
            distances[:, k] += weight * np.square(coordinates - coordinates[labels == k].mean(0)).sum(-1)
    return distances.argmin(1)


def kmeans_plus_plus(x: np.ndarray, coordinates: np.ndarray, weight: float, noise: np.ndarray) -> list[int]:
    """Chooses seeds by greedy k-means++ from Gumbel noise `(clusters, candidates, positions)`. All units must vary."""
    vectors, varying = correlation_vectors(x)
    assert varying.all()

    def distances_to(position: int) -> np.ndarray:
        distances = np.square(vectors - vectors[position]).sum(-1).mean(-1)  # mean over channels
        return distances + weight * np.square(coordinates - coordinates[position]).sum(-1)

    seeds: list[int] = []
    nearest = np.ones(len(vectors))
    for step_noise in noise:
        with np.errstate(divide="ignore"):
            candidates = (np.log(nearest) + step_noise).argmax(1)
        if not seeds:
            best = int(candidates[0])
            nearest = distances_to(best)
        else:
            best = min(map(int, candidates), key=lambda position: np.minimum(nearest, distances_to(position)).sum())
            nearest = np.minimum(nearest, distances_to(best))
        seeds.append(best)
    return seeds


def explained(x: np.ndarray, labels: np.ndarray) -> float:
    """Returns `1 - within / total` over the varying units, with labels shared by all channels."""
    vectors, varying = correlation_vectors(x)
    within = total = 0.0
    for c in range(vectors.shape[1]):
        units, unit_labels = vectors[varying[:, c], c], labels[varying[:, c]]
        if len(units):
            total += np.square(units - units.mean(0)).sum()
        for k in np.unique(unit_labels):
            members = units[unit_labels == k]
            within += np.square(members - members.mean(0)).sum()
    return 1 - within / total if total else 0.0


def grid_neighbors(spatial: tuple[int, ...]) -> list[tuple[int, int]]:
    """Returns all pairs of neighboring positions, dimension by dimension."""
    positions = np.arange(np.prod(spatial)).reshape(spatial)
    pairs = []
    for axis in range(len(spatial)):
        lines = np.moveaxis(positions, axis, 0)
        pairs += list(zip(lines[:-1].ravel(), lines[1:].ravel(), strict=True))
    return pairs


def rena(x: np.ndarray, num_clusters: int, cluster_counts: list[int] | None = None) -> np.ndarray:
    """Runs recursive nearest agglomeration with labels shared by all channels. All units must vary.

    Appends the number of clusters after each round to `cluster_counts`.
    """
    vectors, varying = correlation_vectors(x)
    assert varying.all()
    labels = np.arange(len(vectors))
    means = {label: vectors[label] for label in labels}
    while len(means) > num_clusters:
        nearest: dict[int, tuple[float, int, int]] = {}  # distance and both clusters of the cheapest edge per cluster
        for p, q in grid_neighbors(x.shape[1:-1]):
            a, b = int(labels[p]), int(labels[q])
            if a != b:
                distance = np.square(means[a] - means[b]).sum(-1).mean()
                for label in (a, b):
                    if label not in nearest or distance < nearest[label][0]:
                        nearest[label] = (distance, min(a, b), max(a, b))
        merges = sorted(set(nearest.values()))[: len(means) - num_clusters]
        root_of = {label: label for label in means}
        for _, a, b in merges:
            root_of = {label: root_of[a] if root == root_of[b] else root for label, root in root_of.items()}
        parts = {root: [label for label in means if root_of[label] == root] for root in set(root_of.values())}
        means = {root: np.mean([means[label] for label in members], axis=0) for root, members in parts.items()}
        labels = np.array([root_of[label] for label in labels])
        if cluster_counts is not None:
            cluster_counts.append(len(means))
    return np.unique(labels, return_inverse=True)[1]


def cells(spatial: tuple[int, ...], block_size: int) -> np.ndarray:
    """Returns the index of the cell of each position, on a grid that is centered on the map."""
    index = np.zeros(spatial, int)
    for axis, length in enumerate(spatial):
        count = -(-length // block_size)
        along = (np.arange(length) + (count * block_size - length) // 2) // block_size
        index = index * count + along.reshape([-1 if i == axis else 1 for i in range(len(spatial))])
    return index


def cell_information(features: list[np.ndarray]) -> np.ndarray:
    """Returns the mean over all cells of |cosine similarity| to the other cells."""
    information = np.zeros(len(features))
    for i, a in enumerate(features):
        for j, b in enumerate(features):
            if i != j and a.any() and b.any():
                information[i] += abs(a @ b) / (np.linalg.norm(a) * np.linalg.norm(b)) / len(features)
    return information


def corr_drop_probabilities(features: list[np.ndarray], areas: np.ndarray, rate: float) -> np.ndarray:
    """Returns the probability of dropping each cell, whose mean weighted by area is `rate`."""
    information = cell_information(features)
    eligible = 1 - np.exp(information) / np.exp(information).sum()
    eligible_area = (eligible * areas).sum()
    if rate <= eligible_area:
        return eligible * rate / eligible_area if rate else np.zeros(len(features))
    return eligible + (1 - eligible) * (rate - eligible_area) / (1 - eligible_area)


def focused_mask(x: np.ndarray, fraction: float) -> np.ndarray:
    """Returns the mask `spatial` of one example `(*spatial, channels)` for a fraction of the maximum."""
    reference = max(np.moveaxis(x, -1, 0), key=lambda channel: channel.mean())
    return reference >= fraction * reference.max()
