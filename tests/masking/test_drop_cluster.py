import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dropcluster_jax as dc
from dropcluster_jax.masking.common import draw_kept


def random_state(num_clusters, groups, spatial=(12, 11)):
    labels = jax.random.randint(jax.random.key(num_clusters), (*spatial, groups), 0, num_clusters)
    state = dc.Grid(num_clusters=num_clusters, per_channel=groups > 1).init((*spatial, groups))
    sizes = (labels.reshape(-1, 1, groups) == jnp.arange(num_clusters)[:, None]).sum(0).astype(jnp.int32)
    return state._replace(labels=labels, sizes=sizes)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("num_clusters", [1, 31, 32, 33, 64, 100])
def test_packed_words_give_the_mask_that_a_gather_gives(num_clusters, groups):
    state, key = random_state(num_clusters, groups), jax.random.key(1)
    x = jnp.ones((5, 12, 11, 3))
    draws = np.asarray(draw_kept(key, 0.4, (5, num_clusters, groups)))
    labels = np.asarray(state.labels)
    expected = np.stack([draws[:, labels[..., g], g] for g in range(groups)], axis=-1)
    assert np.array_equal(dc.drop_cluster_mask(key, x, 0.4, state), expected)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("num_clusters", [1, 33, 100])
def test_units_kept_are_counted_from_the_sizes_as_in_the_mask(num_clusters, groups):
    state, key = random_state(num_clusters, groups), jax.random.key(1)
    x = jax.random.normal(key, (50, 12, 11, 3))
    mask = np.broadcast_to(dc.drop_cluster_mask(key, x, 0.4, state), x.shape)
    kept = mask.sum((1, 2, 3), keepdims=True)
    expected = np.where(mask, x * np.where(kept, mask[0].size / np.maximum(kept, 1), 0), 0)
    np.testing.assert_allclose(dc.drop_cluster(key, x, 0.4, state), expected, rtol=1e-5)


@pytest.mark.parametrize("spatial", [(9,), (4, 5), (3, 4, 5)])
def test_maps_of_any_number_of_dimensions(spatial):
    x = jnp.ones((2, *spatial, 3))
    state = dc.Grid(num_clusters=4).init(x.shape[1:])
    y = dc.drop_cluster(jax.random.key(2), x, 0.5, state)
    assert y.shape == x.shape and 0 < (y == 0).mean() < 1


@pytest.mark.bad_input
def test_a_map_of_another_shape_than_the_clusters_says_how_to_resize_them():
    state = dc.Grid(num_clusters=4).init((4, 4, 3))
    with pytest.raises(ValueError, match=r"\(2, 8, 8, 3\).*\(4, 4\).*resize_clusters"):
        dc.drop_cluster(jax.random.key(0), jnp.ones((2, 8, 8, 3)), 0.1, state)
    per_channel = dc.Grid(num_clusters=4, per_channel=True).init((4, 4, 3))
    with pytest.raises(ValueError, match="x has 5 channels, but the clusters are per channel, for 3"):
        dc.drop_cluster(jax.random.key(0), jnp.ones((2, 4, 4, 5)), 0.1, per_channel)
