"""Common corruptions of images at five severities, to measure robustness: noise, blur, weather and digital.

Each corruption is a small function of a key and an image in [0, 1], which `corrupt` maps over a batch. All are written
in JAX except `jpeg_compression`, which uses Pillow.
"""

import functools
import io
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Int, UInt8, UInt32

from dropcluster_jax._optional import optional_import
from dropcluster_jax.data.sampling import check_integer

Images = UInt8[Array | np.ndarray, "batch height width channels"]
Image = Float[Array, "height width channels"]
Scalar = Float[Array, ""]
Weights = Float[Array | np.ndarray, " steps"]
Matrix = Float[Array | np.ndarray, "rows columns"]
Matrices = tuple[Float[Array, "height height"], Float[Array, "width width"]]  # For the columns and rows of an image.
Shape = tuple[int, int]

_CHUNK = 500 * 32 * 32  # Pixels corrupted at a time; bounds the memory.


def corrupt(name: str, severity: int, key: Array, images: Images) -> UInt8[np.ndarray, "..."]:
    """Corrupts images as in CIFAR-10-C.

    The result for an image depends only on the key, the image and its index. Values are truncated to 8 bits, as in the
    published code. Not for use under `jit`: chunks of images are processed by a function that is compiled once per
    corruption and chunk shape.

    The severities are those for images of 32x32 pixels. Lengths in pixels (radius and sigma of blurs, the trail of
    `snow`) are not scaled, so these corruptions are milder on larger images. All other
    parameters are relative, to intensities or to the shorter side.

    `frost` uses a procedural texture with the brightness, contrast and tint of the original's photos, which are not
    included; report this with its results.

    Args:
        name: Name of the corruption, one of `CORRUPTIONS`.
        severity: Severity, 1 to 5. `elastic_transform` changes images less at 5 than at 1.
        key: PRNG key; deterministic corruptions ignore it.
        images: Grayscale or RGB images, uint8 `(batch, height, width, channels)`.

    Returns:
        A uint8 NumPy array of the shape of `images`.

    Raises:
        ImportError: If `name` is `"jpeg_compression"` and Pillow is not installed.
        TypeError: If `severity` is not an integer.
        ValueError: If `name` or `severity` is invalid, or `images` has another dtype or shape.

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
    if name not in _CORRUPTIONS:
        raise ValueError(f"name must be one of {', '.join(_CORRUPTIONS)}; got {name!r}")
    check_integer("severity", severity, 1, 5)
    if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(
            "images must be uint8 of shape (batch, height, width, channels), with 1 or 3 channels, "
            f"got {images.dtype} of shape {images.shape}"
        )
    images = np.asarray(images)
    corruption = _CORRUPTIONS[name]
    parameters = corruption.severities[severity - 1]
    if name == "jpeg_compression":
        return _jpeg_compression(images, *parameters)
    arguments = jax.tree.map(np.float32, corruption.prepare(images.shape[1:3], *parameters))
    corrupted = np.empty_like(images)
    size = max(1, min(len(images), _CHUNK // math.prod(images.shape[1:3])))
    for start in range(0, len(images), size):
        chunk = images[start : start + size]
        padding = size - len(chunk)  # The last chunk is padded to the shape of the others, which is already compiled.
        padded = np.pad(chunk, ((0, padding), (0, 0), (0, 0), (0, 0)))
        indices = np.arange(start, start + size, dtype=np.uint32)
        result = np.asarray(_corrupt_chunk(name, key, indices, padded, arguments))
        corrupted[start : start + size] = result[: len(chunk)]
    return corrupted


@functools.partial(jax.jit, static_argnames="name")
def _corrupt_chunk(
    name: str, key: Array, indices: UInt32[Array | np.ndarray, " batch"], images: Images, arguments: tuple[Any, ...]
) -> Images:
    def corrupt_one(index: UInt32[Array, ""], image: UInt8[Array, "height width channels"]) -> Image:
        scaled = image.astype(jnp.float32) / 255
        return _truncate(_CORRUPTIONS[name].function(jax.random.fold_in(key, index), scaled, *arguments))

    corrupted = jax.vmap(corrupt_one)(jnp.asarray(indices), jnp.asarray(images))
    return jnp.round(corrupted * 255).astype(jnp.uint8)


# ---- Noise


def _gaussian_noise(key: Array, image: Image, sigma: Scalar) -> Image:
    return image + sigma * jax.random.normal(key, image.shape, jnp.float32)


def _shot_noise(key: Array, image: Image, count: Scalar, cdf: Float[Array, "256 events"]) -> Image:
    """Draws Poisson(count * image) / count.

    Inverts a tabulated CDF, since pixels have 256 levels; `jax.random.poisson` is many times slower.
    """
    level = jnp.round(image * 255).astype(jnp.int32)
    uniform = jax.random.uniform(key, image.shape, jnp.float32)
    events = jnp.zeros(image.shape, jnp.int32)
    step = cdf.shape[1]
    while step := step // 2:  # Binary search for the number of k with cdf[k] <= uniform.
        events += step * (cdf[level, events + step - 1] <= uniform).astype(jnp.int32)
    return events.astype(jnp.float32) / count


def _prepare_shot_noise(shape: Shape, count: float) -> tuple[float, Float[np.ndarray, "256 events"]]:
    """Returns the count and the CDF of Poisson(count * level / 255) for levels 0 to 255."""
    events = np.arange(1024)  # For the largest count, 500, the CDF rounds to 1 well before.
    log_factorials = np.cumsum(np.log(np.maximum(events, 1)))
    rates = np.maximum(count * np.arange(256)[:, None] / 255, 1e-30)
    return count, np.cumsum(np.exp(events * np.log(rates) - rates - log_factorials), axis=1)


def _impulse_noise(key: Array, image: Image, fraction: Scalar) -> Image:
    uniform = jax.random.uniform(key, image.shape, jnp.float32)
    return jnp.where(uniform < fraction / 2, 0, jnp.where(uniform < fraction, 1, image))


# ---- Blur


def _defocus_blur(key: Array, image: Image, kernel: Matrix) -> Image:
    """Convolves with a kernel; edges are mirrored."""
    height, width, _ = image.shape
    reach = len(kernel) // 2
    rows, columns = (np.pad(np.arange(length), reach, "reflect") for length in (height, width))
    padded = image[rows][:, columns]
    blurred = jnp.zeros_like(image)
    for i, j in np.ndindex(kernel.shape):
        blurred += kernel[i, j] * padded[i : i + height, j : j + width]
    return blurred


def _prepare_defocus_blur(shape: Shape, radius: float, alias_sigma: float) -> tuple[Matrix]:
    """Returns a disk smoothed by a Gaussian of three taps."""
    offsets = np.arange(-2, 3)  # The largest radius is 1.5.
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.float64)
    taps = np.exp(-(np.arange(-1, 2) ** 2) / (2 * alias_sigma**2))
    side, center, _ = taps / taps.sum()
    smooth = center * np.eye(len(disk)) + side * (np.eye(len(disk), k=1) + np.eye(len(disk), k=-1))
    return (smooth @ (disk / disk.sum()) @ smooth,)


def _glass_blur(key: Array, image: Image, passes: Scalar, blur: Matrices) -> Image:
    """Blurs, displaces pixels one or two times, and blurs again.

    In each pass, a pixel is replaced at random by itself or its neighbor above, left, or above left. The published code
    visits pixels from the last to the first, so these neighbors still have the values from before the pass. Its swap
    only copies, because it assigns views of the same NumPy array. The first two rows and columns are unchanged.
    """
    height, width, _ = image.shape
    rows, columns = np.mgrid[:height, :width]
    inside = ((rows >= 2) & (columns >= 2))[..., None]
    image = _truncate(_along_sides(image, blur))
    for step, choice in enumerate(jax.random.bits(key, (2, height, width, 1), jnp.uint8) % 4):
        above = jnp.roll(image, 1, 0)
        neighbors = [image, above, jnp.roll(image, 1, 1), jnp.roll(above, 1, 1)]
        displaced = jnp.select([choice == i for i in range(4)], neighbors)
        image = jnp.where(inside & (step < passes), displaced, image)
    return _along_sides(image, blur)


def _motion_blur(key: Array, image: Image, weights: Weights) -> Image:
    return _round(_blur_along(image, weights, _uniform(key, -math.pi / 4, math.pi / 4)))


def _zoom_blur(key: Array, image: Image, count: Scalar, zooms: tuple[Array, Array]) -> Image:
    """Averages the first `count` zooms, whose matrices are `(zooms, height, height)` and `(zooms, width, width)`."""

    def add_zoom(index: Int[Array, ""], total: Image) -> Image:
        return total + _along_sides(image, (zooms[0][index], zooms[1][index]))

    return jax.lax.fori_loop(jnp.int32(0), count.astype(jnp.int32), add_zoom, jnp.zeros_like(image)) / count


def _prepare_zoom_blur(shape: Shape, stop: float) -> tuple[Any, ...]:
    """Returns the number and the matrices of zooms: the image, and zooms by 1, 1.01, ..., up to about `stop`.

    Uses `numpy.arange` as the published code does: because of rounding errors, the largest factors are 1.06, 1.11,
    1.15, 1.2 and 1.25, and the last is slightly above 1.25, which changes the size of the zoomed image.
    """
    factors = [1.0, *np.arange(1, stop, 0.01).tolist()]
    padding = ((0, 27 - len(factors)), (0, 0), (0, 0))  # All severities have arrays of the same shape.
    return len(factors), tuple(np.pad([_zoom_matrix(side, factor) for factor in factors], padding) for side in shape)


# ---- Weather


def _snow(key: Array, image: Image, levels: Float[Array, "4"], zoom: Matrices, weights: Weights) -> Image:
    """Adds flakes, which are thresholded noise blurred along a line, and their rotation by 180 degrees."""
    mean, sd, threshold, mix = levels
    noise_key, angle_key = jax.random.split(key)
    noise = _along_sides(mean + sd * jax.random.normal(noise_key, (*image.shape[:2], 1), jnp.float32), zoom)
    flakes = _truncate(jnp.where(noise < threshold, 0, noise))
    flakes = _round(_blur_along(flakes, weights, _uniform(angle_key, -3 * math.pi / 4, -math.pi / 4)))
    whitened = mix * image + (1 - mix) * jnp.maximum(image, 1.5 * _gray(image) + 0.5)
    return whitened + flakes + flakes[::-1, ::-1]


def _prepare_snow(
    shape: Shape, mean: float, sd: float, zoom: float, threshold: float, radius: int, sigma: float, mix: float
) -> tuple[Any, ...]:
    levels = np.array([mean, sd, threshold, mix])
    return levels, tuple(_zoom_matrix(side, zoom) for side in shape), _half_gaussian(radius, sigma, max_radius=14)


def _frost(key: Array, image: Image, image_weight: Scalar, frost_weight: Scalar) -> Image:
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
    level = _FROST_MEAN + _FROST_WIDTH * _uniform(level_key, -0.5, 0.5)
    tint = np.array([[_FROST_TINT if shape[2] == 3 else (0,)]], np.float32)
    return jnp.clip(level + _FROST_DEVIATION * texture[..., None] + tint, 0, 1)


def _fog(key: Array, image: Image, strength: Scalar, decay: Scalar) -> Image:
    maximum = image.max()
    foggy = image + strength * _plasma(key, image.shape[:2], decay)[..., None]
    return foggy * maximum / (maximum + strength)


def _plasma(key: Array, shape: tuple[int, ...], decay: float | Scalar) -> Float[Array, "height width"]:
    """Returns a corner of diamond-square noise on a torus with a side of 2^n pixels, scaled to [0, 1].

    Each doubling of the grid sets the centers of squares, then the midpoints of edges, to the mean of their four
    neighbors plus uniform noise. Its width falls by decay^2, because the original draws from w * U(-w, w).
    """
    size = 2 ** math.ceil(math.log2(max(2, *shape)))
    noise = _uniform(key, -1, 1, (size**2,))  # Doublings use 3 values, 12, 48, ...
    grid, width = jnp.zeros((1, 1), jnp.float32), 1.0
    while (side := len(grid)) < size:
        shifts = width * noise[side**2 : 4 * side**2].reshape(3, side, side)
        right, below = jnp.roll(grid, -1, 1), jnp.roll(grid, -1, 0)
        centers = (grid + right + below + jnp.roll(right, -1, 0)) / 4 + shifts[0]
        across = (grid + right + centers + jnp.roll(centers, 1, 0)) / 4 + shifts[1]
        down = (grid + below + centers + jnp.roll(centers, 1, 1)) / 4 + shifts[2]
        rows = [jnp.stack(pair, axis=2).reshape(side, -1) for pair in ((grid, across), (down, centers))]
        grid = jnp.stack(rows, axis=1).reshape(2 * side, -1)
        width = width / decay**2
    return ((grid - grid.min()) / (grid.max() - grid.min()))[: shape[0], : shape[1]]


def _brightness(key: Array, image: Image, shift: Scalar) -> Image:
    """Adds to V of HSV, the largest channel; the other channels keep their ratio to it."""
    value = image.max(-1, keepdims=True)
    brighter = jnp.minimum(value + shift, 1)
    return jnp.where(value > 0, image * brighter / jnp.where(value > 0, value, 1), brighter)


# ---- Digital


def _contrast(key: Array, image: Image, factor: Scalar) -> Image:
    mean = image.mean((0, 1), keepdims=True)
    return mean + factor * (image - mean)


def _elastic_transform(key: Array, image: Image, alpha: Scalar, affine: Scalar, smooth: Matrices) -> Image:
    """Applies a random affine map, then a smooth random displacement.

    The affine map moves three corners of the central square, whose side is two thirds of the shorter side, by up to
    `affine` pixels in each coordinate. The displacement is noise in [-alpha, alpha] pixels, smoothed by `smooth`.
    """
    affine_key, displacement_key = jax.random.split(key)
    shape = image.shape[:2]
    reach = max(1, min(shape) // 3)
    down, across = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    # A pixel at corner + s * below + t * left of the moved corners has the same s and t in the original image.
    corner, arms = (shape[0] // 2 - reach, shape[1] // 2 + reach), np.diag([2 * reach, -2 * reach]).astype(np.float32)
    moves = affine * _uniform(affine_key, -1, 1, (3, 2))
    below, left = arms + moves[1:] - moves[:1]
    from_corner = down - corner[0] - moves[0, 0], across - corner[1] - moves[0, 1]
    area = _cross(below, left)
    from_down = corner[0] + 2 * reach * _cross(from_corner, left) / area
    from_across = corner[1] - 2 * reach * _cross(below, from_corner) / area
    image = _sample(image, from_down, from_across, "mirror")
    displacement = alpha * _along_sides(_uniform(displacement_key, -1, 1, (*shape, 2)), smooth)
    return _sample(image, down + displacement[..., 0], across + displacement[..., 1], "reflect")


def _prepare_elastic_transform(shape: Shape, alpha: float, sigma: float, affine: float) -> tuple[Any, ...]:
    """Converts parameters relative to the shorter side to pixels."""
    side = min(shape)
    smooth = tuple(_gaussian_matrix(length, sigma * side, 3, "symmetric") for length in shape)
    return alpha * side, affine * side, smooth


def _cross(first: Array | Sequence[Array], second: Array | Sequence[Array]) -> Array:
    return first[0] * second[1] - first[1] * second[0]


def _sample(image: Image, down: Matrix, across: Matrix, edges: str) -> Image:
    """Interpolates the image linearly at the given coordinates; `edges` is a mode of `scipy.ndimage`."""
    sample = functools.partial(map_coordinates, coordinates=[down, across], order=1, mode=edges)
    return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)


def _pixelate(key: Array, image: Image, boxes: Matrices) -> Image:
    """Shrinks and enlarges as Pillow does with `Resampling.BOX`, which rounds after the rows and the columns."""
    down, across = boxes
    image = _round(jnp.einsum("jw,hwc->hjc", across, image, precision=jax.lax.Precision.HIGHEST))
    return _round(jnp.einsum("ih,hjc->ijc", down, image, precision=jax.lax.Precision.HIGHEST))


def _pixelate_matrix(side: int, scale: float) -> Matrix:
    """Averages the pixels whose centers are in a box of the smaller grid, and assigns the mean to them."""
    boxes = max(1, int(scale * side))
    ends = np.arange(boxes + 1) * side / boxes
    centers = np.arange(side) + 0.5
    inside = (ends[:-1, None] < centers) & (centers <= ends[1:, None])
    return (inside / inside.sum(1, keepdims=True))[(centers * boxes / side).astype(int)]


def _jpeg_compression(images: UInt8[np.ndarray, "..."], quality: int) -> UInt8[np.ndarray, "..."]:
    with optional_import("Pillow"):
        from PIL import Image as PillowImage
    decoded = np.empty_like(images)
    for image, result in zip(images, decoded, strict=True):
        file = io.BytesIO()
        PillowImage.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(file, "JPEG", quality=quality)
        result[:] = np.asarray(PillowImage.open(file)).reshape(image.shape)
    return decoded


# ---- Shared helpers


def _truncate(image: Image) -> Image:
    """Truncates values to 8 bits, with a tolerance for rounding errors below a whole number."""
    return jnp.floor(jnp.clip(image, 0, 1) * 255 + 1e-3) / 255


def _round(image: Image) -> Image:
    """Rounds values to 8 bits, half up, as ImageMagick and Pillow do."""
    return _truncate(image + 0.5 / 255)


def _uniform(key: Array, low: float, high: float, shape: tuple[int, ...] = ()) -> Array:
    return jax.random.uniform(key, shape, jnp.float32, low, high)


def _along_sides(image: Image, matrices: Matrices) -> Image:
    """Applies a linear map to the columns of an image, and another to its rows."""
    # TPUs would otherwise round the factors to bfloat16.
    return jnp.einsum("ih,jw,hwc->ijc", *matrices, image, precision=jax.lax.Precision.HIGHEST)


def _prepare_blur(shape: Shape, sigma: float) -> tuple[tuple[Matrix, ...]]:
    """Returns the matrices of a Gaussian blur truncated at 4 sigma; edges are repeated."""
    return (tuple(_gaussian_matrix(side, sigma, 4, "edge") for side in shape),)


def _blur_along(image: Image, weights: Weights, angle: Scalar) -> Image:
    """Averages pixels along a line, with one weight per step; edges are repeated."""
    reach = len(weights) - 1
    steps = np.arange(reach + 1, dtype=np.float32)
    down, right = (jnp.round(steps * slope).astype(jnp.int32) for slope in (jnp.sin(angle), jnp.cos(angle)))
    padded = jnp.pad(image, ((reach, reach), (reach, reach), (0, 0)), "edge")
    blurred = jnp.zeros_like(image)
    for step in range(reach + 1):
        start = (reach + down[step], reach + right[step], jnp.int32(0))
        blurred += weights[step] * jax.lax.dynamic_slice(padded, start, image.shape)
    return blurred


def _half_gaussian(radius: int, sigma: float, max_radius: int) -> Weights:
    """Returns 2 * radius + 1 weights that decrease from the first, followed by zeros up to 2 * max_radius + 1."""
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    return np.pad(weights / weights.sum(), (0, 2 * (max_radius - radius)))


def _gaussian_matrix(side: int, sigma: float, truncate: float, edges: Any) -> Matrix:
    """Returns Gaussian weights up to truncate * sigma from each pixel; `edges` is a mode of `numpy.pad`."""
    reach = int(truncate * sigma + 0.5)
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * max(sigma, 1e-6) ** 2))
    padded = np.pad(np.eye(side), ((reach, reach), (0, 0)), edges)
    return np.sum([weight * padded[i : i + side] for i, weight in enumerate(weights / weights.sum())], axis=0)


def _zoom_matrix(side: int, factor: float) -> Matrix:
    """Enlarges the central `ceil(side / factor)` pixels by linear interpolation and crops the result to `side`."""
    inner = math.ceil(side / factor)
    outer = round(inner * factor)
    positions = np.linspace(0, inner - 1, outer)[(outer - side) // 2 :][:side]
    weights = np.maximum(1 - abs(positions[:, None] - np.arange(inner)), 0)
    start = (side - inner) // 2
    return np.pad(weights, ((0, 0), (start, side - inner - start)))


def _gray(image: Image) -> Float[Array, "height width 1"]:
    weights = np.array([[[0.299, 0.587, 0.114] if image.shape[2] == 3 else [1]]], np.float32)
    return jnp.sum(weights * image, axis=-1, keepdims=True)


class _Corruption(NamedTuple):
    """A function of a key, an image in [0, 1] and the arguments that `prepare` returns.

    Arguments have the same shapes at all severities, such that the function is compiled once.

    Attributes:
        function: Corrupts an image; values may leave [0, 1].
        severities: Parameters at severities 1 to 5, for images of 32x32 pixels.
        prepare: Returns the arguments, in NumPy, for the height and width of the images and the parameters.
    """

    function: Callable[..., Any]
    severities: Sequence[tuple[Any, ...]]
    prepare: Callable[..., tuple[Any, ...]] = lambda shape, *parameters: parameters


_CORRUPTIONS: dict[str, _Corruption] = {
    "gaussian_noise": _Corruption(_gaussian_noise, [(0.04,), (0.06,), (0.08,), (0.09,), (0.10,)]),
    "shot_noise": _Corruption(_shot_noise, [(500,), (250,), (100,), (75,), (50,)], _prepare_shot_noise),
    "impulse_noise": _Corruption(_impulse_noise, [(0.01,), (0.02,), (0.03,), (0.05,), (0.07,)]),
    "defocus_blur": _Corruption(
        _defocus_blur, [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)], _prepare_defocus_blur
    ),
    "glass_blur": _Corruption(
        _glass_blur,
        [(0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2)],
        lambda shape, sigma, passes: (passes, *_prepare_blur(shape, sigma)),
    ),
    "motion_blur": _Corruption(
        _motion_blur,
        [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
        lambda shape, radius, sigma: (_half_gaussian(radius, sigma, max_radius=9),),
    ),
    "zoom_blur": _Corruption(_zoom_blur, [(1.06,), (1.11,), (1.16,), (1.21,), (1.26,)], _prepare_zoom_blur),
    "snow": _Corruption(
        _snow,
        [
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ],
        _prepare_snow,
    ),
    "frost": _Corruption(_frost, [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)]),
    "fog": _Corruption(_fog, [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)]),
    "brightness": _Corruption(_brightness, [(0.05,), (0.10,), (0.15,), (0.20,), (0.30,)]),
    "contrast": _Corruption(_contrast, [(0.75,), (0.50,), (0.40,), (0.30,), (0.15,)]),
    "elastic_transform": _Corruption(
        _elastic_transform,
        [(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)],
        _prepare_elastic_transform,
    ),
    "pixelate": _Corruption(
        _pixelate,
        [(0.95,), (0.90,), (0.85,), (0.75,), (0.65,)],
        lambda shape, scale: (tuple(_pixelate_matrix(side, scale) for side in shape),),
    ),
    "jpeg_compression": _Corruption(_jpeg_compression, [(80,), (65,), (58,), (50,), (40,)]),
}
CORRUPTIONS = tuple(_CORRUPTIONS)
