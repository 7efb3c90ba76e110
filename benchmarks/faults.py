"""Kills drivers, restarts their server, and counts what is lost, doubled or changed: nothing should be.

    python benchmarks/faults.py [--seed N] [--kills N]

Every line is one study of the same settings: a grid or a TPE search, on SQLite with one driver or on PostgreSQL with
four, whose drivers are killed with SIGKILL at random moments and started again by the same command until they are done;
on PostgreSQL the server is restarted twice in between, once by a crash. `different` counts results that are not, to the
last bit, those of a run that nothing happened to, `missing` settings of a grid without a result.
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # the drivers that the tests kill

import drivers
import postgres


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--kills", type=int, default=15, help="per line, at most")
    options = parser.parse_args()
    moments = random.Random(options.seed)
    columns = ("kills", "restarts", "trials", "FAIL", "duplicates", "RUNNING", "different", "missing", "seconds")
    print(f"{'study':20s}", *(f"{column:>10s}" for column in columns), flush=True)
    total = dict.fromkeys(columns, 0)
    with tempfile.TemporaryDirectory() as name, postgres.server() as server:
        folder = Path(name)
        drivers.write_study(folder, 60, 120, 240)
        truth = drivers.undisturbed(folder)
        for kind, at_once in (("sqlite", 1), ("postgresql", 4)):
            for study, search in (("grid", ()), ("tpe", ("--tpe", "--trials", "8"))):
                url = f"sqlite:///{folder}/killed.db" if kind == "sqlite" else server.url
                command = ("run", "study.toml", "--name", study, *search, "--store", url)
                counts = dict.fromkeys(columns, 0)
                began = time.monotonic()
                for _ in drivers.kill_and_restart(folder, command, options.kills, moments, at_once):
                    counts["kills"] += 1
                    if kind == "postgresql" and counts["kills"] in (4, 8):
                        server.stop(signal.SIGQUIT if counts["kills"] == 4 else signal.SIGINT)
                        server.start()
                        counts["restarts"] += 1
                found = drivers.findings(url, study)
                counts |= {
                    "trials": len(found.results) + found.duplicates,
                    "FAIL": found.failed,
                    "duplicates": found.duplicates,
                    "RUNNING": found.running,
                    "different": sum(truth[key] != value for key, value in found.results.items()),
                    "missing": 0 if search else len(truth.keys() - found.results.keys()),
                    "seconds": round(time.monotonic() - began),
                }
                total = {column: total[column] + counts[column] for column in columns}
                print(f"{kind + ', ' + study:20s}", *(f"{counts[column]:10d}" for column in columns), flush=True)
    print(f"{'all':20s}", *(f"{total[column]:10d}" for column in columns))
    return int(any(total[column] for column in ("duplicates", "RUNNING", "different", "missing")))


if __name__ == "__main__":
    sys.exit(main())
