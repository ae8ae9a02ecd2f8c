import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dropcluster_jax as dc

cutout_mask = jax.jit(dc.cutout_mask, static_argnames="per_channel")  # compiled once for all rates


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.6])
@pytest.mark.parametrize(
    ("spatial", "per_channel"), [((11,), False), ((8, 8), True), ((5, 12), False), ((3, 4, 5), True)]
)
def test_one_box_with_the_proportions_of_the_map_is_dropped(spatial, rate, per_channel):
    x = jnp.ones((200, *spatial, 2))
    mask = np.asarray(cutout_mask(jax.random.key(0), x, rate, per_channel=per_channel))
    assert mask.shape == (200, *spatial, 2 if per_channel else 1)
    starts = set()
    for dropped in np.moveaxis(~mask, -1, 1).reshape(-1, *spatial):
        positions = np.argwhere(dropped)
        if len(positions):
            sides = positions.max(0) - positions.min(0) + 1
            assert len(positions) == sides.prod()  # a box
            assert (np.abs(sides - np.array(spatial) * rate ** (1 / len(spatial))) < 1).all()
            starts.add(tuple(positions.min(0)))
    assert len(starts) > 3


def test_locations_are_uniform():
    mask = cutout_mask(jax.random.key(0), jnp.ones((20_000, 8, 1)), 0.5)
    starts = np.argmin(np.asarray(mask)[..., 0], axis=1)  # boxes of 4 start at 0 to 4
    assert np.abs(np.bincount(starts, minlength=5) / 20_000 - 0.2).max() < 0.015
