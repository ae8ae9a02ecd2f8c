"""Presets: a description and a configuration for each."""

import dataclasses
from typing import Any

from dropcluster_jax.data.config import DataConfig
from dropcluster_jax.runs.config import AugmentConfig, DropConfig, TrainConfig

_CIFAR10 = TrainConfig(
    epochs=100,
    batch_size=128,
    drop=DropConfig(places=("stage2", "stage3"), cluster_size=16.0, block_size=4, update_interval=200),
    data=DataConfig(name="cifar10"),
    augment=AugmentConfig(shift=4, flip=True),
)


def _like_cifar10(name: str, **augment: Any) -> TrainConfig:
    return dataclasses.replace(
        _CIFAR10, data=DataConfig(name=name), augment=dataclasses.replace(_CIFAR10.augment, **augment)
    )


#: A description and a configuration for each preset.
PRESETS: dict[str, tuple[str, TrainConfig]] = {
    "digits": ("ResNet-20 on handwritten digits (scikit-learn), 1,797 images of 8x8; about a minute.", TrainConfig()),
    "cifar10": ("ResNet-20 on CIFAR-10 (TFDS).", _CIFAR10),
    "cifar100": ("ResNet-20 on CIFAR-100 (TFDS).", _like_cifar10("cifar100")),
    "svhn_cropped": ("ResNet-20 on Street View House Numbers (TFDS).", _like_cifar10("svhn_cropped", flip=False)),
    "fashion_mnist": ("ResNet-20 on Fashion-MNIST (TFDS).", _like_cifar10("fashion_mnist", shift=2)),
    "imagenette": (
        "ResNet-18 on Imagenette, ten classes of ImageNet, 224 pixels, streamed.",
        TrainConfig(
            model="resnet18",
            epochs=100,
            drop=DropConfig(places=("stage2", "stage3"), cluster_size=16.0, block_size=7, update_interval=200),
            data=DataConfig(name="imagenette", image_size=224),
            augment=AugmentConfig(resized_crop=True, flip=True),
        ),
    ),
    # Rate and weight decay: Li et al., "Rethinking the Hyperparameters for Fine-tuning", ICLR 2020, arXiv:2002.11770.
    "finetune": (
        "ResNet-50 from ImageNet weights in resnet50.safetensors (--init-from), on Imagenette or your --data.name.",
        TrainConfig(
            model="resnet50",
            init_from="resnet50.safetensors",
            learning_rate=0.01,
            base_batch_size=256,
            weight_decay=1e-4,
            drop=DropConfig(places=("stage3", "stage4"), cluster_size=16.0),
            data=DataConfig(name="imagenette", image_size=224),
            augment=AugmentConfig(resized_crop=True, flip=True),
        ),
    ),
    "imagenet": (
        "ResNet-50 on ImageNet, 224 pixels, streamed, bfloat16; for TPUs and GPUs.",
        TrainConfig(
            model="resnet50",
            epochs=90,
            batch_size=1024,
            learning_rate=0.1,
            base_batch_size=256,
            warmup_epochs=5,
            weight_decay=1e-4,
            label_smoothing=0.1,
            dtype="bfloat16",
            drop=DropConfig(
                places=("stage3", "stage4"), cluster_size=16.0, block_size=7, ramp_end=0.9, update_interval=500
            ),
            data=DataConfig(name="imagenet2012", image_size=224),
            augment=AugmentConfig(resized_crop=True, flip=True),
        ),
    ),
}
