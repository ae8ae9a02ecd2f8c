"""Common corruptions of images at five severities, to measure robustness: noise, blur, weather and digital.

Each corruption is a small function of a key and an image in [0, 1], which `corrupt` maps over a batch. All are written
in JAX except `jpeg_compression`, which uses Pillow.
"""

import difflib
import functools
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Int, UInt8

from dropcluster_jax._optional import optional_import

Image = Float[Array, "height width channels"]

_CHUNK = 500 * 32 * 32  # Pixels corrupted at a time; bounds the memory.


def corrupt(
    name: str, severity: int, key: Array, images: UInt8[Array | np.ndarray, "batch height width channels"]
) -> UInt8[np.ndarray, "batch height width channels"]:
    """Corrupts images as in CIFAR-10-C.

    The result for an image depends only on the key, the image and its index. Not for use under `jit`: chunks of images
    are processed by a function that is compiled once per corruption, severity and chunk shape.

    The severities are those for images of 32x32 pixels. Lengths in pixels (radius and sigma of blurs, the trail of
    `snow`, the reach of `glass_blur`) are not scaled, so these corruptions are milder on larger images. All other
    parameters are relative, to intensities or to the shorter side.

    `frost` uses a procedural texture with the brightness, contrast and tint of the original's photos, which are not
    included; report this with its results.

    Args:
        name: Name of the corruption, one of `CORRUPTIONS` or `EXTRA_CORRUPTIONS`.
        severity: Severity, 1 to 5. `elastic_transform` changes images less at 5 than at 1.
        key: PRNG key; deterministic corruptions ignore it.
        images: Grayscale or RGB images, uint8 `(batch, height, width, channels)`.

    Returns:
        A uint8 NumPy array of the shape of `images`.

    Raises:
        ImportError: If `name` is `"jpeg_compression"` and Pillow is not installed.
        TypeError: If `severity` is not an integer, or `images` is not uint8.
        ValueError: If `name`, `severity` or the shape of `images` is invalid; `"saturate"` needs 3 channels.

    References:
        Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
        ICLR 2019, arXiv:1903.12261.

    Example:
        >>> import jax, numpy as np
        >>> images = np.full((2, 4, 4, 3), 100, np.uint8)
        >>> brighter = corrupt("brightness", 3, jax.random.key(0), images)  # By 0.15 * 255.
        >>> brighter.shape, brighter[0, 0, 0].tolist()
        ((2, 4, 4, 3), [138, 138, 138])
    """
    check_corruption(name, severity)
    _check_images(name, images)
    images = np.asarray(images)
    function, parameters = _CORRUPTIONS[name]
    if function is _jpeg_compression:
        return _jpeg_compression(images, *parameters[severity - 1])
    corrupted = np.empty_like(images)
    size = max(1, min(len(images), _CHUNK // math.prod(images.shape[1:3])))
    for start in range(0, len(images), size):
        chunk = images[start : start + size]
        padding = size - len(chunk)  # The last chunk is padded to the shape of the others, which is already compiled.
        padded = np.pad(chunk, ((0, padding), (0, 0), (0, 0), (0, 0)))
        corrupted[start : start + size] = np.asarray(_corrupt_chunk(name, severity, key, start, padded))[: len(chunk)]
    return corrupted


@functools.partial(jax.jit, static_argnames=("name", "severity"))
def _corrupt_chunk(
    name: str,
    severity: int,
    key: Array,
    start: int | Int[Array, ""],
    images: UInt8[Array | np.ndarray, "batch height width channels"],
) -> UInt8[Array, "batch height width channels"]:
    function, parameters = _CORRUPTIONS[name]

    def corrupt_one(index: Int[Array, ""], image: UInt8[Array, "height width channels"]) -> Image:
        scaled = image.astype(jnp.float32) / 255
        return function(jax.random.fold_in(key, index), scaled, *parameters[severity - 1])

    corrupted = jax.vmap(corrupt_one)(start + jnp.arange(len(images)), jnp.asarray(images))
    return jnp.round(jnp.clip(corrupted, 0, 1) * 255).astype(jnp.uint8)


def check_corruption(name: str, severity: int) -> None:
    if name not in _CORRUPTIONS:
        closest = difflib.get_close_matches(str(name), _CORRUPTIONS, n=1, cutoff=0)[0]
        raise ValueError(f"name must be one of {', '.join(_CORRUPTIONS)}; got {name!r}, did you mean {closest!r}?")
    if not isinstance(severity, int | np.integer) or isinstance(severity, bool):
        raise TypeError(f"severity must be an integer, got {severity!r}")
    if not 1 <= severity <= 5:
        raise ValueError(f"severity must be in [1, 5], got {severity}")


def _check_images(name: str, images: Any) -> None:
    if images.dtype != jnp.uint8:
        raise TypeError(f"images must be uint8, got {images.dtype}")
    if images.ndim != 4:
        raise ValueError(f"images must have shape (batch, height, width, channels), got {images.shape}")
    if images.shape[3] not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels, got {images.shape[3]}")
    if name == "saturate" and images.shape[3] == 1:
        raise ValueError("images must have 3 channels for saturate, got 1")


# ---- Noise


def _gaussian_noise(key: Array, image: Image, sigma: float) -> Image:
    return image + sigma * jax.random.normal(key, image.shape)


def _shot_noise(key: Array, image: Image, count: float) -> Image:
    """Draws Poisson(count * image) / count.

    Inverts a tabulated CDF, since pixels have 256 levels; `jax.random.poisson` is many times slower.
    """
    cdf = _poisson_cdf(count)
    level, uniform = jnp.round(image * 255).astype(jnp.int32), jax.random.uniform(key, image.shape)
    events = jnp.zeros(image.shape, jnp.int32)
    step = cdf.shape[1]
    while step := step // 2:  # Binary search for the number of k with cdf[k] <= uniform.
        events += step * (jnp.asarray(cdf)[level, events + step - 1] <= uniform)
    return events / count


def _poisson_cdf(count: float) -> Float[np.ndarray, "256 events"]:
    """Returns the CDF of Poisson(count * level / 255) for levels 0 to 255, up to where it rounds to 1 in float32."""
    events = np.arange(2 ** math.ceil(math.log2(count + 8 * count**0.5 + 16)))
    log_factorials = np.cumsum(np.log(np.maximum(events, 1)))
    rates = np.maximum(count * np.arange(256)[:, None] / 255, 1e-30)
    return np.cumsum(np.exp(events * np.log(rates) - rates - log_factorials), axis=1).astype(np.float32)


def _impulse_noise(key: Array, image: Image, fraction: float) -> Image:
    uniform = jax.random.uniform(key, image.shape)
    return jnp.where(uniform < fraction / 2, 0, jnp.where(uniform < fraction, 1, image))


def _speckle_noise(key: Array, image: Image, sigma: float) -> Image:
    return image + image * sigma * jax.random.normal(key, image.shape)


# ---- Blur


def _defocus_blur(key: Array, image: Image, radius: float, alias_sigma: float) -> Image:
    """Convolves with a disk smoothed by a Gaussian of three taps; edges are mirrored."""
    reach = math.floor(radius) + 1
    offsets = np.arange(-reach, reach + 1)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.float64)
    taps = np.exp(-(np.arange(-1, 2) ** 2) / (2 * alias_sigma**2))
    side, center, _ = taps / taps.sum()
    smooth = center * np.eye(len(disk)) + side * (np.eye(len(disk), k=1) + np.eye(len(disk), k=-1))
    kernel = smooth @ (disk / disk.sum()) @ smooth
    height, width, _ = image.shape
    rows, columns = (np.pad(np.arange(length), reach, "reflect") for length in (height, width))
    padded = image[rows][:, columns]
    blurred = jnp.zeros_like(image)
    for i, j in np.ndindex(kernel.shape):
        blurred += kernel[i, j] * padded[i : i + height, j : j + width]
    return blurred


def _glass_blur(key: Array, image: Image, sigma: float, delta: int, passes: int) -> Image:
    """Blurs, shuffles and blurs again; from the last to the first, each pixel is swapped with a nearby one.

    The partner is -delta to delta - 1 rows and columns away, as in the original: for a delta of 1, the pixel itself or
    its neighbor above, left, or above left. The original intends to swap, but copies the partner instead, because it
    assigns views of the same NumPy array. This changes an image less: by a third at severity 1, a tenth at severity 5.
    """
    image = _blur(image, sigma)
    height, width, channels = image.shape
    side = 2 * delta
    corners = [
        (row - delta, column - delta)
        for row in range(height - delta, delta, -1)
        for column in range(width - delta, delta, -1)
    ]
    if not corners:
        return _blur(image, sigma)
    partners = jax.random.randint(key, (passes * len(corners),), 0, side**2)
    positions = np.arange(side**2).reshape(side, side)

    # Pixel indices are swapped rather than pixels: one value regardless of channels. The block that is read and written
    # is the same for all images of a batch; only the partner within it differs.
    def swap(
        order: Int[Array, "height width"], step: tuple[Int[Array, "2"], Int[Array, ""]]
    ) -> tuple[Int[Array, "height width"], None]:
        corner, partner = step
        block = jax.lax.dynamic_slice(order, (corner[0], corner[1]), (side, side))
        at_partner = jnp.sum(jnp.where(positions == partner, block, 0))
        swapped = jnp.where(positions == partner, block[delta, delta], block).at[delta, delta].set(at_partner)
        return jax.lax.dynamic_update_slice(order, swapped, (corner[0], corner[1])), None

    order = jnp.arange(height * width).reshape(height, width)
    order, _ = jax.lax.scan(swap, order, (jnp.array(corners * passes), partners))
    shuffled = image.reshape(-1, channels)[order.ravel()].reshape(image.shape)
    return _blur(shuffled, sigma)


def _motion_blur(key: Array, image: Image, radius: int, sigma: float) -> Image:
    return _blur_along(image, radius, sigma, jax.random.uniform(key, minval=-math.pi / 4, maxval=math.pi / 4))


def _blur_along(image: Image, radius: int, sigma: float, angle: Float[Array, ""]) -> Image:
    """Averages pixels along a line, with half-Gaussian weights over 2 * radius + 1 steps; edges are repeated."""
    height, width, channels = image.shape
    reach = 2 * radius
    steps = np.arange(reach + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    down, right = (jnp.round(steps * slope).astype(jnp.int32) for slope in (jnp.sin(angle), jnp.cos(angle)))
    padded = jnp.pad(image, ((reach, reach), (reach, reach), (0, 0)), "edge")
    blurred = jnp.zeros_like(image)
    for step, weight in zip(steps, weights / weights.sum(), strict=True):
        start = (reach + down[step], reach + right[step], 0)
        blurred += weight * jax.lax.dynamic_slice(padded, start, (height, width, channels))
    return blurred


def _zoom_blur(key: Array, image: Image, max_factor: float) -> Image:
    """Averages the image and its zooms by 1, 1.01, ..., max_factor."""
    zooms = [_zoom(image, 1 + percent / 100) for percent in range(round(100 * max_factor) - 99)]
    return (image + sum(zooms)) / (1 + len(zooms))


def _gaussian_blur(key: Array, image: Image, sigma: float) -> Image:
    return _blur(image, sigma)


# ---- Weather


def _snow(
    key: Array,
    image: Image,
    mean: float,
    sd: float,
    zoom: float,
    threshold: float,
    radius: int,
    sigma: float,
    mix: float,
) -> Image:
    """Adds flakes, which are thresholded noise blurred along a line, and their rotation by 180 degrees."""
    noise_key, angle_key = jax.random.split(key)
    noise = _zoom(mean + sd * jax.random.normal(noise_key, (*image.shape[:2], 1)), zoom)
    flakes = jnp.where(noise < threshold, 0, jnp.clip(noise, 0, 1))
    angle = jax.random.uniform(angle_key, minval=-3 * math.pi / 4, maxval=-math.pi / 4)
    flakes = _blur_along(flakes, radius, sigma, angle)
    whitened = mix * image + (1 - mix) * jnp.maximum(image, 1.5 * _gray(image) + 0.5)
    return whitened + flakes + flakes[::-1, ::-1]


def _frost(key: Array, image: Image, image_weight: float, frost_weight: float) -> Image:
    return image_weight * image + frost_weight * _frost_texture(key, image.shape)


# Statistics of 400 crops of 32x32 pixels from each of the original's five photos, in [0, 1]: the mean of the crops'
# means, the width of a uniform distribution with their standard deviation (0.15), the standard deviation within a crop,
# and the offsets of red, green and blue from their mean.
_FROST_MEAN, _FROST_WIDTH, _FROST_DEVIATION, _FROST_TINT = 0.636, 0.52, 0.062, (-0.071, 0.012, 0.058)


def _frost_texture(key: Array, shape: tuple[int, ...]) -> Image:
    """Replaces a crop of a photo of frost: ridges of plasma with the brightness, contrast and tint of the photos."""
    level_key, texture_key = jax.random.split(key)
    ridges = -jnp.abs(_plasma(texture_key, shape[:2], decay=1.3) - 0.5)
    texture = (ridges - ridges.mean()) / jnp.maximum(ridges.std(), 1e-6)
    level = _FROST_MEAN + _FROST_WIDTH * jax.random.uniform(level_key, minval=-0.5, maxval=0.5)
    tint = jnp.array(_FROST_TINT if shape[2] == 3 else (0,))
    return jnp.clip(level + _FROST_DEVIATION * texture[..., None] + tint, 0, 1)


def _fog(key: Array, image: Image, strength: float, decay: float) -> Image:
    maximum = image.max()
    foggy = image + strength * _plasma(key, image.shape[:2], decay)[..., None]
    return foggy * maximum / (maximum + strength)


def _plasma(key: Array, shape: tuple[int, ...], decay: float) -> Float[Array, "height width"]:
    """Returns a corner of diamond-square noise on a torus with a side of 2^n pixels, scaled to [0, 1].

    Each doubling of the grid sets the centers of squares, then the midpoints of edges, to the mean of their four
    neighbors plus uniform noise. Its width falls by decay^2, because the original draws from w * U(-w, w).
    """
    size = 2 ** math.ceil(math.log2(max(2, *shape)))
    noise = jax.random.uniform(key, (size**2,), minval=-1, maxval=1)  # Doublings use 3 values, 12, 48, ...
    grid, width = jnp.zeros((1, 1)), 1.0
    while (side := len(grid)) < size:
        shifts = width * noise[side**2 : 4 * side**2].reshape(3, side, side)
        right, below = jnp.roll(grid, -1, 1), jnp.roll(grid, -1, 0)
        centers = (grid + right + below + jnp.roll(right, -1, 0)) / 4 + shifts[0]
        across = (grid + right + centers + jnp.roll(centers, 1, 0)) / 4 + shifts[1]
        down = (grid + below + centers + jnp.roll(centers, 1, 1)) / 4 + shifts[2]
        rows = [jnp.stack(pair, axis=2).reshape(side, -1) for pair in ((grid, across), (down, centers))]
        grid = jnp.stack(rows, axis=1).reshape(2 * side, -1)
        width /= decay**2
    return ((grid - grid.min()) / (grid.max() - grid.min()))[: shape[0], : shape[1]]


def _brightness(key: Array, image: Image, shift: float) -> Image:
    """Adds to V of HSV, the largest channel; the other channels keep their ratio to it."""
    value = image.max(-1, keepdims=True)
    brighter = jnp.minimum(value + shift, 1)
    return jnp.where(value > 0, image * brighter / jnp.where(value > 0, value, 1), brighter)


# ---- Digital


def _contrast(key: Array, image: Image, factor: float) -> Image:
    mean = image.mean((0, 1))
    return mean + factor * (image - mean)


def _elastic_transform(key: Array, image: Image, alpha: float, sigma: float, affine: float) -> Image:
    """Applies a random affine map, then a smooth random displacement; parameters are relative to the shorter side.

    The affine map moves three corners of the central square, whose side is two thirds of the shorter side, by up to
    `affine` in each coordinate.
    """
    affine_key, displacement_key = jax.random.split(key)
    shape = image.shape[:2]
    side, reach = min(shape), max(1, min(shape) // 3)
    down, across = jnp.meshgrid(*(jnp.arange(length, dtype=jnp.float32) for length in shape), indexing="ij")
    # A pixel at corner + s * below + t * left of the moved corners has the same s and t in the original image.
    corner, arms = (shape[0] // 2 - reach, shape[1] // 2 + reach), np.diag([2 * reach, -2 * reach])
    moves = jax.random.uniform(affine_key, (3, 2), minval=-affine * side, maxval=affine * side)
    below, left = arms + moves[1:] - moves[0]
    from_corner = down - corner[0] - moves[0, 0], across - corner[1] - moves[0, 1]
    area = _cross(below, left)
    from_down = corner[0] + 2 * reach * _cross(from_corner, left) / area
    from_across = corner[1] - 2 * reach * _cross(below, from_corner) / area
    image = _sample(image, from_down, from_across, "mirror")
    if alpha == 0:
        return image
    noise = jax.random.uniform(displacement_key, (*shape, 2), minval=-1, maxval=1)
    smoothed = _along_sides(noise, lambda length: _gaussian_matrix(length, sigma * side, 3, "symmetric"))
    displacement = alpha * side * smoothed
    return _sample(image, down + displacement[..., 0], across + displacement[..., 1], "reflect")


def _cross(first: Array | Sequence[Array], second: Array | Sequence[Array]) -> Array:
    return first[0] * second[1] - first[1] * second[0]


def _sample(
    image: Image, down: Float[Array, "height width"], across: Float[Array, "height width"], edges: str
) -> Image:
    """Interpolates the image linearly at the given coordinates; `edges` is a mode of `scipy.ndimage`."""
    sample = functools.partial(map_coordinates, coordinates=[down, across], order=1, mode=edges)
    return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)


def _pixelate(key: Array, image: Image, scale: float) -> Image:
    """Shrinks and enlarges as Pillow does with `Resampling.BOX`."""
    return _along_sides(image, functools.partial(_pixelate_matrix, scale=scale))


def _pixelate_matrix(side: int, scale: float) -> Float[np.ndarray, "side side"]:
    """Averages the pixels whose centers are in a box of the smaller grid, and assigns the mean to them."""
    boxes = max(1, int(scale * side))
    ends = np.arange(boxes + 1) * side / boxes
    centers = np.arange(side) + 0.5
    inside = (ends[:-1, None] < centers) & (centers <= ends[1:, None])
    return (inside / inside.sum(1, keepdims=True))[(centers * boxes / side).astype(int)]


def _jpeg_compression(
    images: UInt8[np.ndarray, "batch height width channels"], quality: int
) -> UInt8[np.ndarray, "batch height width channels"]:
    with optional_import("Pillow"):
        from PIL import Image as PillowImage
    decoded = np.empty_like(images)
    for image, result in zip(images, decoded, strict=True):
        encoded = io.BytesIO()
        pixels = image[:, :, 0] if image.shape[2] == 1 else image
        PillowImage.fromarray(pixels).save(encoded, "JPEG", quality=quality)
        result[:] = np.asarray(PillowImage.open(encoded)).reshape(image.shape)
    return decoded


def _saturate(key: Array, image: Image, scale: float, shift: float) -> Image:
    """Scales and shifts S of HSV, the range of the channels over their maximum; gray pixels have the hue of red."""
    value = image.max(-1, keepdims=True)
    value_range = value - image.min(-1, keepdims=True)
    gray = value_range == 0
    hue = jnp.where(gray, jnp.array([0, 1, 1]), (value - image) / jnp.where(gray, 1, value_range))
    saturation = value_range / jnp.where(value > 0, value, 1)
    return value - value * jnp.clip(scale * saturation + shift, 0, 1) * hue


# ---- Shared helpers


def _along_sides(image: Image, matrix: Callable[[int], np.ndarray]) -> Image:
    """Applies a linear map to the columns of an image, `matrix(height)`, and to its rows, `matrix(width)`."""
    rows, columns = (matrix(side).astype(np.float32) for side in image.shape[:2])
    # TPUs would otherwise round the factors to bfloat16.
    return jnp.einsum("ih,jw,hwc->ijc", rows, columns, image, precision=jax.lax.Precision.HIGHEST)


def _blur(image: Image, sigma: float) -> Image:
    """Applies a Gaussian blur truncated at 4 sigma; edges are repeated."""
    return _along_sides(image, lambda side: _gaussian_matrix(side, sigma, 4, "edge"))


def _gaussian_matrix(side: int, sigma: float, truncate: float, edges: Any) -> Float[np.ndarray, "side side"]:
    """Returns Gaussian weights up to truncate * sigma from each pixel; `edges` is a mode of `numpy.pad`."""
    reach = int(truncate * sigma + 0.5)
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    padded = np.pad(np.eye(side), ((reach, reach), (0, 0)), edges)
    return np.sum([weight * padded[i : i + side] for i, weight in enumerate(weights / weights.sum())], axis=0)


def _zoom(image: Image, factor: float) -> Image:
    return _along_sides(image, functools.partial(_zoom_matrix, factor=factor))


def _zoom_matrix(side: int, factor: float) -> Float[np.ndarray, "side side"]:
    """Enlarges the central `ceil(side / factor)` pixels by linear interpolation and crops the result to `side`."""
    inner = math.ceil(side / factor)
    outer = round(inner * factor)
    positions = np.linspace(0, inner - 1, outer)[(outer - side) // 2 :][:side]
    weights = np.maximum(1 - abs(positions[:, None] - np.arange(inner)), 0)
    start = (side - inner) // 2
    return np.pad(weights, ((0, 0), (start, side - inner - start)))


def _gray(image: Image) -> Float[Array, "height width 1"]:
    weights = jnp.array([0.299, 0.587, 0.114] if image.shape[2] == 3 else [1])
    return jnp.sum(weights * image, axis=-1, keepdims=True)


# The function of each corruption and its arguments at severities 1 to 5, for images of 32x32 pixels.
_CORRUPTIONS: dict[str, tuple[Callable[..., Any], Sequence[tuple[Any, ...]]]] = {
    "gaussian_noise": (_gaussian_noise, [(0.04,), (0.06,), (0.08,), (0.09,), (0.10,)]),
    "shot_noise": (_shot_noise, [(500,), (250,), (100,), (75,), (50,)]),
    "impulse_noise": (_impulse_noise, [(0.01,), (0.02,), (0.03,), (0.05,), (0.07,)]),
    "defocus_blur": (_defocus_blur, [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)]),
    "glass_blur": (_glass_blur, [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)]),
    "motion_blur": (_motion_blur, [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)]),
    "zoom_blur": (_zoom_blur, [(1.05,), (1.10,), (1.15,), (1.20,), (1.25,)]),
    "snow": (
        _snow,
        [
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ],
    ),
    "frost": (_frost, [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)]),
    "fog": (_fog, [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)]),
    "brightness": (_brightness, [(0.05,), (0.10,), (0.15,), (0.20,), (0.30,)]),
    "contrast": (_contrast, [(0.75,), (0.50,), (0.40,), (0.30,), (0.15,)]),
    "elastic_transform": (
        _elastic_transform,
        [(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)],
    ),
    "pixelate": (_pixelate, [(0.95,), (0.90,), (0.85,), (0.75,), (0.65,)]),
    "jpeg_compression": (_jpeg_compression, [(80,), (65,), (58,), (50,), (40,)]),
    "speckle_noise": (_speckle_noise, [(0.06,), (0.10,), (0.12,), (0.16,), (0.20,)]),
    "gaussian_blur": (_gaussian_blur, [(0.4,), (0.6,), (0.7,), (0.8,), (1,)]),
    "saturate": (_saturate, [(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)]),
}
EXTRA_CORRUPTIONS = ("speckle_noise", "gaussian_blur", "saturate")
CORRUPTIONS = tuple(name for name in _CORRUPTIONS if name not in EXTRA_CORRUPTIONS)
