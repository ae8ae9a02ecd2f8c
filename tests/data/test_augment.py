import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dropcluster_jax.data import augment, normalize, random_cutout, random_flip, random_resized_crop, random_shift
from dropcluster_jax.data.crops import crop_box

SIGMAS = 5.5  # Tolerance in standard errors, for hundreds of comparisons at fixed seeds.
parametrize_dtypes = pytest.mark.parametrize("dtype", [jnp.uint8, jnp.bfloat16, jnp.float32])
AUGMENTATIONS = {
    "flip": random_flip,
    "shift": lambda key, images: random_shift(key, images, 2),
    "cutout": lambda key, images: random_cutout(key, images, 3),
    "resized crop": random_resized_crop,
}
parametrize_functions = pytest.mark.parametrize("augment_images", AUGMENTATIONS.values(), ids=AUGMENTATIONS)


def random_images(*shape, dtype=jnp.uint8, seed=0):
    """Returns images without zeros, which mark filled pixels."""
    return jnp.asarray(np.random.default_rng(seed).integers(1, 256, shape)).astype(dtype)


def shifted(image, down, right):
    """Shifts an image with a loop over its pixels."""
    moved = np.zeros_like(image)
    height, width, _ = image.shape
    for i in range(height):
        for j in range(width):
            if 0 <= i - down < height and 0 <= j - right < width:
                moved[i, j] = image[i - down, j - right]
    return moved


def find_shifts(images, results, pixels):
    """Returns the unique shift of up to `pixels` that maps each image to its result."""
    shifts = []
    for image, result in zip(np.asarray(images), np.asarray(results), strict=True):
        candidates = [(i, j) for i in range(-pixels, pixels + 1) for j in range(-pixels, pixels + 1)]
        matches = [shift for shift in candidates if (shifted(image, *shift) == result).all()]
        assert len(matches) == 1, matches
        shifts += matches
    return shifts


@parametrize_dtypes
def test_flip_mirrors_or_keeps_each_image(dtype):
    images = random_images(64, 3, 4, 2, dtype=dtype)
    result = random_flip(jax.random.key(0), images)
    assert result.dtype == images.dtype and result.shape == images.shape
    unchanged = (np.asarray(result) == np.asarray(images)).all((1, 2, 3))
    flipped = (np.asarray(result) == np.flip(np.asarray(images), axis=2)).all((1, 2, 3))
    assert (unchanged ^ flipped).all() and unchanged.any() and flipped.any()


def test_flips_are_independent_with_probability_one_half():
    count = 20_000
    images = jnp.broadcast_to(jnp.array([0, 1], jnp.uint8).reshape(1, 1, 2, 1), (count, 1, 2, 1))
    flipped = np.asarray(random_flip(jax.random.key(1), images))[:, 0, 0, 0]
    assert abs(flipped.mean() - 1 / 2) < SIGMAS * 0.5 / count**0.5
    assert abs((flipped[1:] == flipped[:-1]).mean() - 1 / 2) < SIGMAS * 0.5 / count**0.5


@parametrize_dtypes
def test_shift_equals_a_loop_over_pixels(dtype):
    images = random_images(48, 6, 5, 2, dtype=dtype)
    result = random_shift(jax.random.key(0), images, 2)
    assert result.dtype == images.dtype and result.shape == images.shape
    assert len(set(find_shifts(images, result, 2))) > 12


