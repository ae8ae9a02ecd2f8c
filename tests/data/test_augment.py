"""Laws of the variations: what may come out, how often, and that nothing else does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dropcluster_jax.data import augment, normalize, random_cutout, random_flip, random_resized_crop, random_shift

SIGMAS = 5.5  # of the sampling error; hundreds of comparisons at fixed seeds
every_type = pytest.mark.parametrize("dtype", [jnp.uint8, jnp.bfloat16, jnp.float32])
AUGMENTATIONS = {
    "flip": random_flip,
    "shift": lambda key, images: random_shift(key, images, 2),
    "cutout": lambda key, images: random_cutout(key, images, 3),
    "resized crop": random_resized_crop,
}
every_augmentation = pytest.mark.parametrize("vary", AUGMENTATIONS.values(), ids=AUGMENTATIONS)


def random_images(*shape, dtype=jnp.uint8, seed=0):
    """Without zeros, so that what moved in can be told apart."""
    return jnp.asarray(np.random.default_rng(seed).integers(1, 256, shape)).astype(dtype)


def shifted(image, down, right):
    """One image, moved by a plain loop over its pixels; zeros move in."""
    moved = np.zeros_like(image)
    height, width, _ = image.shape
    for i in range(height):
        for j in range(width):
            if 0 <= i - down < height and 0 <= j - right < width:
                moved[i, j] = image[i - down, j - right]
    return moved


def shifts_found(images, outcome, pixels):
    """For each image the one shift among those allowed that leads from it to its outcome."""
    found = []
    for image, result in zip(np.asarray(images), np.asarray(outcome), strict=True):
        allowed = [(i, j) for i in range(-pixels, pixels + 1) for j in range(-pixels, pixels + 1)]
        matches = [shift for shift in allowed if (shifted(image, *shift) == result).all()]
        assert len(matches) == 1, matches
        found += matches
    return found


@every_type
def test_each_image_is_flipped_as_numpy_flips_or_left_alone(dtype):
    images = random_images(64, 3, 4, 2, dtype=dtype)
    outcome = random_flip(jax.random.key(0), images)
    assert outcome.dtype == images.dtype and outcome.shape == images.shape
    kept = (np.asarray(outcome) == np.asarray(images)).all((1, 2, 3))
    flipped = (np.asarray(outcome) == np.flip(np.asarray(images), axis=2)).all((1, 2, 3))
    assert (kept ^ flipped).all() and kept.any() and flipped.any()


def test_flips_are_fair_and_independent():
    number = 20_000
    images = jnp.broadcast_to(jnp.array([0, 1], jnp.uint8).reshape(1, 1, 2, 1), (number, 1, 2, 1))
    flipped = np.asarray(random_flip(jax.random.key(1), images))[:, 0, 0, 0]
    assert abs(flipped.mean() - 1 / 2) < SIGMAS * 0.5 / number**0.5
    assert abs((flipped[1:] == flipped[:-1]).mean() - 1 / 2) < SIGMAS * 0.5 / number**0.5


@every_type
def test_each_shift_is_that_of_a_plain_loop(dtype):
    images = random_images(48, 6, 5, 2, dtype=dtype)
    outcome = random_shift(jax.random.key(0), images, 2)
    assert outcome.dtype == images.dtype and outcome.shape == images.shape
    assert len(set(shifts_found(images, outcome, 2))) > 12


@pytest.mark.parametrize("pixels", [1, 2])
def test_all_shifts_occur_equally_often(pixels):
    number, shifts = 400 * (2 * pixels + 1) ** 2, (2 * pixels + 1) ** 2
    side = 2 * pixels + 1  # one bright pixel in the middle tells where the image went
    image = jnp.zeros((side, side, 1), jnp.uint8).at[pixels, pixels].set(1)
    outcome = random_shift(jax.random.key(2), jnp.broadcast_to(image, (number, side, side, 1)), pixels)
    share = np.asarray(outcome, np.float64).mean(0)
    assert share.sum() == pytest.approx(1)
    assert (abs(share - 1 / shifts) < SIGMAS * (1 / shifts / number) ** 0.5).all()


def test_a_shift_beyond_the_image_leaves_zeros():
    outcome = np.asarray(random_shift(jax.random.key(0), random_images(64, 2, 2, 1), 3))
    assert (outcome == 0).all((1, 2, 3)).any()


def test_no_shift_is_the_identity():
    images = random_images(8, 4, 4, 3)
    assert (random_shift(jax.random.key(0), images, 0) == images).all()


@every_type
@pytest.mark.parametrize("side", [1, 2, 5, 20])
def test_cutout_fills_one_square_as_far_as_it_lies_inside(dtype, side):
    images = random_images(100, 7, 6, 2, dtype=dtype)
    outcome = np.asarray(random_cutout(jax.random.key(0), images, side))
    assert outcome.dtype == images.dtype
    gone = (outcome == 0).all(-1)
    np.testing.assert_array_equal(outcome, np.where(gone[..., None], 0, images))
    for inside in gone:
        down, across = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        np.testing.assert_array_equal(inside, np.outer(inside.any(1), inside.any(0)))
        for places, length in ((down, 7), (across, 6)):
            assert len(places) == places[-1] - places[0] + 1 <= side
            assert len(places) == min(side, length) or places[0] == 0 or places[-1] == length - 1


def test_the_middles_of_cutout_are_uniform_and_the_fill_is_what_is_said():
    number = 200 * 30
    images = jnp.zeros((number, 5, 6, 3), jnp.uint8)
    outcome = np.asarray(random_cutout(jax.random.key(4), images, 1, np.array([1, 2, 3], np.uint8)))
    assert (outcome[outcome.any(-1)] == [1, 2, 3]).all()
    share = outcome.any(-1).mean(0)
    assert share.sum() == pytest.approx(1) and (abs(share - 1 / 30) < SIGMAS * (1 / 30 / number) ** 0.5).all()


def resized(image, box, sides):
    """A part of an image, resized by Pillow."""
    start, length = box
    bounds = (start[1], start[0], start[1] + length[1], start[0] + length[0])
    size = (sides[1], sides[0])
    channels = [Image.fromarray(image[..., c]).resize(size, Image.Resampling.BILINEAR, bounds) for c in range(3)]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


@pytest.mark.parametrize("sides", [(32, 32), (24, 40)])
def test_resized_crops_are_pillows(sides):
    images = np.random.default_rng(0).normal(size=(32, *sides, 3)).astype(np.float32)
    key = jax.random.key(5)
    boxes = np.asarray(augment._random_boxes(key, 32, *sides, (0.08, 1.0), (3 / 4, 4 / 3)))
    outcome = random_resized_crop(key, images)
    expected = [resized(image, box, sides) for image, box in zip(images, boxes, strict=True)]
    np.testing.assert_allclose(outcome, expected, atol=2e-5)
    bytes_ = np.random.default_rng(1).integers(0, 256, images.shape).astype(np.uint8)
    rounded = random_resized_crop(key, bytes_)
    exact = [resized(image.astype(np.float32), box, sides) for image, box in zip(bytes_, boxes, strict=True)]
    assert rounded.dtype == jnp.uint8 and abs(np.asarray(rounded, float) - exact).max() <= 0.501


def test_the_parts_are_spread_as_they_should_be_and_lie_inside():
    boxes = np.asarray(augment._random_boxes(jax.random.key(6), 4000, 64, 64, (0.25, 0.36), (3 / 4, 4 / 3)))
    starts, lengths = boxes[:, 0], boxes[:, 1]
    assert (starts >= 0).all() and (starts + lengths <= 64).all()
    area = lengths.prod(1) / 64**2
    ratio = np.log(lengths[:, 1] / lengths[:, 0])
    assert area.mean() == pytest.approx(0.305, abs=0.005) and 0.24 < area.min() < 0.26 and 0.35 < area.max() < 0.37
    assert abs(ratio.mean()) < 0.015 and ratio.std() == pytest.approx(2 * np.log(4 / 3) / 12**0.5, rel=0.05)
    places = starts / (64 - lengths)
    assert abs(places.mean(0) - 0.5).max() < 0.03 and abs(places.std(0) - 12**-0.5).max() < 0.02


@pytest.mark.parametrize(("sides", "length"), [((4, 40), (4, 5)), ((40, 4), (5, 4))])
def test_where_no_part_fits_the_middle_is_taken(sides, length):
    """On a strip that is ten times as long as wide, no part of 60 % of the area has the proportions allowed."""
    boxes = np.asarray(augment._random_boxes(jax.random.key(0), 16, *sides, (0.6, 1.0), (3 / 4, 4 / 3)))
    assert (boxes[:, 1] == length).all()
    assert (boxes[:, 0] == (np.array(sides) - length) // 2).all()


@every_augmentation
def test_a_key_decides(vary):
    images = random_images(32, 6, 6, 3)
    first, again = vary(jax.random.key(0), images), vary(jax.random.key(0), images)
    other = vary(jax.random.key(1), images)
    assert (first == again).all() and not (first == other).all()


@every_augmentation
def test_numpy_jit_and_a_sharded_batch_give_the_same(vary):
    key, images = jax.random.key(3), random_images(16, 6, 6, 3)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    plain = vary(key, images)
    assert (vary(key, np.asarray(images)) == plain).all()
    assert (jax.jit(vary)(key, images) == plain).all()
    assert (jax.jit(vary)(key, jax.device_put(images, sharding)) == plain).all()


def test_normalize_equals_numpy_and_undoes_mean_and_deviation():
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 3)).astype(np.uint8)
    scaled = images.astype(np.float64) / 255
    mean, std = scaled.mean((0, 1, 2)), scaled.std((0, 1, 2))
    for function in (normalize, jax.jit(normalize)):
        outcome = function(images, mean.astype(np.float32), std.astype(np.float32))
        assert outcome.dtype == jnp.float32
        np.testing.assert_allclose(outcome, (scaled - mean) / std, atol=2e-6)
        np.testing.assert_allclose(np.asarray(outcome, np.float64).mean((0, 1, 2)), 0, atol=1e-6)
        np.testing.assert_allclose(np.asarray(outcome, np.float64).std((0, 1, 2)), 1, atol=1e-6)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda key, x: random_shift(key, x, -1), ValueError, "pixels.* at least 0, got -1"),
        (lambda key, x: random_shift(key, x, 1.5), TypeError, "pixels must be an integer.* got 1.5"),
        (lambda key, x: jax.jit(random_shift)(key, x, 1), TypeError, "pixels must be .*static"),
        (lambda key, x: random_shift(key, x[0], 1), ValueError, r"images .*got \(4, 4, 3\)"),
        (lambda key, x: random_cutout(key, x, -1), ValueError, "side.* at least 0, got -1"),
        (lambda key, x: random_cutout(key, x, 1.5), TypeError, "side must be an integer.* got 1.5"),
        (lambda key, x: random_resized_crop(key, x, area=(0, 1)), ValueError, r"area.* in \(0, 1\], got \(0, 1\)"),
        (lambda key, x: random_resized_crop(key, x, ratio=(2, 1)), ValueError, r"ratio.* above 0, got \(2, 1\)"),
        (lambda key, x: random_flip(key, x[0]), ValueError, r"images .*\(batch, height, .*got \(4, 4, 3\)"),
        (lambda key, x: normalize(x / 255, np.zeros(3), np.ones(3)), TypeError, "uint8.*got float32"),
        (lambda key, x: normalize(x, np.zeros(3), np.array([1, 0, 1])), ValueError, "std must be above 0"),
    ],
)
def test_wrong_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call(jax.random.key(0), random_images(2, 4, 4, 3))
