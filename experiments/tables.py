"""Selects result lines, pairs their accuracies by seed, and formats them as Markdown tables."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dropcluster_jax.data import DATASETS
from dropcluster_jax.runs.intervals import Interval, interval
from experiments import studies
from experiments.intervals import crossed_interval, paired_difference
from experiments.results import Line, decode_bits, decode_counts

MINUS = "\N{MINUS SIGN}"
LABELS = {name: method.label for name, method in studies.METHODS.items()}


def select(lines: Iterable[Line], **values: object) -> list[Line]:
    """Returns the lines with these values, of the line or of its setting."""
    return [line for line in lines if all({**line, **line["setting"]}.get(name) == values[name] for name in values)]


def group_by(lines: Iterable[Line], key: Callable[[Line], str]) -> dict[str, list[Line]]:
    """Returns lines by key, in the order of the first line of each key."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(key(line), []).append(line)
    return groups


def by_accuracy(groups: Mapping[str, list[Line]]) -> dict[str, list[Line]]:
    """Returns groups in descending order of the mean accuracy."""
    return dict(sorted(groups.items(), key=lambda item: -statistics.mean(line["accuracy"] for line in item[1])))


def methods_of(lines: Iterable[Line]) -> list[str]:
    """Returns the methods of the lines, in the order of tables."""
    found = {line["method"] for line in lines}
    return [method for method in LABELS if method in found]


def num_seeds(lines: Iterable[Line]) -> int:
    """Returns the number of different seeds."""
    return len({line["seed"] for line in lines})


def num_training_images(line: Line) -> int:
    """Returns the number of images that a run was trained on."""
    data = line["config"]["data"]
    spec = DATASETS[data["name"]]
    if data["examples_per_class"] is not None:
        return data["examples_per_class"] * spec.num_classes
    return round((data["fraction"] or 1) * (1 - data["validation_fraction"]) * spec.num_train_examples)


def mean(lines: Iterable[Line]) -> Interval | None:
    """Returns the mean accuracy over seeds, in %; None without lines."""
    values = list(_by_seed(lines).values())
    return interval(values) if values else None


def difference(first: Iterable[Line], second: Iterable[Line]) -> Interval | None:
    """Returns the mean difference of accuracies in points, paired by seed; None without common seeds.

    If results by image are available, the interval also reflects the choice of the test images.
    """
    groups = [{line["seed"]: line for line in lines} for lines in (first, second)]
    correct = [[_correct(lines[seed]) for lines in groups] for seed in groups[0] if seed in groups[1]]
    if len(correct) < 2 or any(values is None for pair in correct for values in pair):
        return paired_difference(*(_by_seed(lines.values()) for lines in groups))
    values = np.array(correct, float)
    return crossed_interval(100 * (values[:, 0] - values[:, 1]))


def _by_seed(lines: Iterable[Line]) -> dict[int, float]:
    return {line["seed"]: 100 * line["accuracy"] for line in lines}


def _correct(line: Line) -> np.ndarray | None:
    """Returns how often each test image is classified correctly, from 0 to 1; None if unknown or the run failed."""
    if "correct_counts" in line:
        return decode_counts(line["correct_counts"]) / sum(
            len(corruption["accuracy"]) for corruption in line["corruptions"].values()
        )
    return decode_bits(line["correct"], line["count"]) if "correct" in line else None


# ---- Text


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table as one block of text."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)) + "\n"


def format_mean(lines: Iterable[Line], most_seeds: int) -> str:
    """Formats the mean accuracy with its interval, and the number of seeds if it is smaller than usual."""
    return _format(mean(lines), ".1f", most_seeds)


def format_difference(first: Iterable[Line], second: Iterable[Line], most_seeds: int) -> str:
    """Formats a difference like a mean, in bold if the interval excludes 0."""
    found = difference(first, second)
    text = _format(found, "+z.1f", most_seeds).replace("-", MINUS)
    return f"**{text}**" if found and found.excludes_zero else text


def _format(value: Interval | None, spec: str, most_seeds: int) -> str:
    if value is None:
        return ""
    half_width = f" ± {value.half_width:.1f}" if value.num_values > 1 else ""
    fewer = f" [{value.num_values}]" if value.num_values < most_seeds else ""
    return f"{value.mean:{spec}}{half_width}{fewer}"


def format_average(values: Iterable[float | None], spec: str) -> str:
    """Formats the mean of the values that are not None."""
    known = [value for value in values if value is not None]
    return format(statistics.mean(known), spec).replace("-", MINUS) if known else ""


def format_seeds(lines: Iterable[Line]) -> str:
    """Formats the number of seeds, e.g. `5 seeds`."""
    number = num_seeds(lines)
    return "1 seed" if number == 1 else f"{number} seeds"


def format_images(line: Line) -> str:
    """Formats the number of images that a run was trained on."""
    return f"{num_training_images(line):,} images"


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
