"""Tables and figures from the result files alone: `python -m experiments.report`.

Writes `docs/results.md`, its figures, and what README quotes. The same files give the same bytes.
"""

import dataclasses
import pathlib
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

import tyro
from matplotlib.figure import Figure

from dropcluster_jax.viz import cluster_history_figure
from experiments import figures, results, studies
from experiments.intervals import Interval, interval, paired, verdict
from experiments.results import Line
from experiments.training import decode

_ROOT = pathlib.Path(__file__).parents[1]
_BEGIN, _END = "<!-- made by python -m experiments.report -->", "<!-- end -->"

NAMES = {
    "none": "no drop layer",
    "dropout": "dropout",
    "spatial": "spatial dropout",
    "block": "DropBlock",
    "grid": "fixed grid",
    "cluster": "DropCluster",
}
_TO_NONE = "difference to no drop layer, points"
_MINUS = "\N{MINUS SIGN}"

PREFACE = """# Results

Made by `python -m experiments.report` from the files in `experiments/results/`, one line for each run; the same files
give this page again, byte for byte. `python -m experiments.run STUDY` makes them.

**How to read it.** Accuracies are in %, differences in points. A number is a mean over seeds, with its 95 % interval
(Student's t). A seed decides the initial weights, the order of the images, the masks and which share of the images is
learned from, and is the same for all methods, so that differences are taken seed by seed. "Better" and "worse" are said
where the interval of the difference leaves out 0, "not told apart" elsewhere; each interval stands for itself, so of
twenty one may be wrong, and tells of other seeds, not of other test images, which are the same for all. Every method
had the same number of choices of its hyper-parameter, and took the one that did best, with all the images, on a tenth
of the training set, which is never trained on. All methods have the same schedule, augmentation and seeds. The test set
was used for *limited data*, *headline* and *corruption* alone; the other studies are measured on the held-out images. A
run whose loss was not finite counts with the accuracy that its network has, or as chance. The share that is dropped is
the rate, for all methods: DropBlock's probability of a block's center is solved for it. The fixed grid is DropCluster
whose clusters stay the tiles that they begin as: what it lacks is the learning.
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """From where, and where to."""

    results: pathlib.Path = results.FOLDER
    """The folder of the result files."""
    docs: pathlib.Path = _ROOT / "docs"
    """Where results.md and figures/ go."""
    readme: pathlib.Path | None = _ROOT / "README.md"
    """The file in which results are quoted, between two marks."""


def write(options: Options) -> None:
    """Write the report.

    Raises:
        ValueError: there is no result, a damaged line, or a README without the marks.
    """
    lines = [line for study in studies.STUDIES for line in results.read(options.results / f"{study}.jsonl")]
    if not lines:
        raise ValueError(f"{options.results} holds no result; python -m experiments.run makes some")
    # Whatever order runs were finished and files merged in.
    lines.sort(key=lambda line: (line["study"], _rank(line["method"]), str(line["setting"]), line["seed"], line["id"]))
    _check_once(lines)
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(line["table"], []).append(line)
    scales = list(studies.SCALES)
    groups = dict(sorted(groups.items(), key=lambda item: (scales.index(item[1][0]["scale"]), item[0])))

    text = [PREFACE]
    (options.docs / "figures").mkdir(parents=True, exist_ok=True)
    for table, group in groups.items():
        text += _section(group, options.docs / "figures", table)
    text += _provenance(lines)
    (options.docs / "results.md").write_text("\n".join(text).rstrip() + "\n")
    if options.readme is not None:
        quoted = [groups[scale.table] for scale in studies.SCALES.values() if scale.table in groups]
        _quote(options.readme, "\n".join(part for group in quoted for part in _title_and_claims(group, "### ")))


def _check_once(lines: Iterable[Line]) -> None:
    """Refuse to mix runs of different hyper-parameters in one mean."""
    seen: set[str] = set()
    for line in lines:
        place = f"{line['table']}, {line['study']}, {line['method']}, {line['setting']}, seed {line['seed']}"
        if place in seen:
            raise ValueError(f"two runs stand for one: {place}; remove those whose hyper-parameters no longer hold")
        seen.add(place)


def _section(lines: list[Line], folder: pathlib.Path, table: str) -> list[str]:
    text = _title_and_claims(lines, "## ")
    name = re.sub(r"[^a-z0-9]+", "-", table.lower())
    for study, chapter in _CHAPTERS.items():
        if own := _of(lines, study=study):
            text += chapter(own, folder / f"{study.replace('_', '-')}-{name}")
    return text


def _title_and_claims(lines: list[Line], mark: str) -> list[str]:
    """What was run, and what it says of each claim."""
    first = lines[0]
    largest = max((line["config"] for line in lines), key=lambda config: config["steps"])
    data, drop = largest["data"], largest["drop"]
    images = (
        f"{data['examples_per_class']} training images of each class"
        if data["examples_per_class"]
        else "all training images"
    )
    rows = [[claim, _difference(found), _SAYS[verdict(found)]] for claim, found in _claims(lines) if found is not None]
    return [
        f"{mark}{first['model'].replace('resnet', 'ResNet-')} on {first['dataset']}, scale `{first['scale']}`\n",
        f"Up to {images}, {largest['steps']:,} steps of {largest['batch_size']}; blocks of "
        f"{drop['block_size']}x{drop['block_size']}, clusters of {drop['cluster_size']:g} positions on average.\n",
        *(_table(["claim", "difference in points, 95 % interval", ""], rows) if rows else []),
    ]


_SAYS = {"better": "**supported**", "worse": "**contradicted**", "not told apart": "open"}


def _claims(lines: list[Line]) -> list[tuple[str, Interval | None]]:
    """The paper's claims, and that on which the method stands: that learning the clusters matters."""
    limited, corrupted = _of(lines, study="limited_data"), _of(lines, study="corruption")
    whole = _of(limited, share=1.0) or _of(lines, study="headline")
    little = [_of(limited, share=share) for share in (0.05, 0.1)]
    shares = [_of(limited, share=share) for share in studies.SHARES]
    worse = [_of(corrupted, share=1.0)]
    placed = _of(lines, study="placement")
    places = [_of(placed, places=where) for where in sorted({line["setting"]["places"] for line in placed})]
    return [
        ("DropCluster does better than no drop layer, all images", _versus([whole], "none")),
        ("DropCluster does better than no drop layer, mean over all shares", _versus(shares, "none")),
        ("DropCluster does better than DropBlock, all images", _versus([whole], "block")),
        ("DropCluster does better than DropBlock, mean over all shares", _versus(shares, "block")),
        ("DropCluster does better than DropBlock, 5 and 10 % of the images", _versus(little, "block")),
        ("DropCluster does better than DropBlock, corrupted test images", _versus(worse, "block")),
        ("learned clusters do better than a fixed grid, mean over all shares", _versus(shares, "grid")),
        ("learned clusters do better than a fixed grid, corrupted test images", _versus(worse, "grid")),
        ("learned clusters do better than a fixed grid, mean over places, held-out images", _versus(places, "grid")),
        ("DropCluster does better than DropBlock, mean over places, held-out images", _versus(places, "block")),
    ]


