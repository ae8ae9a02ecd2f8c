import jax
import jax.numpy as jnp
import pytest

import dropcluster_jax as dc
from dropcluster_jax.training.cluster_metrics import mean_adjusted_rand_index


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
