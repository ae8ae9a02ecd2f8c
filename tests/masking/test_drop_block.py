import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dropcluster_jax as dc
from dropcluster_jax.masking.bernoulli import bernoulli_keep


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


def plain_drop_block(seeds, spatial, size):
    """The mask from its seeds, block by block."""
    kept = np.ones((len(seeds), *spatial, seeds.shape[-1]), bool)
    for example, *start, channel in np.argwhere(seeds):
        kept[example, *(slice(at, at + size) for at in start), channel] = False
    return kept


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(
    ("spatial", "size"), [((9, 7), 3), ((6, 8), 4), ((7, 7), 7), ((12,), 5), ((4, 5, 6), 2), ((5, 4), 1)]
)
def test_the_mask_equals_plain_numpy(spatial, size, per_channel):
    x, rate, key = jnp.ones((20, *spatial, 3)), 0.3, jax.random.key(2)
    starts = [length - size + 1 for length in spatial]
    maps = 3 if per_channel else 1
    # The share dropped at a seed's probability, by how many blocks can cover each position; and that turned around.
    covers = np.zeros(spatial)
    for start in np.ndindex(*starts):
        covers[tuple(slice(at, at + size) for at in start)] += 1
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 - (1 - middle) ** covers).mean() < rate else (low, middle)
    seeds = np.asarray(~bernoulli_keep(key, low, (20, *starts, maps)))
    mask = dc.drop_block_mask(key, x, rate, block_size=size, per_channel=per_channel)
    assert (mask == plain_drop_block(seeds, spatial, size)).all()


def share_of(spatial, size, seeding="exact"):
    """A compiled function from the rate to the share dropped over 20,000 examples, and its standard error."""
    x = jnp.ones((20_000, *spatial, 1))

    @jax.jit
    def share(rate):
        mask = dc.drop_block_mask(jax.random.key(1), x, rate, block_size=size, seeding=seeding)
        each = 1 - mask.mean(range(1, x.ndim))
        return each.mean(), each.std() / len(x) ** 0.5

    return lambda rate: tuple(map(float, share(rate)))


@pytest.mark.parametrize(("spatial", "size"), [((14, 14), 7), ((32, 32), 7), ((10, 13), 4), ((7, 7), 7), ((9,), 2)])
def test_the_realised_share_is_what_was_asked_for(spatial, size):
    share_dropped = share_of(spatial, size)
    for rate in (0.01, 0.05, 0.1, 0.3, 0.5, 0.9):
        share, error = share_dropped(rate)
        assert abs(share - rate) < 5 * error + 0.002 * rate


# Asked to drop these rates with blocks of 7 on 14 x 14, the peers drop these shares; measured over many masks with
# timm's `DropBlock2d` and torchvision's `drop_block2d`, each with its defaults.
PEERS = {0.1: (0.207, 0.094), 0.3: (0.504, 0.246), 0.5: (0.684, 0.357)}


def test_the_share_is_right_where_that_of_the_peers_is_not():
    exact, paper = share_of((14, 14), 7), share_of((14, 14), 7, "paper")
    for rate, (timm, torchvision) in PEERS.items():
        share, error = exact(rate)
        assert abs(share - rate) < 5 * error + 0.002 * rate
        assert abs(share - timm) > 20 * error
        if rate > 0.1:
            assert abs(share - torchvision) > 10 * error
        # The paper's formula with blocks whole inside the map is what torchvision has.
        assert paper(rate)[0] == pytest.approx(torchvision, rel=0.03)


@pytest.mark.parametrize("seeding", ["exact", "paper"])
def test_blocks_of_one_position_are_dropout_of_positions(seeding):
    x, key = jnp.ones((50, 6, 5, 3)), jax.random.key(4)
    block = dc.drop_block_mask(key, x, 0.3, block_size=1, seeding=seeding)
    positions = dc.dropout_mask(key, x, 0.3, per_channel=False)
    assert block.shape == positions.shape and (block == positions).mean() > 0.999  # the table's last bits


@pytest.mark.bad_input
def test_an_unknown_seeding_is_refused():
    with pytest.raises(ValueError, match="seeding must be one of 'exact', 'paper', got 'gamma'"):
        dc.drop_block(jax.random.key(0), jnp.ones((2, 4, 6, 1)), 0.1, block_size=2, seeding="gamma")


@pytest.mark.bad_input
@pytest.mark.parametrize("size", [0, 5])
def test_a_block_that_does_not_fit_the_map_is_refused(size):
    with pytest.raises(ValueError, match=rf"block_size must be from 1 to 4 for the map \(4, 6\), got {size}"):
        dc.drop_block(jax.random.key(0), jnp.ones((2, 4, 6, 1)), 0.1, block_size=size)


@pytest.mark.bad_input
def test_a_block_size_that_is_no_integer_is_refused():
    with pytest.raises(TypeError, match=r"block_size must be an integer, got 2\.5"):
        dc.drop_block(jax.random.key(0), jnp.ones((2, 4, 6, 1)), 0.1, block_size=2.5)
