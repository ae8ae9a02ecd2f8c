"""Chapters of the report: tables and figures from the lines of one or more studies."""

import pathlib
from collections.abc import Callable, Mapping, Sequence

from dropcluster_jax.runs.intervals import Interval
from dropcluster_jax.viz import cluster_history_figure
from experiments import figures
from experiments.results import Line, decode_labels
from experiments.tables import (
    LABELS,
    MINUS,
    by_accuracy,
    difference,
    format_average,
    format_difference,
    format_images,
    format_mean,
    format_seeds,
    format_setting,
    format_value,
    group_by,
    markdown_table,
    methods_of,
    num_seeds,
    num_training_images,
    select,
)

Chapter = Callable[[list[Line], pathlib.Path], list[str]]  # lines and the path of a figure to Markdown
Extra = Mapping[str, Callable[[list[Line]], str]]  # cells by header


def on_test_images(lines: list[Line]) -> dict[str, list[Line]]:
    """Returns the lines that compare methods on test images, by column of the main table."""
    lines = [line for line in lines if line["study"] in _MAIN]
    lines.sort(key=lambda line: (line["study"] == "corruption", -num_training_images(line)))
    columns = group_by(lines, lambda line: format_images(line) + ", corrupted" * (line["study"] == "corruption"))
    unique = {name: {(line["method"], line["seed"]): line for line in group} for name, group in columns.items()}
    return {name: list(group.values()) for name, group in unique.items()}


_MAIN = ("headline", "limited_data", "corruption")


def _methods(lines: list[Line], figure: pathlib.Path) -> list[str]:
    """Accuracies on test images, and differences between methods as tables and as a figure."""
    columns, methods = on_test_images(lines), methods_of(lines)
    by_method = {name: group_by(group, lambda line: line["method"]) for name, group in columns.items()}

    def table(methods: list[str], cell: Callable[[dict[str, list[Line]], str], str]) -> str:
        rows = [[LABELS[method], *(cell(groups, method) for groups in by_method.values())] for method in methods]
        return markdown_table(["method", *columns], rows)

    def mean(groups: dict[str, list[Line]], method: str) -> str:
        return format_mean(groups.get(method, []), num_seeds(lines))

    def minus(reference: str) -> list[str]:
        def cell(groups: dict[str, list[Line]], method: str) -> str:
            return format_difference(groups.get(reference, []), groups.get(method, []), num_seeds(lines))

        others = [method for method in methods if method not in (reference, "drop_cluster")]
        return [f"{LABELS[reference]} {MINUS} method, in points:\n", table(others, cell)]

    intervals: dict[str, dict[str, Interval]] = {}
    for name, groups in by_method.items():
        for method in methods:
            found = difference(groups.get("drop_cluster", []), groups.get(method, []))
            if method != "drop_cluster" and found is not None:
                intervals.setdefault(f"{MINUS} {LABELS[method]}", {})[name] = found
    title = f"DropCluster {MINUS} other method, points of test accuracy"
    loss = format_average((line["train_loss"] for line in next(iter(by_method.values())).get("none", [])), ".2f")
    return [
        "### Methods\n",
        f"Accuracy on test images; {format_seeds(lines)}. Without drop layers, the training loss at the end is {loss}. "
        "Corrupted: averaged over 15 corruptions at 5 severities.\n",
        table(methods, mean),
        *(part for method in ("drop_cluster", "drop_block") if method in methods for part in minus(method)),
        *(figures.embed(figures.forest_figure(intervals, title), figure, f"{title}.") if intervals else []),
    ]


def _variants(title: str, text: str, references: Mapping[str, str], extra: Extra) -> Chapter:
    """Returns a chapter with a row for each number of images and variant, and differences from reference variants."""

    def chapter(lines: list[Line], figure: pathlib.Path) -> list[str]:
        rows = []
        for images, group in group_by(sorted(lines, key=num_training_images, reverse=True), format_images).items():
            variants = group_by(group, _variant)
            for name, own in by_accuracy(variants).items():
                others = [variants.get(other.format(**own[0]["setting"]), own) for other in references.values()]
                cells = ["" if other is own else format_difference(own, other, num_seeds(lines)) for other in others]
                rows.append([images.removesuffix(" images"), name, *(column(own) for column in extra.values())])
                rows[-1] += [format_mean(own, num_seeds(lines)), *cells]
        header = ["images", "variant", *extra, "accuracy", *(f"{MINUS} {name}" for name in references)]
        return [f"### {title}\n", f"{text}; {format_seeds(lines)}.\n", markdown_table(header, rows)]

    return chapter


def _variant(line: Line) -> str:
    """Returns the kind of clusters, the mask and the fill, or the way to mix images."""
    setting = line["setting"]
    if "mask" in setting:
        return f"{setting['mask']}, {setting['fill']}"
    return setting.get("structure", setting.get("mixing", LABELS["none"]))


def _clusters(key: str, scale: float, spec: str) -> Callable[[list[Line]], str]:
    def cell(lines: list[Line]) -> str:
        values = (place[key] for line in lines for place in line.get("clusters", {}).values())
        return format_average((None if value is None else scale * value for value in values), spec)

    return cell


def _reestimated(lines: list[Line]) -> str:
    return format_average(
        (100 * line["reestimated_accuracy"] for line in lines if "reestimated_accuracy" in line), ".1f"
    )


def _cluster_maps(lines: list[Line], figure: pathlib.Path) -> list[str]:
    """A figure of the clusters of the first place during training."""
    for line in lines:
        for place, maps in list(line.get("snapshots", {}).items())[:1]:
            history = {place: [(entry["step"], decode_labels(entry["labels"])[..., None]) for entry in maps]}
            caption = f"Clusters of {place} over the course of training: k-means, shared by all channels."
            return figures.embed(cluster_history_figure(history), figure, caption)
    return []