def _headline(lines: list[Line], figure: pathlib.Path) -> list[str]:
    methods = _methods(lines)
    rows = [[NAMES[method], _accuracy(_by_seed(lines, method))] for method in methods]
    return ["### Headline\n", *_table(["method", "accuracy"], rows), *_against(methods, {"all images": [lines]})]


def _limited_data(lines: list[Line], figure: pathlib.Path) -> list[str]:
    shares, methods = sorted({line["setting"]["share"] for line in lines}), _methods(lines)
    at = {_percent(share): _of(lines, share=share) for share in shares}
    rows = [[NAMES[method], *(_accuracy(_by_seed(here, method)) for here in at.values())] for method in methods]
    losses = [[NAMES[method], *(_loss(_of(here, method=method)) for here in at.values())] for method in methods]
    drawn = figures.curves(
        {NAMES[method]: [_mean(_by_seed(here, method)) for here in at.values()] for method in methods},
        _to_none(methods, [lambda method, here=here: _by_seed(here, method) for here in at.values()]),
        [100 * share for share in shares],
        ("share of the training images, %", "test accuracy, %", _TO_NONE),
        log=True,
    )
    return [
        "### Limited data\n",
        f"Accuracy on the {lines[0]['count']:,} test images, by the share of the training images.\n",
        *_table(["method", *at], rows),
        *_against(methods, {**{share: [here] for share, here in at.items()}, "mean": list(at.values())}),
        *_drawn(drawn, figure, "Accuracy against the share of the training images, with 95 % intervals."),
        "Training loss at the end, with what is dropped: near 0 the images are known by heart, and there is something "
        "to regularize.\n",
        *_table(["method", *at], losses),
        *_cost(lines),
    ]


