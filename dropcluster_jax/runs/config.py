"""The configuration of a run, as `dropcluster train` takes it, and the presets. Plain frozen dataclasses."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any, Literal, Self

from dropcluster_jax.data.loaders import LoaderName
from dropcluster_jax.models import ModelName
from dropcluster_jax.training.data_parallel import Strategy

Method = Literal["none", "dropout", "spatial", "block", "cluster"]
Clustering = Literal["kmeans", "rena", "grid"]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is learned from."""

    name: str = "digits"
    """"digits", which is embedded; a data set of images that TFDS has prepared; folder:PATH; or npz:PATH."""
    dir: pathlib.Path | None = None
    """Where TFDS has prepared it; else the environment variable TFDS_DATA_DIR, else TFDS's own place."""
    download: bool = False
    """Let TFDS download and prepare what is not there; without this nothing is."""
    train_split: str | None = None
    """The split to train on, or a part of it: "train[:45000]"."""
    test_split: str | None = None
    """The split to test on, or a part of it."""
    test_fraction: float | None = None
    """The share to test on, of a folder or archive that comes undivided; else 0.2."""
    fraction: float | None = None
    """Train on this share of each class only."""
    examples_per_class: int | None = None
    """Train on so many images of each class only."""
    seed: int = 0
    """Chooses them; the smaller share lies inside the larger."""
    image_size: int | None = None
    """The side in pixels to which encoded images are cropped each time they are read; else they are decoded once."""
    skip_corrupt: bool = False
    """Leave out and count images that are damaged or of another kind, instead of stopping."""
    loader: LoaderName = "auto"
    """How images get to the device: all at once, streamed, or whichever fits."""
    workers: int = 0
    """Processes that read for the stream; else threads do."""


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """How training images are varied."""

    shift: int = 1
    """Each is moved at random by up to so many pixels."""
    flip: bool = False
    """Half of them are mirrored left to right; never with digits."""
    resized_crop: bool = False
    """A random part of each, of 8 % of the area or more, is taken and resized, instead of a shift."""
    cutout: int = 0
    """A square of this side in pixels is filled with the mean color."""
    mixup: float = 0.0
    """Pairs are mixed by shares from Beta(mixup, mixup); 0 is never."""
    cutmix: float = 0.0
    """Boxes are put from one image into another, by shares from Beta(cutmix, cutmix); with mixup one of the two."""


