"""From a configuration to the parts of a run: the network, the optimizer, the augmentation, the pure steps."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dropcluster_jax.clustering import Clusterer, Grid, KMeans, ReNA
from dropcluster_jax.data import (
    Dataset,
    cutmix,
    mixup,
    normalize,
    random_cutout,
    random_flip,
    random_resized_crop,
    random_shift,
)
from dropcluster_jax.linen import DropBlock, DropCluster, Dropout, SpatialDropout
from dropcluster_jax.masking.common import Rate
from dropcluster_jax.models import MODELS, ResNet
from dropcluster_jax.runs.config import AugmentConfig, DropConfig, TrainConfig
from dropcluster_jax.training.schedules import ramp
from dropcluster_jax.training.steps import Steps, make_steps

_LARGE = 100  # pixels; smaller images take the stem without strides


def make_run_steps(
    config: TrainConfig,
    model: ResNet,
    dataset: Dataset,
    num_steps: int,
    axis_name: str | None = None,
    rate: Rate | None = None,
) -> Steps:
    """The pure steps of a run of so many steps; a `rate`, which may be traced, stands for the configuration's."""
    full = config.drop.rate if rate is None else rate
    return make_steps(
        model,
        optimizer(config, num_steps, len(dataset.train) // config.batch_size),
        rate=ramp(full, round(config.drop.ramp_start * num_steps), round(config.drop.ramp_end * num_steps)),
        augment=augmentation(config.augment, dataset),
        preprocess=lambda images: normalize(images, dataset.mean, dataset.std),
        mix=mixing(config.augment, dataset.num_classes),
        label_smoothing=config.label_smoothing,
        grad_accum_steps=config.grad_accum_steps,
        ema_decay=config.ema_decay,
        skip_nonfinite=config.max_nonfinite_steps > 0,
        axis_name=axis_name,
    )


def make_model(
    config: TrainConfig, num_classes: int, image_shape: tuple[int, ...], axis_name: str | None = None
) -> ResNet:
    """The network, with its drop layers, for images `(height, width, channels)`, on devices of a mapped axis if any."""
    options: dict[str, Any] = {
        "drop": drop_layers(config.drop, axis_name),
        "dtype": jnp.dtype(config.dtype),
        "axis_name": axis_name if config.sync_batch_norm else None,
        "remat": config.remat,
    }
    model = MODELS[config.model](num_classes, **options)
    if min(image_shape[:2]) < _LARGE and model.stem == "imagenet":
        model = MODELS[config.model](num_classes, stem="cifar", **options)
    return model


def drop_layers(drop: DropConfig, axis_name: str | None = None) -> dict[str, nn.Module]:
    """The drop layer of each place."""
    clusterers: dict[str, Callable[..., Clusterer]] = {"kmeans": KMeans, "rena": ReNA, "grid": Grid}
    makers: dict[str, Callable[[], nn.Module]] = {
        "dropout": Dropout,
        "spatial": SpatialDropout,
        "block": lambda: DropBlock(block_size=drop.block_size, per_channel=drop.per_channel),
        "cluster": lambda: DropCluster(
            clusterers[drop.clusterer](cluster_size=drop.cluster_size, per_channel=drop.per_channel),
            min_explained=drop.min_explained,
            axis_name=axis_name,
        ),
    }
    return {} if drop.method == "none" else {place: makers[drop.method]() for place in drop.places}


def optimizer(config: TrainConfig, num_steps: int, steps_per_epoch: int) -> optax.GradientTransformation:
    """Nesterov momentum with weight decay on kernels; a warm-up, then a cosine to 0.

    References:
        Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", arXiv:1706.02677, sections 2.1 and
        2.2: a learning rate in proportion to the batch, and a gradual warm-up.
        Loshchilov, Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, arXiv:1608.03983: the
        cosine, without a restart.
    """
    peak = config.learning_rate
    if config.base_batch_size is not None:
        peak *= config.batch_size / config.base_batch_size
    warmup = max(1, num_steps // 20)
    if config.warmup_epochs is not None:
        warmup = min(round(config.warmup_epochs * steps_per_epoch), num_steps)
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(num_steps, warmup + 1))
    decay = optax.add_decayed_weights(
        config.weight_decay, mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    )
    return optax.chain(decay, optax.sgd(schedule, momentum=0.9, nesterov=True))


def augmentation(augment: AugmentConfig, dataset: Dataset) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Crops or shifts, flips and cutout; crops and flips not where the host does them while decoding."""
    on_host = dataset.image_size is not None
    gray = np.rint(255 * dataset.mean).astype(np.uint8)

    def vary(key: jax.Array, images: jax.Array) -> jax.Array:
        place_key, flip_key, cutout_key = jax.random.split(key, 3)
        if not augment.resized_crop:
            images = random_shift(place_key, images, augment.shift)
        elif not on_host:
            images = random_resized_crop(place_key, images)
        if augment.flip and not on_host:
            images = random_flip(flip_key, images)
        return random_cutout(cutout_key, images, augment.cutout, gray)

    return vary


def mixing(
    augment: AugmentConfig, num_classes: int
) -> Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]] | None:
    """Mixup, cutmix, one of the two for each batch at even odds, or None."""
    ways = [
        functools.partial(function, alpha=alpha)
        for function, alpha in ((mixup, augment.mixup), (cutmix, augment.cutmix))
        if alpha
    ]
    if not ways:
        return None

    def mix(key: jax.Array, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        way_key, mix_key = jax.random.split(key)
        mixed = [way(mix_key, images, jax.nn.one_hot(labels, num_classes)) for way in ways]
        # Chosen of what all give, not by a branch: what devices exchange within a branch can lock them on CPUs.
        chosen = jax.random.randint(way_key, (), 0, len(ways))
        images, labels = (jax.lax.select_n(chosen, *parts) for parts in zip(*mixed, strict=True))
        return images, labels

    return mix


def model_operations(model: ResNet, image_shape: tuple[int, ...]) -> float | None:
    """Floating-point operations of the network for one training image, None where XLA does not count them.

    Three times those of the forward pass, as is custom: whatever is computed again or beside the network (drop layers,
    optimizer, augmentation) does not count.
    """
    bare = model.clone(drop={}, axis_name=None)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(bare.init, jax.random.key(0), images)
    cost = jax.jit(bare.apply).lower(variables, images).cost_analysis()
    return 3 * cost["flops"] if cost and cost.get("flops") else None
