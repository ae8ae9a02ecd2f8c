import numpy as np
import pytest

import dropcluster_jax as dc
from dropcluster_jax import viz
from dropcluster_jax.viz.canvas import escape, figure_to_array


@pytest.mark.parametrize("name", ["$x^$", r"\$a$b_{$", "undecodable \udcff", "猫 cat"])
def test_names_are_drawn_as_they_are(name, tmp_path):
    image, labels = np.zeros((4, 4, 3), np.uint8), np.arange(16).reshape(4, 4, 1) // 4
    x = np.random.default_rng(0).normal(size=(8, 4, 4, 3)).astype(np.float32)
    clusters = dc.Grid(num_clusters=4).init(x.shape[1:])
    train = {"event": "train", "step": 1, "loss": 1.0, "rate": 0.1}
    quality = {"explained_variance": 0.4, "adjusted_rand_index": 0.9}
    for figure in (
        viz.image_figure(image[None], [name], title=name),
        viz.cluster_figure({name: (clusters, x)}, title=name),
        viz.cluster_history_figure({name: [(0, labels)]}, title=name),
        viz.cluster_animation(tmp_path / "clusters.gif", {name: [(0, labels)]}, title=name),
        viz.mask_figure(x[0], {name: np.ones((4, 4, 3), bool)}, title=name),
        viz.curve_figure({name: [train]}, title=name),
        viz.quality_figure([{"event": "clusters", "step": 20, "layers": {name: quality}}], title=name),
    ):
        assert escape(name) in figure.get_suptitle()
        figure_to_array(figure)
