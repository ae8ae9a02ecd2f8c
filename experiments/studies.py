"""The studies: scales, methods, and the jobs of each study. Nothing is trained here.

First the network without drop layers is tuned (`baseline`); all methods share its learning rate, weight decay and label
smoothing. Then each method uses the best of its candidate hyperparameters (`choices`, and `fill_choices` for masks and
fills). Only the studies in `ON_TEST_SET` use the test set; all others are evaluated on images held out from the
training set, so that defaults can be chosen from them.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from dropcluster_jax.data import DATASETS
from dropcluster_jax.runs import PRESETS, AugmentConfig, CheckpointConfig, DataConfig, DropConfig, TrainConfig
from dropcluster_jax.runs.config import without_runtime_fields

Target = Literal["validation", "test"]
ScaleName = Literal["cpu", "cpu-augmented", "gpu", "paper", "small"]
MethodName = Literal[
    "none",
    "dropout",
    "spatial_dropout",
    "drop_block",
    "corr_drop",
    "focused_dropout",
    "grid",
    "drop_cluster",
    "rena",
    "per-channel",
]
StudyName = Literal[
    "baseline",
    "choices",
    "headline",
    "limited_data",
    "corruption",
    "placement",
    "rate_and_size",
    "rate_by_fraction",
    "clustering",
    "clustering_by_fraction",
    "update_interval",
    "warm_up",
    "duration",
    "features",
    "fill_choices",
    "fills",
    "fill_corruption",
]
Options = Mapping[str, Any]  # values of fields of `TrainConfig` or `DropConfig`, by name

FRACTIONS = (0.05, 0.1, 0.25, 0.5, 1.0)
CORRUPTED_FRACTIONS = (0.1, 1.0)
VALIDATION_FRACTION = 0.1
NEVER_AGAIN = 10**9  # steps between updates of clusters that are learned once
NUM_CHECKPOINTS = 10  # of a run in `features`


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
        ablation_seeds: Number of seeds in `ABLATIONS`; None for all.
        examples_per_class: Number of training images of each class; None for all.
        corruption_images: Number of test images to corrupt; None for all.
        fractions: Fractions of the training images in `limited_data`.
        sides: Sides of blocks and clusters in `rate_and_size`, at most the side of the smallest map.
        candidate_sides: Sides of blocks and clusters to choose from.
    """

    name: ScaleName
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
        probed: Whether the result includes how much variance clusters explain in the features of each checkpoint.
    """

    method: str
    setting: Mapping[str, Any]
    config: TrainConfig
    corrupted: int | None = None
    probed: bool = False

    @functools.cached_property
    def id(self) -> str:
        """Equal for equal runs, in all studies."""
        content = [without_runtime_fields(self.config), self.corrupted, *(["probed"] if self.probed else [])]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

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


def baseline(scale: Scale, chosen: Mapping[str, Options]) -> Iterator[Setting]:
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


def choices(scale: Scale, chosen: Mapping[str, Options]) -> Iterator[Setting]:
    """Each method with each of its candidates."""
    for method in _dropping(scale):
        for candidate in candidates(scale, method):
            yield method, candidate, _config(scale, {**chosen, method: candidate}, method)


def headline(scale: Scale, chosen: Mapping[str, Options]) -> Iterator[Setting]:
    """The methods on all training images."""
    for method in scale.methods:
        yield method, {}, _config(scale, chosen, method)


def limited_data(scale: Scale, chosen: Mapping[str, Options]) -> Iterator[Setting]:
    """The methods on subsets of the training images.

    The number of steps is proportional to the square root of the fraction. With an equal number of steps, a small
    subset would be repeated hundreds of times; with an equal number of epochs, it would get a few dozen steps.
    """
    for fraction in scale.fractions:
        for method in scale.methods:
            yield method, {"fraction": fraction}, _config(scale, chosen, method, fraction=fraction)


def corruption(scale: Scale, chosen: Mapping[str, Options]) -> Iterator[Setting]:
    """Networks of `limited_data` on corrupted test images."""
    for method, setting, config in limited_data(scale, chosen):
        if setting["fraction"] in CORRUPTED_FRACTIONS:
            yield method, setting, config


PLACES = (("stem",), ("stage1",), ("stage2",), ("stage3",), ("stage1", "stage2"), ("stage2", "stage3"))
STEM_LATE = "stem, rate rises from 40 to 100%"  # the recipe of the paper


def placement(scale: Scale, chosen: Mapping[str, Options]) -> Iterator[Setting]:
    """Drop layers at different places, with blocks and clusters that fit the smallest maps."""
    small = _square(min(4, scale.base.drop.block_size))
    settings: dict[str, Options] = {", ".join(places): {"places": places} for places in PLACES}
    settings[STEM_LATE] = {"places": ("stem",), "ramp_start": 0.4, "ramp_end": 1.0}
    for name, options in settings.items():
        for method in _dropping(scale, among=("dropout", "drop_block", "grid", "drop_cluster")):
            yield method, {"places": name}, _config(scale, chosen, method, **small, **options)


def rate_and_size(scale: Scale, chosen: Mapping[str, Options]) -> Iterator[Setting]:
    """All combinations of rates and of sizes of blocks and clusters."""
    for side in scale.sides:
        for rate in (0.1, 0.2, 0.3, 0.4):
            for method in _dropping(scale, among=("drop_block", "grid", "drop_cluster")):
                yield method, {"side": side, "rate": rate}, _config(scale, chosen, method, rate=rate, **_square(side))


def rate_by_fraction(scale: Scale, chosen: Mapping[str, Options]) -> Iterator[Setting]:
    """Rates on subsets of the training images: whether the rate chosen on all of them fits the subsets as well."""
    for fraction in scale.fractions:
        for rate in (0.2, 0.3, 0.4):
            for method in _dropping(scale, among=("drop_block", "grid", "drop_cluster")):
                if fraction < 1:
                    config = _config(scale, chosen, method, fraction=fraction, rate=rate)
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


def clustering(scale: Scale, chosen: Mapping[str, Options]) -> Iterator[Setting]:
    """Ways to form clusters, with the hyperparameters of DropCluster: whether structure and learning matter.

    The random partition has clusters of the same sizes as k-means, of random positions.
    """
    for name, options in STRUCTURES.items():
        yield "drop_cluster", {"structure": name}, _config(scale, chosen, "drop_cluster", **options)


def clustering_by_fraction(scale: Scale, chosen: Mapping[str, Options]) -> Iterator[Setting]:
    """The ways to form clusters that all channels share, on subsets of the training images."""
    for fraction in scale.fractions:
        for name, options in STRUCTURES.items():
            if fraction < 1 and not options.get("per_channel"):
                config = _config(scale, chosen, "drop_cluster", fraction=fraction, **options)
                yield "drop_cluster", {"fraction": fraction, "structure": name}, config


def update_interval(scale: Scale, chosen: Mapping[str, Options]) -> Iterator[Setting]:
    """Steps between updates of the clusters."""
    default = scale.base.drop.update_interval
    for steps in (max(1, default // 4), default, 4 * default, NEVER_AGAIN):
        options = {"update_interval": steps}
        yield "drop_cluster", options, _config(scale, chosen, "drop_cluster", **options)


RAMPS = {"at once": (0.0, 0.0), "from 10 to 70%": (0.1, 0.7), "from 50 to 100%": (0.5, 1.0)}


def warm_up(scale: Scale, chosen: Mapping[str, Options]) -> Iterator[Setting]:
    """Ramps of the rate; clusters are updated from the start of the ramp."""
    for name, (start, end) in RAMPS.items():
        for method in _dropping(scale, among=("drop_block", "grid", "drop_cluster")):
            yield method, {"rate_rises": name}, _config(scale, chosen, method, ramp_start=start, ramp_end=end)


def duration(scale: Scale, chosen: Mapping[str, Options]) -> Iterator[Setting]:
    """Numbers of optimizer steps: whether the networks have converged, and whether their order depends on it."""
    assert scale.base.steps is not None
    for factor in (0.5, 1.0, 2.0):
        steps = round(factor * scale.base.steps)
        for method in scale.methods:
            if method in ("none", "drop_block", "drop_cluster"):
                yield method, {"steps": steps}, override(_config(scale, chosen, method), steps=steps)


def features(scale: Scale, chosen: Mapping[str, Options]) -> Iterator[Setting]:
    """The variance that clusters explain in the features of each place during training.

    The clusters are learned from saved networks in the same way for all methods.
    """
    for method in scale.methods:
        if method in ("none", "drop_block", "drop_cluster"):
            config = _config(scale, chosen, method)
            assert config.steps is not None
            # Twice as many are kept, because an interruption adds one.
            checkpoint = CheckpointConfig(every=max(1, config.steps // NUM_CHECKPOINTS), keep=2 * NUM_CHECKPOINTS)
            yield method, {}, override(config, checkpoint=checkpoint)


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


def fill_choices(scale: Scale, chosen: Mapping[str, Options]) -> Iterator[Setting]:
    """Rates for each mask, fill, and fraction of the training images."""
    for fraction, (mask, (method, options)), fill, rate in itertools.product(
        scale.fractions, MASKS.items(), FILLS, FILL_RATES
    ):
        setting = {"fraction": fraction, "mask": mask, "fill": fill, "rate": rate}
        drop = {"places": ("stage1", "stage2"), "fill": fill, "rate": rate, **options}
        if method in scale.methods:
            yield method, setting, _config(scale, chosen, method, fraction=fraction, **drop)


MIXING: dict[str, Options] = {"mixup": {"mixup": 0.2}, "CutMix": {"cutmix": 1.0}}


def fills(scale: Scale, chosen: Mapping[str, Options]) -> Iterator[Setting]:
    """The masks and fills at the rates that `fill_choices` has chosen, no drop layer, and mixup and CutMix."""
    for fraction in scale.fractions:
        config = _config(scale, chosen, "none", fraction=fraction)
        yield "none", {"fraction": fraction}, config
        for name, options in MIXING.items():
            augment = dataclasses.replace(config.augment, **options)
            yield "none", {"fraction": fraction, "mixing": name}, override(config, augment=augment)
    for method, setting, config in fill_choices(scale, chosen):
        if chosen.get(_subject("fill_choices", method, setting)) == {"rate": setting["rate"]}:
            yield method, setting, config


def fill_corruption(scale: Scale, chosen: Mapping[str, Options]) -> Iterator[Setting]:
    """Networks of `fills` on corrupted test images."""
    return fills(scale, chosen)


STUDIES: dict[str, Callable[[Scale, Mapping[str, Options]], Iterator[Setting]]] = {
    study.__name__: study
    for study in (
        baseline,
        choices,
        headline,
        limited_data,
        corruption,
        placement,
        rate_and_size,
        rate_by_fraction,
        clustering,
        clustering_by_fraction,
        update_interval,
        warm_up,
        duration,
        features,
        fill_choices,
        fills,
        fill_corruption,
    )
}
TUNING = ("baseline", "choices")
RACES = (*TUNING, "fill_choices")  # studies that choose hyperparameters
CORRUPTED = {"corruption": "limited_data", "fill_corruption": "fills"}  # the study that trains the networks
ON_TEST_SET = ("headline", "limited_data", "fills", *CORRUPTED)
ABLATIONS = ("placement", "rate_and_size", "rate_by_fraction", "update_interval", "warm_up", "duration", "features")


def jobs(study: str, scale: Scale, chosen: Mapping[str, Options]) -> list[Job]:
    """Returns the jobs of a study, for each setting and seed, with the chosen candidate of each method."""
    seeds = scale.choice_seeds if study in RACES else scale.seeds
    if study in ABLATIONS:
        seeds = seeds[: scale.ablation_seeds]
    corrupted = (scale.corruption_images or 0) if study in CORRUPTED else None
    target = "test" if study in ON_TEST_SET else "validation"
    return [
        Job(
            method,
            setting,
            _with_data(override(config, seed=seed), seed=seed, evaluate_on=target),
            corrupted,
            probed=study == "features",
        )
        for method, setting, config in STUDIES[study](scale, chosen)
        for seed in seeds
    ]


def tuning_before(study: str) -> tuple[str, ...]:
    """Returns the studies that choose hyperparameters for a study."""
    if study in RACES:
        return RACES[: RACES.index(study)]
    return RACES if study in ("fills", "fill_corruption") else TUNING


def remaining(study: str, scale: Scale, chosen: Mapping[str, Options], accuracies: Mapping[str, float]) -> list[Job]:
    """Returns the next jobs of a tuning study, in which candidates race: empty if the choices are made.

    All candidates run with the first seed; in `fill_choices`, rates climb from `FIRST_RATE` until both neighbors of the
    best one are worse. With each further seed, only the better half of the candidates of each method, or of each mask,
    fill and fraction, remain.

    Args:
        study: One of `RACES`.
        scale: The scale.
        chosen: Options chosen so far.
        accuracies: Accuracies on the held-out images by job id.
    """
    races: dict[str, dict[str, list[Job]]] = {}
    for job in jobs(study, scale, chosen):
        candidates = races.setdefault(_subject(study, job.method, job.setting), {})
        candidates.setdefault(str(job.setting), []).append(job)
    left: list[Job] = []
    for candidates in races.values():
        running = list(candidates.values())
        if study == "fill_choices":
            running = _climb(running, accuracies)
        for index in range(len(scale.choice_seeds)):
            missing = [candidate[index] for candidate in running if candidate[index].id not in accuracies]
            if missing:
                left += missing
                break
            running.sort(key=lambda candidate: sum(accuracies[job.id] for job in candidate[: index + 1]), reverse=True)
            del running[math.ceil(len(running) / 2) :]
    return left


def _climb(candidates: Sequence[list[Job]], accuracies: Mapping[str, float]) -> list[list[Job]]:
    """Returns the best rate with the first seed and its neighbors, or the first rate, and all that have run."""

    def accuracy(jobs: list[Job]) -> float:
        return accuracies.get(jobs[0].id, 0.0 if jobs[0].setting["rate"] == FIRST_RATE else -1.0)

    best = max(range(len(candidates)), key=lambda index: accuracy(candidates[index]))
    has_run = candidates[best][0].id in accuracies
    return [
        jobs
        for index, jobs in enumerate(candidates)
        if index == best or jobs[0].id in accuracies or (has_run and abs(index - best) == 1)
    ]


def choose(
    study: str, scale: Scale, chosen: Mapping[str, Options], accuracies: Mapping[str, float]
) -> dict[str, Options]:
    """Returns `chosen` and, for each method of a tuning study, the candidate with the best mean accuracy.

    Args:
        study: One of `RACES`; `"fill_choices"` chooses a rate for each mask, fill and fraction.
        scale: The scale.
        chosen: Options chosen so far.
        accuracies: Accuracies on the held-out images by job id. Candidates without results count as 0, and the first
            one is chosen on ties. Candidates that left the race have fewer results, so they are not chosen.
    """
    totals: dict[tuple[str, str], float] = {}
    settings: dict[tuple[str, str], Options] = {}
    for job in jobs(study, scale, chosen):
        candidate = _subject(study, job.method, job.setting), str(job.setting)
        settings[candidate] = {"rate": job.setting["rate"]} if study == "fill_choices" else job.setting
        totals[candidate] = totals.get(candidate, 0.0) + accuracies.get(job.id, 0.0)
    best: dict[str, tuple[str, str]] = {}
    for candidate in totals:
        best[candidate[0]] = max(best.get(candidate[0], candidate), candidate, key=totals.__getitem__)
    return {**chosen, **{subject: settings[candidate] for subject, candidate in best.items()}}


def _subject(study: str, method: str, setting: Options) -> str:
    """Returns the name of what a tuning study chooses candidates for."""
    if study != "fill_choices":
        return method
    return f"{setting['mask']}, {setting['fill']}, {setting['fraction']}"


def _dropping(scale: Scale, among: Sequence[str] = tuple(METHODS)) -> list[str]:
    """Returns the methods of a scale, without the network without drop layers."""
    return [method for method in scale.methods if method != "none" and method in among]


def _config(
    scale: Scale, chosen: Mapping[str, Options], method: str, *, fraction: float = 1.0, **options: Any
) -> TrainConfig:
    """Returns the configuration of a method on a fraction of the training images."""
    subset: Options = {"fraction": None if fraction == 1 else fraction}
    if scale.examples_per_class is not None:
        subset = {"examples_per_class": round(fraction * scale.examples_per_class)}
    steps = round((scale.base.steps or 0) * fraction**0.5)
    all_options = {**chosen["none"], **METHODS[method].options, **chosen.get(method, {}), **options}
    return override(_with_data(scale.base, **subset), steps=steps, **all_options)


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
