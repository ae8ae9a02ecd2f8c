import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dropcluster_jax as dc


def is_union_of_blocks(dropped, size):
    """Whether each dropped position lies in a block of dropped positions that is whole inside the map."""
    covered = np.zeros_like(dropped)
    for start in np.ndindex(*(length - size + 1 for length in dropped.shape)):
        block = tuple(slice(at, at + size) for at in start)
        if dropped[block].all():
            covered[block] = True
    return (covered == dropped).all()


@pytest.mark.parametrize(("spatial", "size"), [((9, 7), 3), ((6, 8), 4), ((7, 7), 7), ((12,), 5), ((4, 5, 6), 2)])
def test_what_is_dropped_is_a_union_of_whole_blocks(spatial, size):
    x = jnp.ones((40, *spatial, 2))
    masks = np.asarray(dc.drop_block_mask(jax.random.key(0), x, 0.3, block_size=size, per_channel=True))
    assert 0 < (~masks).mean() < 1
    for mask in masks:
        for channel in range(2):
            assert is_union_of_blocks(~mask[..., channel], size)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3, 0.5])
@pytest.mark.parametrize(("spatial", "size"), [((14, 14), 7), ((32, 32), 7), ((10, 13), 4), ((7, 7), 7)])
def test_the_realised_share_is_what_was_asked_for(spatial, size, rate):
    x = jnp.ones((20_000, *spatial, 1))
    shares = 1 - jax.jit(lambda key: dc.drop_block_mask(key, x, rate, block_size=size).mean((1, 2, 3)))(
        jax.random.key(1)
    )
    error = float(shares.std()) / np.sqrt(len(shares))
    assert abs(float(shares.mean()) - rate) < 5 * error + 0.002 * rate


@pytest.mark.bad_input
@pytest.mark.parametrize("size", [0, 5])
def test_a_block_that_does_not_fit_the_map_is_refused(size):
    with pytest.raises(ValueError, match=rf"block_size must be from 1 to 4 for the map \(4, 6\), got {size}"):
        dc.drop_block(jax.random.key(0), jnp.ones((2, 4, 6, 1)), 0.1, block_size=size)


@pytest.mark.bad_input
def test_a_block_size_that_is_no_integer_is_refused():
    with pytest.raises(TypeError, match=r"block_size must be an integer, got 2\.5"):
        dc.drop_block(jax.random.key(0), jnp.ones((2, 4, 6, 1)), 0.1, block_size=2.5)
