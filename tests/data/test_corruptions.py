"""Compares the corruptions with references in NumPy, SciPy and Pillow: exactly, or statistically if random."""

import colorsys
import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from dropcluster_jax.data import corruptions
from dropcluster_jax.data.corruptions import CORRUPTIONS, corrupt

SIGMAS = 5.5  # Tolerance in standard errors.
SEVERITIES = range(1, 6)
DETERMINISTIC = (
    "defocus_blur",
    "zoom_blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
)
RANDOM = tuple(name for name in CORRUPTIONS if name not in DETERMINISTIC)
# Noise and blurs of few operations, which compile fast.
FAST = ("gaussian_noise", "glass_blur", "jpeg_compression")


# Corruptions of many operations, which compile slowly.
EXPENSIVE = ("snow", "frost", "fog", "elastic_transform")


def slow_if_expensive(names):
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in EXPENSIVE)) for name in names]


def slow_except_fast(names):
    return [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in names]


parametrize_all = pytest.mark.parametrize("name", CORRUPTIONS)
parametrize_random = pytest.mark.parametrize("name", slow_if_expensive(RANDOM))
parametrize_deterministic = pytest.mark.parametrize("name", DETERMINISTIC)


def synthetic_images(count=128):
    """Returns smooth colored shapes with fine texture, over the whole range; the last are black, white and gray."""
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.normal(size=(count, 32, 32, 3)), (0, 4, 4, 0.5), mode="wrap")
    values = 0.5 + smooth / smooth.std() * 0.22 + rng.normal(size=smooth.shape) * 0.03
    images = quantize(values)
    images[-3:] = np.array([0, 255, 90])[:, None, None, None]
    return images


@pytest.fixture(scope="module", params=["synthetic", pytest.param("cifar10", marks=pytest.mark.slow)])
def images(request):
    if request.param == "synthetic":
        return synthetic_images()
    return quantize(request.getfixturevalue("cifar10_images"))


@pytest.fixture(scope="module")
def corrupted(images):
    """A cached function of the name and severity that corrupts all images with key 0."""
    return functools.cache(lambda name, severity: corrupt(name, severity, jax.random.key(0), images))


def quantize(values):
    return np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)


def truncate(values):
    return np.floor(np.clip(values, 0, 1) * 255 + 1e-6).astype(np.uint8)


def constant_images(level):
    return np.full((128, 32, 32, 3), level, np.uint8)


# ---- References: functions of a generator, images in [0, 1] and the severity


def gaussian_noise(rng, x, severity):
    return x + rng.normal(0, [0.04, 0.06, 0.08, 0.09, 0.10][severity - 1], x.shape)


def shot_noise(rng, x, severity):
    count = [500, 250, 100, 75, 50][severity - 1]
    return rng.poisson(x * count) / count


def impulse_noise(rng, x, severity):
    hit = rng.random(x.shape) < [0.01, 0.02, 0.03, 0.05, 0.07][severity - 1]
    return np.where(hit, rng.integers(0, 2, x.shape), x)


def defocus_blur(rng, x, severity):
    radius, sigma = [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)][severity - 1]
    across, down = np.mgrid[-8:9, -8:9]
    disk = (across**2 + down**2 <= radius**2).astype(float)
    taps = np.exp(-np.array([1, 0, 1]) / (2 * sigma**2))
    for axis in (0, 1):
        disk = ndimage.convolve1d(disk, taps / taps.sum(), axis)
    return ndimage.convolve(x, (disk / disk.sum())[None, :, :, None], mode="mirror")


def glass_blur(rng, x, severity):
    sigma, delta, passes = [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)][severity - 1]
    x, every = truncate(blurred(x, sigma)) / 255, np.arange(len(x))
    height, width = x.shape[1:3]
    for _ in range(passes):
        for row in range(height - delta, delta, -1):
            for column in range(width - delta, delta, -1):
                down, right = rng.integers(-delta, delta, (2, len(x)))
                x[every, row, column] = x[every, row + down, column + right]
    return blurred(x, sigma)


