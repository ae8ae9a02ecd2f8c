"""Builds the parts of a run from its configuration and the description of its dataset."""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dropcluster_jax.clustering import Clusterer, Grid, KMeans, ReNA, Shuffled, Voronoi
from dropcluster_jax.data import (
    DatasetSpec,
    cutmix,
    mixup,
    normalize,
    random_cutout,
    random_flip,
    random_resized_crop,
    random_shift,
)
from dropcluster_jax.linen import CorrDrop, DropBlock, DropCluster, Dropout, FocusedDropout, SpatialDropout
from dropcluster_jax.models import MODELS, ResNet
from dropcluster_jax.models.resnet import part_of
from dropcluster_jax.runs.config import AugmentConfig, DropConfig, TrainConfig
from dropcluster_jax.training.data_parallel import DataParallel
from dropcluster_jax.training.schedules import ramp
from dropcluster_jax.training.steps import Batch, Steps, TrainState, make_steps

_MIN_IMAGENET_SIDE = 100  # pixels; smaller images get the CIFAR stem, which has no strides


def num_steps(config: TrainConfig, spec: DatasetSpec) -> int:
    """Returns the number of optimizer steps of a run.

    Raises:
        ValueError: If it does not fit into an int32, the type of the step in a state.
    """
    steps = config.steps or max(1, round(config.epochs * steps_per_epoch(config, spec)))
    if steps >= 2**31:
        raise ValueError(f"steps, or epochs in steps, must be below 2**31, got {steps}")
    return steps


def steps_per_epoch(config: TrainConfig, spec: DatasetSpec) -> int:
    """Returns the number of full batches in an epoch."""
    return spec.num_train_examples // config.batch_size


