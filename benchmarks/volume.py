"""What warm starts and joint fits are worth over the slices of a volume: quality beside seconds.

    python benchmarks/volume.py --json benchmarks/results/volume.json
    python benchmarks/volume.py --slices 66:126:4 --ways random "neighbour 250" "neighbour 150" "joint 3"
    python benchmarks/volume.py --k 16 --ways random --tasks denoise

15 adjacent axial slices about the middle of the packaged MNI152 template, at 96x80, one setting with two members;
copied (represent) and denoised (sigma 0.1 of the volume's range). Every way has the same slices, measurements and input
tensors, and starts that are random are the same. Scores are those of the last iterate, as a budget gives them. Seconds
are of the processor, over all threads and slices, metrics included, since the machine may have other work.

    random         each slice from random weights
    neighbour N    the middle one so, then outwards, N iterations each, from the weights of the slice before
    joint 3, 5     five networks of three slices, or three of five; x3: with three times the iterations, which takes
                   about the time of `random`
    sliding 3      for each slice a network of it and its two neighbours, of which only its own channel is taken
"""

import argparse
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddstudy.execution.executors import usable_cores
from ddstudy.image_fit import asked, job_of
from ddstudy.images.slices import Slices, load_slices
from ddstudy.spec.cases import inner_neighbours, units_of
from ddstudy.spec.schema import StudySpec
from ddstudy.study.evaluate import Result, evaluate_together
from ddstudy.volume_fit import Unit

SETTING: Mapping[str, Any] = {"k": 32, "s": 8, "l": 4, "members": 2, "check_every": 25}
TASKS: Mapping[str, Mapping[str, Any]] = {
    "represent": {"kind": "represent"},
    "denoise": {"kind": "denoise", "sigma": 0.1},
}


class Way(NamedTuple):
    """How slices are reconstructed.

    Attributes:
        units: of each slice, those whose network it is taken from.
        iterations: of a network that starts at random.
        onwards: of one that starts from its neighbour; 0: none does.
    """

    units: Mapping[int, Unit]
    iterations: int
    onwards: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--slices", default="87:102")
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--k", type=int, default=SETTING["k"])
    parser.add_argument("--ways", nargs="+", help="'random' first: what the others are compared with [all]")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for task in options.tasks:
        spec = asked(
            **{**SETTING, "k": options.k}, target={"size": [96, 80]}, task=TASKS[task], iterations=options.iterations
        )
        slices = load_slices(spec.target, options.slices)
        reference: dict[int, Result] = {}
        every = ways(list(slices.targets), options.iterations)
        for name in options.ways or every:
            way = every[name]
            begun = sum(os.times()[:4])
            found = results(spec, slices, way)
            seconds = sum(os.times()[:4]) - begun
            reference = reference or found
            rows.append({"task": task, "way": name, "seconds": seconds, **compared(found, reference, way)})
            print(json.dumps(rows[-1]), flush=True)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1))


def ways(slices: list[int], iterations: int) -> dict[str, Way]:
    """By name."""
    alone = {index: (index,) for index in slices}
    joint = {n: {index: unit for unit in reversed(units_of(slices, n)) for index in unit} for n in (3, 5)}
    few = 3 * iterations // 10
    firsts = [min(max(place - 1, 0), len(slices) - 3) for place in range(len(slices))]
    sliding = {index: tuple(slices[first : first + 3]) for index, first in zip(slices, firsts, strict=True)}
    return {
        "random": Way(alone, iterations),
        **{f"neighbour {n}": Way(alone, iterations, n) for n in (iterations, iterations // 2, few, iterations // 10)},
        "joint 3": Way(joint[3], iterations),
        "joint 5": Way(joint[5], iterations),
        "joint 3 x3": Way(joint[3], 3 * iterations),
        f"neighbour {few}, joint 3": Way(joint[3], iterations, few),
        "sliding 3": Way(sliding, iterations),
    }


def results(spec: StudySpec, slices: Slices, way: Way) -> dict[int, Result]:
    """Of each slice."""
    units = list(dict.fromkeys(way.units.values()))
    inner = inner_neighbours(units) if way.onwards else dict[Unit, Unit | None].fromkeys(units)
    found: dict[Unit, list[Result]] = {}
    while len(found) < len(units):
        for unit in units:
            before = inner[unit]
            if unit not in found and (before is None or before in found):
                start = None if before is None else found[before][0].weights
                found[unit] = fitted(spec, slices, unit, way.onwards if before else way.iterations, start)
    return {index: found[unit][unit.index(index)] for index, unit in way.units.items()}


def fitted(
    spec: StudySpec, slices: Slices, unit: Unit, iterations: int, start: NDArray[np.float32] | None
) -> list[Result]:
    """Of the slices of one network."""
    (setting,) = spec.search_space
    jobs = [
        replace(
            job_of(spec, slices.targets[index], setting),
            budgets=(iterations,),
            start=start,
            with_weights=True,
            joint=len(unit),
        )
        for index in unit
    ]
    stops = [threading.Event() for _ in jobs]
    events = evaluate_together(jobs, device="cpu", threads=usable_cores(), stops=stops)
    found = {place: event for place, event in events if isinstance(event, Result)}
    return [found[place] for place in range(len(unit))]


def curve(result: Result) -> list[float]:
    """The score at each check: of the ensemble in tasks, else the members' mean."""
    members: Sequence[Any] = result.curve["psnr_members"]
    scores: Sequence[Any] = result.curve.get("score") or [float(np.mean(each)) for each in members]
    return list(scores)


def reaches(result: Result, score: float) -> int | None:
    """The first check, in iterations, of at least a score."""
    iterations: Sequence[Any] = result.curve["iterations"]
    return next((int(at) for at, here in zip(iterations, curve(result), strict=True) if here >= score), None)


def compared(found: Mapping[int, Result], reference: Mapping[int, Result], way: Way) -> dict[str, Any]:
    """Scores, and how they differ from random starts, slice by slice."""
    psnr = {index: float(result.values["psnr"]) for index, result in found.items()}
    gains = {index: psnr[index] - float(reference[index].values["psnr"]) for index in psnr}
    row: dict[str, Any] = {
        "psnr": np.mean(list(psnr.values())),
        "worst": min(psnr.values()),
        "ssim": np.mean([float(result.values["ssim"]) for result in found.values()]),
        "peak_at_checks": np.mean([max(curve(result)) for result in found.values()]),
        "gain": np.mean(list(gains.values())),
        "gain_least": min(gains.values()),
    }
    if any(len(unit) > 1 for unit in way.units.values()):
        ends = {index for index, unit in way.units.items() if index in (unit[0], unit[-1])}
        row["gain_ends"] = np.mean([gain for index, gain in gains.items() if index in ends])
        row["gain_inner"] = np.mean([gain for index, gain in gains.items() if index not in ends])
    row = {name: round(float(value), 4) for name, value in row.items()}
    if way.onwards:
        started = sorted(index for index in found if index != sorted(found)[len(found) // 2])
        final = {index: curve(reference[index])[-1] for index in started}
        peak = {index: max(curve(reference[index])) for index in started}
        row["iterations_to_random"] = [reaches(found[index], final[index]) for index in started]
        row["iterations_to_peak"] = [reaches(found[index], peak[index]) for index in started]
        row["random_to_peak"] = [reaches(reference[index], peak[index]) for index in started]
    row["slices"] = {index: round(psnr[index], 3) for index in sorted(psnr)}
    return row


if __name__ == "__main__":
    main()