def _to_none(
    methods: Sequence[str], accuracies: Sequence[Callable[[str], Mapping[int, float]]]
) -> dict[str, list[Interval | None]]:
    """For each method its differences to no drop layer, in points; empty where that was not run."""

    def difference(points: Callable[[str], Mapping[int, float]], method: str) -> Interval | None:
        ours, theirs = ({seed: 100 * it for seed, it in points(one).items()} for one in (method, "none"))
        return paired(ours, theirs)

    others = [method for method in methods if method != "none"] if "none" in methods else []
    return {NAMES[method]: [difference(points, method) for points in accuracies] for method in others}


def _loss(lines: Sequence[Line]) -> str:
    known = [line["train_loss"] for line in lines if line["train_loss"] is not None]
    return f"{statistics.mean(known):.2f}" if known else ""


def _cost(lines: Sequence[Line]) -> list[str]:
    """Training speed beside that of the network without drop layers."""
    # On one kind of device, the one that most runs were on.
    alike: dict[tuple[str, int], list[Line]] = {}
    for line in lines:
        if line["images_per_second"] is not None:
            alike.setdefault((line["device"], line["together"]), []).append(line)
    found = max(alike.values(), key=len, default=[])
    speeds = {
        method: statistics.median(line["images_per_second"] for line in _of(found, method=method))
        for method in _methods(found)
    }
    if "none" not in speeds:
        return []
    rows = [[NAMES[method], f"{speed:,.0f}", f"{speed / speeds['none']:.2f}"] for method, speed in speeds.items()]
    return [
        "What it costs: training images a second, the median over these runs, updates of the clusters included.\n",
        *_table(["method", "images/s", "of that without"], rows),
    ]


def _corruption(lines: list[Line], figure: pathlib.Path) -> list[str]:
    shares, methods = sorted({line["setting"]["share"] for line in lines}), _methods(lines)
    at = {_percent(share): _of(lines, share=share) for share in shares}
    rows = [[NAMES[method], *(_accuracy(_by_seed(here, method)) for here in at.values())] for method in methods]
    largest, whole = list(at.items())[-1]
    origins = {name: one["origin"] for name, one in whole[0]["corruptions"].items()}
    each = [
        [name.replace("_", " "), *(_accuracy(_corrupted(whole, method, [name])) for method in methods)]
        for name in origins
    ]
    drawn = figures.curves(
        {NAMES[it]: [_mean(_corrupted(whole, it, origins, [severity])) for severity in range(5)] for it in methods},
        _to_none(methods, [lambda it, at=at: _corrupted(whole, it, origins, [at]) for at in range(5)]),
        range(1, 6),
        ("severity", "test accuracy, %, mean over 15 corruptions", _TO_NONE),
        log=False,
    )
    made = [name for name, origin in origins.items() if origin != "cifar10_corrupted"]
    return [
        "### Corruption\n",
        f"The networks of *limited data*, by the share of the training images, on {lines[0]['count']:,} test images "
        "under 15 corruptions at 5 severities: the mean over all 75.\n",
        *_table(["method", *at], rows),
        *_against(methods, {share: [here] for share, here in at.items()}),
        f"Each corruption, mean over severities, of the networks of {largest} of the images. "
        f"{'Made here' if made else 'Published'}"
        f"{', frost by a stand-in for the original pictures' if 'frost' in made else ''}.\n",
        *_table(["corruption", *(NAMES[method] for method in methods)], each),
        *_drawn(drawn, figure, f"Accuracy against severity, {largest} of the images, with 95 % intervals."),
    ]


def _corrupted(
    lines: Iterable[Line], method: str, names: Iterable[str], severities: Iterable[int] = range(5)
) -> dict[int, float]:
    """The mean accuracy of each seed over corruptions and severities, these counted from 0."""
    chosen = [(name, severity) for name in names for severity in severities]
    return {
        line["seed"]: sum(line["corruptions"][name]["accuracy"][severity] for name, severity in chosen) / len(chosen)
        for line in _of(lines, method=method)
    }


