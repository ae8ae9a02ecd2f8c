"""Speed and quality of the clusterers, compared with scikit-learn and nilearn.

    python benchmarks/clustering.py --data-dir ~/tensorflow_datasets

The features are a random 3x3 convolution and a ReLU of the first 128 training images of CIFAR-10, resized. Every method
clusters each channel separately. The clusterers of dropcluster_jax receive the activations as a layer returns them; the
other libraries receive correlation vectors that are computed before the clock starts. Warm updates start from the
clusters of every other example (for scikit-learn: from the means of these clusters, also computed in advance).

The methods take turns, so that other load on the machine affects all of them, and the table shows medians. Explained
variance and the fraction of connected clusters are averaged over channels.
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
from dropcluster_jax.clustering.correlation import correlation_vectors

# Side, channels, clusters.
SIZES = {"16": (16, 64, 20), "32": (32, 64, 20), "56": (56, 256, 64)}
FIRST, WARM, RENA = "KMeans, first update, 10 iterations", "KMeans, warm update, 2 iterations", "ReNA"
SKLEARN, SKLEARN_WARM = "scikit-learn KMeans, 10 iterations", "scikit-learn KMeans, warm, 2 iterations"
WARD, NILEARN = "scikit-learn Ward on the grid", "nilearn ReNA"
COMPARISONS = [(FIRST, SKLEARN), (WARM, SKLEARN), (WARM, SKLEARN_WARM), (RENA, NILEARN)]


def features(images: np.ndarray, side: int, channels: int) -> jax.Array:
    """Returns features `(128, side, side, channels)`, float32."""
    images = jax.image.resize(images, (len(images), side, side, 3), "linear")
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 3, channels)) * (2 / 27) ** 0.5
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.nn.relu(jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=dimensions))


def methods(x: jax.Array, num_clusters: int) -> dict[str, Callable[[], np.ndarray | jax.Array]]:
    """Returns functions that cluster every channel and return labels `(side, side, channels)`."""
    side = x.shape[1]
    vectors, _, _ = correlation_vectors(jnp.transpose(x, (3, 1, 2, 0)).reshape(x.shape[-1], side**2, -1))
    vectors = np.asarray(vectors)
    graph = grid_to_graph(side, side)
    mask = nibabel.Nifti1Image(np.ones((side, side, 1), np.int8), np.eye(4))

    def compiled(clusterer: dc.Clusterer, state: dc.ClusterState) -> Callable[[], jax.Array]:
        update = jax.jit(clusterer.update).lower(state, x).compile()
        return lambda: update(state, x).labels.block_until_ready()

    def as_map(channel_labels: list[np.ndarray]) -> np.ndarray:
        return np.stack(channel_labels, axis=-1).reshape(side, side, -1).astype(np.int32)

    def per_channel(fit: Callable[[np.ndarray], np.ndarray]) -> Callable[[], np.ndarray]:
        return lambda: as_map([fit(channel) for channel in vectors])

    def sklearn(channel: np.ndarray) -> SklearnKMeans:
        return SklearnKMeans(num_clusters, n_init=1, max_iter=10, random_state=0).fit(channel)

    def sklearn_warm() -> np.ndarray:
        labels = [
            SklearnKMeans(num_clusters, init=means, n_init=1, max_iter=2).fit(channel).labels_
            for channel, means in zip(vectors, warm_means, strict=True)
        ]
        return as_map(labels)

    def means_from_half_the_examples(channel: np.ndarray) -> np.ndarray:
        labels = sklearn(channel[:, ::2]).labels_
        return np.stack([channel[labels == label].mean(axis=0) for label in range(num_clusters)])

    warm_means = [means_from_half_the_examples(channel) for channel in vectors]
    ward = AgglomerativeClustering(num_clusters, connectivity=graph, linkage="ward")
    first_kmeans = dc.KMeans(num_clusters=num_clusters, iterations=10, per_channel=True)
    warm_kmeans = dc.KMeans(num_clusters=num_clusters, iterations=2, per_channel=True)
    initial_state = first_kmeans.init(x.shape[1:])
    warm_state = jax.jit(first_kmeans.update)(initial_state, x[::2])
    return {
        FIRST: compiled(first_kmeans, initial_state),
        SKLEARN: per_channel(lambda channel: sklearn(channel).labels_),
        WARM: compiled(warm_kmeans, warm_state),
        SKLEARN_WARM: sklearn_warm,
        WARD: per_channel(lambda channel: ward.fit(channel).labels_),
        RENA: compiled(dc.ReNA(num_clusters=num_clusters, per_channel=True), initial_state),
        NILEARN: per_channel(lambda channel: NilearnReNA(mask, n_clusters=num_clusters).fit(channel.T).labels_),
    }


def main() -> None:
    """Prints one table per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default=os.environ.get("TFDS_DATA_DIR"), help="TFDS folder with CIFAR-10")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="sides of the maps")
    parser.add_argument("--turns", type=int, default=5, help="repetitions; the largest size always runs once")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # scikit-learn warns whenever it stops before convergence

    source = tfds.data_source("cifar10", data_dir=options.data_dir, split="train[:128]")
    images = np.stack([source[i]["image"] for i in range(len(source))]).astype(np.float32) / 255
    images -= images.mean(axis=(0, 1, 2))

    packages = ("jax", "scikit-learn", "nilearn")
    print(f"{platform.machine()}, {os.cpu_count()} CPU cores, {jax.devices()[0].device_kind}; ", end="")
    print(", ".join(f"{package} {version(package)}" for package in packages))
    for size in options.sizes:
        side, channels, num_clusters = SIZES[size]
        x = features(images, side, channels)
        cluster_functions = methods(x, num_clusters)
        times: dict[str, list[float]] = {name: [] for name in cluster_functions}
        labels = {}
        for _ in range(options.turns if size != max(SIZES) else 1):
            for name, cluster in cluster_functions.items():
                time.sleep(0.3)  # lets the previous method's threads go idle
                start = time.perf_counter()
                labels[name] = cluster()
                times[name].append(time.perf_counter() - start)

        print(f"\n{side}x{side}, {channels} channels, {len(x)} examples, {num_clusters} clusters")
        print(f"{'':44}{'ms per update':>14}{'explained':>11}{'connected':>11}")
        for name in cluster_functions:
            method_labels = jnp.asarray(labels[name])
            explained = float(explained_variance(method_labels, x, num_clusters).mean())
            connected = float(is_connected(method_labels, num_clusters).mean())
            print(f"{name:44}{1e3 * statistics.median(times[name]):14.1f}{explained:11.4f}{connected:11.1%}")
        for name, baseline in COMPARISONS:
            speedup = statistics.median(times[baseline]) / statistics.median(times[name])
            print(f"{name}: {speedup:.1f} times as fast as {baseline}")
        ari = adjusted_rand_index(jnp.asarray(labels[RENA]), jnp.asarray(labels[NILEARN]))
        print(f"adjusted Rand index of ReNA and nilearn ReNA: {float(ari.mean()):.3f}")


if __name__ == "__main__":
    main()
