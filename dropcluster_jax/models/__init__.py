"""Residual networks with a place for a drop layer after the stem and after each stage."""

from typing import Literal, get_args

from dropcluster_jax.models.resnet import (
    ResNet,
    resnet8,
    resnet18,
    resnet20,
    resnet32,
    resnet34,
    resnet44,
    resnet50,
    resnet56,
    resnet101,
    resnet152,
)

ModelName = Literal[
    "resnet8",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet44",
    "resnet50",
    "resnet56",
    "resnet101",
    "resnet152",
]

#: The networks by name, as the command line knows them.
MODELS = {name: globals()[name] for name in get_args(ModelName)}

__all__ = [
    "MODELS",
    "ModelName",
    "ResNet",
    "resnet8",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet44",
    "resnet50",
    "resnet56",
    "resnet101",
    "resnet152",
]
