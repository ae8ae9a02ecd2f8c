"""ResNets with optional drop layers after the stem and after each stage.

`resnet50` and its siblings are partial applications of `ResNet` that take its remaining fields, e.g.
`resnet50(num_classes=100, stem="cifar", drop={"stage3": DropCluster(...)})`.

| function    | for                | classes | parameters |
|-------------|--------------------|--------:|-----------:|
| `resnet18`  | ImageNet, 224x224  |    1000 | 11,689,512 |
| `resnet34`  | ImageNet, 224x224  |    1000 | 21,797,672 |
| `resnet50`  | ImageNet, 224x224  |    1000 | 25,557,032 |
| `resnet101` | ImageNet, 224x224  |    1000 | 44,549,160 |
| `resnet152` | ImageNet, 224x224  |    1000 | 60,192,808 |
| `resnet8`   | CIFAR, 32x32       |      10 |     75,290 |
| `resnet20`  | CIFAR, 32x32       |      10 |    269,722 |
| `resnet32`  | CIFAR, 32x32       |      10 |    464,154 |
| `resnet44`  | CIFAR, 32x32       |      10 |    658,586 |
| `resnet56`  | CIFAR, 32x32       |      10 |    853,018 |
"""

from dropcluster_jax.models.pretrained import load_pretrained, save_pretrained
from dropcluster_jax.models.resnet import (
    MODELS,
    ModelName,
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

__all__ = [
    "MODELS",
    "ModelName",
    "ResNet",
    "load_pretrained",
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
    "save_pretrained",
]
