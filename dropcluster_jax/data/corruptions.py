"""Common corruptions of image batches, five severities each, to measure robustness: noises, blurs, weather, digital.

Each corruption is one small function of a key and one image in [0, 1]; `corrupt` runs it over a batch. All are JAX
but `jpeg_compression`, which is Pillow's. No data set is read and no frost picture: the frost here is a stand-in.
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

# The arguments of each corruption's function below, at severity 1, 2, 3, 4, 5, for images of 32x32 pixels.
_PARAMETERS: dict[str, Sequence[tuple[Any, ...]]] = {
    "gaussian_noise": [(0.04,), (0.06,), (0.08,), (0.09,), (0.10,)],
    "shot_noise": [(500,), (250,), (100,), (75,), (50,)],
    "impulse_noise": [(0.01,), (0.02,), (0.03,), (0.05,), (0.07,)],
    "defocus_blur": [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
    "glass_blur": [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
    "motion_blur": [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
    "zoom_blur": [(1.05,), (1.10,), (1.15,), (1.20,), (1.25,)],
    "snow": [
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ],
    "frost": [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],
    "fog": [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
    "brightness": [(0.05,), (0.10,), (0.15,), (0.20,), (0.30,)],
    "contrast": [(0.75,), (0.50,), (0.40,), (0.30,), (0.15,)],
    "elastic_transform": [(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)],
    "pixelate": [(0.95,), (0.90,), (0.85,), (0.75,), (0.65,)],
    "jpeg_compression": [(80,), (65,), (58,), (50,), (40,)],
    "speckle_noise": [(0.06,), (0.10,), (0.12,), (0.16,), (0.20,)],
    "gaussian_blur": [(0.4,), (0.6,), (0.7,), (0.8,), (1,)],
    "saturate": [(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)],
}
EXTRA_CORRUPTIONS = ("speckle_noise", "gaussian_blur", "saturate")
CORRUPTIONS = tuple(name for name in _PARAMETERS if name not in EXTRA_CORRUPTIONS)

_CHUNK = 500 * 32 * 32  # pixels that are worked on at once: bounds the memory


def corrupt(
    name: str, severity: int, key: Array, images: UInt8[Array | np.ndarray, "batch height width channels"]
) -> UInt8[np.ndarray, "batch height width channels"]:
    """Corrupt images as CIFAR-10-C does: one of `CORRUPTIONS` or `EXTRA_CORRUPTIONS`, at one severity.

    Image i depends on the key, on i and on itself, on no other image. `frost` is a stand-in, a procedural texture
    with the brightness, contrast and tint of the original's pictures, which are not shipped; say so where its results
    are shown. The severities are those for 32x32 pixels. What is a length in pixels (the radius and sigma of blurs,
    the trail of snow, the reach of `glass_blur`) is not scaled: on larger images these corruptions are milder. The
    rest goes by shares or by the shorter side.

    Runs over chunks of images outside of `jit`; compiles once for each corruption, severity and shape of a chunk.

    Args:
        name: the corruption.
        severity: 1 to 5. Of `elastic_transform`, 5 changes an image less than 1.
        key: a PRNG key; the corruptions without randomness ignore it.
        images: uint8 `(batch, height, width, channels)`, values 0 to 255; 1 channel is brightness, 3 are red, green and
            blue.

    Returns:
        A NumPy array like `images`, rounded, as data sets hold.

    Raises:
        ImportError: Pillow, which `jpeg_compression` needs, is not installed.
        TypeError: `severity` is no integer, or `images` are not uint8.
        ValueError: there is no such corruption or severity; `images` have another number of dimensions, or neither 1
            nor 3 channels; or 1 channel is to be saturated.

    References:
        Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
        ICLR 2019, arXiv:1903.12261.

    Example:
        >>> import jax, numpy as np
        >>> images = np.full((2, 4, 4, 3), 100, np.uint8)
        >>> brighter = corrupt("brightness", 3, jax.random.key(0), images)  # by 0.15 of 255
        >>> brighter.shape, brighter[0, 0, 0].tolist()
        ((2, 4, 4, 3), [138, 138, 138])
    """
    check_corruption(name, severity)
    _check_images(name, images)
    images = np.asarray(images)
    if name == "jpeg_compression":
        return _jpeg_compression(images, *_PARAMETERS[name][severity - 1])
    corrupted = np.empty_like(images)
    size = max(1, min(len(images), _CHUNK // math.prod(images.shape[1:3])))
    for start in range(0, len(images), size):
        chunk = images[start : start + size]
        missing = size - len(chunk)  # the last chunk is filled up, as another shape would be compiled anew
        filled = np.pad(chunk, ((0, missing), (0, 0), (0, 0), (0, 0)))
        outcome = _corrupt_chunk(name, severity, key, start, filled)
        corrupted[start : start + size] = np.asarray(outcome)[: len(chunk)]
    return corrupted


@functools.partial(jax.jit, static_argnames=("name", "severity"))
def _corrupt_chunk(
    name: str,
    severity: int,
    key: Array,
    start: int | Int[Array, ""],
    images: UInt8[Array | np.ndarray, "batch height width channels"],
) -> UInt8[Array, "batch height width channels"]:
    def corrupt_one(index: Int[Array, ""], image: UInt8[Array, "height width channels"]) -> Image:
        scaled = image.astype(jnp.float32) / 255
        return _FUNCTIONS[name](jax.random.fold_in(key, index), scaled, *_PARAMETERS[name][severity - 1])

    corrupted = jax.vmap(corrupt_one)(start + jnp.arange(len(images)), jnp.asarray(images))
    return jnp.round(jnp.clip(corrupted, 0, 1) * 255).astype(jnp.uint8)


def check_corruption(name: str, severity: int) -> None:
    """Refuse what is no corruption, or no severity.

    Raises:
        TypeError: `severity` is no integer.
        ValueError: there is no such corruption or severity.
    """
    if name not in _PARAMETERS:
        closest = difflib.get_close_matches(str(name), _PARAMETERS, n=1, cutoff=0)[0]
        raise ValueError(f"name must be one of {', '.join(_PARAMETERS)}; got {name!r}, closest to {closest!r}")
    if not isinstance(severity, int | np.integer) or isinstance(severity, bool):
        raise TypeError(f"severity must be an integer from 1 to 5, got {severity!r}")
    if not 1 <= severity <= 5:
        raise ValueError(f"severity must be from 1 to 5, got {severity}")


def _check_images(name: str, images: Any) -> None:
    if images.dtype != jnp.uint8:
        raise TypeError(f"images must be uint8, values 0 to 255, got {images.dtype}")
    if images.ndim != 4:
        raise ValueError(f"images must have the shape (batch, height, width, channels), got {images.shape}")
    if images.shape[3] not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels, got {images.shape[3]}")
    if name == "saturate" and images.shape[3] == 1:
        raise ValueError("images of 1 channel have no saturation: saturate needs 3 channels")


# ---- Noises


def _gaussian_noise(key: Array, image: Image, sigma: float) -> Image:
    return image + sigma * jax.random.normal(key, image.shape)


def _shot_noise(key: Array, image: Image, count: float) -> Image:
    """Poisson(count x) / count: by inversion, as x has but 256 values; `jax.random.poisson` is many times slower."""
    cdf = _poisson_cdf(count)
    level, uniform = jnp.round(image * 255).astype(jnp.int32), jax.random.uniform(key, image.shape)
    events = jnp.zeros(image.shape, jnp.int32)
    step = cdf.shape[1]
    while step := step // 2:  # events becomes the number of k with cdf[k] <= uniform
        events += step * (jnp.asarray(cdf)[level, events + step - 1] <= uniform)
    return events / count


def _poisson_cdf(count: float) -> Float[np.ndarray, "256 events"]:
    """P(at most k events) of Poisson(count v / 255), for v = 0 to 255 and all k that float32 can tell from certain."""
    events = np.arange(2 ** math.ceil(math.log2(count + 8 * count**0.5 + 16)))
    log_factorials = np.cumsum(np.log(np.maximum(events, 1)))
    rates = np.maximum(count * np.arange(256)[:, None] / 255, 1e-30)
    return np.cumsum(np.exp(events * np.log(rates) - rates - log_factorials), axis=1).astype(np.float32)


def _impulse_noise(key: Array, image: Image, share: float) -> Image:
    uniform = jax.random.uniform(key, image.shape)
    return jnp.where(uniform < share / 2, 0, jnp.where(uniform < share, 1, image))


def _speckle_noise(key: Array, image: Image, sigma: float) -> Image:
    return image + image * sigma * jax.random.normal(key, image.shape)


# ---- Blurs


def _defocus_blur(key: Array, image: Image, radius: float, alias_sigma: float) -> Image:
    """Convolve with a disk that is itself smoothed by three Gaussian taps; edges mirrored."""
    reach = math.floor(radius) + 1
    offsets = np.arange(-reach, reach + 1)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.float64)
    taps = np.exp(-(np.arange(-1, 2) ** 2) / (2 * alias_sigma**2))
    beside, middle, _ = taps / taps.sum()
    smooth = middle * np.eye(len(disk)) + beside * (np.eye(len(disk), k=1) + np.eye(len(disk), k=-1))
    kernel = smooth @ (disk / disk.sum()) @ smooth
    height, width, _ = image.shape
    rows, columns = (np.pad(np.arange(side), reach, "reflect") for side in (height, width))
    padded = image[rows][:, columns]
    blurred = jnp.zeros_like(image)
    for i, j in np.ndindex(kernel.shape):
        blurred += kernel[i, j] * padded[i : i + height, j : j + width]
    return blurred


def _glass_blur(key: Array, image: Image, sigma: float, delta: int, passes: int) -> Image:
    """Blur, shuffle, blur: from the last pixel to the first, each swaps with one nearby.

    That one is -delta to delta - 1 rows and columns away, as in the original: for delta 1, the pixel itself or a
    neighbor above, left or both. The original's code means to swap, but its views of one NumPy array make it copy the
    partner and keep it, which changes an image less: at severity 1 by a third, at severity 5 by a tenth.
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
    places = np.arange(side**2).reshape(side, side)

    # What moves are the pixels' numbers: one value each, whatever the channels. A block of fixed place is read and
    # written for the whole batch; only within it does the partner differ from image to image.
    def swap(
        order: Int[Array, "height width"], step: tuple[Int[Array, "2"], Int[Array, ""]]
    ) -> tuple[Int[Array, "height width"], None]:
        corner, partner = step
        block = jax.lax.dynamic_slice(order, (corner[0], corner[1]), (side, side))
        at_partner = jnp.sum(jnp.where(places == partner, block, 0))
        swapped = jnp.where(places == partner, block[delta, delta], block).at[delta, delta].set(at_partner)
        return jax.lax.dynamic_update_slice(order, swapped, (corner[0], corner[1])), None

    order = jnp.arange(height * width).reshape(height, width)
    order, _ = jax.lax.scan(swap, order, (jnp.array(corners * passes), partners))
    shuffled = image.reshape(-1, channels)[order.ravel()].reshape(image.shape)
    return _blur(shuffled, sigma)


