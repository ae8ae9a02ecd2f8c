"""What is run: scales, methods, and for each study its runs. Plain values; nothing is trained here.

Every method has the same number of choices of its hyper-parameter, and takes the one that does best on images held out
of the training set (`choices`). The test set is looked at by `headline`, `limited_data` and `corruption` alone; the
other studies are measured on the held-out images, so that defaults may be chosen by them.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

from dropcluster_jax.runs.config import PRESETS, RUNTIME_FIELDS, DataConfig, DropConfig, TrainConfig

Target = Literal["validation", "test"]
ScaleName = Literal["small", "gpu", "paper"]

SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)
CORRUPTED_SHARES = (0.1, 1.0)
# Nine tenths of the training images of the data sets that are streamed.
_EXAMPLES = {"imagenette": 8_522, "imagenet2012": 1_153_050}
NEVER_AGAIN = 10**9  # steps from one update of the clusters to the next: the first is the only one

# By their names in tables.
METHODS: dict[str, dict[str, Any]] = {
    "none": {"method": "none"},
    "dropout": {"method": "dropout"},
    "spatial": {"method": "spatial"},
    "block": {"method": "block"},
    "grid": {"method": "cluster", "clusterer": "grid"},
    "cluster": {"method": "cluster", "clusterer": "kmeans"},
}


class Choice(NamedTuple):
    """A value of the hyper-parameter that is chosen for a method."""

    option: Literal["weight_decay", "rate"]
    value: float


_RATES = tuple(Choice("rate", value) for value in (0.1, 0.2, 0.3))
# The baseline drops nothing, so its choices are of the regularization that it has.
_WEIGHT_DECAYS = tuple(Choice("weight_decay", value) for value in (5e-4, 1e-3, 2e-3))

CHOICES = {method: _WEIGHT_DECAYS if method == "none" else _RATES for method in METHODS}
Chosen = Mapping[str, Choice]


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large a study is.

    Attributes:
        name: of the scale.
        base: the configuration that all runs start from.
        methods: those that are compared, of `METHODS`.
        seeds: of the runs: each decides initialization, order, masks and, of a share of the images, which.
        choice_seeds: of the runs by which hyper-parameters are chosen; others than those.
        examples_per_class: the training images of each class; None for all.
        corruption_images: the number of test images, the first ones, that are corrupted; None for all.
        shares: of the training images, for `limited_data`.
        sides: of blocks and clusters, for `rate_and_size`: as long as the smallest map there at most.
    """

    name: ScaleName
    base: TrainConfig
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    choice_seeds: tuple[int, ...]
    examples_per_class: int | None = None
    corruption_images: int | None = None
    shares: tuple[float, ...] = SHARES
    sides: tuple[int, ...] = (3, 5, 7)

    @property
    def table(self) -> str:
        """The same for runs that may stand in one table, in words."""
        base = self.base
        images = "" if self.examples_per_class is None else f" {self.examples_per_class} a class"
        return f"{self.name}: {base.model} {base.data.name}{images}, {base.steps} steps of {base.batch_size}"


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a study.

    Attributes:
        method: its name in tables.
        setting: what the study varies beside the method, by name.
        config: what is trained, with its seed.
        target: what it is measured on.
        corrupted: the number of test images that are corrupted, 0 for all; None for a run that is trained and measured.
    """

    method: str
    setting: Mapping[str, Any]
    config: TrainConfig
    target: Target
    corrupted: int | None = None

    @functools.cached_property
    def id(self) -> str:
        """The same for the same run, in whatever study."""
        return _digest(_identity(self.config), self.target, self.corrupted)

    @property
    def trained(self) -> "Job":
        """The run whose network this one measures."""
        return dataclasses.replace(self, corrupted=None)

    @functools.cached_property
    def model(self) -> str:
        """The same for runs that train the same network."""
        return _digest(_identity(self.config))

    @property
    def drawn(self) -> bool:
        """Whether the report shows how the clusters of this run came about."""
        drop = self.config.drop
        learned = drop.method == "cluster" and drop.clusterer == "kmeans" and not drop.per_channel
        return learned and self.config.seed == 0 and self.target == "validation"

    @functools.cached_property
    def program(self) -> str:
        """The same for runs of one compiled program: they differ in seeds, rates and shares of the images alone."""
        return _digest(_identity(program_config(self.config)))


def program_config(config: TrainConfig) -> TrainConfig:
    """The configuration without what a compiled program takes as an argument."""
    data = dataclasses.replace(config.data, seed=0, fraction=None, examples_per_class=None)
    return with_drop(dataclasses.replace(config, seed=0, data=data), rate=0.0)


def seeded(config: TrainConfig, seed: int) -> TrainConfig:
    """With this seed, for the run and for its share of the images."""
    return dataclasses.replace(config, seed=seed, data=dataclasses.replace(config.data, seed=seed))


def with_drop(config: TrainConfig, **changes: Any) -> TrainConfig:
    """With these values of `DropConfig`."""
    return dataclasses.replace(config, drop=dataclasses.replace(config.drop, **changes))


def for_dataset(scale: Scale, name: str) -> Scale:
    """The scale on another data set: a streamed one by the recipe of its preset, others mirrored where theirs may be.

    Blocks and clusters are of 4x4 positions where a streamed one's last maps are of 7x7, and smaller on digits.
    """
    own = {config.data.name: config for _, config in PRESETS.values()}.get(name)
    augment = scale.base.augment
    if own is not None:
        augment = dataclasses.replace(augment, flip=own.augment.flip)
    base = dataclasses.replace(scale.base, data=DataConfig(name=name), augment=augment)
    if own is None:
        return dataclasses.replace(scale, base=base)
    if own.data.image_size is not None:
        steps = round(own.epochs * (_EXAMPLES[name] // own.batch_size))
        base = dataclasses.replace(own, steps=steps, drop=dataclasses.replace(own.drop, **_sized(4)))
        return dataclasses.replace(scale, base=base, examples_per_class=None)
    if name == "digits":
        return dataclasses.replace(scale, base=with_drop(base, **_sized(2)), examples_per_class=None, sides=(2, 3, 4))
    return dataclasses.replace(scale, base=base)


def _sized(side: int) -> dict[str, Any]:
    """Blocks of so many positions a side, and clusters of as many positions on average."""
    return {"block_size": side, "cluster_size": float(side * side)}


def choices(scale: Scale, chosen: Chosen) -> list[Job]:
    """Every method with each of its choices."""
    return [
        Job(method, choice._asdict(), seeded(_method(scale, method, choice), seed), "validation")
        for method in scale.methods
        for choice in CHOICES[method]
        for seed in scale.choice_seeds
    ]


def headline(scale: Scale, chosen: Chosen) -> list[Job]:
    """The methods on all training images."""
    return _each_seed(scale, "test", ((method, {}, _method(scale, method, chosen[method])) for method in scale.methods))


def limited_data(scale: Scale, chosen: Chosen) -> list[Job]:
    """The methods on shares of the training images.

    The number of steps goes with the square root of the share: as many for each would take a small one hundreds of
    times through its images, as many epochs would leave it with a few dozen steps.
    """
    return _each_seed(
        scale,
        "test",
        (
            (method, {"share": share}, _share(scale, _method(scale, method, chosen[method]), share))
            for share in scale.shares
            for method in scale.methods
        ),
    )


def corruption(scale: Scale, chosen: Chosen) -> list[Job]:
    """Networks of `limited_data` on corrupted test images; those of all training images are also `headline`'s."""
    return [
        dataclasses.replace(job, corrupted=scale.corruption_images or 0)
        for job in limited_data(scale, chosen)
        if job.setting["share"] in CORRUPTED_SHARES
    ]