def _clustering(lines: list[Line], figure: pathlib.Path) -> list[str]:
    of = {name: own for name in studies.STRUCTURES if (own := _of(lines, structure=name))}

    def row(name: str) -> list[str]:
        here = _by_seed(of[name], "cluster")
        against = [
            _told(paired(here, _by_seed(of[other], "cluster"))) if other in of and other != name else ""
            for other in ("grid, shared", "k-means, shared")
        ]
        places = [place for line in of[name] for place in line["clusters"].values()]
        explained = sum(place["explained_variance"] for place in places) / len(places)
        alike = sum(place["ari_with_grid"] for place in places) / len(places)
        return [name, _accuracy(here), *against, f"{100 * explained:.0f}", f"{alike:.2f}"]

    header = ["structure", "accuracy", "against the grid", "against k-means", "explained, %", "like the grid"]
    text = [
        "### Clustering\n",
        f"Accuracy on the {lines[0]['count']:,} held-out images, all at the rate that was chosen for DropCluster, "
        f"{lines[0]['config']['drop']['rate']:g}. At the end of training: the variance that the clusters explain, and "
        "their agreement with the grid (adjusted Rand index: 1 is equal, 0 is chance), means over places.\n",
        *_table(header, [row(name) for name in of]),
    ]
    for line in of.get("k-means, shared", []):
        for place, maps in list(line.get("snapshots", {}).items())[:1]:
            caption = f"Clusters of {place} over the course of training: k-means, shared by all channels."
            labels = [(each["step"], decode(each["labels"])[..., None]) for each in maps]
            text += _drawn(cluster_history_figure({place: labels}), figure, caption)
    return text


def _varied(title: str, preface: str) -> Callable[[list[Line], pathlib.Path], list[str]]:
    """A chapter on a study that varies something: a row for each setting, a column for each method.

    Behind them what DropCluster does better than the others, below them the means over all settings.
    """

    def chapter(lines: list[Line], figure: pathlib.Path) -> list[str]:
        settings = {tuple(line["setting"].values()): line["setting"] for line in lines}
        methods = _methods(lines)
        others = [method for method in ("block", "grid") if {method, "cluster"} <= set(methods)]

        def row(names: Iterable[str], groups: Sequence[Sequence[Line]]) -> list[str]:
            accuracies = [_accuracy(_mean_by_seed(groups, method)) for method in methods]
            return [*names, *accuracies, *(_told(_versus(groups, other)) for other in others)]

        groups = [_of(lines, **setting) for _, setting in sorted(settings.items())]
        rows = [row(map(_value, values), [group]) for values, group in zip(sorted(settings), groups, strict=True)]
        names = [name.replace("_", " ") for name in lines[0]["setting"]]
        if others:
            rows.append(row(["mean", *[""] * (len(names) - 1)], groups))
        against = [f"{NAMES['cluster']} {_MINUS} {NAMES[other]}" for other in others]
        header = [*names, *(NAMES[method] for method in methods), *against]
        return [f"### {title}\n", f"{preface}\n", *_table(header, rows)]

    return chapter


def _choices(lines: list[Line], figure: pathlib.Path) -> list[str]:
    rows = []
    for method in _methods(lines):
        options = {line["setting"]["value"]: line["setting"] for line in _of(lines, method=method)}
        means = {value: _mean(_by_seed(_of(lines, **options[value]), method)) for value in sorted(options)}
        known = {value: found.mean for value, found in means.items() if found is not None}
        best = max(known, key=lambda value: known[value])
        name = options[best]["option"].replace("_", " ")
        cells = [f"{value:g}: {mean:.1f}" for value, mean in known.items()]
        rows.append([NAMES[method], f"{name} {best:g}", ", ".join(cells)])
    number = len({line["seed"] for line in lines})
    return [
        "### What was chosen\n",
        f"Accuracy on the {lines[0]['count']:,} held-out images of networks trained on the others, "
        f"{number} {'seeds' if number > 1 else 'seed'}, other than those above.\n",
        *_table(["method", "chosen", "of"], rows),
    ]


_CHAPTERS: dict[str, Callable[[list[Line], pathlib.Path], list[str]]] = {
    "headline": _headline,
    "limited_data": _limited_data,
    "corruption": _corruption,
    "clustering": _clustering,
    "placement": _varied("Placement", "Accuracy on the held-out images, by where the drop layers stand."),
    "rate_and_size": _varied("Rate and size", "Accuracy on the held-out images; a cluster has side x side positions."),
    "cadence": _varied("StepPredicate", "Accuracy on the held-out images, by the steps from one update to the next."),
    "warm_up": _varied("Warm-up", "Accuracy on the held-out images, by the part of training in which the rate rises."),
    "choices": _choices,
}


