"""Selects result lines, averages accuracies by seed, and formats them as Markdown tables."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dropcluster_jax.runs.intervals import Interval, interval
from experiments import studies
from experiments.intervals import paired_difference
from experiments.results import Line

MINUS = "\N{MINUS SIGN}"
LABELS = {name: method.label for name, method in studies.METHODS.items()}

Groups = Sequence[Sequence[Line]]  # averaged for each seed


# ---- Accuracies by seed


def select(lines: Iterable[Line], **values: object) -> list[Line]:
    """Returns the lines with these values, of the line or of its setting."""
    return [line for line in lines if all({**line, **line["setting"]}.get(name) == values[name] for name in values)]


def by_fraction(lines: Iterable[Line]) -> dict[str, list[Line]]:
    """Returns lines by the percentage of the training images, in ascending order."""
    fractions = sorted({line["setting"]["fraction"] for line in lines})
    return {f"{100 * fraction:g}%": select(lines, fraction=fraction) for fraction in fractions}


def accuracy_by_seed(lines: Iterable[Line], method: str) -> dict[int, float]:
    """Returns accuracies in %."""
    return {line["seed"]: 100 * line["accuracy"] for line in select(lines, method=method)}


def mean_by_seed(groups: Groups, method: str) -> dict[int, float]:
    """Returns the mean accuracies over groups, in %, of the seeds that are in all groups."""
    accuracies = [accuracy_by_seed(lines, method) for lines in groups]
    seeds = [seed for seed in accuracies[0] if all(seed in group for group in accuracies)]
    return {seed: statistics.mean(group[seed] for group in accuracies) for seed in seeds}


def corrupted_by_seed(
    lines: Iterable[Line], method: str, corruptions: Iterable[str], severities: Iterable[int] = range(5)
) -> dict[int, float]:
    """Returns the mean accuracies over corruptions and severities, in %; severities are counted from 0."""
    chosen = [(corruption, severity) for corruption in corruptions for severity in severities]
    return {
        line["seed"]: 100
        * statistics.mean(line["corruptions"][name]["accuracy"][severity] for name, severity in chosen)
        for line in select(lines, method=method)
    }


def method_difference(groups: Groups, method: str, other: str) -> Interval | None:
    """Returns the difference between two methods, paired by seed, of the means over groups."""
    return paired_difference(mean_by_seed(groups, method), mean_by_seed(groups, other))


def interval_over_seeds(values: Mapping[int, float]) -> Interval | None:
    """Returns the interval of the mean of values by seed; None if there are none."""
    return interval(list(values.values())) if values else None


def values_of(lines: Iterable[Line], method: str, name: str) -> list[Any]:
    """Returns a field of the lines of a method."""
    return [line[name] for line in select(lines, method=method)]


def mean_accuracy(lines: Iterable[Line]) -> float:
    """Returns the mean accuracy in %."""
    return 100 * statistics.mean(line["accuracy"] for line in lines)


def num_seeds(lines: Iterable[Line]) -> int:
    """Returns the number of different seeds."""
    return len({line["seed"] for line in lines})


def num_images(lines: Iterable[Line]) -> int:
    """Returns the number of images on which runs were evaluated; it is 0 for failed runs."""
    return max(line["count"] for line in lines)


def methods_of(lines: Iterable[Line]) -> list[str]:
    """Returns the methods of the lines, in the order of tables."""
    return sorted({line["method"] for line in lines}, key=rank)


def rank(method: str) -> int:
    """Returns the position of a method in tables."""
    return list(LABELS).index(method)


# ---- Text


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns a table as one block of text."""
    return ["\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)) + "\n"]


def format_mean(values: Mapping[int, float], most_seeds: int) -> str:
    """Formats the mean over seeds with its interval, and the number of seeds if it is smaller than usual."""
    mean = interval_over_seeds(values)
    if mean is None:
        return ""
    half_width = f" ± {mean.half_width:.1f}" if mean.num_values > 1 else ""
    return f"{mean.mean:.1f}{half_width}{_fewer(mean, most_seeds)}"


def format_difference(difference: Interval | None, most_seeds: int = 0) -> str:
    """Formats a difference like a mean, in bold if the interval excludes 0."""
    if difference is None:
        return ""
    bounds = f" ({difference.low:+.1f} to {difference.high:+.1f})" if difference.num_values > 1 else ""
    text = f"{difference.mean:+z.1f}{bounds}".replace("-", MINUS)
    return (f"**{text}**" if difference.excludes_zero else text) + _fewer(difference, most_seeds)


def _fewer(mean: Interval, most_seeds: int) -> str:
    return f" [{mean.num_values}]" if mean.num_values < most_seeds else ""


def format_average(values: Iterable[float | None], spec: str) -> str:
    """Formats the mean of the values that are not None."""
    known = [value for value in values if value is not None]
    return format(statistics.mean(known), spec) if known else ""


def format_seeds(lines: Iterable[Line]) -> str:
    """Formats the number of seeds, e.g. `5 seeds`."""
    number = num_seeds(lines)
    return "1 seed" if number == 1 else f"{number} seeds"


def format_pair(method: str, other: str) -> str:
    """Formats the difference between two methods, e.g. `DropCluster − DropBlock`."""
    return f"{LABELS[method]} {MINUS} {LABELS[other]}"


def format_value(value: object) -> str:
    """Formats the value of an option: ranges, places and intervals between updates in words."""
    if isinstance(value, list):
        return " to ".join(map(str, value)) if isinstance(value[0], float) else " and ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}"
    return "once" if value == studies.NEVER_AGAIN else str(value)


def format_setting(setting: Mapping[str, Any]) -> str:
    """Formats options, e.g. `rate 0.2, block size 4`."""
    return ", ".join(f"{name.replace('_', ' ')} {format_value(value)}" for name, value in setting.items())
