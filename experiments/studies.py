"""The studies: scales, methods, and the jobs of each study. Nothing is trained here.

First the network without drop layers is tuned (`baseline`); all methods share its learning rate, weight decay and label
smoothing. Then each method uses the best of its candidate hyperparameters (`choices`, and `fill_choices` for masks and
fills). Only studies on the test target use the test set; all others are evaluated on images held out from the
training set, so that defaults can be chosen from them.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from dropcluster_jax.data import DATASETS
from dropcluster_jax.runs import PRESETS, AugmentConfig, CheckpointConfig, DataConfig, DropConfig, TrainConfig
from dropcluster_jax.runs.config import without_runtime_fields
from dropcluster_jax.runs.engine import race

Target = Literal["validation", "test"]
Options = Mapping[str, Any]  # values of fields of `TrainConfig` or `DropConfig`, by name
Chosen = Mapping[str, Options]  # by method, or by mask, fill and fraction

FRACTIONS = (0.05, 0.1, 0.25, 0.5, 1.0)
CORRUPTED_FRACTIONS = (0.1, 1.0)
VALIDATION_FRACTION = 0.1
NEVER_AGAIN = 10**9  # steps between updates of clusters that are learned once


class Method(NamedTuple):
    """A method.

    Attributes:
        label: Name in tables and figures.
        options: Options that select the method.
        tuned: The hyperparameter to choose in addition to the rate.
    """

    label: str
    options: Options
    tuned: Literal["places", "block_size", "cluster_size", "threshold_range"] | None = None


METHODS: dict[str, Method] = {
    "none": Method("no drop layer", {"method": "none"}),
    "dropout": Method("dropout", {"method": "dropout"}, "places"),
    "spatial_dropout": Method("spatial dropout", {"method": "spatial_dropout"}, "places"),
    "drop_block": Method("DropBlock", {"method": "drop_block"}, "block_size"),
    "corr_drop": Method("CorrDrop", {"method": "corr_drop"}, "block_size"),
    "focused_dropout": Method("FocusedDropout", {"method": "focused_dropout"}, "threshold_range"),
    "grid": Method("fixed grid", {"method": "drop_cluster", "clusterer": "grid"}, "cluster_size"),
    "drop_cluster": Method("DropCluster", {"method": "drop_cluster", "clusterer": "kmeans"}, "cluster_size"),
    "rena": Method("DropCluster with ReNA", {"method": "drop_cluster", "clusterer": "rena"}, "cluster_size"),
    "per-channel": Method(
        "DropCluster per channel",
        {"method": "drop_cluster", "clusterer": "kmeans", "per_channel": True},
        "cluster_size",
    ),
}


def product(**values: Sequence[Any]) -> tuple[Options, ...]:
    """Returns all combinations of the values of options."""
    return tuple(dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values()))


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
        baseline: Candidate hyperparameters of the network without drop layers.
        ablation_seeds: Number of seeds of ablations; None for all.
        examples_per_class: Number of training images of each class; None for all.
        corruption_images: Number of test images to corrupt; None for all.
        fractions: Fractions of the training images in `limited_data`.
        sides: Sides of blocks and clusters in `rate_and_size`, at most the side of the smallest map.
        candidate_sides: Sides of blocks and clusters to choose from.
    """

    name: str
    base: TrainConfig
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    choice_seeds: tuple[int, ...]
    baseline: tuple[Options, ...]
    ablation_seeds: int | None = None
    examples_per_class: int | None = None
    corruption_images: int | None = None
    fractions: tuple[float, ...] = FRACTIONS
    sides: tuple[int, ...] = (3, 5, 7)
    candidate_sides: tuple[int, ...] = (4, 7)

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

    @property
    def id(self) -> str:
        """Equal for equal runs, in all studies."""
        return _digest(self.config, self.corrupted)

    @property
    def target(self) -> Target:
        """The images to evaluate on."""
        return self.config.data.evaluate_on

    @property
    def trained(self) -> "Job":
        """The job whose network this one evaluates."""
        return dataclasses.replace(self, corrupted=None)

    @property
    def has_snapshots(self) -> bool:
        """Whether the result includes label maps for the report."""
        drop = self.config.drop
        learned = drop.method == "drop_cluster" and drop.clusterer == "kmeans" and not drop.per_channel
        return learned and self.config.seed == 0 and self.target == "validation"

    def __str__(self) -> str:
        setting = "".join(f", {name.replace('_', ' ')} {value}" for name, value in self.setting.items())
        return f"{self.method}{setting}, seed {self.config.seed}"


