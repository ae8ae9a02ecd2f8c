import jax
import jax.numpy as jnp
import pytest

import dropcluster_jax as dc
from dropcluster_jax.training.cluster_metrics import cluster_metrics, mean_adjusted_rand_index


def test_rand_index_is_averaged_over_stacked_layers():
    labels = jax.random.randint(jax.random.key(0), (3, 4, 5, 2), 0, 6)  # 3 layers, 4x5 positions, 2 channels
    other_labels = labels.at[0].set(0)
    counter = jnp.zeros(3, jnp.int32)
    state, other = (
        dc.ClusterState(leaf, jnp.zeros((3, 6, 2), jnp.int32), jnp.zeros((3, 2)), counter, counter)
        for leaf in (labels, other_labels)
    )
    assert mean_adjusted_rand_index(state, state) == pytest.approx(1)
    assert mean_adjusted_rand_index(state, other) == pytest.approx(2 / 3)


def test_metrics_compare_an_update_with_the_previous_clusters():
    clusterer = dc.KMeans(num_clusters=4)
    before = clusterer.init((6, 6, 3))
    after = clusterer.update(before, jax.random.normal(jax.random.key(0), (16, 6, 6, 3)))
    metrics = cluster_metrics({"drop": before._asdict()}, {"drop": after._asdict()})
    assert set(metrics) == {"drop"}
    assert metrics["drop"]["num_updates"] == 1 and metrics["drop"]["num_skipped"] == 0
    assert metrics["drop"]["explained_variance"] == pytest.approx(float(after.explained_variance.mean()))
    assert metrics["drop"]["adjusted_rand_index"] == pytest.approx(mean_adjusted_rand_index(before, after))
