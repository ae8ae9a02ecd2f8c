"""Chapters of the report, one per study: tables and figures from the lines of a study."""

import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from dropcluster_jax.viz import cluster_history_figure
from experiments import figures, studies
from experiments.intervals import paired_difference
from experiments.results import Line, decode_labels
from experiments.tables import (
    LABELS,
    MINUS,
    Groups,
    accuracy_by_seed,
    by_fraction,
    corrupted_by_seed,
    format_average,
    format_difference,
    format_mean,
    format_pair,
    format_seeds,
    format_setting,
    format_value,
    interval_over_seeds,
    markdown_table,
    mean_accuracy,
    mean_by_seed,
    method_difference,
    methods_of,
    num_images,
    num_seeds,
    select,
    values_of,
)

Columns = Mapping[str, Groups]  # by header


def _headline(lines: list[Line], figure: pathlib.Path) -> list[str]:
    columns: Columns = {"all images": [lines]}
    return [
        "### Headline\n",
        f"Accuracy on the {num_images(lines):,} test images; {format_seeds(lines)}.\n",
        *_comparison(lines, columns),
        *_dropped_fractions(lines),
    ]


def _dropped_fractions(lines: Sequence[Line]) -> list[str]:
    """A table of the fraction of dropped units, for methods whose masks depend on the activations."""
    fractions = {method: dropped for method in methods_of(lines) if (dropped := _dropped_by_place(lines, method))}
    if not fractions:
        return []
    places = sorted({place for dropped in fractions.values() for place in dropped})
    rows = [
        [
            LABELS[method],
            format_value(select(lines, method=method)[0]["config"]["drop"]["rate"]),
            *(format_average((100 * value for value in dropped.get(place, [])), ".0f") for place in places),
        ]
        for method, dropped in fractions.items()
    ]
    return [
        "Units that a mask drops in the trained network, in %, for methods that compute masks from the activations. "
        "FocusedDropout masks only a fraction of the batches, its rate; the columns are for a masked batch.\n",
        *markdown_table(["method", "rate", *places], rows),
    ]


def _dropped_by_place(lines: Iterable[Line], method: str) -> dict[str, list[float]]:
    """Returns the fractions of dropped units by place, one for each run that recorded it."""
    fractions: dict[str, list[float]] = {}
    for line in select(lines, method=method):
        for place, fraction in line.get("dropped", {}).items():
            fractions.setdefault(place, []).append(fraction)
    return fractions


def _limited_data(lines: list[Line], figure: pathlib.Path) -> list[str]:
    subsets = by_fraction(lines)
    plot = _curves(
        {method: [accuracy_by_seed(subset, method) for subset in subsets.values()] for method in methods_of(lines)},
        [float(name.removesuffix("%")) for name in subsets],
        ("training images, %", "test accuracy, %"),
        log=True,
    )
    losses = [
        [
            LABELS[method],
            *(format_average(values_of(subset, method, "train_loss"), ".2f") for subset in subsets.values()),
        ]
        for method in methods_of(lines)
    ]
    return [
        "### Limited data\n",
        f"Accuracy on the {num_images(lines):,} test images, by fraction of the training images; "
        f"{format_seeds(lines)}.\n",
        *_comparison(lines, {**{name: [subset] for name, subset in subsets.items()}, "mean": list(subsets.values())}),
        *figures.embed(plot, figure, "Accuracy by fraction of the training images, with 95% intervals."),
        "Training loss at the end, with dropping. Near 0, which label smoothing would prevent, the network has "
        "memorized the images, so that regularization can help.\n",
        *markdown_table(["method", *subsets], losses),
    ]


