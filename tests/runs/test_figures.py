import jax
import numpy as np
import pytest

import dropcluster_jax as dc
from dropcluster_jax.runs.config import DropConfig
from dropcluster_jax.runs.figures import _example_masks, save_figure


@pytest.fixture(scope="module")
def layer():
    x = np.asarray(jax.random.normal(jax.random.key(0), (1, 8, 8, 6)))
    return x, jax.device_get(dc.Grid(num_clusters=16).init(x.shape[1:]))


def test_example_masks_drop_about_the_rate_and_whole_clusters(layer):
    x, clusters = layer
    masks = _example_masks(x, clusters, 0.3, DropConfig())
    assert list(masks) == ["dropout", "spatial dropout", "DropBlock 3x3", "DropCluster"]
    for mask in masks.values():
        assert mask.shape == x.shape[1:] and abs(1 - mask.mean() - 0.3) < 0.1
    for cluster in range(16):
        assert len(np.unique(masks["DropCluster"][clusters.labels[..., 0] == cluster])) == 1


def test_figure_that_cannot_be_written_leaves_the_previous_one(tmp_path):
    class Figure:
        def savefig(self, file, **options):
            file.write(b"half")
            raise OSError("No space left on device")

    (tmp_path / "curves.png").write_bytes(b"previous")
    with pytest.raises(OSError, match="No space left"):
        save_figure(Figure(), tmp_path / "curves.png")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"previous"]


def test_example_masks_respect_min_explained_variance(layer):
    x, clusters = layer
    clusters = clusters._replace(explained_variance=np.array([0.2], np.float32))
    masks = _example_masks(x, clusters, 0.3, DropConfig(min_explained_variance=0.5))
    assert masks["DropCluster"].all() and not masks["dropout"].all()