_STRUCTURES = _variants(
    "Clusters",
    "Ways to form clusters at the rate chosen for DropCluster: accuracy on held-out images, the variance that the "
    "clusters explain at their last update, and their adjusted Rand index (ARI) with the grid. Voronoi cells are those "
    "of random positions; random partitions have clusters of the same sizes as k-means",
    {"k-means": "k-means, shared"},
    {"explained, %": _clusters("explained_variance", 100, ".0f"), "ARI": _clusters("ari_with_grid", 1, "z.2f")},
)


def _clustering(lines: list[Line], figure: pathlib.Path) -> list[str]:
    return [*_STRUCTURES(lines, figure), *_cluster_maps(select(lines, structure="k-means, shared"), figure)]


def _fills(title: str, images: str) -> Chapter:
    return _variants(
        title,
        f"Masks and fills at the rates chosen in *Rates of fills*: accuracy on {images}. Re-estimated: with BatchNorm "
        "statistics computed again after training, without dropping",
        {LABELS["none"]: LABELS["none"], "blocks, zero": "blocks, zero", "grid, same fill": "grid, {fill}"},
        {"rate": lambda lines: format_value(lines[0]["setting"].get("rate", "")), "re-estimated": _reestimated},
    )


def _race(title: str, text: str, column: str, subject: Callable[[Line], str]) -> Chapter:
    """Returns a chapter with a row for each candidate, a column for the values of an option, and the best in bold."""

    def name(line: Line) -> str:
        others = {
            key: value for key, value in line["setting"].items() if key not in (column, "mask", "fill", "fraction")
        }
        return ", ".join(filter(None, (subject(line), format_setting(others)))) or LABELS["none"]

    def chapter(lines: list[Line], figure: pathlib.Path) -> list[str]:
        values = sorted({line["setting"][column] for line in lines})
        best: set[str] = set()  # ids; a candidate that left the race has fewer results, so it is not the best
        for candidates in group_by(lines, subject).values():
            by_setting = group_by(candidates, lambda line: str(line["setting"]))
            best |= {line["id"] for line in max(by_setting.values(), key=lambda x: sum(y["accuracy"] for y in x))}

        def cell(group: list[Line]) -> str:
            text = format_average((100 * line["accuracy"] for line in group), ".1f")
            text += f" [{len(group)}]" if 0 < len(group) < num_seeds(lines) else ""
            return f"**{text}**" if any(line["id"] in best for line in group) else text

        rows = [
            [row, *(cell(select(group, **{column: value})) for value in values)]
            for row, group in group_by(lines, name).items()
        ]
        header = ["candidates", *(format_setting({column: value}) for value in values)]
        return [f"### {title}\n", f"{text}; {format_seeds(lines)}.\n", markdown_table(header, rows)]

    return chapter


def _varied(title: str, text: str) -> Chapter:
    """Returns a chapter with a row for each setting, a column for each method, and differences between methods."""

    def chapter(lines: list[Line], figure: pathlib.Path) -> list[str]:
        methods = methods_of(lines)
        others = [method for method in ("drop_block", "grid") if {method, "drop_cluster"} <= set(methods)]
        rows = []
        groups = group_by(lines, lambda line: str(line["setting"])).values()
        for group in sorted(groups, key=lambda group: list(group[0]["setting"].values())):
            own = {method: select(group, method=method) for method in methods}
            rows.append([format_setting(group[0]["setting"])])
            rows[-1] += [format_mean(own[method], num_seeds(lines)) for method in methods]
            rows[-1] += [format_difference(own["drop_cluster"], own[other], num_seeds(lines)) for other in others]
        header = ["setting", *(LABELS[x] for x in methods), *(f"DropCluster {MINUS} {LABELS[x]}" for x in others)]
        return [
            f"### {title}\n",
            f"Accuracy on held-out images{text}; {format_seeds(lines)}.\n",
            markdown_table(header, rows),
        ]

    return chapter


#: Studies and the chapter that shows them.
CHAPTERS: Sequence[tuple[Sequence[str], Chapter]] = (
    (_MAIN, _methods),
    (("fills",), _fills("Fills", "test images")),
    (("fill_corruption",), _fills("Fills, corrupted images", "corrupted test images")),
    (("clustering", "clustering_by_fraction"), _clustering),
    (("placement",), _varied("Places", ", with blocks of 4x4 and clusters of 16 positions")),
    (("rate_and_size",), _varied("Rates and sizes", "; clusters have side x side positions on average")),
    (("rate_by_fraction",), _varied("Rates with few images", ", with the sizes chosen on all images")),
    (("update_interval",), _varied("Updates", " by the number of steps between updates of the clusters")),
    (("warm_up",), _varied("Ramps", " by the part of the training in which the rate rises")),
    (("duration",), _varied("Duration", " by the number of optimizer steps")),
    (
        ("choices",),
        _race(
            "Candidates",
            "Accuracy on held-out images; the other studies use the best candidate of each method",
            "rate",
            lambda line: LABELS[line["method"]],
        ),
    ),
    (
        ("baseline",),
        _race(
            "The network without drop layers",
            "Accuracy on held-out images; all methods share the best candidate",
            "weight_decay",
            lambda line: "",
        ),
    ),
    (
        ("fill_choices",),
        _race(
            "Rates of fills",
            "Accuracy on held-out images. Rates climb from 0.3 with the first seed until both neighbors of the best "
            "one are worse; the better half then gets a second seed. Incomplete rows are not finished",
            "rate",
            lambda line: f"{_variant(line)}, {format_images(line)}",
        ),
    ),
)