def motion_blur(rng, x, severity):
    radius, sigma = [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)][severity - 1]
    return quantize(along_lines(x, radius, sigma, np.radians(rng.uniform(-45, 45, len(x))))) / 255


def zoom_blur(rng, x, severity):
    factors = np.arange(1, [1.06, 1.11, 1.16, 1.21, 1.26][severity - 1], 0.01)
    return (x + sum(center_zoom(x, factor) for factor in factors)) / (len(factors) + 1)


def snow(rng, x, severity):
    mean, sd, zoom, threshold, radius, sigma, mix = [
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ][severity - 1]
    layer = center_zoom(rng.normal(mean, sd, (*x.shape[:3], 1)), zoom)
    layer[layer < threshold] = 0
    layer = along_lines(truncate(layer) / 255, radius, sigma, np.radians(rng.uniform(-135, -45, len(x))))
    layer = quantize(layer) / 255
    gray = x if x.shape[3] == 1 else np.tensordot(x, [0.299, 0.587, 0.114], 1)[..., None]
    whitened = mix * x + (1 - mix) * np.maximum(x, gray * 1.5 + 0.5)
    return whitened + layer + np.rot90(layer, 2, axes=(1, 2))


def frost(rng, x, severity):
    """Uses an independent implementation of the frost texture."""
    image_weight, frost_weight = [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)][severity - 1]
    ridges = np.stack([-abs(plasma(rng, x.shape[1:3], 1.3) - 0.5) for _ in x])[..., None]
    texture = (ridges - ridges.mean((1, 2), keepdims=True)) / ridges.std((1, 2), keepdims=True)
    level = rng.uniform(0.636 - 0.26, 0.636 + 0.26, (len(x), 1, 1, 1))
    return image_weight * x + frost_weight * np.clip(level + 0.062 * texture + [-0.071, 0.012, 0.058], 0, 1)


def fog(rng, x, severity):
    strength, decay = [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)][severity - 1]
    maximum = x.max((1, 2, 3), keepdims=True)
    layers = np.stack([plasma(rng, x.shape[1:3], decay) for _ in x])[..., None]
    return (x + strength * layers) * maximum / (maximum + strength)


def brightness(rng, x, severity):
    shift = [0.05, 0.10, 0.15, 0.20, 0.30][severity - 1]
    return in_hsv(x, lambda h, s, v: (h, s, min(v + shift, 1)))


def contrast(rng, x, severity):
    mean = x.mean((1, 2), keepdims=True)
    return (x - mean) * [0.75, 0.50, 0.40, 0.30, 0.15][severity - 1] + mean


