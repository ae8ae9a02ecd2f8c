"""Names and phrases that were replaced by standard terms do not come back."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
SUFFIXES = {".py", ".md", ".ipynb", ".toml", ".yml", ".yaml", ".js", ".css", ".txt", ".cff", ""}
SKIPPED = ("experiments/results/", "experiments/networks/", "docs/figures/", "tests/test_wording.py", "LICENSE")

NAMES = [
    # Data.
    r"DeviceRoad|StreamRoad|open_road|data\.road\b|\b(Order|Batches|Known|stamp)\(|\bKNOWN\b|BadImageError|skip_bad",
    r"balanced_share|split_by_share|\b(test_share|per_class|parts_of)\b|\bprepared\.py|data[./](sources|arrays)\b",
    # Training and runs.
    r"max_bad_steps|\bbad_steps|learning_rate_per|(?<!Data)Parallel\(|\bway=|--(parallel|average|accumulate)\b",
    r"\b(average|accumulate|cluster_when)=|fit\([^)]*\b(report|watch)=|steps\.cluster\(|\bCadence\b|agreement_with_grid",
    r"NoSoundCheckpoint|OtherFormatError|put_aside|\bHOW\b|\b_(of_all|of_first|meet)\b",
    r"training[./](trainer|checkpoints|config|presets|saved)\b",
    # Core.
    r"\b(units|quality|extras)\.py|\.quality import|\bagreement\(|dc\.resize\(|\.explained\b|extras\.extra",
    r"draw_kept|scale_of_(counts|mask)",
]
PHRASES = [
    # Private metaphors.
    r"\b(roads?|rooms?|the house|door|laws|property law|the story of|(same|one|public) face)\b",
    r"\b(lower|upper|lowest|higher|which|ground) floors?\b",
    # Programs that act like people.
    r"\b(tell|tells|told|telling|refus(e|es|ed|ing|al)|met (at|by|with))\b",
    r"\b((give|gives|given|gave|giving) away|(go|goes|going|went) on|tak(e|es|ing) (no )?part)\b",
    # Archaic or translated words.
    r"\b(anew|ever after|likewise|by itself|by themselves|at hand|beside|dear|thereby|without a word|and the like)\b",
    r"\b(what is left|(so|as) many|so much|equally many)\b|(?<!there) (is no (?!longer)|(?-i:(is|are) none)\b)",
    r"\b(shares? of|(dropped|expected|realized|its|which|the) share|data sets?)\b",
    r"def test_(what|where|which)_|def test_\w*_(told|refused|refuses|anew|beside|at_hand|by_itself|law|laws)\b",
    # British spelling. "blue grey" is a color of the site's theme.
    r"\b(colour|centre|neighbour|labelled|behaviour|favour)|(?<!blue) grey\b",
    r"\b(normal|optim|initial|summar|real|general)is(e|es|ed|ing|er|ation)\b",
]
SUMMARY = re.compile(r'"""(What|Where|Which|How|Of|Who|Whose)\b')


def files() -> list[pathlib.Path]:
    folders = ("dropcluster_jax", "experiments", "tests", "benchmarks", "docs", ".github")
    paths = [path for path in ROOT.iterdir() if path.is_file()]
    paths += [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    return sorted(
        path
        for path in paths
        if path.suffix in SUFFIXES
        and not str(path.relative_to(ROOT)).startswith(SKIPPED)
        and "__pycache__" not in path.parts
    )


def find(patterns: list[re.Pattern[str]]) -> list[str]:
    """All matches, as `file:line: text`."""
    matches = []
    for path in files():
        text = path.read_text()
        for pattern in patterns:
            for match in pattern.finditer(text):
                line = text.count("\n", 0, match.start()) + 1
                matches.append(f"{path.relative_to(ROOT)}:{line}: {' '.join(match[0].split())}")
    return matches


def test_old_names_are_gone():
    found = find([re.compile(name) for name in NAMES])
    assert not found, "\n".join(found)


def test_old_phrases_are_gone():
    # A phrase may be broken over two lines, also of a comment.
    found = find([re.compile(phrase.replace(" ", r"\s+(?:#\s+)?"), re.IGNORECASE) for phrase in PHRASES])
    assert not found, "\n".join(found)


def test_docstrings_start_with_a_summary():
    found = find([SUMMARY])
    assert not found, "\n".join(found)
