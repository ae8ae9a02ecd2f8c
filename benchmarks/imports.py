"""Import time of `dropcluster_jax` over `import jax`, measured in new processes.

python benchmarks/imports.py
python benchmarks/imports.py --repeats 31
"""

import argparse
import statistics
import subprocess
import sys
import time

STATEMENTS = ("import jax", "import dropcluster_jax", "import dropcluster_jax.linen", "import dropcluster_jax.training")


def process_seconds(statement: str) -> float:
    """Returns the lifetime of a Python process that runs `statement`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="number of measurements of each statement")
    repeats = parser.parse_args().repeats
    for statement in STATEMENTS:  # warms up the file system cache
        process_seconds(statement)
    # Interleaved, so that slow drifts of the machine's speed cancel in the differences.
    rounds = [[process_seconds(statement) for statement in STATEMENTS] for _ in range(repeats)]
    print("| | s | over `import jax`, median (middle half) |\n|---|---|---|")
    for statement, times in zip(STATEMENTS, zip(*rounds, strict=True), strict=True):
        differences = [seconds - baseline for seconds, (baseline, *_) in zip(times, rounds, strict=True)]
        low, median, high = statistics.quantiles(differences, n=4)
        cell = "" if statement == STATEMENTS[0] else f"{median:+.2f} ({low:+.2f} to {high:+.2f})"
        print(f"| `{statement}` | {statistics.median(times):.2f} | {cell} |")


if __name__ == "__main__":
    main()