def elastic_transform(rng, x, severity):
    alpha = [0, 0.05, 0.08, 0.1, 0.1][severity - 1]
    sigma = [0, 0.2, 0.06, 0.04, 0.03][severity - 1]
    affine = [0.08, 0.07, 0.06, 0.05, 0.03][severity - 1]
    height, width = x.shape[1:3]
    side = min(height, width)
    reach = side // 3
    grid = np.stack(np.mgrid[:height, :width]).astype(float)
    corners = np.array([height // 2, width // 2]) + reach * np.array([[1, 1], [-1, 1], [-1, -1]])
    result = np.empty_like(x)
    for image, warped in zip(x, result, strict=True):
        moved = corners + rng.uniform(-affine * side, affine * side, (3, 2))
        inverse = np.linalg.solve(np.c_[moved, np.ones(3)], corners)  # Maps (row, column, 1) to (row, column).
        positions = np.einsum("dij,de->eij", grid, inverse[:2]) + inverse[2][:, None, None]
        noise = rng.uniform(-1, 1, grid.shape)
        smooth = [ndimage.gaussian_filter(axis, sigma * side, mode="reflect", truncate=3) for axis in noise]
        displaced = grid + alpha * side * np.array(smooth)
        for channel in range(x.shape[3]):
            mapped = ndimage.map_coordinates(image[..., channel], positions, order=1, mode="mirror")
            warped[..., channel] = ndimage.map_coordinates(mapped, displaced, order=1, mode="reflect")
    return result


def pixelate(rng, x, severity):
    scale = [0.95, 0.90, 0.85, 0.75, 0.65][severity - 1]

    def shrink_and_enlarge(image):
        small = image.resize([int(scale * length) for length in image.size], Image.Resampling.BOX)
        return small.resize(image.size, Image.Resampling.BOX)

    return apply_pillow(x, shrink_and_enlarge)


def jpeg_compression(rng, x, severity):
    def round_trip(image):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=[80, 65, 58, 50, 40][severity - 1])
        return Image.open(file)

    return apply_pillow(x, round_trip)


REFERENCES = {name: globals()[name] for name in CORRUPTIONS}


def blurred(x, sigma):
    return ndimage.gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest", truncate=4)


def center_zoom(x, factor):
    """Enlarges the center of each image with SciPy and crops it to the original size."""
    sides = np.array(x.shape[1:3])
    inner = np.ceil(sides / factor).astype(int)
    top, left = (sides - inner) // 2
    large = ndimage.zoom(x[:, top : top + inner[0], left : left + inner[1]], (1, factor, factor, 1), order=1)
    top, left = (np.array(large.shape[1:3]) - sides) // 2
    return large[:, top : top + sides[0], left : left + sides[1]].copy()


def along_lines(x, radius, sigma, angles):
    """Averages pixels along a line from each pixel; positions outside are moved to the edge."""
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    result = np.zeros_like(x)
    for image, angle, sums in zip(x, angles, result, strict=True):
        for step, weight in zip(steps, weights / weights.sum(), strict=True):
            down, right = round(step * np.sin(angle)), round(step * np.cos(angle))
            rows = np.clip(np.arange(x.shape[1]) + down, 0, x.shape[1] - 1)
            columns = np.clip(np.arange(x.shape[2]) + right, 0, x.shape[2] - 1)
            sums += weight * image[rows[:, None], columns]
    return result


def plasma(rng, shape, decay):
    """Diamond-square noise on a torus, written with explicit positions."""
    size = 2
    while size < max(shape):
        size *= 2
    field, step, width = np.zeros((size, size)), size, 100.0
    while step >= 2:
        half, coarse = step // 2, np.arange(0, size, step)
        # The centers of squares, of horizontal and of vertical edges, with the offsets of their four neighbors.
        diagonal, straight = [(-1, -1), (-1, 1), (1, -1), (1, 1)], [(-1, 0), (1, 0), (0, -1), (0, 1)]
        for down, right, offsets in [(half, half, diagonal), (0, half, straight), (half, 0, straight)]:
            rows, columns = np.meshgrid(coarse + down, coarse + right, indexing="ij")
            total = sum(field[(rows + i * half) % size, (columns + j * half) % size] for i, j in offsets)
            field[rows, columns] = total / 4 + width * rng.uniform(-width, width, rows.shape)
        step, width = half, width / decay
    field = (field - field.min()) / (field.max() - field.min())
    return field[: shape[0], : shape[1]]


def in_hsv(x, change):
    colors = np.broadcast_to(x, (*x.shape[:3], 3)).reshape(-1, 3)
    changed = np.array([colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*color))) for color in colors.tolist()])
    return changed.reshape(*x.shape[:3], 3)[..., : x.shape[3]]


def apply_pillow(x, change):
    results = [np.asarray(change(Image.fromarray(image.squeeze()))) for image in quantize(x)]
    return np.stack(results).reshape(x.shape) / 255


# ---- Tests


