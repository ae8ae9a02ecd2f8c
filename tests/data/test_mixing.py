"""Laws of what mixes examples: images and labels by the same share, and NumPy would mix them so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dropcluster_jax.data import cutmix, mixup

WAYS = {"mixup": mixup, "cutmix": cutmix}
every_way = pytest.mark.parametrize("mix", WAYS.values(), ids=WAYS)


def batch(number=64, side=(6, 5), seed=0):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(number, *side, 3)).astype(np.float32)
    return jnp.asarray(images), jax.nn.one_hot(jnp.arange(number), number)


def test_mixup_is_numpys_mean_of_neighbours_by_the_share_that_the_labels_tell():
    images, labels = batch()
    mixed, probabilities = mixup(jax.random.key(0), images, labels, 0.5)
    share = np.asarray(probabilities)[np.arange(64), np.arange(64)]
    np.testing.assert_allclose(
        probabilities, share[:, None] * np.eye(64) + (1 - share[:, None]) * np.roll(np.eye(64), -1, 0), atol=1e-6
    )
    weights = share[:, None, None, None]
    np.testing.assert_allclose(mixed, weights * images + (1 - weights) * np.roll(images, -1, 0), atol=1e-5)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_the_shares_of_mixup_are_those_of_a_beta_distribution(alpha):
    number = 4000
    _, labels = mixup(jax.random.key(1), jnp.zeros((number, 1, 1, 1)), jnp.tile(jnp.eye(2), (number // 2, 1)), alpha)
    share = np.where(np.arange(number) % 2 == 0, labels[:, 0], labels[:, 1])
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(share.mean() - 0.5) < 5.5 * (variance / number) ** 0.5
    assert share.var() == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize("side", [(6, 5), (1, 7), (32, 32)])
def test_cutmix_puts_one_box_of_the_next_image_and_labels_by_its_pixels(side):
    images, labels = batch(side=side)
    mixed, probabilities = cutmix(jax.random.key(0), images, labels, 1.0)
    other = np.roll(images, -1, 0)
    taken = (np.asarray(mixed) == other).all(-1)
    assert (taken | (np.asarray(mixed) == np.asarray(images)).all(-1)).all()
    for inside, probability, index in zip(taken, np.asarray(probabilities), range(64), strict=True):
        box = np.outer(inside.any(1), inside.any(0))  # the least rectangle around it is it
        np.testing.assert_array_equal(inside, box)
        for along in (inside.any(1), inside.any(0)):
            places = np.flatnonzero(along)
            assert not len(places) or len(places) == places[-1] - places[0] + 1
        assert probability[index] == pytest.approx(1 - inside.mean(), abs=1e-6)
        assert probability[(index + 1) % 64] == pytest.approx(inside.mean(), abs=1e-6)


def test_all_sizes_of_boxes_occur_and_the_middle_is_covered_most():
    number = 2000
    images = jnp.broadcast_to((jnp.arange(number) % 2.0)[:, None, None, None], (number, 8, 8, 1))
    mixed, _ = cutmix(jax.random.key(2), images, jax.nn.one_hot(jnp.arange(number) % 2, 2), 1.0)
    taken = np.asarray(mixed != images)[..., 0]
    shares = taken.mean((1, 2))
    assert shares.min() == 0 and shares.max() > 0.75  # all of it: only where a draw is 0
    assert taken[:, 3:5, 3:5].mean() > 1.2 * taken[:, [0, 0, 7, 7], [0, 7, 0, 7]].mean() > 0.05


@every_way
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_probabilities_stay_probabilities_and_types_stay(mix, dtype):
    images, labels = batch()
    mixed, probabilities = mix(jax.random.key(0), images.astype(dtype), labels, 1.0)
    assert mixed.dtype == dtype and probabilities.dtype == jnp.float32 and mixed.shape == images.shape
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)
    assert (probabilities >= 0).all()
    again = mix(jax.random.key(0), images.astype(dtype), labels, 1.0)
    assert (again[0] == mixed).all() and not (mix(jax.random.key(1), images, labels, 1.0)[1] == probabilities).all()


@every_way
def test_jit_and_a_sharded_batch_give_the_same(mix):
    images, labels = batch()
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    plain = mix(jax.random.key(3), images, labels, 1.0)
    divided = jax.jit(mix, static_argnums=3)(jax.random.key(3), *jax.device_put((images, labels), sharding), 1.0)
    for one, other in zip(plain, divided, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.bad_input
@every_way
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, y: (x, y, 0.0), ValueError, "alpha must be above 0, got 0.0"),
        (lambda x, y: (x, y, float("nan")), ValueError, "alpha must be above 0"),
        (lambda x, y: (x, jnp.arange(64), 1.0), ValueError, r"labels must have the shape \(64, classes\)"),
        (lambda x, y: (x, y[1:], 1.0), ValueError, r"labels must have the shape \(64, classes\)"),
        (lambda x, y: (x.astype(jnp.uint8), y, 1.0), TypeError, "images must be of a floating-point type, got uint8"),
        (lambda x, y: (x, y.astype(int), 1.0), TypeError, "labels must be of a floating-point type, got int32"),
        (lambda x, y: (x[0], y, 1.0), ValueError, r"images must have the shape \(batch, height"),
    ],
)
def test_wrong_arguments_are_named(mix, change, error, message):
    with pytest.raises(error, match=message):
        mix(jax.random.key(0), *change(*batch()))
