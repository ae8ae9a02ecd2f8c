"""What `import dropcluster_jax` costs over `import jax`: fresh processes that take turns.

python benchmarks/imports.py
python benchmarks/imports.py --turns 31
"""

import argparse
import statistics
import subprocess
import sys
import time

STATEMENTS = ("import jax", "import dropcluster_jax", "import dropcluster_jax.linen", "import dropcluster_jax.training")


def seconds(statement: str) -> float:
    """How long a process takes that does this and ends."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - begin


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15, help="of each statement")
    turns = parser.parse_args().turns
    for statement in STATEMENTS:  # what is read from the disk for the first time does not count
        seconds(statement)
    measured = [[seconds(statement) for statement in STATEMENTS] for _ in range(turns)]
    print("| | s | over `import jax`, median (middle half) |\n|---|---|---|")
    for statement, times in zip(STATEMENTS, zip(*measured, strict=True), strict=True):
        over = [one - turn[0] for one, turn in zip(times, measured, strict=True)]
        low, middle, high = statistics.quantiles(over, n=4)
        more = "" if statement == STATEMENTS[0] else f"{middle:+.2f} ({low:+.2f} to {high:+.2f})"
        print(f"| `{statement}` | {statistics.median(times):.2f} | {more} |")


if __name__ == "__main__":
    main()
