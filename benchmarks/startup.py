"""Seconds from `ddstudy --help` to its answer: median and range of 15 starts, caches warm.

python benchmarks/startup.py
"""

import statistics
import subprocess
import sys
import time


def main() -> None:
    command = [sys.executable, "-m", "ddstudy.cli", "--help"]
    times = []
    for _ in range(16):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    warm = sorted(times[1:])
    print(f"ddstudy --help: {statistics.median(warm):.2f} s ({warm[0]:.2f} to {warm[-1]:.2f})")


if __name__ == "__main__":
    main()
