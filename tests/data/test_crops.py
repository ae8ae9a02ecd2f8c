import jax.numpy as jnp
import numpy as np
import pytest

from dropcluster_jax.data.crops import NUM_DRAWS, RATIO, crop_box, log_range


def boxes(sides, area, count=4000):
    """Draws boxes of images of one size with NumPy, as the host does for a single image."""
    rng = np.random.default_rng(6)
    draws = rng.uniform(*area, (count, NUM_DRAWS)), rng.uniform(*log_range(RATIO), (count, NUM_DRAWS))
    return crop_box(*draws, rng.integers, *sides)


def test_crops_are_inside_and_uniform_in_area_aspect_ratio_and_position():
    starts, lengths = boxes((64, 64), (0.25, 0.36))
    assert (starts >= 0).all() and (starts + lengths <= 64).all()
    area = lengths.prod(1) / 64**2
    ratio = np.log(lengths[:, 1] / lengths[:, 0])
    assert area.mean() == pytest.approx(0.305, abs=0.005) and 0.24 < area.min() < 0.26 and 0.35 < area.max() < 0.37
    assert abs(ratio.mean()) < 0.015 and ratio.std() == pytest.approx(2 * np.log(4 / 3) / 12**0.5, rel=0.05)
    positions = starts / (64 - lengths)
    assert abs(positions.mean(0) - 0.5).max() < 0.03 and abs(positions.std(0) - 12**-0.5).max() < 0.02


@pytest.mark.parametrize(("sides", "length"), [((4, 40), (4, 5)), ((40, 4), (5, 4))])
def test_center_is_cropped_if_no_draw_fits(sides, length):
    """A strip ten times as long as wide contains no crop of 60% of its area with an allowed aspect ratio."""
    starts, lengths = boxes(sides, (0.6, 1.0), 16)
    assert (lengths == length).all() and (starts == (np.array(sides) - length) // 2).all()


def test_first_draw_that_fits_is_used_on_host_and_device():
    areas, log_ratios = np.array([[1.0, 0.5, 0.25]]), np.log([[4 / 3, 1.0, 1.0]])
    expected = [[2, 1]], [[14, 14]]  # The first draw is too wide for an image of 20 x 20 pixels.
    for xp in (np, jnp):
        draws = xp.asarray(areas), xp.asarray(log_ratios)
        start, size = crop_box(*draws, lambda limits, xp=xp: xp.minimum(xp.asarray([[2, 1]]), limits - 1), 20, 20)
        assert (np.asarray(start).tolist(), np.asarray(size).tolist()) == expected