@functools.cache
def _digest(config: TrainConfig, corrupted: int | None) -> str:
    content = [without_runtime_fields(config), corrupted]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def override(config: TrainConfig, **options: Any) -> TrainConfig:
    """Returns the configuration with other values of fields of `TrainConfig` or `DropConfig`."""
    names = {field.name for field in dataclasses.fields(DropConfig)}
    drop = {name: value for name, value in options.items() if name in names}
    others = {name: value for name, value in options.items() if name not in names}
    return dataclasses.replace(config, drop=dataclasses.replace(config.drop, **drop), **others)


def for_dataset(scale: Scale, name: str) -> Scale:
    """Returns the scale on another dataset.

    Encoded datasets use the recipe of their preset. Images are mirrored if the preset mirrors them. Blocks and
    clusters have 4x4 positions for encoded datasets, whose last maps are 7x7, and 2x2 for digits. The CPU scales use at
    most 20 digits per class, so that accuracies are below the ceiling, and hold out half of the training images.
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
        base = override(base, batch_size=min(64, base.batch_size), **_square(2))
        scale = dataclasses.replace(scale, examples_per_class=None, sides=(2, 3, 4), candidate_sides=(2, 3))
        if scale.name.startswith("cpu"):
            base = _with_data(base, validation_fraction=0.5)
            scale = dataclasses.replace(scale, examples_per_class=20, fractions=(0.5, 1.0))
    return dataclasses.replace(scale, base=base)


def _square(side: int) -> dict[str, Any]:
    """Blocks with this side, and clusters with the same number of positions on average."""
    return {"block_size": side, "cluster_size": float(side * side)}


# ---- Studies

Setting = tuple[str, Options, TrainConfig]  # the method, what the study varies, and the configuration without a seed
Settings = Callable[["Scale", Chosen], Iterator[Setting]]
TUNING = ("baseline", "choices")


class Study(NamedTuple):
    """A study.

    Attributes:
        settings: Returns what to run with each seed.
        target: The images to evaluate on.
        after: Studies that choose its hyperparameters.
        seeds: All seeds of the scale, those of an ablation, or those for choices, in which candidates race.
        networks: The study that trains the networks, which this one evaluates on corrupted images; None for itself.
    """

    settings: Settings
    target: Target = "validation"
    after: tuple[str, ...] = TUNING
    seeds: Literal["all", "ablation", "choice"] = "all"
    networks: str | None = None


STUDIES: dict[str, Study] = {}


def _study(**attributes: Any) -> Callable[[Settings], Settings]:
    """Registers a study under the name of its function."""

    def register(settings: Settings) -> Settings:
        STUDIES[settings.__name__] = Study(settings, **attributes)
        return settings

    return register


@_study(after=(), seeds="choice")
def baseline(scale: Scale, chosen: Chosen) -> Iterator[Setting]:
    """The network without drop layers, with each candidate learning rate, weight decay and label smoothing."""
    for candidate in scale.baseline:
        yield "none", candidate, _config(scale, {"none": candidate}, "none")


def candidates(scale: Scale, method: str) -> tuple[Options, ...]:
    """Returns the candidates of a method: three rates with each value of its own hyperparameter."""
    values = {
        "places": (("stage1", "stage2"), ("stage2", "stage3")),
        "block_size": scale.candidate_sides,
        "cluster_size": tuple(float(side * side) for side in scale.candidate_sides),
        "threshold_range": ((0.3, 0.6), (0.1, 0.3)),
    }
    tuned = METHODS[method].tuned
    return product(rate=(0.1, 0.2, 0.3), **{tuned: values[tuned]}) if tuned else scale.baseline


@_study(after=("baseline",), seeds="choice")
def choices(scale: Scale, chosen: Chosen) -> Iterator[Setting]:
    """Each method with each of its candidates."""
    for method in _dropping(scale):
        for candidate in candidates(scale, method):
            yield method, candidate, _config(scale, {**chosen, method: candidate}, method)


@_study(target="test")
def headline(scale: Scale, chosen: Chosen) -> Iterator[Setting]:
    """The methods on all training images."""
    for method in scale.methods:
        yield method, {}, _config(scale, chosen, method)


@_study(target="test")
def limited_data(scale: Scale, chosen: Chosen) -> Iterator[Setting]:
    """The methods on subsets of the training images."""
    for fraction in scale.fractions:
        for method, _, config in headline(scale, chosen):
            yield method, {"fraction": fraction}, _on_fraction(scale, config, fraction)


@_study(target="test", networks="limited_data")
def corruption(scale: Scale, chosen: Chosen) -> Iterator[Setting]:
    """Networks of `limited_data` on corrupted test images."""
    for method, setting, config in limited_data(scale, chosen):
        if setting["fraction"] in CORRUPTED_FRACTIONS:
            yield method, setting, config


PLACES = (("stem",), ("stage1",), ("stage2",), ("stage3",), ("stage1", "stage2"), ("stage2", "stage3"))
STEM_LATE = "stem, rate rises from 40 to 100%"  # the recipe of the paper


@_study(seeds="ablation")
def placement(scale: Scale, chosen: Chosen) -> Iterator[Setting]:
    """Drop layers at different places, with blocks and clusters that fit the smallest maps."""
    small = _square(min(4, scale.base.drop.block_size))
    settings: dict[str, Options] = {", ".join(places): {"places": places} for places in PLACES}
    settings[STEM_LATE] = {"places": ("stem",), "ramp_start": 0.4, "ramp_end": 1.0}
    for name, options in settings.items():
        for method in _dropping(scale, among=("dropout", "drop_block", "grid", "drop_cluster")):
            yield method, {"places": name}, _config(scale, chosen, method, **small, **options)


@_study(seeds="ablation")
def rate_and_size(scale: Scale, chosen: Chosen) -> Iterator[Setting]:
    """All combinations of rates and of sizes of blocks and clusters."""
    for side in scale.sides:
        for rate in (0.1, 0.2, 0.3, 0.4):
            for method in _dropping(scale, among=("drop_block", "grid", "drop_cluster")):
                yield method, {"side": side, "rate": rate}, _config(scale, chosen, method, rate=rate, **_square(side))


@_study(seeds="ablation")
def rate_by_fraction(scale: Scale, chosen: Chosen) -> Iterator[Setting]:
    """Rates on subsets of the training images: whether the rate chosen on all of them fits the subsets as well."""
    for fraction in scale.fractions:
        for rate in (0.2, 0.3, 0.4):
            for method in _dropping(scale, among=("drop_block", "grid", "drop_cluster")):
                if fraction < 1:
                    config = _on_fraction(scale, _config(scale, chosen, method, rate=rate), fraction)
                    yield method, {"fraction": fraction, "rate": rate}, config


STRUCTURES: dict[str, Options] = {
    "k-means, shared": {"clusterer": "kmeans"},
    "k-means, shared, learned once": {"clusterer": "kmeans", "update_interval": NEVER_AGAIN},
    "ReNA, shared": {"clusterer": "rena"},
    "grid, shared": {"clusterer": "grid"},
    "Voronoi cells, redrawn": {"clusterer": "voronoi"},
    "random partition, redrawn": {"clusterer": "shuffled"},
    "k-means, per channel": {"clusterer": "kmeans", "per_channel": True},
    "ReNA, per channel": {"clusterer": "rena", "per_channel": True},
    "grid, per channel": {"clusterer": "grid", "per_channel": True},
}


@_study()
def clustering(scale: Scale, chosen: Chosen) -> Iterator[Setting]:
    """Ways to form clusters, with the hyperparameters of DropCluster: whether structure and learning matter.

    The random partition has clusters of the same sizes as k-means, of random positions.
    """
    for method, (name, options) in itertools.product(_dropping(scale, among=("drop_cluster",)), STRUCTURES.items()):
        yield method, {"structure": name}, _config(scale, chosen, method, **options)


@_study()
def clustering_by_fraction(scale: Scale, chosen: Chosen) -> Iterator[Setting]:
    """The ways to form clusters that all channels share, on subsets of the training images."""
    for fraction in scale.fractions:
        for method, setting, config in clustering(scale, chosen):
            if fraction < 1 and not config.drop.per_channel:
                yield method, {"fraction": fraction, **setting}, _on_fraction(scale, config, fraction)


@_study(seeds="ablation")
def update_interval(scale: Scale, chosen: Chosen) -> Iterator[Setting]:
    """Steps between updates of the clusters."""
    default = scale.base.drop.update_interval
    for steps in (max(1, default // 4), default, 4 * default, NEVER_AGAIN):
        options = {"update_interval": steps}
        yield "drop_cluster", options, _config(scale, chosen, "drop_cluster", **options)


RAMPS = {"at once": (0.0, 0.0), "from 10 to 70%": (0.1, 0.7), "from 50 to 100%": (0.5, 1.0)}


@_study(seeds="ablation")
def warm_up(scale: Scale, chosen: Chosen) -> Iterator[Setting]:
    """Ramps of the rate; clusters are updated from the start of the ramp."""
    for name, (start, end) in RAMPS.items():
        for method in _dropping(scale, among=("drop_block", "grid", "drop_cluster")):
            yield method, {"rate_rises": name}, _config(scale, chosen, method, ramp_start=start, ramp_end=end)


@_study(seeds="ablation")
def duration(scale: Scale, chosen: Chosen) -> Iterator[Setting]:
    """Numbers of optimizer steps: whether the networks have converged, and whether their order depends on it."""
    assert scale.base.steps is not None
    for factor in (0.5, 1.0, 2.0):
        steps = round(factor * scale.base.steps)
        for method in scale.methods:
            if method in ("none", "drop_block", "drop_cluster"):
                yield method, {"steps": steps}, override(_config(scale, chosen, method), steps=steps)


MASKS: dict[str, tuple[str, Options]] = {  # a method and its options
    "learned clusters": ("drop_cluster", {"cluster_size": 16.0}),
    "grid": ("grid", {"cluster_size": 16.0}),
    "blocks": ("drop_block", {"block_size": 4}),
    "Voronoi cells": ("drop_cluster", {"clusterer": "voronoi", "cluster_size": 16.0}),
    "positions": ("drop_block", {"block_size": 1}),
    "units": ("dropout", {}),
    "channels": ("spatial_dropout", {}),
}
FILLS = ("zero", "noise", "swap")
FILL_RATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
FIRST_RATE = 0.3
FILL_TUNING = (*TUNING, "fill_choices")


@_study(seeds="choice")
def fill_choices(scale: Scale, chosen: Chosen) -> Iterator[Setting]:
    """Rates for each mask, fill, and fraction of the training images."""
    for fraction, (mask, (method, options)), fill, rate in itertools.product(
        scale.fractions, MASKS.items(), FILLS, FILL_RATES
    ):
        setting = {"fraction": fraction, "mask": mask, "fill": fill, "rate": rate}
        drop = {"places": ("stage1", "stage2"), "fill": fill, "rate": rate, **options}
        if method in scale.methods:
            yield method, setting, _on_fraction(scale, _config(scale, chosen, method, **drop), fraction)


MIXING: dict[str, Options] = {"mixup": {"mixup": 0.2}, "CutMix": {"cutmix": 1.0}}


@_study(target="test", after=FILL_TUNING)
def fills(scale: Scale, chosen: Chosen) -> Iterator[Setting]:
    """The masks and fills at the rates that `fill_choices` has chosen, no drop layer, and mixup and CutMix."""
    for fraction in scale.fractions:
        config = _on_fraction(scale, _config(scale, chosen, "none"), fraction)
        yield "none", {"fraction": fraction}, config
        for name, options in MIXING.items():
            augment = dataclasses.replace(config.augment, **options)
            yield "none", {"fraction": fraction, "mixing": name}, override(config, augment=augment)
    for method, setting, config in fill_choices(scale, chosen):
        if chosen.get(_subject("fill_choices", method, setting)) == {"rate": setting["rate"]}:
            yield method, setting, config


@_study(target="test", after=FILL_TUNING, networks="fills")
def fill_corruption(scale: Scale, chosen: Chosen) -> Iterator[Setting]:
    """Networks of `fills` on corrupted test images."""
    return fills(scale, chosen)


def jobs(study: str, scale: Scale, chosen: Chosen) -> list[Job]:
    """Returns the jobs of a study, for each setting and seed, with the chosen candidate of each method."""
    settings, target, _, which, networks = STUDIES[study]
    seeds = scale.choice_seeds if which == "choice" else scale.seeds
    if which == "ablation":
        seeds = seeds[: scale.ablation_seeds]
    corrupted = None if networks is None else scale.corruption_images or 0
    return [
        Job(
            method,
            setting,
            _with_data(override(config, seed=seed), seed=seed, evaluate_on=target),
            corrupted,
        )
        for method, setting, config in settings(scale, chosen)
        for seed in seeds
    ]


def choose(study: str, scale: Scale, chosen: Chosen, accuracies: Mapping[str, float]) -> tuple[list[Job], Chosen]:
    """Returns the next jobs of a study in which candidates race, empty at the end, and `chosen` with the leaders.

    After each seed, the better half of the candidates of each method remain. In `fill_choices`, the rates of each mask,
    fill and fraction are candidates, and climb from `FIRST_RATE` until both neighbors of the best one are worse.

    Args:
        study: A study with the seeds for choices.
        scale: The scale.
        chosen: Options chosen so far.
        accuracies: Accuracies on the held-out images by job id.
    """
    races: dict[str, dict[str, dict[int, Job]]] = {}
    for job in jobs(study, scale, chosen):
        candidates = races.setdefault(_subject(study, job.method, job.setting), {})
        candidates.setdefault(str(job.setting), {})[job.config.seed] = job
    left: list[Job] = []
    best: dict[str, Options] = {}
    for subject, candidates in races.items():
        by_seed = {(name, seed): job for name, jobs in candidates.items() for seed, job in jobs.items()}
        known = {key: accuracies[job.id] for key, job in by_seed.items() if job.id in accuracies}
        names = list(candidates)
        if study == "fill_choices":
            first = {name: known.get((name, scale.choice_seeds[0])) for name in names}
            names = _climb(first, names[FILL_RATES.index(FIRST_RATE)])
        missing, leader = race(names, known, scale.choice_seeds, reduction=2)
        left += [by_seed[key] for key in missing]
        setting = next(iter(candidates[leader].values())).setting
        best[subject] = {"rate": setting["rate"]} if study == "fill_choices" else setting
    return left, {**chosen, **best}


def _climb(accuracies: Mapping[str, float | None], start: str) -> list[str]:
    """Returns the candidates that have run, the best of them, at first `start`, and its neighbors."""
    known = {name: accuracy for name, accuracy in accuracies.items() if accuracy is not None}
    names = list(accuracies)
    best = names.index(max(known, key=known.__getitem__, default=start))
    return [name for index, name in enumerate(names) if name in known or abs(index - best) <= 1]


def _subject(study: str, method: str, setting: Options) -> str:
    """Returns the name of what a tuning study chooses candidates for."""
    if study != "fill_choices":
        return method
    return f"{setting['mask']}, {setting['fill']}, {setting['fraction']}"


def _dropping(scale: Scale, among: Sequence[str] = tuple(METHODS)) -> list[str]:
    """Returns the methods of a scale, without the network without drop layers."""
    return [method for method in scale.methods if method != "none" and method in among]


def _config(scale: Scale, chosen: Chosen, method: str, **options: Any) -> TrainConfig:
    """Returns the configuration of a method on all training images of the scale."""
    all_options = {**chosen["none"], **METHODS[method].options, **chosen.get(method, {}), **options}
    return _on_fraction(scale, override(scale.base, **all_options), 1.0)


def _on_fraction(scale: Scale, config: TrainConfig, fraction: float) -> TrainConfig:
    """Returns the configuration on a fraction of the training images.

    The number of steps is proportional to the square root of the fraction. With an equal number of steps, a small
    subset would be repeated hundreds of times; with an equal number of epochs, it would get a few dozen steps.
    """
    subset: Options = {"fraction": None if fraction == 1 else fraction}
    if scale.examples_per_class is not None:
        subset = {"examples_per_class": round(fraction * scale.examples_per_class)}
    return override(_with_data(config, **subset), steps=round((scale.base.steps or 0) * fraction**0.5))


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
    update_interval=20,
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
_CPU = override(
    _SMALL,
    model="resnet20",
    steps=930,  # 30 epochs of 4,000 images
    batch_size=128,
    augment=AugmentConfig(shift=0),
)
_GPU = override(
    _SMALL,
    model="resnet50",
    steps=17_600,  # 100 epochs of 45,000 images
    batch_size=256,
    dtype="bfloat16",
    update_interval=200,
    augment=_AUGMENT,
)
_WEIGHT_DECAYS = product(weight_decay=(5e-4, 1e-3, 2e-3))
_CPU_BASELINE = product(learning_rate=(0.03, 0.1, 0.3), weight_decay=(5e-4, 2e-3, 8e-3), label_smoothing=(0.0, 0.1))

_cpu = functools.partial(
    Scale,
    methods=tuple(METHODS),
    seeds=(0, 1, 2, 3, 4),
    choice_seeds=(100, 101),
    baseline=_CPU_BASELINE,
    ablation_seeds=3,
    examples_per_class=400,
    corruption_images=2000,
    fractions=(0.1, 0.25, 1.0),
)
SCALES: dict[str, Scale] = {
    "cpu": _cpu("cpu", _CPU),
    "cpu-augmented": _cpu(
        "cpu-augmented",
        override(_CPU, steps=2 * 930, augment=_AUGMENT),
        candidate_sides=(4,),  # chosen over 7 by all methods without augmentation
    ),
    "gpu": Scale("gpu", _GPU, tuple(METHODS), (0, 1, 2), (100,), _WEIGHT_DECAYS),
    "paper": Scale(
        "paper", override(_GPU, steps=52_800), tuple(METHODS), (0, 1, 2, 3, 4), (100, 101, 102), _WEIGHT_DECAYS
    ),
    "small": Scale(
        "small",
        _SMALL,
        ("none", "drop_block", "grid", "drop_cluster"),
        (0, 1, 2),
        (100,),
        _WEIGHT_DECAYS,
        examples_per_class=200,
        corruption_images=1000,
    ),
}