def _corruption(lines: list[Line], figure: pathlib.Path) -> list[str]:
    subsets, methods = by_fraction(lines), methods_of(lines)
    fraction, largest = list(subsets.items())[-1]
    finished = next((line for line in largest if line["finite"]), largest[0])
    origins = {name: corruption["origin"] for name, corruption in finished["corruptions"].items()}
    generated = [name for name, origin in origins.items() if origin != "cifar10_corrupted"]
    rows = [
        [
            name.replace("_", " "),
            *(format_mean(corrupted_by_seed(largest, method, [name]), num_seeds(largest)) for method in methods),
        ]
        for name in origins
    ]
    plot = _curves(
        {
            method: [corrupted_by_seed(largest, method, origins, [severity]) for severity in range(5)]
            for method in methods
        },
        range(1, 6),
        ("severity", f"test accuracy, %, mean over {len(origins)} corruptions"),
        log=False,
    )
    return [
        "### Corruption\n",
        f"Accuracy of the networks of *Limited data* on {num_images(lines):,} test images, averaged over "
        f"{len(origins)} corruptions at 5 severities, by fraction of the training images; {format_seeds(lines)}.\n",
        *_comparison(lines, {name: [subset] for name, subset in subsets.items()}),
        f"Accuracy under each corruption, averaged over severities, of the networks trained on {fraction} of the "
        f"images. {'Corruptions were generated here' if generated else 'Published images'}"
        f"{', frost with a stand-in for the original pictures' if 'frost' in generated else ''}.\n",
        *markdown_table(["corruption", *(LABELS[method] for method in methods)], rows),
        *figures.embed(plot, figure, f"Accuracy by severity, {fraction} of the training images, with 95% intervals."),
    ]


_STRUCTURE_HEADER = [
    "structure",
    "accuracy",
    f"{MINUS} grid",
    f"{MINUS} k-means",
    "explained variance, %",
    "ARI with grid",
]


def _structure_rows(lines: Sequence[Line]) -> list[list[str]]:
    """Returns a row for each way to form clusters, below `_STRUCTURE_HEADER`."""
    most_seeds = num_seeds(lines)
    groups = {name: group for name in studies.STRUCTURES if (group := select(lines, structure=name))}

    def row(name: str) -> list[str]:
        accuracies = accuracy_by_seed(groups[name], "drop_cluster")
        differences = [
            format_difference(
                paired_difference(accuracies, accuracy_by_seed(groups[other], "drop_cluster")), most_seeds
            )
            if other in groups and other != name
            else ""
            for other in ("grid, shared", "k-means, shared")
        ]
        clusters = [place for line in groups[name] if line["finite"] for place in line["clusters"].values()]
        explained = format_average((100 * place["explained_variance"] for place in clusters), ".0f")
        similarity = format_average((place["ari_with_grid"] for place in clusters), "z.2f").replace("-", MINUS)
        return [name, format_mean(accuracies, most_seeds), *differences, explained, similarity]

    return [row(name) for name in groups]


def _structure_description(lines: Sequence[Line]) -> str:
    """Describes the columns below `_STRUCTURE_HEADER`."""
    return (
        f"at the rate chosen for DropCluster, {lines[0]['config']['drop']['rate']:g}, and differences from the shared "
        f"grid and from shared k-means; {format_seeds(lines)}. At the last update: the variance explained by the "
        "clusters, and the adjusted Rand index (ARI) with the grid, which is 1 for equal clusters and 0 by chance; "
        "averaged over places. For clusters that are learned once, the last update is early in training.\n"
    )


def _clustering(lines: list[Line], figure: pathlib.Path) -> list[str]:
    text = [
        "### Clustering\n",
        f"Accuracy on the {num_images(lines):,} held-out images, {_structure_description(lines)}",
        *markdown_table(_STRUCTURE_HEADER, _structure_rows(lines)),
    ]
    for line in select(lines, structure="k-means, shared"):
        for place, maps in list(line.get("snapshots", {}).items())[:1]:
            history = {place: [(entry["step"], decode_labels(entry["labels"])[..., None]) for entry in maps]}
            caption = f"Clusters of {place} over the course of training: k-means, shared by all channels."
            text += figures.embed(cluster_history_figure(history), figure, caption)
    return text


def _clustering_by_fraction(lines: list[Line], figure: pathlib.Path) -> list[str]:
    rows = [[name, *row] for name, subset in by_fraction(lines).items() for row in _structure_rows(subset)]
    return [
        "### Clustering and number of images\n",
        f"Accuracy on the {num_images(lines):,} held-out images, by fraction of the training images, "
        f"{_structure_description(lines)}",
        *markdown_table(["fraction", *_STRUCTURE_HEADER], rows),
    ]


