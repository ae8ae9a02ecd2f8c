import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dropcluster_jax.data import cutmix, mixup

parametrize_functions = pytest.mark.parametrize("mix", [mixup, cutmix])


def random_batch(count=64, sides=(6, 5), seed=0):
    """Returns random images whose labels are all distinct."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(count, *sides, 3)).astype(np.float32)
    return jnp.asarray(images), jax.nn.one_hot(jnp.arange(count), count)


def test_mixup_averages_images_and_labels_with_the_same_weights():
    images, labels = random_batch()
    mixed, mixed_labels = mixup(jax.random.key(0), images, labels, 0.5)
    weights = np.asarray(mixed_labels)[np.arange(64), np.arange(64)]
    np.testing.assert_allclose(
        mixed_labels, weights[:, None] * np.eye(64) + (1 - weights[:, None]) * np.roll(np.eye(64), -1, 0), atol=1e-6
    )
    weights = weights[:, None, None, None]
    np.testing.assert_allclose(mixed, weights * images + (1 - weights) * np.roll(images, -1, 0), atol=1e-5)


@pytest.mark.parametrize("alpha", [0.2, *(pytest.param(alpha, marks=pytest.mark.slow) for alpha in (1.0, 4.0))])
def test_mixup_weights_follow_a_beta_distribution(alpha):
    count = 4000
    _, labels = mixup(jax.random.key(1), jnp.zeros((count, 1, 1, 1)), jnp.tile(jnp.eye(2), (count // 2, 1)), alpha)
    weights = np.where(np.arange(count) % 2 == 0, labels[:, 0], labels[:, 1])
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(weights.mean() - 0.5) < 5.5 * (variance / count) ** 0.5
    assert weights.var() == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize("sides", [(6, 5), (1, 7), (32, 32)])
def test_cutmix_replaces_one_box_and_mixes_labels_by_its_area(sides):
    images, labels = random_batch(sides=sides)
    mixed, mixed_labels = cutmix(jax.random.key(0), images, labels, 1.0)
    replaced = (np.asarray(mixed) == np.roll(images, -1, 0)).all(-1)
    assert (replaced | (np.asarray(mixed) == np.asarray(images)).all(-1)).all()
    for index, (box, probabilities) in enumerate(zip(replaced, np.asarray(mixed_labels), strict=True)):
        np.testing.assert_array_equal(box, np.outer(box.any(1), box.any(0)))
        for profile in (box.any(1), box.any(0)):
            positions = np.flatnonzero(profile)
            assert not len(positions) or len(positions) == positions[-1] - positions[0] + 1
        assert probabilities[index] == pytest.approx(1 - box.mean(), abs=1e-6)
        assert probabilities[(index + 1) % 64] == pytest.approx(box.mean(), abs=1e-6)


def test_cutmix_boxes_have_all_sizes_and_cover_the_center_most():
    count = 2000
    images = jnp.broadcast_to((jnp.arange(count) % 2.0)[:, None, None, None], (count, 8, 8, 1))
    mixed, _ = cutmix(jax.random.key(2), images, jax.nn.one_hot(jnp.arange(count) % 2, 2), 1.0)
    replaced = np.asarray(mixed != images)[..., 0]
    areas = replaced.mean((1, 2))
    assert areas.min() == 0 and areas.max() > 0.75
    assert replaced[:, 3:5, 3:5].mean() > 1.2 * replaced[:, [0, 0, 7, 7], [0, 7, 0, 7]].mean() > 0.05


@parametrize_functions
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_labels_sum_to_one_and_the_key_determines_the_result(mix, dtype):
    images, labels = random_batch()
    mixed, mixed_labels = mix(jax.random.key(0), images.astype(dtype), labels, 1.0)
    assert mixed.dtype == dtype and mixed_labels.dtype == jnp.float32 and mixed.shape == images.shape
    np.testing.assert_allclose(mixed_labels.sum(1), 1, rtol=1e-6)
    assert (mixed_labels >= 0).all()
    again, _ = mix(jax.random.key(0), images.astype(dtype), labels, 1.0)
    _, other_labels = mix(jax.random.key(1), images, labels, 1.0)
    assert (again == mixed).all() and not (other_labels == mixed_labels).all()


@pytest.mark.slow
@parametrize_functions
def test_jit_and_sharding_do_not_change_the_result(mix):
    images, labels = random_batch()
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    expected = mix(jax.random.key(3), images, labels, 1.0)
    sharded = jax.jit(mix, static_argnums=3)(jax.random.key(3), *jax.device_put((images, labels), sharding), 1.0)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), sharded, expected)


@pytest.mark.bad_input
@parametrize_functions
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, y: (x, y, 0.0), ValueError, "alpha must be positive, got 0.0"),
        (lambda x, y: (x, y, float("nan")), ValueError, "alpha must be positive, got nan"),
        (lambda x, y: (x, jnp.arange(64), 1.0), ValueError, r"labels must have shape \(64, classes\), got \(64,\)"),
        (lambda x, y: (x, y[1:], 1.0), ValueError, r"labels must have shape \(64, classes\), got \(63, 64\)"),
        (lambda x, y: (x.astype(jnp.uint8), y, 1.0), TypeError, "images must be floating-point, got uint8"),
        (lambda x, y: (x, y.astype(int), 1.0), TypeError, "labels must be floating-point, got int32"),
        (lambda x, y: (x[0], y, 1.0), ValueError, r"images must have shape \(batch, height"),
    ],
)
def test_invalid_arguments_raise(mix, change, error, message):
    with pytest.raises(error, match=message):
        mix(jax.random.key(0), *change(*random_batch()))