def test_names_and_order_are_those_of_cifar_10_c():
    noise = "gaussian_noise shot_noise impulse_noise"
    blur = "defocus_blur glass_blur motion_blur zoom_blur"
    weather = "snow frost fog brightness"
    digital = "contrast elastic_transform pixelate jpeg_compression"
    assert " ".join(CORRUPTIONS) == f"{noise} {blur} {weather} {digital}"


@parametrize_deterministic
def test_deterministic_corruptions_equal_the_reference(name, images, corrupted):
    subset = np.r_[:12, -4:0]  # Includes the constant images; the HSV reference is slow.
    for severity in SEVERITIES:
        expected = truncate(REFERENCES[name](None, images[subset] / 255, severity)).astype(int)
        difference = abs(corrupted(name, severity)[subset] - expected)
        assert difference.max() <= 1 and difference.mean() < 0.15, severity  # Rounding: a mean of 0.5.


@parametrize_random
def test_random_corruptions_match_the_statistics_of_the_reference(name, images, corrupted):
    rng = np.random.default_rng(1)
    for severity in SEVERITIES:
        expected = truncate(REFERENCES[name](rng, images / 255, severity)) / 255 - images / 255
        change = corrupted(name, severity) / 255 - images / 255
        assert abs(change).mean() == pytest.approx(abs(expected).mean(), rel=0.05), severity
        assert change.std() == pytest.approx(expected.std(), rel=0.1), severity
        for axis in (1, 2):  # Roughness of the change along height and width.
            roughness = np.diff(expected, axis=axis).std()
            assert np.diff(change, axis=axis).std() == pytest.approx(roughness, rel=0.1), severity
        scale = max(abs(expected.mean()), expected.std())
        assert change.mean() == pytest.approx(expected.mean(), abs=0.1 * scale), severity


@parametrize_all
def test_result_depends_only_on_key_index_and_image(name):
    images, key = synthetic_images(), jax.random.key(0)
    result = corrupt(name, 1, key, images)
    assert result.dtype == np.uint8 and result.shape == images.shape and isinstance(result, np.ndarray)
    other_images = np.concatenate([images[:1], 255 - images[1:]])
    assert (corrupt(name, 1, key, other_images)[0] == result[0]).all()
    repeated = corrupt(name, 1, key, np.broadcast_to(images[:1], images.shape))
    assert (repeated[0] == result[0]).all()
    other_key = corrupt(name, 1, jax.random.key(1), images)
    if name in RANDOM:
        assert not (other_key[0] == result[0]).all() and not (repeated[1] == repeated[0]).all()
    else:
        assert (other_key == result).all() and (repeated == repeated[0]).all()


@pytest.mark.parametrize("name", ["gaussian_noise", "jpeg_compression"])
def test_chunks_batch_size_and_array_type_do_not_change_the_result(name, monkeypatch):
    images, key = synthetic_images(7)[:, :5, :6], jax.random.key(3)
    result = corrupt(name, 5, key, images)
    assert (corrupt(name, 5, key, jnp.asarray(images)) == result).all()
    assert (corrupt(name, 5, key, images[:4]) == result[:4]).all()
    assert corrupt(name, 5, key, images[:0]).shape == (0, 5, 6, 3)
    monkeypatch.setattr(corruptions, "_CHUNK", 3 * 5 * 6)
    assert (corrupt(name, 5, key, images) == result).all()


@pytest.mark.parametrize("name", slow_if_expensive(CORRUPTIONS))
def test_grayscale_and_other_sizes(name):
    images = synthetic_images(6)[:, 4:28, 8:28, 1:2]
    result = corrupt(name, 3, jax.random.key(0), images)
    assert result.shape == images.shape and not (result == images).all()
    if name in DETERMINISTIC:
        expected = truncate(REFERENCES[name](None, images / 255, 3)).astype(int)
        assert abs(result - expected).max() <= 1


@pytest.mark.parametrize(
    "name", [name for name in CORRUPTIONS if "blur" in name or name in ("elastic_transform", "pixelate")]
)
@pytest.mark.parametrize("severity", [1, 5])
def test_blurs_and_warps_preserve_constant_images(name, severity):
    result = corrupt(name, severity, jax.random.key(0), constant_images(101))
    assert (result == 101).all()