@dataclasses.dataclass(frozen=True)
class DropConfig:
    """What is dropped."""

    method: Method = "cluster"
    """Nothing, units, channels, blocks of positions, or clusters that are learned."""
    rate: float = 0.1
    """The share that is dropped, once the ramp is over."""
    places: tuple[str, ...] = ("stage1", "stage2")
    """Where: stem, stage1, stage2, ..."""
    clusterer: Clustering = "kmeans"
    """How clusters are learned: k-means; ReNA, which makes connected ones; or a grid, which stays as it is."""
    cluster_size: float = 4.0
    """The mean number of positions in a cluster."""
    min_explained: float = 0.0
    """A layer (a channel, with per_channel) whose clusters explain less of the variance is left alone."""
    block_size: int = 3
    """The side of a block, for the method block."""
    per_channel: bool = False
    """Whether each channel has clusters, or blocks, of its own."""
    ramp_start: float = 0.1
    """The share of the training after which the rate rises from 0, and clusters are updated."""
    ramp_end: float = 0.5
    """The share of the training after which the rate is full."""
    update_every: int = 20
    """Clusters are updated every so many steps."""
    probe_size: int = 512
    """The number of training images that clusters are learned from."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What is kept, so that a run that was stopped or killed goes on."""

    every: int = 0
    """Steps from one checkpoint to the next, beside those after each epoch and at the end; 0 is none beside."""
    keep: int = 2
    """So many of the newest are kept, and the one with the best test accuracy."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A run: what is trained, on what, how, and where its results go."""

    model: ModelName = "resnet20"
    """The network."""
    epochs: float = 30.0
    """Passes over the training images."""
    steps: int | None = None
    """Optimizer steps; if given, epochs do not count."""
    batch_size: int = 64
    """Images in a step."""
    learning_rate: float = 0.1
    """The largest; it warms up and falls along a cosine. Nesterov momentum is 0.9."""
    base_batch_size: int | None = None
    """If given, the learning rate is for so many images in a step, and is scaled by how many there are."""
    warmup_epochs: float | None = None
    """Epochs in which the learning rate rises from 0; else the first twentieth of the training."""
    weight_decay: float = 5e-4
    """On convolutions and matrices, not on biases and BatchNorm."""
    label_smoothing: float = 0.0
    """So much of each label is spread over all classes."""
    ema_decay: float = 0.0
    """The decay of moving averages of the parameters, by which the network is evaluated; 0 is none."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The type of activations; parameters, statistics, loss and clustering are float32."""
    grad_accum_steps: int = 1
    """A step goes over its images in so many parts, one after the other: less memory."""
    remat: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""
    max_nonfinite_steps: int = 0
    """So many steps whose loss or gradients are not finite are skipped; one more ends the run."""
    strategy: Strategy = "jit"
    """How the work is divided over all devices: by XLA, or with masks and BatchNorm of each device's own."""
    sync_batch_norm: bool = False
    """Under shard_map and pmap, whether BatchNorm averages over all devices; under jit it does."""
    shard_optimizer: bool = False
    """Each device holds a part of the optimizer's state only; under jit."""
    seed: int = 0
    """The same seed gives the same run."""
    fake_data: bool = False
    """Random images of the data set's shape in place of its own: for benchmarks."""
    profile: bool = False
    """Write what JAX's profiler sees of five steps into the run folder, under profile/."""
    tensorboard: bool = False
    """Also write event files for TensorBoard into the run folder, under tensorboard/."""
    out: pathlib.Path | None = None
    """The run folder; else a new one under runs/."""
    drop: DropConfig = dataclasses.field(default_factory=DropConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        _in_range("epochs", self.epochs, 0, math.inf, least_excluded=True)
        if self.steps is not None:
            _in_range("steps", self.steps, 1, math.inf)
        _in_range("batch_size", self.batch_size, 1, math.inf)
        _in_range("learning_rate", self.learning_rate, 0, math.inf, least_excluded=True)
        _in_range("weight_decay", self.weight_decay, 0, math.inf)
        if self.base_batch_size is not None:
            _in_range("base_batch_size", self.base_batch_size, 1, math.inf)
        if self.warmup_epochs is not None:
            _in_range("warmup_epochs", self.warmup_epochs, 0, math.inf)
        for option in ("label_smoothing", "ema_decay"):
            _in_range(option, getattr(self, option), 0, 1, most_excluded=True)
        _in_range("grad_accum_steps", self.grad_accum_steps, 1, math.inf)
        if self.batch_size % self.grad_accum_steps:
            raise ValueError(f"grad_accum_steps must divide batch_size, {self.batch_size}, got {self.grad_accum_steps}")
        _in_range("max_nonfinite_steps", self.max_nonfinite_steps, 0, math.inf)
        if self.sync_batch_norm and self.strategy == "jit":
            raise ValueError("sync_batch_norm is for shard_map and pmap; under jit BatchNorm is over the whole batch")
        if self.shard_optimizer and self.strategy != "jit":
            raise ValueError(f"shard_optimizer needs strategy jit, got {self.strategy}")
        _in_range("checkpoint.every", self.checkpoint.every, 0, math.inf)
        _in_range("checkpoint.keep", self.checkpoint.keep, 1, math.inf)
        _in_range("seed", self.seed, 0, 2**32 - 1)
        _in_range("drop.rate", self.drop.rate, 0, 1)
        _in_range("drop.min_explained", self.drop.min_explained, 0, 1)
        _in_range("drop.ramp_start", self.drop.ramp_start, 0, 1)
        _in_range("drop.ramp_end", self.drop.ramp_end, self.drop.ramp_start, 1)
        _in_range("drop.update_every", self.drop.update_every, 1, math.inf)
        _in_range("drop.probe_size", self.drop.probe_size, 1, math.inf)
        for option in ("shift", "cutout", "mixup", "cutmix"):
            _in_range(f"augment.{option}", getattr(self.augment, option), 0, math.inf)
        if self.data.name == "digits" and self.augment.flip:
            raise ValueError("augment.flip must be False for digits, which mean something else mirrored, got True")

    def to_json(self) -> dict[str, Any]:
        """As it is written to `config.json`: nested dicts, without `out`, which a run may move from."""
        fields = dataclasses.asdict(self)
        del fields["out"]
        return json.loads(json.dumps(fields, default=str))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """What `to_json` gave; options that an older version did not have are as they were then.

        Raises:
            ValueError: an option that this version does not have, or a value that cannot be.
        """
        return _from_json(cls, content)


# What changes how a run goes, not what it finds.
RUNTIME_FIELDS = {
    "data": ("dir", "download", "loader", "workers"),
    "checkpoint": ("every", "keep"),
    "": ("shard_optimizer", "remat", "profile", "tensorboard", "max_nonfinite_steps"),
}


def _from_json(kind: Any, content: Mapping[str, Any], within: str = "") -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(content) - set(fields))
    if unknown:
        raise ValueError(f"the configuration has the unknown option {within}{unknown[0]}")
    values: dict[str, Any] = {}
    for name, value in content.items():
        factory = fields[name].default_factory
        if dataclasses.is_dataclass(factory):
            value = _from_json(factory, value, f"{name}.")
        elif name == "dir" and value is not None:
            value = pathlib.Path(value)
        elif isinstance(value, list):
            value = tuple(value)
        values[name] = value
    return kind(**values)