def _fills(title: str, description: str) -> Callable[[list[Line], pathlib.Path], list[str]]:
    """Returns a chapter with a row for each mask and fill, and differences from references, by fraction."""

    def chapter(lines: list[Line], figure: pathlib.Path) -> list[str]:
        most_seeds, rows = num_seeds(lines), []
        for fraction, subset in by_fraction(lines).items():
            groups: dict[str, list[Line]] = {}
            for line in subset:
                groups.setdefault(_variant(line), []).append(line)
            accuracies = {name: accuracy_by_seed(group, group[0]["method"]) for name, group in groups.items()}
            for name, group in groups.items():
                setting = group[0]["setting"]
                references = (LABELS["none"], "blocks, zero", f"grid, {setting.get('fill')}")
                differences = (
                    format_difference(paired_difference(accuracies[name], accuracies[other]), most_seeds)
                    if other != name and other in accuracies
                    else ""
                    for other in references
                )
                rate = format_value(setting.get("rate", ""))
                reestimated = (100 * x["reestimated_accuracy"] for x in group if "reestimated_accuracy" in x)
                accuracy = [format_mean(accuracies[name], most_seeds), format_average(reestimated, ".1f")]
                rows.append([fraction, name, rate, *accuracy, *differences])
        minus = (f"{MINUS} {name}" for name in (LABELS["none"], "blocks, zero", "grid, same fill"))
        return [
            f"### {title}\n",
            f"{description.format(images=f'{num_images(lines):,}')}, by fraction of the training images; "
            f"{format_seeds(lines)}. The rates are those chosen in *Rates of fills*. Re-estimated: with BatchNorm "
            "statistics computed again after training, with dropping off.\n",
            *markdown_table(["images", "mask, fill", "rate", "accuracy", "re-estimated", *minus], rows),
        ]

    return chapter


def _variant(line: Line) -> str:
    """Returns what a line of `fills` compares: a mask and a fill, a way to mix images, or no drop layer."""
    setting = line["setting"]
    return f"{setting['mask']}, {setting['fill']}" if "mask" in setting else setting.get("mixing", LABELS["none"])


def _fill_choices(lines: list[Line], figure: pathlib.Path) -> list[str]:
    """A table with a row for each fraction, mask and fill, and a column per rate."""
    rates = sorted({line["setting"]["rate"] for line in lines})
    rows = []
    for fraction, subset in by_fraction(lines).items():
        for name in dict.fromkeys(map(_variant, subset)):
            by_rate = {rate: [x for x in select(subset, rate=rate) if _variant(x) == name] for rate in rates}
            best = max(rates, key=lambda rate: sum(line["accuracy"] for line in by_rate[rate]))
            cells = [f"{mean_accuracy(group):.1f} [{num_seeds(group)}]" if group else "" for group in by_rate.values()]
            cells[rates.index(best)] = f"**{cells[rates.index(best)]}**"
            rows.append([fraction, name, *cells])
    return [
        "### Rates of fills\n",
        f"Accuracy on the {num_images(lines):,} held-out images by rate, with the number of seeds in brackets; the "
        "best in bold. With the first seed, rates climb from 0.3 until both neighbors of the best one are worse. The "
        "better half of them then gets a second seed, and the best of those is chosen. Rows are incomplete where this "
        "has not been done yet.\n",
        *markdown_table(["images", "mask, fill", *(f"rate {rate:g}" for rate in rates)], rows),
    ]


def _varied(title: str, description: str) -> Callable[[list[Line], pathlib.Path], list[str]]:
    """Returns a chapter with a row per setting and a column per method, followed by differences and means."""

    def chapter(lines: list[Line], figure: pathlib.Path) -> list[str]:
        settings = {tuple(line["setting"].values()): line["setting"] for line in lines}
        methods = methods_of(lines)
        others = [method for method in ("drop_block", "grid") if {method, "drop_cluster"} <= set(methods)]

        most_seeds = num_seeds(lines)

        def row(values: Iterable[str], groups: Groups) -> list[str]:
            means = [format_mean(mean_by_seed(groups, method), most_seeds) for method in methods]
            differences = [
                format_difference(method_difference(groups, "drop_cluster", other), most_seeds) for other in others
            ]
            return [*values, *means, *differences]

        groups = [select(lines, **setting) for _, setting in sorted(settings.items())]
        rows = [row(map(format_value, values), [group]) for values, group in zip(sorted(settings), groups, strict=True)]
        names = [name.replace("_", " ") for name in lines[0]["setting"]]
        if others:
            rows.append(row(["mean", *[""] * (len(names) - 1)], groups))
        header = [
            *names,
            *(LABELS[method] for method in methods),
            *(format_pair("drop_cluster", other) for other in others),
        ]
        caption = f"Accuracy on the held-out images, {description}; {format_seeds(lines)}.\n"
        return [f"### {title}\n", caption, *markdown_table(header, rows)]

    return chapter