def abstract_batch(spec: DatasetSpec, batch_size: int) -> Batch:
    """Returns the shapes and types of a batch, over all processes."""
    return {
        "image": jax.ShapeDtypeStruct((batch_size, *spec.image_shape), jnp.uint8),
        "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    }


def abstract_state(config: TrainConfig, spec: DatasetSpec, steps: Steps, parallel: DataParallel) -> TrainState:
    """Returns the shapes, types and shardings of the training state of a run, to restore a checkpoint into."""
    batch = abstract_batch(spec, config.batch_size)
    return parallel.abstract_state(steps, jax.random.key(config.seed), batch)


def check_probe_size(config: TrainConfig, spec: DatasetSpec, num_devices: int) -> None:
    """Raises ValueError if a probe batch cannot be divided over the devices."""
    size = min(config.drop.probe_size, spec.num_train_examples)
    if size < num_devices:
        raise ValueError(
            f"drop.probe_size and the number of training images must be at least the number of devices, {num_devices}, "
            f"got {config.drop.probe_size} and {spec.num_train_examples}"
        )


def make_run_steps(config: TrainConfig, model: ResNet, spec: DatasetSpec, axis_name: str | None = None) -> Steps:
    """Returns the pure steps of a run."""
    steps = num_steps(config, spec)
    return make_steps(
        model,
        make_optimizer(config, steps, steps_per_epoch(config, spec)),
        rate=ramp(config.drop.rate, round(config.drop.ramp_start * steps), round(config.drop.ramp_end * steps)),
        augment=make_augmentation(config.augment, spec),
        preprocess=lambda images: normalize(images, spec.mean, spec.std),
        mix=make_mixing(config.augment, spec.num_classes),
        label_smoothing=config.label_smoothing,
        grad_accum_steps=config.grad_accum_steps,
        ema_decay=config.ema_decay,
        skip_nonfinite=config.max_nonfinite_steps > 0,
        axis_name=axis_name,
    )


def make_model(config: TrainConfig, spec: DatasetSpec, axis_name: str | None = None) -> ResNet:
    """Returns the network with its drop layers; `axis_name` is the mapped axis over which batches are split, if any."""
    options: dict[str, Any] = {
        "drop": make_drop_layers(config.drop, axis_name),
        "dtype": jnp.dtype(config.dtype),
        "axis_name": axis_name if config.sync_batch_norm else None,
        "remat": config.remat,
        "frozen": config.freeze,
    }
    model = MODELS[config.model](spec.num_classes, **options)
    if min(spec.image_shape[:2]) < _MIN_IMAGENET_SIDE and model.stem == "imagenet":
        model = MODELS[config.model](spec.num_classes, stem="cifar", **options)
    return model


def make_drop_layers(drop: DropConfig, axis_name: str | None = None) -> dict[str, nn.Module]:
    """Returns the drop layer of each place."""
    clusterers: dict[str, Callable[..., Clusterer]] = {
        "kmeans": KMeans,
        "rena": ReNA,
        "grid": Grid,
        "voronoi": Voronoi,
        "shuffled": lambda **options: Shuffled(KMeans(**options)),
    }
    constructors: dict[str, Callable[[], nn.Module]] = {
        "dropout": lambda: Dropout(fill=drop.fill),
        "spatial_dropout": lambda: SpatialDropout(fill=drop.fill),
        "drop_block": lambda: DropBlock(block_size=drop.block_size, per_channel=drop.per_channel, fill=drop.fill),
        "corr_drop": lambda: CorrDrop(
            variant="channel" if drop.per_channel else "spatial", block_size=drop.block_size, fill=drop.fill
        ),
        "focused_dropout": lambda: FocusedDropout(threshold_range=drop.threshold_range),
        "drop_cluster": lambda: DropCluster(
            clusterers[drop.clusterer](cluster_size=drop.cluster_size, per_channel=drop.per_channel),
            min_explained_variance=drop.min_explained_variance,
            fill=drop.fill,
            axis_name=axis_name,
        ),
    }
    return {} if drop.method == "none" else {place: constructors[drop.method]() for place in drop.places}


def make_optimizer(config: TrainConfig, num_steps: int, steps_per_epoch: int) -> optax.GradientTransformation:
    """Returns SGD with Nesterov momentum, weight decay on kernels, linear warm-up and cosine decay to 0.

    With pretrained weights, frozen parts are not updated, and the rate of the others but the head is scaled.

    References:
        Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", arXiv:1706.02677, sections 2.1 and
        2.2: linear scaling rule and gradual warm-up.
        Loshchilov, Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, arXiv:1608.03983: the
        cosine schedule, used without restarts.
    """
    peak = config.learning_rate
    if config.base_batch_size is not None:
        peak *= config.batch_size / config.base_batch_size
    warmup = max(1, num_steps // 20)
    if config.warmup_epochs is not None:
        warmup = min(round(config.warmup_epochs * steps_per_epoch), num_steps)
    # Not from 0, at which the first step would change nothing.
    first = peak / (warmup + 1)
    schedule = optax.warmup_cosine_decay_schedule(first, peak, warmup, max(num_steps, warmup + 1))
    decay = optax.add_decayed_weights(
        config.weight_decay, mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    )
    tx = optax.chain(decay, optax.sgd(schedule, momentum=0.9, nesterov=True))
    if config.init_from is None:
        return tx
    transforms: dict[Hashable, optax.GradientTransformation] = {
        "head": tx,
        "backbone": optax.chain(tx, optax.scale(config.backbone_lr)),
        "frozen": optax.set_to_zero(),
    }

    def label(path: tuple[Any, ...], _: Any) -> str:
        part = part_of(path)
        return "head" if part == "head" else "frozen" if part in config.freeze else "backbone"

    return optax.partition(transforms, functools.partial(jax.tree_util.tree_map_with_path, label))


def make_augmentation(augment: AugmentConfig, spec: DatasetSpec) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns random crops or shifts, flips and cutout; encoded images are cropped and flipped while decoding."""
    mean_color = np.rint(255 * np.asarray(spec.mean, np.float32)).astype(np.uint8)

    def apply(key: jax.Array, images: jax.Array) -> jax.Array:
        crop_key, flip_key, cutout_key = jax.random.split(key, 3)
        if not augment.resized_crop:
            images = random_shift(crop_key, images, augment.shift)
        elif not spec.encoded:
            images = random_resized_crop(crop_key, images)
        if augment.flip and not spec.encoded:
            images = random_flip(flip_key, images)
        return random_cutout(cutout_key, images, augment.cutout, mean_color)

    return apply


def make_mixing(
    augment: AugmentConfig, num_classes: int
) -> Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]] | None:
    """Returns mixup, cutmix, a random choice of the two for each batch, or None."""
    functions = [
        functools.partial(function, alpha=alpha)
        for function, alpha in ((mixup, augment.mixup), (cutmix, augment.cutmix))
        if alpha
    ]
    if not functions:
        return None

    def mix(key: jax.Array, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        choice_key, mix_key = jax.random.split(key)
        one_hot = jax.nn.one_hot(labels, num_classes)
        mixed = [function(mix_key, images, one_hot) for function in functions]
        # `select_n` instead of `cond`: collectives inside a branch can deadlock on CPU devices.
        choice = jax.random.randint(choice_key, (), 0, len(functions))
        images, labels = (jax.lax.select_n(choice, *candidates) for candidates in zip(*mixed, strict=True))
        return images, labels

    return mix


def training_flops(model: ResNet, image_shape: tuple[int, ...]) -> float | None:
    """Returns the floating-point operations of the network per training image, or None if XLA does not report them.

    By convention this is three times the forward pass; rematerialization, drop layers, the optimizer and augmentation
    do not count.
    """
    bare = model.clone(drop={}, axis_name=None)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(bare.init, jax.random.key(0), images)
    cost = jax.jit(bare.apply).lower(variables, images).cost_analysis()
    return 3 * cost["flops"] if cost and cost.get("flops") else None
