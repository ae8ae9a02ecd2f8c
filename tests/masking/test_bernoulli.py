"""The random draws behind all masks."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from dropcluster_jax.masking import bernoulli
from dropcluster_jax.masking.bernoulli import bernoulli_keep

RATES = [0.0, 1e-4, 0.1, 0.5, 0.731, 1.0]


def threefry(key, high, low):
    """Threefry-2x32 with 20 rounds in plain Python (Salmon et al., "Parallel random numbers", SC 2011)."""
    word = 2**32 - 1
    schedule = [*key, key[0] ^ key[1] ^ 0x1BD11BDA]
    x = [(high + key[0]) & word, (low + key[1]) & word]
    for group in range(5):
        for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x[0] = (x[0] + x[1]) & word
            x[1] = ((x[1] << rotation | x[1] >> (32 - rotation)) & word) ^ x[0]
        x[0] = (x[0] + schedule[(group + 1) % 3]) & word
        x[1] = (x[1] + schedule[(group + 2) % 3] + group + 1) & word
    return x


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("length", [1, 4, 7])
def test_draws_match_a_reference_in_python(rate, length):
    key = jax.random.key(5)
    data = [int(word) for word in jax.random.key_data(key)]
    num_blocks = -(-length // 4)
    expected = np.empty((3, length), bool)
    for example in range(3):
        uniform = (threefry(data, example, num_blocks)[0] >> 8) / 2**24
        scaled = float(np.float32(rate)) * 2**16
        threshold = int(scaled) + (uniform < scaled - int(scaled))
        blocks = [threefry(data, example, block) for block in range(num_blocks)]
        halves = [half for i in (0, 1) for half in ([b[i] >> 16 for b in blocks], [b[i] % 2**16 for b in blocks])]
        expected[example] = np.array(halves).ravel()[:length] >= threshold
    assert (bernoulli_keep(key, rate, (3, length)) == expected).all()


def assert_independent(draws, rate):
    """Checks the rate, and that neither columns nor rows of `draws` correlate."""
    draws = np.asarray(draws).reshape(len(draws), -1)
    assert scipy.stats.binomtest(int((~draws).sum()), draws.size, rate).pvalue > 1e-4
    for correlation in (np.corrcoef(draws.T), np.corrcoef(draws)):
        samples = draws.size // len(correlation)
        assert np.abs(correlation - np.eye(len(correlation))).max() < 6 / np.sqrt(samples)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("shape", [(500, 99), (500, 12, 3), (500, 6, 3, 2)])
def test_draws_are_independent_and_have_the_rate(impl, shape):
    assert_independent(bernoulli_keep(jax.random.key(0, impl=impl), 0.3, shape), 0.3)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_rates_0_and_1_are_exact(impl):
    key = jax.random.key(0, impl=impl)
    assert bernoulli_keep(key, 0.0, (100, 1001)).all() and not bernoulli_keep(key, 1.0, (100, 1001)).any()


def test_rates_below_the_resolution_of_16_bits_are_exact():
    rate, draws = 2**-18, 2**24
    dropped = int((~jax.jit(lambda key: bernoulli_keep(key, rate, (2**14, 2**10)))(jax.random.key(0))).sum())
    assert dropped == pytest.approx(rate * draws, abs=5 * np.sqrt(rate * draws))


def test_raw_uint32_keys_draw_the_same_as_typed_keys():
    typed = bernoulli_keep(jax.random.key(3), 0.4, (4, 10))
    assert (bernoulli_keep(jax.random.PRNGKey(3), 0.4, (4, 10)) == typed).all()


def test_different_keys_draw_differently():
    draws = jax.vmap(lambda key: bernoulli_keep(key, 0.5, (8, 64)))(jax.random.split(jax.random.key(0), 40))
    assert len(np.unique(jnp.reshape(draws, (40, -1)), axis=0)) == 40


def load_without_threefry(monkeypatch):
    """Executes the module as if `jax.extend.random` had no `threefry2x32_p`."""
    monkeypatch.delattr("jax.extend.random.threefry2x32_p")
    spec = importlib.util.spec_from_file_location("bernoulli_without_threefry", bernoulli.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_without_the_threefry_primitive_draws_are_independent_and_exact(monkeypatch, make_key):
    module, key = load_without_threefry(monkeypatch), make_key(0)
    assert module.threefry2x32_p is None
    for shape in [(500, 99), (500, 12, 3)]:
        draws = module.bernoulli_keep(key, 0.3, shape)
        assert draws.shape == shape
        assert_independent(draws, 0.3)
    assert module.bernoulli_keep(key, 0.0, (100, 1001)).all()
    assert not module.bernoulli_keep(key, 1.0, (100, 1001)).any()
    low, high = (module.bernoulli_keep(key, rate, (100, 99)) for rate in (0.1, 0.6))
    assert (high <= low).all()
    first, second = (module.bernoulli_keep(make_key(seed), 0.5, (8, 64)) for seed in (1, 2))
    assert (first != second).any()


def test_rbg_draws_do_not_depend_on_the_threefry_primitive(monkeypatch):
    key = jax.random.key(0, impl="rbg")
    expected = bernoulli_keep(key, 0.3, (50, 12, 3))
    assert (load_without_threefry(monkeypatch).bernoulli_keep(key, 0.3, (50, 12, 3)) == expected).all()


@pytest.mark.bad_input
def test_an_array_of_keys_raises():
    with pytest.raises(ValueError, match=r"key must be a single key, got an array of keys of shape \(2,\)"):
        bernoulli_keep(jax.random.split(jax.random.key(0)), 0.3, (4, 10))


def test_sharded_batches_draw_without_communication():
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    draw = jax.jit(lambda key: bernoulli_keep(key, 0.3, (64, 30)), out_shardings=sharding)
    text = draw.lower(jax.random.key(0)).compile().as_text()
    assert not any(op in text for op in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))
    assert "u32[64," not in text  # no device draws the whole batch
    assert (draw(jax.random.key(0)) == bernoulli_keep(jax.random.key(0), 0.3, (64, 30))).all()