@pytest.mark.parametrize("pixels", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_shifts_are_uniform(pixels):
    side = 2 * pixels + 1
    count = 400 * side**2
    image = jnp.zeros((side, side, 1), jnp.uint8).at[pixels, pixels].set(1)  # A bright pixel reveals the shift.
    result = random_shift(jax.random.key(2), jnp.broadcast_to(image, (count, side, side, 1)), pixels)
    frequency = np.asarray(result, np.float64).mean(0)
    assert frequency.sum() == pytest.approx(1)
    assert (abs(frequency - 1 / side**2) < SIGMAS * (1 / side**2 / count) ** 0.5).all()


def test_shift_beyond_the_image_leaves_zeros():
    result = np.asarray(random_shift(jax.random.key(0), random_images(64, 2, 2, 1), 3))
    assert (result == 0).all((1, 2, 3)).any()


@pytest.mark.parametrize(
    ("side", "dtype"), [(1, jnp.uint8), (2, jnp.bfloat16), (5, jnp.float32), (20, jnp.uint8), (5, jnp.uint8)]
)
def test_cutout_fills_one_clipped_square(dtype, side):
    images = random_images(100, 7, 6, 2, dtype=dtype)
    result = np.asarray(random_cutout(jax.random.key(0), images, side))
    assert result.dtype == images.dtype
    filled = (result == 0).all(-1)
    np.testing.assert_array_equal(result, np.where(filled[..., None], 0, images))
    for box in filled:
        np.testing.assert_array_equal(box, np.outer(box.any(1), box.any(0)))
        for positions, length in ((np.flatnonzero(box.any(1)), 7), (np.flatnonzero(box.any(0)), 6)):
            assert len(positions) == positions[-1] - positions[0] + 1 <= side
            assert len(positions) == min(side, length) or positions[0] == 0 or positions[-1] == length - 1


def test_cutout_centers_are_uniform_and_channels_are_filled_separately():
    count = 200 * 30
    images = jnp.zeros((count, 5, 6, 3), jnp.uint8)
    result = np.asarray(random_cutout(jax.random.key(4), images, 1, np.array([1, 2, 3], np.uint8)))
    assert (result[result.any(-1)] == [1, 2, 3]).all()
    frequency = result.any(-1).mean(0)
    assert frequency.sum() == pytest.approx(1)
    assert (abs(frequency - 1 / 30) < SIGMAS * (1 / 30 / count) ** 0.5).all()


def resized(image, box, sides):
    """Crops and resizes an image with Pillow."""
    start, length = box
    bounds = (start[1], start[0], start[1] + length[1], start[0] + length[0])
    size = (sides[1], sides[0])
    channels = [Image.fromarray(image[..., c]).resize(size, Image.Resampling.BILINEAR, bounds) for c in range(3)]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


@pytest.mark.parametrize("sides", [pytest.param((32, 32), marks=pytest.mark.slow), (24, 40)])
def test_resized_crop_equals_pillow(sides, monkeypatch):
    """Of the boxes that `crop_box` returned."""
    images, key, boxes = np.random.default_rng(0).normal(size=(32, *sides, 3)).astype(np.float32), jax.random.key(5), []
    monkeypatch.setattr(augment, "crop_box", lambda *args: boxes.append(crop_box(*args)) or boxes[-1])
    result = random_resized_crop(key, images)
    boxes = list(zip(*map(np.asarray, boxes[0]), strict=True))
    expected = [resized(image, box, sides) for image, box in zip(images, boxes, strict=True)]
    np.testing.assert_allclose(result, expected, atol=2e-5)
    integers = np.random.default_rng(1).integers(0, 256, images.shape).astype(np.uint8)
    monkeypatch.undo()
    rounded = random_resized_crop(key, integers)
    exact = [resized(image.astype(np.float32), box, sides) for image, box in zip(integers, boxes, strict=True)]
    assert rounded.dtype == jnp.uint8 and abs(np.asarray(rounded, float) - exact).max() <= 0.501


@parametrize_functions
def test_key_determines_the_result(augment_images):
    images = random_images(32, 6, 6, 3)
    first, again = augment_images(jax.random.key(0), images), augment_images(jax.random.key(0), images)
    other = augment_images(jax.random.key(1), images)
    assert (first == again).all() and not (first == other).all()


@pytest.mark.slow
@parametrize_functions
def test_numpy_jit_and_sharding_do_not_change_the_result(augment_images):
    key, images = jax.random.key(3), random_images(16, 6, 6, 3)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    expected = augment_images(key, images)
    assert (augment_images(key, np.asarray(images)) == expected).all()
    assert (jax.jit(augment_images)(key, images) == expected).all()
    assert (jax.jit(augment_images)(key, jax.device_put(images, sharding)) == expected).all()


def test_normalize_equals_numpy():
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 3)).astype(np.uint8)
    scaled = images.astype(np.float64) / 255
    mean, std = scaled.mean((0, 1, 2)), scaled.std((0, 1, 2))
    for function in (normalize, jax.jit(normalize)):
        result = function(images, mean.astype(np.float32), std.astype(np.float32))
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(result, (scaled - mean) / std, atol=2e-6)
        np.testing.assert_allclose(np.asarray(result, np.float64).mean((0, 1, 2)), 0, atol=1e-6)
        np.testing.assert_allclose(np.asarray(result, np.float64).std((0, 1, 2)), 1, atol=1e-6)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda key, x: random_shift(key, x, -1), ValueError, "pixels must be at least 0, got -1"),
        (lambda key, x: random_shift(key, x, 1.5), TypeError, "pixels must be an integer.* got 1.5"),
        (lambda key, x: jax.jit(random_shift)(key, x, 1), TypeError, "pixels must be an integer, got .*Tracer"),
        (lambda key, x: random_shift(key, x[0], 1), ValueError, r"images .*got \(4, 4, 3\)"),
        (lambda key, x: random_cutout(key, x, -1), ValueError, "side must be at least 0, got -1"),
        (lambda key, x: random_cutout(key, x, 1.5), TypeError, "side must be an integer.* got 1.5"),
        (
            lambda key, x: random_resized_crop(key, x, area=(0, 1)),
            ValueError,
            r"area must be an increasing pair in \(0, 1\], got \(0, 1\)",
        ),
        (
            lambda key, x: random_resized_crop(key, x, ratio=(2, 1)),
            ValueError,
            r"ratio must be an increasing pair .* got \(2, 1\)",
        ),
        (lambda key, x: random_flip(key, x[0]), ValueError, r"images .*\(batch, height, .*got \(4, 4, 3\)"),
        (lambda key, x: normalize(x / 255, np.zeros(3), np.ones(3)), TypeError, "uint8.*got float32"),
        (lambda key, x: normalize(x, np.zeros(3), np.array([1, 0, 1])), ValueError, "std must be positive"),
    ],
)
def test_invalid_arguments_raise(call, error, message):
    with pytest.raises(error, match=message):
        call(jax.random.key(0), random_images(2, 4, 4, 3))
