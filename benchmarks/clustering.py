"""How fast and how good the clusterings are, beside scikit-learn's and nilearn's: one table, one run, this machine.

    python benchmarks/clustering.py --data-dir ~/tensorflow_datasets

The features are real: a random 3x3 convolution and a ReLU of the first 128 training images of CIFAR-10, resized. All
cluster each channel on its own. Ours take the activations as a layer gives them; the others get unit vectors, centered,
scaled and transposed before the clock starts. Warm is: from the clusters of every other example, for scikit-learn from
their means, which it is given. The contenders take turns, so that what slows the machine slows all;
medians. `explained` and `connected` (the share of clusters that are) are means over channels.
"""

import argparse
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version

import jax
import jax.numpy as jnp
import nibabel
import numpy as np
import tensorflow_datasets as tfds
from nilearn.regions import ReNA as NilearnReNA
from sklearn.cluster import AgglomerativeClustering
from sklearn.cluster import KMeans as SklearnKMeans
from sklearn.feature_extraction.image import grid_to_graph

import dropcluster_jax as dc
from dropcluster_jax.clustering import adjusted_rand_index, explained_variance, is_connected
from dropcluster_jax.clustering.correlation import correlation_units

# side, channels, clusters
SIZES = {"16": (16, 64, 20), "32": (32, 64, 20), "56": (56, 256, 64)}
FIRST, WARM, RENA = "KMeans, first update, 10 iterations", "KMeans, warm update, 2 iterations", "ReNA"
SKLEARN, SKLEARN_WARM = "scikit-learn KMeans, 10 iterations", "scikit-learn KMeans, warm, 2 iterations"
WARD, NILEARN = "scikit-learn Ward on the grid", "nilearn ReNA"
COMPARED = [(FIRST, SKLEARN), (WARM, SKLEARN), (WARM, SKLEARN_WARM), (RENA, NILEARN)]


def features(images: np.ndarray, side: int, channels: int) -> jax.Array:
    """`(128, side, side, channels)`, float32."""
    images = jax.image.resize(images, (len(images), side, side, 3), "linear")
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 3, channels)) * (2 / 27) ** 0.5
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.nn.relu(jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=dimensions))


def contenders(x: jax.Array, num_clusters: int) -> dict[str, Callable[[], np.ndarray | jax.Array]]:
    """Functions that cluster every channel and return labels `(side, side, channels)`."""
    side = x.shape[1]
    vectors = np.asarray(correlation_units(jnp.transpose(x, (3, 1, 2, 0)).reshape(x.shape[-1], side**2, -1))[0])
    graph = grid_to_graph(side, side)
    mask = nibabel.Nifti1Image(np.ones((side, side, 1), np.int8), np.eye(4))

    def ours(clusterer: dc.Clusterer, state: dc.ClusterState) -> Callable[[], jax.Array]:
        update = jax.jit(clusterer.update).lower(state, x).compile()
        return lambda: update(state, x).labels.block_until_ready()

    def theirs(fit: Callable[[np.ndarray], np.ndarray]) -> Callable[[], np.ndarray]:
        return lambda: np.stack([fit(each) for each in vectors], axis=-1).reshape(side, side, -1).astype(np.int32)

    def sklearn_warm() -> np.ndarray:
        labels = [
            SklearnKMeans(num_clusters, init=centroids, n_init=1, max_iter=2).fit(each).labels_
            for each, centroids in zip(vectors, learned, strict=True)
        ]
        return np.stack(labels, axis=-1).reshape(side, side, -1)

    def sklearn(each: np.ndarray) -> SklearnKMeans:
        return SklearnKMeans(num_clusters, n_init=1, max_iter=10, random_state=0).fit(each)

    def means_of_half(each: np.ndarray) -> np.ndarray:
        labels = sklearn(each[:, ::2]).labels_
        return np.stack([each[labels == label].mean(axis=0) for label in range(num_clusters)])

    learned = [means_of_half(each) for each in vectors]
    ward = AgglomerativeClustering(num_clusters, connectivity=graph, linkage="ward")
    kmeans = dc.KMeans(num_clusters=num_clusters, iterations=10, per_channel=True)
    brief = dc.KMeans(num_clusters=num_clusters, iterations=2, per_channel=True)
    grid = kmeans.init(x.shape[1:])
    warm = jax.jit(kmeans.update)(grid, x[::2])
    return {
        FIRST: ours(kmeans, grid),
        SKLEARN: theirs(lambda each: sklearn(each).labels_),
        WARM: ours(brief, warm),
        SKLEARN_WARM: sklearn_warm,
        WARD: theirs(lambda each: ward.fit(each).labels_),
        RENA: ours(dc.ReNA(num_clusters=num_clusters, per_channel=True), grid),
        NILEARN: theirs(lambda each: NilearnReNA(mask, n_clusters=num_clusters).fit(each.T).labels_),
    }


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default=os.environ.get("TFDS_DATA_DIR"), help="where TFDS has prepared CIFAR-10")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="sides of the maps")
    parser.add_argument("--turns", type=int, default=5, help="at the largest size there is one")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # peers that stop early say so each time

    source = tfds.data_source("cifar10", data_dir=options.data_dir, split="train[:128]")
    images = np.stack([source[i]["image"] for i in range(len(source))]).astype(np.float32) / 255
    images -= images.mean(axis=(0, 1, 2))

    names = ("jax", "scikit-learn", "nilearn")
    print(f"{platform.machine()}, {os.cpu_count()} CPU cores, {jax.devices()[0].device_kind}; ", end="")
    print(", ".join(f"{name} {version(name)}" for name in names))
    for size in options.sizes:
        side, channels, num_clusters = SIZES[size]
        x = features(images, side, channels)
        who = contenders(x, num_clusters)
        times: dict[str, list[float]] = {name: [] for name in who}
        labels = {}
        for _ in range(options.turns if size != max(SIZES) else 1):
            for name, cluster in who.items():
                time.sleep(0.3)  # until the threads of the one before have gone to sleep
                begin = time.perf_counter()
                labels[name] = cluster()
                times[name].append(time.perf_counter() - begin)

        print(f"\n{side}x{side}, {channels} channels, {len(x)} examples, K = {num_clusters}")
        print(f"{'':44}{'ms per update':>14}{'explained':>11}{'connected':>11}")
        for name in who:
            found = jnp.asarray(labels[name])
            explained = float(explained_variance(found, x, num_clusters).mean())
            connected = float(is_connected(found, num_clusters).mean())
            print(f"{name:44}{1e3 * statistics.median(times[name]):14.1f}{explained:11.4f}{connected:11.1%}")
        for fast, slow in COMPARED:
            faster = statistics.median(times[slow]) / statistics.median(times[fast])
            print(f"{fast}: {faster:.1f} times faster than {slow}")
        rand = adjusted_rand_index(jnp.asarray(labels[RENA]), jnp.asarray(labels[NILEARN]))
        print(f"agreement of ReNA with nilearn, whose last round does not choose the closest: {float(rand.mean()):.3f}")


if __name__ == "__main__":
    main()