def _in_range(
    name: str, value: float, least: float, most: float, least_excluded: bool = False, most_excluded: bool = False
) -> None:
    low = least < value if least_excluded else least <= value
    high = value < most if most_excluded else value <= most
    if not low or not high or math.isinf(value):
        above = f"above {least}" if least_excluded else f"at least {least}"
        upto = "" if math.isinf(most) else f" and {'below' if most_excluded else 'at most'} {most}"
        raise ValueError(f"{name} must be {above}{upto}, got {value}")


_CIFAR10 = TrainConfig(
    epochs=100,
    batch_size=128,
    drop=DropConfig(places=("stage2", "stage3"), cluster_size=16.0, block_size=7, update_every=200),
    data=DataConfig(name="cifar10"),
    augment=AugmentConfig(shift=4, flip=True),
)


def _like_cifar10(name: str, **augment: Any) -> TrainConfig:
    return dataclasses.replace(
        _CIFAR10, data=DataConfig(name=name), augment=dataclasses.replace(_CIFAR10.augment, **augment)
    )


PRESETS: dict[str, tuple[str, TrainConfig]] = {
    "digits": (
        "ResNet-20 on handwritten digits, 1,797 real images of 8x8 pixels, from scikit-learn: a minute or two.",
        TrainConfig(),
    ),
    "cifar10": ("ResNet-20 on CIFAR-10, as TFDS has prepared it.", _CIFAR10),
    "cifar100": ("ResNet-20 on CIFAR-100, as TFDS has prepared it.", _like_cifar10("cifar100")),
    "svhn_cropped": ("ResNet-20 on street view house numbers.", _like_cifar10("svhn_cropped", flip=False)),
    "fashion_mnist": ("ResNet-20 on Fashion-MNIST.", _like_cifar10("fashion_mnist", shift=2)),
    "imagenette": (
        "ResNet-18 on ten classes of ImageNet, 224 pixels, streamed.",
        TrainConfig(
            model="resnet18",
            epochs=100,
            drop=DropConfig(places=("stage2", "stage3"), cluster_size=16.0, block_size=7, update_every=200),
            data=DataConfig(name="imagenette", image_size=224),
            augment=AugmentConfig(resized_crop=True, flip=True),
        ),
    ),
    "imagenet": (
        "ResNet-50 on ImageNet, 224 pixels, streamed, in bfloat16: for TPUs and GPUs.",
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
            drop=DropConfig(places=("stage3", "stage4"), cluster_size=16.0, block_size=7, ramp_end=0.9, update_every=500),
            data=DataConfig(name="imagenet2012", image_size=224),
            augment=AugmentConfig(resized_crop=True, flip=True),
        ),
    ),
}
