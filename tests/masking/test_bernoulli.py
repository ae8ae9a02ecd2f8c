"""The random draws behind all masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from dropcluster_jax.masking.bernoulli import bernoulli_keep

RATES = [0.0, 1e-4, 0.1, 0.5, 0.731, 1.0]
keep = jax.jit(bernoulli_keep, static_argnums=2)  # compiled once for all rates


def mix(word):
    """The finalizer of MurmurHash3 without its last step, in plain Python."""
    word = (word ^ word >> 16) * 0x85EBCA6B % 2**32
    return (word ^ word >> 13) * 0xC2B2AE35 % 2**32


@pytest.mark.parametrize(
    ("shape", "row_shape", "column_shape"),
    [
        ((5,), (1,), (5,)),
        ((3, 7), (3, 1), (3, 7)),
        ((3, 4, 5), (3, 4, 1), (3, 1, 5)),
        ((2, 3, 2, 5), (2, 3, 2, 1), (2, 1, 1, 5)),
        ((2, 3, 4, 1), (2, 3, 1, 1), (2, 1, 4, 1)),
        ((4, 1, 1, 1), (4, 1, 1, 1), (4, 1, 1, 1)),
    ],
)
def test_draws_match_a_reference_in_python(shape, row_shape, column_shape):
    key = jax.random.key(5)
    rows = np.broadcast_to(jax.random.bits(key, row_shape), shape)
    columns = np.broadcast_to(jax.random.bits(jax.random.fold_in(key, 1), column_shape), shape)
    words = [mix(int(row) ^ int(column)) for row, column in zip(rows.ravel(), columns.ravel(), strict=True)]
    for rate in RATES:
        expected = [word // 2 >= round(float(np.float32(rate)) * 2**31) for word in words]
        assert np.ravel(keep(key, rate, shape)).tolist() == expected


def assert_independent(draws, rate):
    """Checks the rate, and that neither columns nor rows of `draws` correlate."""
    draws = np.asarray(draws).reshape(len(draws), -1)
    assert scipy.stats.binomtest(int((~draws).sum()), draws.size, rate).pvalue > 1e-4
    for correlation in (np.corrcoef(draws.T), np.corrcoef(draws)):
        samples = draws.size // len(correlation)
        assert np.abs(correlation - np.eye(len(correlation))).max() < 6 / np.sqrt(samples)


@pytest.mark.parametrize(
    ("impl", "shape"),
    [
        *(("threefry2x32", shape) for shape in [(500, 99), (500, 12, 3), (500, 6, 3, 2), (500, 6, 6, 1)]),
        *((impl, (500, 6, 3, 2)) for impl in ("rbg", "unsafe_rbg")),
    ],
)
def test_draws_are_independent_and_have_the_rate(impl, shape):
    assert_independent(keep(jax.random.key(0, impl=impl), 0.3, shape), 0.3)


@pytest.mark.parametrize("rate", [0.5, 0.2])
def test_corners_of_rectangles_are_independent(rate):
    """Draws are functions of a word per row and one per column, whose exclusive or is 0 over the four corners."""
    draws = np.asarray(keep(jax.random.key(1), rate, (2000, 32, 32))).astype(np.float32) - (1 - rate)
    products = draws[:, ::2, ::2] * draws[:, 1::2, ::2] * draws[:, ::2, 1::2] * draws[:, 1::2, 1::2]
    error = products.std() / np.sqrt(products.size)
    assert abs(products.mean()) < 5 * error


def test_number_of_kept_draws_is_binomial():
    counts = np.asarray(keep(jax.random.key(2), 0.3, (4000, 16, 24))).sum((1, 2))
    edges = np.arange(245, 293, 4)
    expected = np.diff(scipy.stats.binom.cdf(np.concatenate([[-1], edges, [384]]), 384, 0.7)) * len(counts)
    observed = np.histogram(counts, np.concatenate([[-0.5], edges + 0.5, [384.5]]))[0]
    assert scipy.stats.chisquare(observed, expected).pvalue > 1e-4


def test_examples_do_not_depend_on_the_batch_size():
    key = jax.random.key(3)
    assert (keep(key, 0.4, (9, 5, 6))[:4] == keep(key, 0.4, (4, 5, 6))).all()


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_rates_0_and_1_are_exact(impl):
    key = jax.random.key(0, impl=impl)
    assert keep(key, 0.0, (100, 1001)).all() and not keep(key, 1.0, (100, 1001)).any()


def test_low_rates_are_exact():
    rate, draws = 2**-18, 2**26
    dropped = int((~jax.jit(lambda key: bernoulli_keep(key, rate, (2**6, 2**10, 2**10)))(jax.random.key(0))).sum())
    assert dropped == pytest.approx(rate * draws, abs=5 * np.sqrt(rate * draws))


def test_raw_uint32_keys_draw_the_same_as_typed_keys():
    typed = keep(jax.random.key(3), 0.4, (4, 10))
    assert (keep(jax.random.PRNGKey(3), 0.4, (4, 10)) == typed).all()


def test_different_keys_draw_differently():
    draws = jax.vmap(lambda key: keep(key, 0.5, (8, 64)))(jax.random.split(jax.random.key(0), 40))
    assert len(np.unique(jnp.reshape(draws, (40, -1)), axis=0)) == 40


@pytest.mark.bad_input
def test_an_array_of_keys_raises():
    with pytest.raises(ValueError, match="single key"):
        bernoulli_keep(jax.random.split(jax.random.key(0)), 0.3, (4, 10))


@pytest.mark.optimized
def test_sharded_batches_draw_without_communication():
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    draw = jax.jit(lambda key: bernoulli_keep(key, 0.3, (64, 30)), out_shardings=sharding)
    text = draw.lower(jax.random.key(0)).compile().as_text()
    assert not any(op in text for op in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))
    assert "u32[64," not in text  # no device draws the whole batch
    assert (draw(jax.random.key(0)) == bernoulli_keep(jax.random.key(0), 0.3, (64, 30))).all()