def test_values_are_truncated_and_clipped():
    images = np.broadcast_to(np.array([0, 100, 250], np.uint8)[:, None, None, None], (3, 2, 2, 3))
    result = corrupt("brightness", 1, jax.random.key(0), images)  # Adds 12.75.
    assert result[:, 0, 0, 0].tolist() == [12, 112, 255]
    noisy = corrupt("gaussian_noise", 5, jax.random.key(0), constant_images(255)).astype(int)
    assert noisy.max() == 255 and (noisy == 255).mean() == pytest.approx(0.5, abs=0.003)


def test_glass_blur_copies_pixels_from_above_and_left():
    rows, columns = np.mgrid[:32, :32]
    images = np.broadcast_to(np.stack([rows, columns, 0 * rows], -1), (128, 32, 32, 3)).astype(np.uint8)
    result = corrupt("glass_blur", 1, jax.random.key(0), images)  # At sigma 0.05, neighbors have no weight.
    offsets = images.astype(int) - result
    assert (offsets[:, :2] == 0).all() and (offsets[:, :, :2] == 0).all()
    down, right = offsets[:, 2:, 2:, 0], offsets[:, 2:, 2:, 1]
    assert set(np.unique(offsets)) == {0, 1}
    # Independent fair choices, also for the pixels next to each other.
    fair = [down, right, down ^ right, *(x[:, 1:] ^ x[:, :-1] for x in (down, right))]
    fair += [x[:, :, 1:] ^ x[:, :, :-1] for x in (down, right)]
    for x in fair:
        assert abs(x.mean() - 0.5) < SIGMAS * 0.5 / x.size**0.5


@pytest.mark.parametrize("name", slow_except_fast(CORRUPTIONS))
def test_result_does_not_depend_on_x64_mode(name):
    images = synthetic_images(4)
    for severity in (1, 5):
        expected = corrupt(name, severity, jax.random.key(0), images)
        with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            assert (corrupt(name, severity, jax.random.key(0), images) == expected).all(), severity


@pytest.mark.parametrize("name", slow_except_fast(name for name in CORRUPTIONS if name != "jpeg_compression"))
def test_corruptions_are_compiled_once_for_all_severities(name, monkeypatch):
    corruption, traced = corruptions._CORRUPTIONS[name], []

    def count(*arguments):
        traced.append(None)
        return corruption.function(*arguments)

    monkeypatch.setitem(corruptions._CORRUPTIONS, name, corruption._replace(function=count))
    for severity in SEVERITIES:
        corrupt(name, severity, jax.random.key(0), synthetic_images(3)[:, :9, :7])
    assert len(traced) == 1


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "severity", "change", "error", "message"),
    [
        ("fogg", 1, lambda x: x, ValueError, "name must be one of gaussian_noise, .*; got 'fogg'"),
        ("fog", 0, lambda x: x, ValueError, r"severity must be in \[1, 5\], got 0"),
        ("fog", 6, lambda x: x, ValueError, r"severity must be in \[1, 5\], got 6"),
        ("fog", 2.0, lambda x: x, TypeError, "severity must be an integer, got 2.0"),
        ("fog", 1, lambda x: x / 255, ValueError, "images must be uint8 .* got float64"),
        ("fog", 1, lambda x: x[0], ValueError, r"images must .*\(batch, height, .*got .*\(4, 4, 3\)"),
        ("fog", 1, lambda x: x[..., :2], ValueError, "images must .* 1 or 3 channels, got .*, 2"),
    ],
)
def test_invalid_arguments_raise(name, severity, change, error, message):
    with pytest.raises(error, match=message):
        corrupt(name, severity, jax.random.key(0), change(np.zeros((2, 4, 4, 3), np.uint8)))
