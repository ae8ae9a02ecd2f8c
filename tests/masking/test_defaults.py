"""The defaults of all methods, which are part of the API."""

import inspect

import dropcluster_jax as dc

SHARED = {"per_channel": False, "per_example": True}
DEFAULTS = {
    dc.dropout: {"per_channel": True, "per_example": True, "rescale": "rate"},
    dc.spatial_dropout: {"per_example": True, "rescale": "rate"},
    dc.drop_path: {"per_example": True, "rescale": "rate"},
    dc.drop_block: {**SHARED, "block_size": 7, "seeding": "exact", "rescale": "kept"},
    dc.drop_cluster: {**SHARED, "min_explained_variance": 0.0, "rescale": "kept"},
    dc.corr_drop: {"variant": "spatial", "block_size": 7, "rescale": "kept"},
    dc.cutout: {**SHARED, "rescale": "none"},
    dc.focused_dropout: {"threshold_range": (0.3, 0.6), "rescale": "none"},
}


def defaults_of(function):
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}


def test_defaults():
    for drop, defaults in DEFAULTS.items():
        assert defaults_of(drop) == defaults
        of_mask = {name: default for name, default in defaults.items() if name != "rescale"}
        assert defaults_of(getattr(dc, f"{drop.__name__}_mask")) == of_mask
