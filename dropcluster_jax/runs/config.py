"""The configuration of a run: frozen dataclasses whose field docstrings double as the command's help."""

import dataclasses
import json
import math
import operator
import os
import re
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args, get_origin

from etils import epath

from dropcluster_jax._optional import optional_import
from dropcluster_jax.data.config import DataConfig
from dropcluster_jax.masking.fill import Fill
from dropcluster_jax.models import ModelName
from dropcluster_jax.training.data_parallel import Strategy

Method = Literal["none", "dropout", "spatial_dropout", "drop_block", "corr_drop", "focused_dropout", "drop_cluster"]
ClustererName = Literal["kmeans", "rena", "grid", "voronoi", "shuffled"]


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training images."""

    shift: int = 1
    """Shift each image at random by up to this number of pixels (random crop with padding)."""
    flip: bool = False
    """Mirror half of the images left to right. Not available for digits."""
    resized_crop: bool = False
    """Crop a random region of at least 8% of the area and resize it, instead of shifting."""
    cutout: int = 0
    """Fill a random square of this side in pixels with the mean color."""
    mixup: float = 0.0
    """Mix pairs of images with weights from Beta(mixup, mixup). 0 disables it."""
    cutmix: float = 0.0
    """Paste boxes between images, with areas from Beta(cutmix, cutmix). With mixup, each batch uses one of the two."""


@dataclasses.dataclass(frozen=True)
class DropConfig:
    """The drop layers."""

    method: Method = "drop_cluster"
    """Drop method: nothing, units, channels, blocks of positions, cells of a grid by their correlation (CorrDrop),
    positions where the strongest channel is weak (FocusedDropout), or learned clusters."""
    rate: float = 0.1
    """Fraction of units to drop after the ramp. For focused_dropout, the fraction of batches to which it applies."""
    fill: Fill = "zero"
    """Replacement of dropped units: zero, noise (normal draws with the channel's mean and deviation), or swap (the same
    unit of the next image in the batch). focused_dropout requires zero."""
    places: tuple[str, ...] = ("stage1", "stage2")
    """Places of the drop layers: stem, stage1, stage2, ..."""
    clusterer: ClustererName = "kmeans"
    """Clusterer: kmeans, rena (connected clusters), grid (fixed tiles), or a random control: voronoi (cells of random
    points) or shuffled (k-means with all positions permuted)."""
    cluster_size: float = 4.0
    """Mean number of positions per cluster."""
    min_explained_variance: float = 0.0
    """Do not drop in layers (channels, with per_channel) whose clusters explain less of the variance than this."""
    block_size: int = 3
    """Side of a block or cell in positions, for drop_block and corr_drop."""
    threshold_range: tuple[float, float] = (0.3, 0.6)
    """Bounds of the threshold, as a fraction of the maximum of the strongest channel, for focused_dropout."""
    per_channel: bool = False
    """Give each channel its own clusters or blocks. For corr_drop, drop channels instead of cells."""
    ramp_start: float = 0.1
    """Fraction of training after which the rate starts to rise and cluster updates begin."""
    ramp_end: float = 0.5
    """Fraction of training after which the rate is constant."""
    update_interval: int = 20
    """Steps between updates of the clusters."""
    probe_size: int = 512
    """Number of training images that each update learns from."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints, from which a stopped run resumes."""

    every: int = 0
    """Also save after every this many steps. 0 saves only after evaluations."""
    keep: int = 2
    """Number of latest checkpoints to keep, in addition to the one with the best accuracy on validation images."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Raises:
        ValueError: If a value is out of range, or values contradict each other.

    Example:
        >>> TrainConfig(model="resnet8", steps=100, drop=DropConfig(rate=0.2)).drop.rate
        0.2
    """

    model: ModelName = "resnet20"
    """Network architecture."""
    epochs: float = 30.0
    """Passes over the training images."""
    steps: int | None = None
    """Optimizer steps. Overrides epochs."""
    batch_size: int = 64
    """Images per step, over all devices."""
    learning_rate: float = 0.1
    """Peak learning rate of SGD with Nesterov momentum 0.9, linear warm-up and cosine decay."""
    base_batch_size: int | None = None
    """If given, the learning rate is scaled by batch_size / base_batch_size."""
    warmup_epochs: float | None = None
    """Epochs of learning rate warm-up. Default: the first 5% of training."""
    weight_decay: float = 5e-4
    """Weight decay on kernels; biases and BatchNorm parameters are not decayed."""
    label_smoothing: float = 0.0
    """Fraction of each label that is spread evenly over all classes."""
    ema_decay: float = 0.0
    """Decay of the moving average of parameters used for evaluation. 0 disables it."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations. Parameters, statistics, loss and clustering are float32."""
    init_from: str | None = None
    """Start from pretrained weights instead of random ones, except for the head: a safetensors file with the names of
    torchvision, timm or Hugging Face, or the folder of another run. Images are normalized as for these weights."""
    freeze: tuple[str, ...] = ()
    """Parts that are not trained: stem, stage1, stage2, ... Their BatchNorm uses its running statistics."""
    backbone_lr: float = 1.0
    """Learning rate of all parts but the head, as a fraction of the learning rate."""
    grad_accum_steps: int = 1
    """Split each batch into this number of micro-batches to save memory."""
    remat: bool = False
    """Recompute activations in the backward pass to save memory."""
    max_nonfinite_steps: int = 0
    """Number of non-finite steps to skip before aborting."""
    strategy: Strategy = "jit"
    """Data parallelism: jit (global BatchNorm statistics), shard_map or pmap (per-device masks and statistics)."""
    sync_batch_norm: bool = False
    """Average BatchNorm statistics over devices with shard_map and pmap; jit always does."""
    shard_optimizer: bool = False
    """Shard the optimizer state over devices. Requires strategy jit."""
    seed: int = 0
    """Random seed; the same seed reproduces the run."""
    evaluate_every_epochs: float = 1.0
    """Epochs between evaluations. 0 evaluates only after the last step."""
    fake_data: bool = False
    """Train on random images in the shape of the dataset, for benchmarks."""
    profile: bool = False
    """Write a JAX profile of five steps to profile/ in the run folder."""
    tensorboard: bool = False
    """Write TensorBoard event files to tensorboard/ in the run folder."""
    out: epath.Path | None = None
    """Run folder, local or at gs://. Default: a new folder under runs/."""
    drop: DropConfig = dataclasses.field(default_factory=DropConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        if self.out is not None:
            object.__setattr__(self, "out", as_path(self.out))
        _check_choices(self)
        _check_choices(self.drop, "drop.")
        _check_choices(self.data, "data.")
        for allowed, names in _RANGES.items():
            for name in names:
                _check_range(name, operator.attrgetter(name)(self), allowed)
        low, high = self.drop.threshold_range
        _check_range("drop.threshold_range[0]", low, "at least 0 and at most 1")
        _check_range("drop.threshold_range[1]", high, f"at least {low} and at most 1")
        _check_range("drop.ramp_end", self.drop.ramp_end, f"at least {self.drop.ramp_start} and at most 1")
        if self.init_from is None and (self.freeze or self.backbone_lr != 1):
            raise ValueError("freeze and backbone_lr require init_from, the pretrained weights")
        if self.batch_size % self.grad_accum_steps:
            raise ValueError(f"grad_accum_steps must divide batch_size, {self.batch_size}, got {self.grad_accum_steps}")
        if self.sync_batch_norm and self.strategy == "jit":
            raise ValueError("sync_batch_norm requires strategy shard_map or pmap; jit always uses global statistics")
        if self.shard_optimizer and self.strategy != "jit":
            raise ValueError(f"shard_optimizer requires strategy jit, got {self.strategy}")
        if self.drop.method == "focused_dropout" and self.drop.fill != "zero":
            raise ValueError(f"drop.fill must be zero for focused_dropout, got {self.drop.fill}")
        if self.data.name == "digits" and self.augment.flip:
            raise ValueError("augment.flip must be False for digits, because mirrored digits are not valid, got True")

    def to_json(self) -> dict[str, Any]:
        """Returns nested dicts of JSON types, as in `config.json`; without `out`, because run folders can move."""
        fields = dataclasses.asdict(self)
        del fields["out"]
        return json.loads(json.dumps(fields, default=str))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`; missing options take their defaults.

        Args:
            content: The result of `to_json`.

        Raises:
            ValueError: If an option is unknown or has an invalid value.
        """
        return _from_json(cls, content)


_COMPARISONS = {"at least": operator.ge, "above": operator.gt, "at most": operator.le, "below": operator.lt}
_RANGES = {
    "above 0": ("epochs", "learning_rate", "backbone_lr"),
    "at least 0": (
        *("weight_decay", "warmup_epochs", "max_nonfinite_steps", "evaluate_every_epochs", "checkpoint.every"),
        *(f"augment.{field.name}" for field in dataclasses.fields(AugmentConfig)),
    ),
    "at least 1": (
        *("steps", "batch_size", "base_batch_size", "grad_accum_steps", "checkpoint.keep"),
        *("drop.update_interval", "drop.probe_size"),
    ),
    "at least 0 and below 1": ("label_smoothing", "ema_decay"),
    "at least 0 and at most 1": ("drop.rate", "drop.min_explained_variance", "drop.ramp_start"),
    "at least 0 and at most 4294967295": ("seed",),
}

#: Options that change how a run proceeds but not its results, by section.
RUNTIME_FIELDS = {
    "data": ("dir", "loader", "workers"),
    "checkpoint": ("every", "keep"),
    "": ("shard_optimizer", "remat", "evaluate_every_epochs", "profile", "tensorboard", "max_nonfinite_steps"),
}


def without_runtime_fields(config: TrainConfig) -> dict[str, Any]:
    """Returns `config.to_json()` without the options that do not change the results."""
    content = config.to_json()
    for section, names in RUNTIME_FIELDS.items():
        for name in names:
            del (content[section] if section else content)[name]
    return content


def _from_json(kind: Any, content: Mapping[str, Any], section: str = "") -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(content) - set(fields))
    if unknown:
        raise ValueError(f"the configuration has the unknown option {section}{unknown[0]}")
    values: dict[str, Any] = {}
    for name, value in content.items():
        factory = fields[name].default_factory
        if dataclasses.is_dataclass(factory):
            value = _from_json(factory, value, f"{name}.")
        elif isinstance(value, list):
            value = tuple(value)
        values[name] = value
    return kind(**values)


def _check_choices(config: Any, section: str = "") -> None:
    """Checks the options that are restricted to a few values."""
    for field in dataclasses.fields(config):
        choices, value = get_args(field.type), getattr(config, field.name)
        if get_origin(field.type) is Literal and value not in choices:
            raise ValueError(f"{section}{field.name} must be one of {', '.join(choices)}, got {value!r}")


def _check_range(name: str, value: float | None, allowed: str) -> None:
    """Checks that a value is finite and within bounds, e.g. "at least 0 and below 1"; None is not checked."""
    bounds = [phrase.rsplit(" ", 1) for phrase in allowed.split(" and ")]
    # The comparisons are False for NaN.
    if value is not None and not (
        math.isfinite(value) and all(_COMPARISONS[words](value, float(bound)) for words, bound in bounds)
    ):
        raise ValueError(f"{name} must be {allowed}, got {value}")


def as_path(path: str | os.PathLike[str]) -> epath.Path:
    """Returns a local path, in which `~` is expanded, or a path in Google Cloud Storage, `gs://...`.

    Raises:
        ValueError: If the path is the address of anything else, or is not valid in the locale's encoding.
        ImportError: If the package for Google Cloud Storage is not installed.

    Example:
        >>> as_path("~/runs/digits").is_absolute()
        True
        >>> as_path("s3://bucket/run")
        Traceback (most recent call last):
        ValueError: paths must be local or gs://..., got s3://bucket/run
    """
    text = os.fspath(path)
    try:
        text.encode()
    except UnicodeEncodeError:  # Python cannot decode it; Orbax could not write to it
        raise ValueError(f"paths must be valid in the locale's encoding, got {os.fsencode(path)!r}") from None
    if text.startswith("gs://"):
        with optional_import("gcsfs", "gcs"):
            import gcsfs  # noqa: F401
        import fsspec.config

        # Orbax writes without fsspec, and so do other processes, so listings must not be cached.
        fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False
    elif re.match("[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise ValueError(f"paths must be local or gs://..., got {text}")
    return epath.Path(text).expanduser()