def _baseline(lines: list[Line], figure: pathlib.Path) -> list[str]:
    return [
        "### Baseline\n",
        f"The network without drop layers, tuned on the {num_images(lines):,} held-out images; "
        f"{format_seeds(lines)} that no study on the test set uses.\n",
        *markdown_table(
            [*(name.replace("_", " ") for name in lines[0]["setting"]), "accuracy"],
            [
                [*map(format_value, group[0]["setting"].values()), f"{mean_accuracy(group):.1f}"]
                for group in _by_setting(lines)
            ],
        ),
    ]


def _choices(lines: list[Line], figure: pathlib.Path) -> list[str]:
    """A table with a row per value of each method's own hyperparameter and a column per rate."""
    rates = sorted({line["setting"].get("rate", 0.0) for line in lines})
    best = {method: str(group[0]["setting"]) for method, group in _best_by_method(lines).items()}
    rows: dict[tuple[str, str], dict[float, str]] = {}
    for line in lines:
        method, setting = line["method"], line["setting"]
        hyperparameter = format_setting({name: value for name, value in setting.items() if name != "rate"})
        accuracy = f"{mean_accuracy(select(lines, method=method, setting=setting)):.1f}"
        cell = f"**{accuracy}**" if str(setting) == best[method] else accuracy
        rows.setdefault((method, hyperparameter), {})[setting.get("rate", 0.0)] = cell
    return [
        "### Chosen hyperparameters\n",
        f"Accuracy of each candidate on the {num_images(lines):,} held-out images; "
        f"{format_seeds(lines)} that no study on the test set uses. The other studies use the best candidate of each "
        "method, in bold.\n",
        *markdown_table(
            ["method", "own hyperparameter", *(f"rate {rate:g}" for rate in rates)],
            [
                [LABELS[method], hyperparameter, *(row.get(rate, "") for rate in rates)]
                for (method, hyperparameter), row in rows.items()
            ],
        ),
    ]


def best_candidates(lines: list[Line]) -> list[str]:
    """A sentence and a table of each method's best candidate on the held-out images, if there are any."""
    tuning = [line for line in lines if line["study"] in studies.TUNING]
    best = _best_by_method(tuning)
    if "none" not in best:
        return []
    tested = any(line["target"] == "test" for line in lines)
    untested = "" if tested else " The test set has not been used yet."
    baseline = mean_accuracy(best["none"])
    rows = [
        [
            LABELS[method],
            format_setting(group[0]["setting"]),
            f"{mean_accuracy(group):.1f}",
            "" if method == "none" else f"{mean_accuracy(group) - baseline:+z.1f}".replace("-", MINUS),
        ]
        for method, group in best.items()
    ]
    return [
        f"Accuracy on {num_images(tuning):,} held-out images with the best of each method's candidate "
        f"hyperparameters; {format_seeds(tuning)}. As the maximum over candidates, it is slightly optimistic."
        f"{untested}\n",
        *markdown_table(["method", "chosen", "held-out accuracy, %", f"{MINUS} no drop layer, points"], rows),
    ]


def _best_by_method(tuning: Sequence[Line]) -> dict[str, list[Line]]:
    """Returns the runs of each method's best candidate on the held-out images."""
    return {method: _by_setting(select(tuning, method=method))[0] for method in methods_of(tuning)}