def _provenance(lines: list[Line]) -> list[str]:
    def row(study: str, own: list[Line]) -> list[str]:
        commits = sorted({str(line["commit"]) for line in own})
        failed = sum(not line.get("finite", True) for line in own)
        minutes = sum(line["wall_seconds"] for line in own) / 60
        devices = sorted({line["device"] for line in own})
        return [study, str(len(own)), str(failed), ", ".join(devices), ", ".join(commits), f"{minutes:.0f}"]

    versions = sorted({", ".join(f"{name} {it}" for name, it in line["versions"].items()) for line in lines})
    data = sorted({f"{line['dataset']} {line['digest']}" for line in lines})
    rows = [row(study.replace("_", " "), own) for study in studies.STUDIES if (own := _of(lines, study=study))]
    return [
        "## Where it comes from\n",
        *_table(["study", "runs", "not finite", "device", "commit", "minutes"], rows),
        f"Versions: {'; '.join(versions)}. Beginning of the SHA-256 of all pixels and labels: {', '.join(data)}.\n",
    ]


def _quote(readme: pathlib.Path, quoted: str) -> None:
    """Put it between README's marks."""
    text = readme.read_text()
    begin, end = text.find(_BEGIN), text.find(_END)
    if begin < 0 or end < begin:
        raise ValueError(f"{readme} must hold {_BEGIN} and, behind it, {_END}")
    readme.write_text(f"{text[:begin]}{_BEGIN}\n\n{quoted}\n{text[end:]}")


def _of(lines: Iterable[Line], **wanted: object) -> list[Line]:
    """The lines that have these values, of their own or of their setting."""
    return [line for line in lines if all({**line, **line["setting"]}.get(name) == it for name, it in wanted.items())]


def _versus(groups: Sequence[Sequence[Line]], other: str, method: str = "cluster") -> Interval | None:
    """A method against another, seed by seed; of several groups of runs each seed's mean over them."""
    return paired(_mean_by_seed(groups, method), _mean_by_seed(groups, other))


def _against(methods: Sequence[str], columns: Mapping[str, Sequence[Sequence[Line]]]) -> list[str]:
    """Each method's differences to no drop layer and to DropBlock, and what learning the clusters adds to the grid."""
    pairs = [(method, other) for other in ("none", "block") for method in methods if method not in ("none", other)]
    pairs = [pair for pair in [*pairs, ("cluster", "grid")] if set(pair) <= set(methods)]
    rows = [
        [f"{NAMES[method]} {_MINUS} {NAMES[other]}", *(_told(_versus(it, other, method)) for it in columns.values())]
        for method, other in pairs
    ]
    return ["Differences, in points:\n", *_table(["", *columns], rows)] if rows else []


def _by_seed(lines: Iterable[Line], method: str) -> dict[int, float]:
    return {line["seed"]: line["accuracy"] for line in _of(lines, method=method)}


def _mean_by_seed(groups: Sequence[Sequence[Line]], method: str) -> dict[int, float]:
    """Of the seeds that are in all groups."""
    found = [_by_seed(lines, method) for lines in groups]
    common = [seed for seed in found[0] if all(seed in one for one in found)] if found else []
    return {seed: sum(one[seed] for one in found) / len(found) for seed in common}


def _mean(values: Mapping[int, float]) -> Interval | None:
    return interval([100 * value for value in values.values()]) if values else None


def _accuracy(values: Mapping[int, float]) -> str:
    found = _mean(values)
    if found is None:
        return ""
    return f"{found.mean:.1f}" + (f" ± {found.high - found.mean:.1f}" if found.number > 1 else "")


def _difference(found: Interval | None) -> str:
    if found is None:
        return ""
    bounds = f" ({100 * found.low:+.1f} to {100 * found.high:+.1f})" if found.number > 1 else ""
    return f"{100 * found.mean:+.1f}{bounds}".replace("-", _MINUS)


def _told(found: Interval | None) -> str:
    return f"{_difference(found)}: {verdict(found)}" if found else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)) + "\n"]


def _drawn(figure: Figure, path: pathlib.Path, caption: str) -> list[str]:
    figures.save(figure, path)
    return [f"![{caption}](figures/{path.name}.png)\n", f"*{caption}* [SVG](figures/{path.name}.svg)\n"]


def _methods(lines: Iterable[Line]) -> list[str]:
    return sorted({line["method"] for line in lines}, key=_rank)


def _rank(method: str) -> int:
    return list(NAMES).index(method)


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _value(value: object) -> str:
    return "once" if value == studies.NEVER_AGAIN else str(value)


def main(options: tyro.conf.OmitArgPrefixes[Options] = Options()) -> None:
    """Write tables and figures from the result files.

    Args:
        options: From where, and where to.
    """
    try:
        write(options)
    except (ValueError, OSError) as error:
        print(f"experiments.report: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.report", description=__doc__)
