"""The draws that all masks are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from dropcluster_jax.masking.bernoulli import bernoulli_keep

RATES = [0.0, 1e-4, 0.1, 0.5, 0.731, 1.0]


def threefry(key, high, low):
    """Threefry-2x32 with 20 rounds in plain Python (Salmon et al., "DataParallel random numbers", SC 2011)."""
    word = 2**32 - 1
    schedule = [*key, key[0] ^ key[1] ^ 0x1BD11BDA]
    x = [(high + key[0]) & word, (low + key[1]) & word]
    for group in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x[0] = (x[0] + x[1]) & word
            x[1] = ((x[1] << turn | x[1] >> (32 - turn)) & word) ^ x[0]
        x[0] = (x[0] + schedule[(group + 1) % 3]) & word
        x[1] = (x[1] + schedule[(group + 2) % 3] + group + 1) & word
    return x


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("number", [1, 4, 7])
def test_draws_are_sixteen_bits_of_a_counter_against_the_rate(rate, number):
    key = jax.random.key(5)
    data = [int(word) for word in jax.random.key_data(key)]
    quarter = -(-number // 4)
    expected = np.empty((3, number), bool)
    for example in range(3):
        uniform = (threefry(data, example, quarter)[0] >> 8) / 2**24
        scaled = float(np.float32(rate)) * 2**16
        threshold = int(scaled) + (uniform < scaled - int(scaled))
        blocks = [threefry(data, example, block) for block in range(quarter)]
        halves = [half for i in (0, 1) for half in ([b[i] >> 16 for b in blocks], [b[i] % 2**16 for b in blocks])]
        expected[example] = np.array(halves).ravel()[:number] >= threshold
    assert (bernoulli_keep(key, rate, (3, number)) == expected).all()


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("shape", [(500, 99), (500, 12, 3), (500, 6, 3, 2)])
def test_whatever_the_key_draws_are_independent_and_exact(impl, shape):
    rate, key = 0.3, jax.random.key(0, impl=impl)
    draws = np.asarray(bernoulli_keep(key, rate, shape)).reshape(500, -1)
    assert scipy.stats.binomtest(int((~draws).sum()), draws.size, rate).pvalue > 1e-4
    for correlation in (np.corrcoef(draws.T), np.corrcoef(draws)):
        number = draws.size // len(correlation)
        assert np.abs(correlation - np.eye(len(correlation))).max() < 6 / np.sqrt(number)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_all_or_nothing_is_exact(impl):
    key = jax.random.key(0, impl=impl)
    assert bernoulli_keep(key, 0.0, (100, 1001)).all() and not bernoulli_keep(key, 1.0, (100, 1001)).any()


def test_a_rate_below_what_sixteen_bits_resolve_is_exact_too():
    rate, number = 2**-18, 2**24
    dropped = int((~jax.jit(lambda key: bernoulli_keep(key, rate, (2**14, 2**10)))(jax.random.key(0))).sum())
    assert dropped == pytest.approx(rate * number, abs=5 * np.sqrt(rate * number))


def test_keys_of_the_old_kind_give_the_same():
    new = bernoulli_keep(jax.random.key(3), 0.4, (4, 10))
    assert (bernoulli_keep(jax.random.PRNGKey(3), 0.4, (4, 10)) == new).all()


def test_other_keys_give_other_draws():
    draws = jax.vmap(lambda key: bernoulli_keep(key, 0.5, (8, 64)))(jax.random.split(jax.random.key(0), 40))
    assert len(np.unique(jnp.reshape(draws, (40, -1)), axis=0)) == 40


def test_draws_on_a_sharded_batch_are_made_where_they_belong():
    """No device draws for the examples of another, and nothing is sent."""
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    draw = jax.jit(lambda key: bernoulli_keep(key, 0.3, (64, 30)), out_shardings=sharding)
    text = draw.lower(jax.random.key(0)).compile().as_text()
    assert not any(word in text for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))
    assert "u32[64," not in text and (draw(jax.random.key(0)) == bernoulli_keep(jax.random.key(0), 0.3, (64, 30))).all()