def placement(scale: Scale, chosen: Chosen) -> list[Job]:
    """Where the drop layers stand; their parts are so small that maps of 8x8, the last, have room for four."""
    where = [("stem",), ("stage1",), ("stage2",), ("stage3",), ("stage1", "stage2"), ("stage2", "stage3")]
    small = _sized(min(4, scale.base.drop.block_size))
    return _each_seed(
        scale,
        "validation",
        (
            (
                method,
                {"places": ", ".join(places)},
                with_drop(_method(scale, method, chosen[method]), places=places, **small),
            )
            for places in where
            for method in scale.methods
            if method != "none"
        ),
    )


def rate_and_size(scale: Scale, chosen: Chosen) -> list[Job]:
    """How much is dropped, and how large its parts are."""
    return _each_seed(
        scale,
        "validation",
        (
            (method, {"side": side, "rate": rate}, with_drop(_method(scale, method), rate=rate, **_sized(side)))
            for side in scale.sides
            for method in scale.methods
            if method in ("block", "grid", "cluster")
            for rate in (0.1, 0.2, 0.3, 0.4)
        ),
    )


STRUCTURES: dict[str, dict[str, Any]] = {
    "k-means, shared": {"clusterer": "kmeans"},
    "k-means, shared, learned once": {"clusterer": "kmeans", "update_every": NEVER_AGAIN},
    "ReNA, shared": {"clusterer": "rena"},
    "grid, shared": {"clusterer": "grid"},
    "k-means, per channel": {"clusterer": "kmeans", "per_channel": True},
    "ReNA, per channel": {"clusterer": "rena", "per_channel": True},
    "grid, per channel": {"clusterer": "grid", "per_channel": True},
}


