"""The studies: scales, methods, and the jobs of each study. Nothing is trained here.

Each method has the same number of candidate hyperparameters and uses the ones with the best accuracy on images held out
from the training set (`choices`). Only `headline`, `limited_data` and `corruption` use the test set; all other studies
are evaluated on the held-out images, so that defaults can be chosen from them.
"""

import dataclasses
import functools
import hashlib
import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from dropcluster_jax.data import DATASETS
from dropcluster_jax.runs import PRESETS, CheckpointConfig, DataConfig, DropConfig, TrainConfig
from dropcluster_jax.runs.config import without_runtime_fields

Target = Literal["validation", "test"]
ScaleName = Literal["small", "gpu", "paper"]
MethodName = Literal["none", "dropout", "spatial", "block", "grid", "cluster"]
StudyName = Literal[
    "choices",
    "headline",
    "limited_data",
    "corruption",
    "placement",
    "rate_and_size",
    "clustering",
    "cadence",
    "warm_up",
]
Options = Mapping[str, Any]  # values of fields of `TrainConfig` or `DropConfig`, by name

FRACTIONS = (0.05, 0.1, 0.25, 0.5, 1.0)
CORRUPTED_FRACTIONS = (0.1, 1.0)
VALIDATION_FRACTION = 0.1
NEVER_AGAIN = 10**9  # steps between updates of clusters that are learned once


class Method(NamedTuple):
    """A method.

    Attributes:
        label: Name in tables and figures.
        options: Options that select the method.
        candidates: Options to choose from on the held-out images.
    """

    label: str
    options: Options
    candidates: tuple[Options, ...]


_RATES = tuple({"rate": rate} for rate in (0.1, 0.2, 0.3))
# The network without drop layers has no rate; its own regularization is tuned instead.
_WEIGHT_DECAYS = tuple({"weight_decay": weight_decay} for weight_decay in (5e-4, 1e-3, 2e-3))

METHODS: dict[str, Method] = {
    "none": Method("no drop layer", {"method": "none"}, _WEIGHT_DECAYS),
    "dropout": Method("dropout", {"method": "dropout"}, _RATES),
    "spatial": Method("spatial dropout", {"method": "spatial"}, _RATES),
    "block": Method("DropBlock", {"method": "block"}, _RATES),
    "grid": Method("fixed grid", {"method": "cluster", "clusterer": "grid"}, _RATES),
    "cluster": Method("DropCluster", {"method": "cluster", "clusterer": "kmeans"}, _RATES),
}


@dataclasses.dataclass(frozen=True)
class Scale:
    """The size of a study.

    Attributes:
        name: Name of the scale.
        base: Configuration from which all jobs are derived.
        methods: Methods to compare, keys of `METHODS`.
        seeds: Seeds of the jobs. A seed determines the initialization, the order of the images, the masks and the
            training subset.
        choice_seeds: Seeds of the jobs that choose hyperparameters, disjoint from `seeds`.
        examples_per_class: Number of training images of each class; None for all.
        corruption_images: Number of test images to corrupt; None for all.
        fractions: Fractions of the training images in `limited_data`.
        sides: Sides of blocks and clusters in `rate_and_size`, at most the side of the smallest map.
    """

    name: ScaleName
    base: TrainConfig
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    choice_seeds: tuple[int, ...]
    examples_per_class: int | None = None
    corruption_images: int | None = None
    fractions: tuple[float, ...] = FRACTIONS
    sides: tuple[int, ...] = (3, 5, 7)

    @property
    def table(self) -> str:
        """Identifies the jobs that can share a table."""
        images = "" if self.examples_per_class is None else f" {self.examples_per_class} per class"
        base = self.base
        return f"{self.name}: {base.model} {base.data.name}{images}, {base.steps} steps of {base.batch_size}"