def _motion_blur(key: Array, image: Image, radius: int, sigma: float) -> Image:
    return _blur_along(image, radius, sigma, jax.random.uniform(key, minval=-math.pi / 4, maxval=math.pi / 4))


def _blur_along(image: Image, radius: int, sigma: float, angle: Float[Array, ""]) -> Image:
    """Mean of the pixels from each one on along a line, with Gaussian weights over 2 radius + 1 steps; edges repeat."""
    height, width, channels = image.shape
    reach = 2 * radius
    steps = np.arange(reach + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    down, right = (jnp.round(steps * part).astype(jnp.int32) for part in (jnp.sin(angle), jnp.cos(angle)))
    padded = jnp.pad(image, ((reach, reach), (reach, reach), (0, 0)), "edge")
    blurred = jnp.zeros_like(image)
    for step, weight in zip(steps, weights / weights.sum(), strict=True):
        start = (reach + down[step], reach + right[step], 0)
        blurred += weight * jax.lax.dynamic_slice(padded, start, (height, width, channels))
    return blurred


def _zoom_blur(key: Array, image: Image, greatest: float) -> Image:
    """Mean of the image and its zooms by 1, 1.01, ..., greatest."""
    zooms = [_zoom(image, 1 + percent / 100) for percent in range(round(100 * greatest) - 99)]
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
    """Flakes, the bright part of zoomed noise, fall in a line over a whitened image, and so does their half-turn."""
    noise_key, angle_key = jax.random.split(key)
    noise = _zoom(mean + sd * jax.random.normal(noise_key, (*image.shape[:2], 1)), zoom)
    flakes = jnp.where(noise < threshold, 0, jnp.clip(noise, 0, 1))
    angle = jax.random.uniform(angle_key, minval=-3 * math.pi / 4, maxval=-math.pi / 4)
    flakes = _blur_along(flakes, radius, sigma, angle)
    whitened = mix * image + (1 - mix) * jnp.maximum(image, 1.5 * _grey(image) + 0.5)
    return whitened + flakes + flakes[::-1, ::-1]


def _frost(key: Array, image: Image, image_weight: float, frost_weight: float) -> Image:
    """Weighted sum with `_frost_stand_in`."""
    return image_weight * image + frost_weight * _frost_stand_in(key, image.shape)


# Of 400 crops of 32x32 pixels from each of the original's five pictures, in [0, 1]: the mean of the crops' means, the
# width of a uniform distribution with the deviation of these means (0.15), the deviation within a crop, and how far
# red, green and blue lie from their mean.
_FROST_MEAN, _FROST_WIDTH, _FROST_DEVIATION, _FROST_TINT = 0.636, 0.52, 0.062, (-0.071, 0.012, 0.058)


def _frost_stand_in(key: Array, shape: tuple[int, ...]) -> Image:
    """A STAND-IN for a crop of a frost picture: ridges of plasma, with the level, contrast and tint of the pictures."""
    level_key, texture_key = jax.random.split(key)
    ridges = -jnp.abs(_plasma(texture_key, shape[:2], decay=1.3) - 0.5)
    texture = (ridges - ridges.mean()) / jnp.maximum(ridges.std(), 1e-6)
    level = _FROST_MEAN + _FROST_WIDTH * jax.random.uniform(level_key, minval=-0.5, maxval=0.5)
    tint = jnp.array(_FROST_TINT if shape[2] == 3 else (0,))
    return jnp.clip(level + _FROST_DEVIATION * texture[..., None] + tint, 0, 1)


def _fog(key: Array, image: Image, strength: float, decay: float) -> Image:
    greatest = image.max()
    foggy = image + strength * _plasma(key, image.shape[:2], decay)[..., None]
    return foggy * greatest / (greatest + strength)


def _plasma(key: Array, shape: tuple[int, ...], decay: float) -> Float[Array, "height width"]:
    """A corner of diamond-square plasma on a torus of 2^n pixels, scaled to [0, 1].

    Each doubling of the grid sets the middles of squares, then the middles of edges, to the mean of their four
    neighbors plus uniform noise; its width falls by decay^2, as the original draws it from w times U(-w, w).
    """
    size = 2 ** math.ceil(math.log2(max(2, *shape)))
    noise = jax.random.uniform(key, (size**2,), minval=-1, maxval=1)  # of all doublings: 3 values, 12, 48, ...
    grid, width = jnp.zeros((1, 1)), 1.0
    while (side := len(grid)) < size:
        shifts = width * noise[side**2 : 4 * side**2].reshape(3, side, side)
        right, below = jnp.roll(grid, -1, 1), jnp.roll(grid, -1, 0)
        middles = (grid + right + below + jnp.roll(right, -1, 0)) / 4 + shifts[0]
        across = (grid + right + middles + jnp.roll(middles, 1, 0)) / 4 + shifts[1]
        down = (grid + below + middles + jnp.roll(middles, 1, 1)) / 4 + shifts[2]
        rows = [jnp.stack(pair, axis=2).reshape(side, -1) for pair in ((grid, across), (down, middles))]
        grid = jnp.stack(rows, axis=1).reshape(2 * side, -1)
        width /= decay**2
    return ((grid - grid.min()) / (grid.max() - grid.min()))[: shape[0], : shape[1]]


def _brightness(key: Array, image: Image, shift: float) -> Image:
    """Add to V of HSV, the greatest of the channels: the others keep their ratio to it."""
    value = image.max(-1, keepdims=True)
    brighter = jnp.minimum(value + shift, 1)
    return jnp.where(value > 0, image * brighter / jnp.where(value > 0, value, 1), brighter)


# ---- Digital


def _contrast(key: Array, image: Image, factor: float) -> Image:
    mean = image.mean((0, 1))
    return mean + factor * (image - mean)


def _elastic_transform(key: Array, image: Image, alpha: float, sigma: float, affine: float) -> Image:
    """A random affine map, then a smoothed random displacement; all three parameters in units of the shorter side.

    The map takes three corners of the square around the center, of two thirds of the side, to places up to `affine`
    away in each coordinate.
    """
    affine_key, displacement_key = jax.random.split(key)
    shape = image.shape[:2]
    side, reach = min(shape), max(1, min(shape) // 3)
    down, across = jnp.meshgrid(*(jnp.arange(length, dtype=jnp.float32) for length in shape), indexing="ij")
    # A pixel is at corner + s * below + t * left of the moved corners; it comes from there of those in place.
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
    """The image at other places, interpolated linearly; edges as SciPy calls them."""
    sample = functools.partial(map_coordinates, coordinates=[down, across], order=1, mode=edges)
    return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)


def _pixelate(key: Array, image: Image, share: float) -> Image:
    """Shrink and enlarge as Pillow does with `Resampling.BOX`."""
    return _along_sides(image, functools.partial(_pixelate_matrix, share=share))


def _pixelate_matrix(side: int, share: float) -> Float[np.ndarray, "side side"]:
    """Mean of the pixels whose centers lie in a box of the smaller grid, then the box at each pixel's center."""
    boxes = max(1, int(share * side))
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
    """Scale and shift S of HSV, the range of the channels over the greatest; a gray pixel has the hue of red."""
    value, least = image.max(-1, keepdims=True), image.min(-1, keepdims=True)
    value_range = value - least
    gray = value_range == 0
    hue = jnp.where(gray, jnp.array([0, 1, 1]), (value - image) / jnp.where(gray, 1, value_range))
    saturation = value_range / jnp.where(value > 0, value, 1)
    return value - value * jnp.clip(scale * saturation + shift, 0, 1) * hue


# ---- What they share


def _along_sides(image: Image, matrix: Callable[[int], np.ndarray]) -> Image:
    """Apply a linear map of a column of pixels, `matrix(height)`, and of a row, `matrix(width)`."""
    rows, columns = (matrix(side).astype(np.float32) for side in image.shape[:2])
    # In full precision: a TPU would round the factors to bfloat16.
    return jnp.einsum("ih,jw,hwc->ijc", rows, columns, image, precision=jax.lax.Precision.HIGHEST)


def _blur(image: Image, sigma: float) -> Image:
    """Gaussian, cut off at 4 sigma; edges repeat."""
    return _along_sides(image, lambda side: _gaussian_matrix(side, sigma, 4, "edge"))


def _gaussian_matrix(side: int, sigma: float, truncate: float, edges: Any) -> Float[np.ndarray, "side side"]:
    """Gaussian weights up to truncate sigma from each pixel; edges as `numpy.pad` calls them."""
    reach = int(truncate * sigma + 0.5)
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    padded = np.pad(np.eye(side), ((reach, reach), (0, 0)), edges)
    return np.sum([weight * padded[i : i + side] for i, weight in enumerate(weights / weights.sum())], axis=0)


def _zoom(image: Image, factor: float) -> Image:
    return _along_sides(image, functools.partial(_zoom_matrix, factor=factor))


def _zoom_matrix(side: int, factor: float) -> Float[np.ndarray, "side side"]:
    """The middle `ceil(side / factor)` pixels, interpolated linearly between their outer centers, cut to `side`."""
    inner = math.ceil(side / factor)
    outer = round(inner * factor)
    places = np.linspace(0, inner - 1, outer)[(outer - side) // 2 :][:side]
    weights = np.maximum(1 - abs(places[:, None] - np.arange(inner)), 0)
    start = (side - inner) // 2
    return np.pad(weights, ((0, 0), (start, side - inner - start)))


def _grey(image: Image) -> Float[Array, "height width 1"]:
    weights = jnp.array([0.299, 0.587, 0.114] if image.shape[2] == 3 else [1])
    return jnp.sum(weights * image, axis=-1, keepdims=True)


_FUNCTIONS: dict[str, Callable[..., Image]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "speckle_noise": _speckle_noise,
    "defocus_blur": _defocus_blur,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "gaussian_blur": _gaussian_blur,
    "snow": _snow,
    "frost": _frost,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic_transform": _elastic_transform,
    "pixelate": _pixelate,
    "saturate": _saturate,
}