def _by_setting(lines: Iterable[Line]) -> list[list[Line]]:
    """Returns lines of one method grouped by setting, in descending order of the mean accuracy."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(str(line["setting"]), []).append(line)
    return sorted(groups.values(), key=mean_accuracy, reverse=True)


def _features(lines: list[Line], figure: pathlib.Path) -> list[str]:
    """A table by place and step, and a figure with a panel per place."""
    lines = [line for line in lines if line["finite"]]
    if not lines:
        return []
    places, methods = list(lines[0]["features"]), methods_of(lines)
    steps = [entry["step"] for entry in lines[0]["features"][places[0]]]
    chosen = sorted({0, len(steps) // 2, len(steps) - 1})

    def explained(method: str, place: str, clusterer: str) -> np.ndarray:
        """Returns the explained variance in %, `(seeds, steps)`."""
        entries = [line["features"][place] for line in select(lines, method=method)]
        return 100 * np.array([[entry[clusterer] for entry in by_step] for by_step in entries])

    def cell(method: str, place: str, index: int) -> str:
        k_means, grid = (explained(method, place, clusterer)[:, index].mean() for clusterer in ("k-means", "grid"))
        return f"{k_means:.0f} ({grid:.0f})"

    rows = [
        [place, f"{steps[index]:,}", *(cell(method, place, index) for method in methods)]
        for place in places
        for index in chosen
    ]
    series = {place: {LABELS[method]: explained(method, place, "k-means") for method in methods} for place in places}
    plot = figures.course_figure(series, steps, "explained variance, %")
    caption = "Variance that k-means explains in the features: the mean over seeds and, as thin lines, each seed."
    return [
        "### Redundancy of the features\n",
        "Variance that clusters of positions explain in the features of each place, in evaluation mode, over the "
        "course of training. Clusters are learned from the saved networks by k-means, whatever the method drops, with "
        "16 positions on average, and shared by all channels. In parentheses, a grid with the same number of "
        f"clusters. Means over {format_seeds(lines)}.\n",
        *markdown_table(["place", "step", *(LABELS[method] for method in methods)], rows),
        *figures.embed(plot, figure, caption),
    ]


CHAPTERS: dict[str, Callable[[list[Line], pathlib.Path], list[str]]] = {
    "headline": _headline,
    "limited_data": _limited_data,
    "corruption": _corruption,
    "clustering": _clustering,
    "clustering_by_fraction": _clustering_by_fraction,
    "placement": _varied(
        "Placement", "by place of the drop layers, with blocks of at most 4x4 and clusters of at most 16 positions"
    ),
    "rate_and_size": _varied(
        "Rate and size", "by rate and by side of the blocks; clusters have side x side positions on average"
    ),
    "rate_by_fraction": _varied(
        "Rate and number of images",
        "by fraction of the training images and by rate; blocks and clusters have the sizes chosen on all images",
    ),
    "update_interval": _varied("Update interval", "by the number of steps between updates of the clusters"),
    "warm_up": _varied("Warm-up", "by the part of the training in which the rate rises"),
    "duration": _varied("Duration", "by the number of optimizer steps, over which the learning rate decays"),
    "features": _features,
    "baseline": _baseline,
    "choices": _choices,
    "fills": _fills("What replaces a dropped unit", "Accuracy on the {images} test images"),
    "fill_corruption": _fills(
        "What replaces a dropped unit, corrupted images",
        "Accuracy on {images} test images, averaged over 15 corruptions at 5 severities",
    ),
    "fill_choices": _fill_choices,
}


def _comparison(lines: Iterable[Line], columns: Columns) -> list[str]:
    """Returns a table of accuracies and a table of differences between methods."""
    methods, most_seeds = methods_of(lines), num_seeds(lines)
    accuracies = [
        [LABELS[method], *(format_mean(mean_by_seed(groups, method), most_seeds) for groups in columns.values())]
        for method in methods
    ]
    pairs = [(method, other) for other in ("none", "drop_block") for method in methods if method not in ("none", other)]
    differences = []
    for method, other in [*pairs, ("drop_cluster", "grid")]:
        cells = [format_difference(method_difference(groups, method, other), most_seeds) for groups in columns.values()]
        if any(cells):
            differences.append([format_pair(method, other), *cells])
    return [
        *markdown_table(["method", *columns], accuracies),
        *(markdown_table(["difference, points", *columns], differences) if differences else []),
    ]


def _curves(
    accuracies: Mapping[str, Sequence[Mapping[int, float]]], x: Sequence[float], labels: tuple[str, str], log: bool
) -> Figure:
    """Draws the accuracies by seed at each x, by method, and the differences from no drop layer."""
    means = {
        LABELS[method]: [interval_over_seeds(values) for values in series] for method, series in accuracies.items()
    }
    baseline = accuracies.get("none")
    differences = {
        LABELS[method]: [paired_difference(*values) for values in zip(series, baseline, strict=True)]
        for method, series in accuracies.items()
        if baseline is not None and method != "none"
    }
    return figures.interval_figure(means, differences, x, (*labels, "difference from no drop layer, points"), log)