@dataclasses.dataclass(frozen=True)
class Job:
    """A run of a study.

    Attributes:
        method: Key of `METHODS`.
        setting: What the study varies in addition to the method.
        config: Configuration of the run.
        corrupted: Number of test images on which to evaluate the run under corruptions, 0 for all; None to evaluate it
            on the images as they are.
    """

    method: str
    setting: Mapping[str, Any]
    config: TrainConfig
    corrupted: int | None = None

    @functools.cached_property
    def id(self) -> str:
        """Equal for equal runs, in all studies."""
        content = json.dumps([without_runtime_fields(self.config), self.corrupted], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    @property
    def target(self) -> Target:
        """The images to evaluate on."""
        return self.config.data.evaluate_on

    @property
    def trained(self) -> "Job":
        """The job whose network this one evaluates."""
        return dataclasses.replace(self, corrupted=None)

    @property
    def drawn(self) -> bool:
        """Whether the result includes label maps for the report."""
        drop = self.config.drop
        learned = drop.method == "cluster" and drop.clusterer == "kmeans" and not drop.per_channel
        return learned and self.config.seed == 0 and self.target == "validation"

    def __str__(self) -> str:
        setting = "".join(f", {name.replace('_', ' ')} {value}" for name, value in self.setting.items())
        return f"{self.method}{setting}, seed {self.config.seed}"


def override(config: TrainConfig, **options: Any) -> TrainConfig:
    """Returns the configuration with other values of fields of `TrainConfig` or `DropConfig`."""
    names = {field.name for field in dataclasses.fields(DropConfig)}
    drop = {name: value for name, value in options.items() if name in names}
    others = {name: value for name, value in options.items() if name not in names}
    return dataclasses.replace(config, drop=dataclasses.replace(config.drop, **drop), **others)


def for_dataset(scale: Scale, name: str) -> Scale:
    """Returns the scale on another dataset.

    Encoded datasets use the recipe of their preset. Images are mirrored if the preset mirrors them. Blocks and
    clusters have 4x4 positions for encoded datasets, whose last maps are 7x7, and 2x2 for digits.
    """
    preset = next((config for _, config in PRESETS.values() if config.data.name == name), None)
    data = dataclasses.replace(scale.base.data, name=name)
    if preset is None:
        return dataclasses.replace(scale, base=override(scale.base, data=data))
    if preset.data.image_size is not None:
        num_train = round((1 - VALIDATION_FRACTION) * DATASETS[name].num_train_examples)
        base = override(
            preset,
            steps=round(preset.epochs * (num_train // preset.batch_size)),
            data=dataclasses.replace(data, image_size=preset.data.image_size),
            evaluate_every_epochs=scale.base.evaluate_every_epochs,
            checkpoint=scale.base.checkpoint,
            **_square(4),
        )
        return dataclasses.replace(scale, base=base, examples_per_class=None)
    augment = dataclasses.replace(scale.base.augment, flip=preset.augment.flip)
    base = override(scale.base, data=data, augment=augment)
    if name == "digits":
        return dataclasses.replace(scale, base=override(base, **_square(2)), examples_per_class=None, sides=(2, 3, 4))
    return dataclasses.replace(scale, base=base)


def _square(side: int) -> dict[str, Any]:
    """Blocks with this side, and clusters with the same number of positions on average."""
    return {"block_size": side, "cluster_size": float(side * side)}


# ---- Studies

Setting = tuple[str, Options, TrainConfig]  # the method, what the study varies, and the configuration without a seed


def choices(scale: Scale, chosen: Mapping[str, Options]) -> Iterator[Setting]:
    """Each method with each of its candidates."""
    for method in scale.methods:
        for candidate in METHODS[method].candidates:
            yield method, candidate, _config(scale, method, candidate)


def headline(scale: Scale, chosen: Mapping[str, Options]) -> Iterator[Setting]:
    """The methods on all training images."""
    for method in scale.methods:
        yield method, {}, _config(scale, method, chosen[method])


def limited_data(scale: Scale, chosen: Mapping[str, Options]) -> Iterator[Setting]:
    """The methods on subsets of the training images.

    The number of steps is proportional to the square root of the fraction. With an equal number of steps, a small
    subset would be repeated hundreds of times; with an equal number of epochs, it would get a few dozen steps.
    """
    for fraction in scale.fractions:
        for method in scale.methods:
            yield method, {"fraction": fraction}, _config(scale, method, chosen[method], fraction)


def corruption(scale: Scale, chosen: Mapping[str, Options]) -> Iterator[Setting]:
    """Networks of `limited_data` on corrupted test images."""
    for method, setting, config in limited_data(scale, chosen):
        if setting["fraction"] in CORRUPTED_FRACTIONS:
            yield method, setting, config


def placement(scale: Scale, chosen: Mapping[str, Options]) -> Iterator[Setting]:
    """Drop layers at different places, with blocks and clusters that fit the smallest maps."""
    small = _square(min(4, scale.base.drop.block_size))
    for places in (("stem",), ("stage1",), ("stage2",), ("stage3",), ("stage1", "stage2"), ("stage2", "stage3")):
        for method in scale.methods:
            if method != "none":
                config = _config(scale, method, {**chosen[method], **small, "places": places})
                yield method, {"places": ", ".join(places)}, config


def rate_and_size(scale: Scale, chosen: Mapping[str, Options]) -> Iterator[Setting]:
    """All combinations of rates and of sizes of blocks and clusters."""
    for side in scale.sides:
        for method in scale.methods:
            if method in ("block", "grid", "cluster"):
                for rate in (0.1, 0.2, 0.3, 0.4):
                    config = _config(scale, method, {"rate": rate, **_square(side)})
                    yield method, {"side": side, "rate": rate}, config


STRUCTURES: dict[str, Options] = {
    "k-means, shared": {"clusterer": "kmeans"},
    "k-means, shared, learned once": {"clusterer": "kmeans", "update_every": NEVER_AGAIN},
    "ReNA, shared": {"clusterer": "rena"},
    "grid, shared": {"clusterer": "grid"},
    "k-means, per channel": {"clusterer": "kmeans", "per_channel": True},
    "ReNA, per channel": {"clusterer": "rena", "per_channel": True},
    "grid, per channel": {"clusterer": "grid", "per_channel": True},
}


def clustering(scale: Scale, chosen: Mapping[str, Options]) -> Iterator[Setting]:
    """Ways to form clusters, at the rate chosen for DropCluster: whether learning and updating them matters."""
    for name, options in STRUCTURES.items():
        yield "cluster", {"structure": name}, _config(scale, "cluster", {**chosen["cluster"], **options})


def cadence(scale: Scale, chosen: Mapping[str, Options]) -> Iterator[Setting]:
    """Steps between updates of the clusters."""
    default = scale.base.drop.update_every
    for steps in (max(1, default // 4), default, 4 * default, NEVER_AGAIN):
        options = {"update_every": steps}
        yield "cluster", options, _config(scale, "cluster", {**chosen["cluster"], **options})


RAMPS = {"at once": (0.0, 0.0), "from 10 to 70 %": (0.1, 0.7), "from 50 to 100 %": (0.5, 1.0)}


def warm_up(scale: Scale, chosen: Mapping[str, Options]) -> Iterator[Setting]:
    """Ramps of the rate; clusters are updated from the start of the ramp."""
    for name, (start, end) in RAMPS.items():
        for method in scale.methods:
            if method != "none":
                config = _config(scale, method, {**chosen[method], "ramp_start": start, "ramp_end": end})
                yield method, {"rate_rises": name}, config


STUDIES: dict[str, Callable[[Scale, Mapping[str, Options]], Iterator[Setting]]] = {
    study.__name__: study
    for study in (choices, headline, limited_data, corruption, placement, rate_and_size, clustering, cadence, warm_up)
}
ON_TEST_SET = ("headline", "limited_data", "corruption")


def jobs(study: str, scale: Scale, chosen: Mapping[str, Options]) -> list[Job]:
    """Returns the jobs of a study, for each setting and seed, with the chosen candidate of each method."""
    seeds = scale.choice_seeds if study == "choices" else scale.seeds
    corrupted = (scale.corruption_images or 0) if study == "corruption" else None
    target = "test" if study in ON_TEST_SET else "validation"
    return [
        Job(method, setting, _with_data(override(config, seed=seed), seed=seed, evaluate_on=target), corrupted)
        for method, setting, config in STUDIES[study](scale, chosen)
        for seed in seeds
    ]


def choose(scale: Scale, accuracies: Mapping[str, float]) -> dict[str, Options]:
    """Returns the candidate of each method with the best mean accuracy, the first on ties.

    Args:
        scale: The scale.
        accuracies: Accuracies on the held-out images by job id. Candidates without results count as 0.
    """
    found: dict[str, list[float]] = {}
    for job in jobs("choices", scale, {}):
        if job.id in accuracies:
            found.setdefault(f"{job.method} {job.setting}", []).append(accuracies[job.id])

    def mean(method: str, candidate: Options) -> float:
        return statistics.mean(found.get(f"{method} {candidate}", [0.0]))

    return {method: max(METHODS[method].candidates, key=functools.partial(mean, method)) for method in scale.methods}


def _config(scale: Scale, method: str, options: Options, fraction: float = 1.0) -> TrainConfig:
    """Returns the configuration of a method on a fraction of the training images."""
    subset: Options = {"fraction": None if fraction == 1 else fraction}
    if scale.examples_per_class is not None:
        subset = {"examples_per_class": round(fraction * scale.examples_per_class)}
    steps = round((scale.base.steps or 0) * fraction**0.5)
    return override(_with_data(scale.base, **subset), steps=steps, **{**METHODS[method].options, **options})


def _with_data(config: TrainConfig, **options: Any) -> TrainConfig:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **options))


# ---- Scales

_AUGMENT = PRESETS["cifar10"][1].augment
_DROP = DropConfig(
    places=("stage1", "stage2"),
    cluster_size=49.0,
    block_size=7,
    ramp_start=0.1,
    ramp_end=0.7,
    update_every=20,
    probe_size=512,
)
_SMALL = TrainConfig(
    model="resnet8",
    steps=900,
    evaluate_every_epochs=0,
    drop=_DROP,
    data=DataConfig(name="cifar10", validation_fraction=VALIDATION_FRACTION),
    augment=dataclasses.replace(_AUGMENT, shift=0),
    checkpoint=CheckpointConfig(every=1000, keep=1),
)
_GPU = override(
    _SMALL,
    model="resnet50",
    steps=17_600,  # 100 epochs of 45,000 images
    batch_size=256,
    dtype="bfloat16",
    update_every=200,
    augment=_AUGMENT,
)
_FOUR = ("none", "block", "grid", "cluster")

SCALES: dict[str, Scale] = {
    "small": Scale("small", _SMALL, _FOUR, (0, 1, 2), (100,), examples_per_class=200, corruption_images=1000),
    "gpu": Scale("gpu", _GPU, tuple(METHODS), (0, 1, 2), (100,)),
    "paper": Scale("paper", override(_GPU, steps=52_800), tuple(METHODS), (0, 1, 2, 3, 4), (100, 101, 102)),
}