def clustering(scale: Scale, chosen: Chosen) -> list[Job]:
    """Does learning the structure, and keeping it up to date, matter? All at the rate chosen for DropCluster."""
    return _each_seed(
        scale,
        "validation",
        (
            ("cluster", {"structure": name}, with_drop(_method(scale, "cluster", chosen["cluster"]), **structure))
            for name, structure in STRUCTURES.items()
        ),
    )


def cadence(scale: Scale, chosen: Chosen) -> list[Job]:
    """How often clusters are updated."""
    often = scale.base.drop.update_every
    cluster = _method(scale, "cluster", chosen["cluster"])
    return _each_seed(
        scale,
        "validation",
        (
            ("cluster", {"update_every": steps}, with_drop(cluster, update_every=steps))
            for steps in (max(1, often // 4), often, 4 * often, NEVER_AGAIN)
        ),
    )


RAMPS = {"at once": (0.0, 0.0), "from 10 to 70 %": (0.1, 0.7), "from 50 to 100 %": (0.5, 1.0)}


def warm_up(scale: Scale, chosen: Chosen) -> list[Job]:
    """When in the course of training the rate rises; clusters are learned from its beginning on."""
    return _each_seed(
        scale,
        "validation",
        (
            (
                method,
                {"rate_rises": name},
                with_drop(_method(scale, method, chosen[method]), ramp_start=start, ramp_end=end),
            )
            for name, (start, end) in RAMPS.items()
            for method in scale.methods
            if method != "none"
        ),
    )


Study = Callable[[Scale, Chosen], list[Job]]
STUDIES: dict[str, Study] = {
    study.__name__: study
    for study in (choices, headline, limited_data, corruption, placement, rate_and_size, clustering, cadence, warm_up)
}


def _method(scale: Scale, method: str, choice: Choice | None = None) -> TrainConfig:
    config = with_drop(_share(scale, scale.base, 1.0), **METHODS[method])
    if choice is None:
        return config
    if choice.option == "rate":
        return with_drop(config, rate=choice.value)
    return dataclasses.replace(config, weight_decay=choice.value)


def _share(scale: Scale, config: TrainConfig, share: float) -> TrainConfig:
    part: dict[str, Any] = {"fraction": None if share == 1 else share}
    if scale.examples_per_class is not None:
        part = {"examples_per_class": round(share * scale.examples_per_class)}
    steps = round((config.steps or 0) * share**0.5)
    return dataclasses.replace(config, steps=steps, data=dataclasses.replace(config.data, **part))


def _each_seed(
    scale: Scale, target: Target, settings: Iterable[tuple[str, Mapping[str, Any], TrainConfig]]
) -> list[Job]:
    return [
        Job(method, setting, seeded(config, seed), target)
        for method, setting, config in settings
        for seed in scale.seeds
    ]


def _identity(config: TrainConfig) -> dict[str, Any]:
    """The configuration without what changes only how a run goes."""
    content = config.to_json()
    for part, names in RUNTIME_FIELDS.items():
        for name in names:
            del (content[part] if part else content)[name]
    return content


def _digest(*content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


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
    drop=_DROP,
    data=DataConfig(name="cifar10"),
    augment=dataclasses.replace(PRESETS["cifar10"][1].augment, shift=0),
)
_GPU = dataclasses.replace(
    _SMALL,
    model="resnet50",
    steps=17_600,  # of 45,000 images, 100 epochs
    batch_size=256,
    dtype="bfloat16",
    drop=dataclasses.replace(_DROP, update_every=200),
    augment=PRESETS["cifar10"][1].augment,
)
_FOUR = ("none", "block", "grid", "cluster")

SCALES: dict[str, Scale] = {
    "small": Scale("small", _SMALL, _FOUR, (0, 1, 2), (100,), examples_per_class=200, corruption_images=1000),
    "gpu": Scale("gpu", _GPU, tuple(METHODS), (0, 1, 2), (100,)),
    "paper": Scale("paper", dataclasses.replace(_GPU, steps=52_800), tuple(METHODS), (0, 1, 2, 3, 4), (100, 101, 102)),
}
