"""What sources say of a split that is not there."""

from collections.abc import Mapping


def no_split(name: str, argument: str, split: str, sizes: Mapping[str, int], reason: str) -> ValueError:
    """The error, with what there is."""
    available = ", ".join(f"{part} ({size} examples)" for part, size in sizes.items())
    return ValueError(f"{argument} must be a split of {name!r}, {available}, or a part of one, got {split!r}: {reason}")
