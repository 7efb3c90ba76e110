"""Running a study in one call, `run`: what Python and the command line share.

A mistake in what was given raises `UserError`, what could not be done `WorkError`, both with the words of the command
line. What is done only in part (a setting that failed, a trial that cannot be read) comes as a `StudyWarning`.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ddstudy.errors import StoppedError, UserError, counted, duration
from ddstudy.execution.executors import Executor, InProcess, Threads, layout, resolve_device
from ddstudy.execution.ray_pool import Ray, Wish
from ddstudy.image_fit import check_cores, plain
from ddstudy.images.targets import load_targets
from ddstudy.images.volumes import Target, Targets, load_target
from ddstudy.report.cases import settings_to_judge
from ddstudy.report.words import about_cases, about_judge, ensemble_of
from ddstudy.results import Study, images_folder, open_study, store_url, tree_of, warn
from ddstudy.spec.axes import Setting, budgets_by_fit
from ddstudy.spec.files import parse_spec, read_spec, read_study, target_of
from ddstudy.spec.options import Value
from ddstudy.spec.schema import StudySpec, on
from ddstudy.store.database import NoStudiesError, Store
from ddstudy.store.study import StudyView
from ddstudy.store.writer import StudyWriter
from ddstudy.study import forecasting, planner, runner
from ddstudy.study.evaluate import device_name, is_stopped
from ddstudy.study.forecasting import Forecast
from ddstudy.study.over_cases import OverCases
from ddstudy.study.planner import Plan
from ddstudy.study.runner import Progress
from ddstudy.study.samplers import marks, sampler

PACKAGED = Path(__file__).parent / "data" / "quick.toml"
Mode = Literal["grid", "tpe", "pareto"]
Asked = str | Path | Mapping[str, Any] | StudySpec | None


def run(
    study: Asked = None,
    *,
    mode: Mode | None = None,
    target: str | Path | None = None,
    trials: int | None = None,
    name: str | None = None,
    ray: bool | str = False,
    engine: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    reuse: str | None = None,
    store: str | None = None,
    artifacts: str | Path | None = None,
    progress: Callable[[Progress], object] | None = None,
    tell: Callable[[str], object] | None = None,
    stop: threading.Event | None = None,
) -> Study:
    """Runs a study, or goes on with one: the same call resumes. `ddstudy run` does no more than this.

    Every result is stored the moment it is there, so that nothing is lost however it ends: Ctrl-C raises
    KeyboardInterrupt as anywhere, what `progress` raises is passed on, and `stop` ends it quietly.

    Args:
        study: a study file, the same as a dictionary (lists may be ranges or arrays) or as a `StudySpec`; by default a
            small packaged study.
        mode: "grid" for every setting once, "tpe" for a search for the best PSNR (or judge's score), "pareto" for that
            against seconds, instead of what the study says; the study then has a name of its own.
        target: image or volume to fit, instead of the study's.
        trials: settings to try; by default all, or 100 for a search.
        name: of the study in the store, instead of its own.
        ray: run on Ray: True for the cluster of RAY_ADDRESS, else one on this machine; "local", "auto" or "HOST:PORT".
        engine: "auto", "fused" or "reference", instead of the study's.
        workers: fits at a time; by default as the cores allow.
        threads: of a fit; by default one per member.
        reuse: name of another study of this target, whose results are imported first.
        store: `sqlite:///FILE.db` or `postgresql://USER:PASSWORD@HOST/DATABASE`; by default that of DDSTUDY_STORE, else
            `sqlite:///ddstudy.db`.
        artifacts: folder of the trials' images; by default that of DDSTUDY_ARTIFACTS, else beside the store.
        progress: is called in this thread with where the run stands, after every event.
        tell: is called with lines about the plan, the forecast and what is waited for, for example `print`.
        stop: ends the run within seconds when another thread sets it; the study is returned as it stands then.

    Returns:
        The study as it stands at the end.

    Raises:
        UserError: something that was given is not valid, or the stored study differs.
        WorkError: no fit works, or the store or the cluster is gone.

    Warns:
        StudyWarning: settings failed, images could not be kept, or trials of the store cannot be read.
    """
    tell = tell or _silent
    spec = asked(study, mode=mode, target=target, trials=trials, name=name, engine=engine, ray=ray)
    fitted = spec.by_case or spec  # what is done is a setting on a case
    image = load_targets(fitted)
    planner.plan(fitted, image, set())  # refuses what cannot be measured before anything is stored
    last = None
    with Store(store_url(store), images_folder(artifacts)) as opened:
        source = opened.source(reuse, fitted, image) if reuse is not None else None  # or refuses, before one is made
        asking = opened.drive(spec, image, sampler(spec))
        writer = opened.drive(fitted, image, sampler(fitted)) if fitted is not spec else asking
        over = OverCases(asking, writer) if fitted is not spec else None
        with (
            contextlib.suppress(StoppedError),
            executor_for(fitted, image, workers=workers, threads=threads, tell=tell, stop=stop) as executor,
        ):
            if source is not None:
                _import(writer, source, executor, tell)
            so_far = writer.measured()
            asking.study.sampler = sampler(spec, len(asking.measured()))
            the_plan = planner.plan(fitted, image, set(so_far), writer.reused, over=spec if over else None)
            if over is not None:
                over.settle()
            forecast = announce(tell, spec, image, the_plan, executor, writer)
            if forecast is not None and not is_stopped(stop):
                steps = runner.run(writer, executor, forecast, over=over)
                last = follow(steps, progress, stop)
        view = opened.view(spec.name)
    troubles = []
    if last is not None and last.failed:
        failed = f"{counted(last.failed, 'setting')} failed (`ddstudy status` says why)"
        troubles = [failed, "The same command tries them again."]
    if last is not None and last.images_lost:
        troubles += [f"all numbers are stored, but not all images: {last.images_lost.removeprefix('not kept: ')}"]
    warn([*troubles, *view.complaints])
    return Study(view, troubles)


# the thesis' largest decoder that is usual, and what `fit` takes unless told otherwise (secs. 3.3 and 4)
LITERATURE: tuple[dict[str, Value], ...] = (
    {"k": 64, "s": 16, "l": 5, "iterations": 2000, "noise": "uniform", "tiling": "1x1"},
    {"k": 128, "s": 16, "l": 5, "iterations": 2000, "noise": "uniform", "tiling": "1x1"},
)


def judge(
    study: str | Path | None = None,
    *,
    workers: int | None = None,
    threads: int | None = None,
    store: str | None = None,
    artifacts: str | Path | None = None,
    progress: Callable[[Progress], object] | None = None,
    tell: Callable[[str], object] | None = None,
    stop: threading.Event | None = None,
) -> Study:
    """Fits the chosen settings of a study on the cases that it holds out, each once; `Study.judged` has the outcome.

    Chosen are the best stable setting by each objective, the Pareto front where there are several objectives, and the
    defaults of the literature as far as the study lists them.

    Args:
        study: name of a study of the store, or its study file; by default the latest.
        workers: fits at a time; by default as the cores allow.
        threads: of a fit; by default one per member.
        store: see `run`.
        artifacts: see `run`.
        progress: see `run`.
        tell: see `run`.
        stop: see `run`.

    Raises:
        UserError: there is no such study, it holds no cases out, or it has no stable setting yet.
        WorkError: no fit works, or the store is gone.
    """
    tell = tell or _silent
    found = open_study(study, store, artifacts)
    spec, fitted = found.spec, found.spec.by_case
    if fitted is None or not spec.cases.held_out:
        raise UserError(f"study '{found.name}' holds no cases out", "Valid: a study with cases.holdout in its file.")
    chosen = settings_to_judge(found.view, LITERATURE)
    if chosen.empty:
        raise UserError(f"study '{found.name}' has no stable setting yet", "Run it first: ddstudy run.")
    numbers = set(chosen["number"])
    settings = [record.setting for record in found.view.records if record.number in numbers]
    wanted = {on(setting, case) for setting in settings for case in spec.cases.held_out}
    image, last = load_targets(fitted), None
    with Store(store_url(store), images_folder(artifacts)) as opened:
        writer = opened.drive(fitted, image, sampler(fitted))
        with (
            contextlib.suppress(StoppedError),
            executor_for(fitted, image, workers=workers, threads=threads, tell=tell, stop=stop) as executor,
        ):
            the_plan = planner.plan(fitted, image, set(writer.measured()), wanted=wanted)
            judged = f"{counted(len(settings), 'setting')} on {counted(len(spec.cases.held_out), 'held-out case')}"
            tell(f"Judging {judged}: {', '.join(setting.id for setting in settings)}")
            forecast = announce(tell, spec, image, the_plan, executor, writer)
            if forecast is not None and not is_stopped(stop):
                last = follow(runner.run(writer, executor, forecast, wanted=wanted), progress, stop)
        view = opened.view(spec.name)
    troubles = [f"{counted(last.failed, 'fit')} failed (`ddstudy status` says why)"] if last and last.failed else []
    warn([*troubles, *view.complaints])
    return Study(view, troubles)


def follow(
    steps: Iterator[Progress], progress: Callable[[Progress], object] | None, stop: threading.Event | None
) -> Progress | None:
    """Lets a run go on to its end, or until `stop` is set; where it stands then."""
    last = None
    with contextlib.closing(steps):  # type: ignore[type-var]  # a generator has close()
        for last in steps:
            if progress is not None:
                progress(last)
            if is_stopped(stop):
                break
    return last


@dataclass(frozen=True)
class DryRun:
    """What `run` would do.

    Attributes:
        spec: the study.
        settings: that it has, or that a search would try.
        fits: that serve them; for a search the most it can need.
        done: settings that have a result already.
        seconds: forecast of the rest without any early stop; None if not even one iteration was tried in time.
        complaints: what of the store cannot be read.
    """

    spec: StudySpec
    settings: int
    fits: int
    done: int
    seconds: float | None
    complaints: Sequence[str] = field(default=(), repr=False)


def dry_run(
    study: Asked = None,
    *,
    mode: Mode | None = None,
    target: str | Path | None = None,
    trials: int | None = None,
    name: str | None = None,
    ray: bool | str = False,
    engine: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    store: str | None = None,
    tell: Callable[[str], object] | None = None,
    stop: threading.Event | None = None,
) -> DryRun:
    """Plans a run and forecasts how long it takes, by some iterations of its fits; writes nothing.

    Args and errors are those of `run`.

    Raises:
        StoppedError: `stop` was set.
    """
    tell = tell or _silent
    spec = asked(study, mode=mode, target=target, trials=trials, name=name, engine=engine, ray=ray)
    fitted = spec.by_case or spec
    image = load_targets(fitted)
    done, complaints = _measured_so_far(store_url(store), fitted, image)
    the_plan = planner.plan(fitted, image, done, over=spec if spec.by_case else None)
    with executor_for(fitted, image, workers=workers, threads=threads, tell=tell, stop=stop) as executor:
        forecast = announce(tell, spec, image, the_plan, executor)
        seconds: float | None = 0.0
        if forecast is not None:
            ahead = forecasting.forecast_seconds(fitted, image, the_plan, forecast, executor.slots)
            seconds = ahead if forecast.known else None
    warn(complaints)
    return DryRun(spec, the_plan.settings, the_plan.fits, the_plan.done, seconds, complaints)


def check_study(path: str | Path) -> tuple[list[str], StudySpec | None]:
    """All that is wrong with a study file, with its target, and with what it asks of that target.

    Returns:
        The mistakes, and the study if its file is valid.
    """
    path = Path(path)
    mistakes: list[str] = []
    spec = image = None
    try:
        tree = read_study(path)
    except UserError as error:
        return [str(error)], None
    try:
        spec = parse_spec(tree, str(path))
    except UserError as error:
        mistakes.append(str(error))
    target = target_of(tree)
    try:
        fitted = spec and (spec.by_case or spec)
        image = load_targets(fitted) if fitted else load_target(target) if target is not None else None
        if fitted is not None and image is not None:
            planner.plan(fitted, image, set())
    except UserError as error:
        mistakes.append(f"{path}: {error}" if image is not None else f"{path}: target: {error}")
    return mistakes, spec


def asked(
    study: Asked,
    *,
    mode: Mode | None = None,
    target: str | Path | None = None,
    trials: int | None = None,
    name: str | None = None,
    engine: str | None = None,
    ray: bool | str = False,
) -> StudySpec:
    """The study that a call asks for. A mode that is not the study's own gives it another name.

    Args are those of `run`.

    Raises:
        UserError: something that was given is not valid.
    """
    if isinstance(study, StudySpec):
        spec = study
    elif isinstance(study, Mapping):
        given = plain(study) | ({"name": name} if name is not None else {})
        if isinstance(given.get("target"), dict) and isinstance(given["target"].get("file"), str):
            given["target"]["file"] = os.path.abspath(given["target"]["file"])  # the same study in another folder
        spec = parse_spec(given, "study")
    else:
        spec = read_spec(Path(study or PACKAGED), name)
    tree = tree_of(spec)
    if mode is not None:
        if mode not in ("grid", "tpe", "pareto"):
            raise UserError(f"mode: cannot be {mode!r}", "Valid: 'grid', 'tpe', 'pareto'.")
        tree["search"]["sampler"] = "grid" if mode == "grid" else "tpe"
        if mode != "grid":
            tree["objectives"] = {spec.score: "maximize"} | ({"seconds": "minimize"} if mode == "pareto" else {})
        if tree["search"]["sampler"] != spec.search.sampler or tree["objectives"] != spec.objectives:
            tree["name"] = f"{spec.name}-{mode}"
    if target is not None:
        tree["target"]["file"] = os.path.abspath(target)
    if trials is not None:
        tree["search"]["trials"] = plain(trials)
    if name is not None:
        tree["name"] = name
    if engine is not None:
        tree["fit"]["engine"] = engine
    if ray is not False:
        tree["executor"] |= {"kind": "ray"} | ({"address": ray} if ray is not True else {})
    return parse_spec(tree, "ddstudy run")


@contextlib.contextmanager
def executor_for(
    spec: StudySpec,
    image: Target | Targets,
    *,
    workers: int | None = None,
    threads: int | None = None,
    tell: Callable[[str], object],
    stop: threading.Event | None = None,
) -> Iterator[Executor]:
    """Where the fits of a study run, open; the arguments are those of `run`.

    Raises:
        UserError: the device or the cluster is not there, or cannot do what is asked for.
    """
    check_cores("--workers", workers)
    check_cores("--threads", threads)
    timed, bytes_per_fit = "seconds" in spec.objectives, partial(planner.bytes_of_largest_fit, spec, image)
    executor: Executor
    if spec.executor.kind == "ray":
        if workers or threads:
            raise UserError("--workers and --threads are for this machine", "Ray's slots follow from its cluster.")
        bytes_on_gpu = partial(planner.bytes_of_largest_fit, spec, image, "cuda:0")
        executor = Ray(Wish(spec.fit, spec.executor, timed, bytes_per_fit, bytes_on_gpu), tell, stop)
    else:
        cores = layout(
            spec.fit,
            resolve_device(spec.fit.device),
            exclusive=timed,
            bytes_per_fit=bytes_per_fit,
            workers=workers,
            threads=threads,
        )
        executor = InProcess(cores.threads, stop) if cores.workers == 1 else Threads(cores, stop)
    try:
        yield executor
    finally:
        executor.close()


def announce(
    tell: Callable[[str], object],
    spec: StudySpec,
    image: Target | Targets,
    the_plan: Plan,
    executor: Executor,
    study: StudyWriter | None = None,
) -> Forecast | None:
    """Says what a run will do, and how long it will take.

    Args:
        tell: takes the lines.
        spec: the study.
        image: its target.
        the_plan: what is to do.
        executor: where it is done.
        study: whose forecast is kept; None where nothing is stored.

    Returns:
        The forecast, None if nothing is left to do.
    """
    objectives = ", ".join(f"{metric} ({direction})" for metric, direction in spec.objectives.items())
    shape = "x".join(map(str, image.image.shape[1:]))
    tell(f"Study {spec.name}: {spec.search.sampler}, {objectives}")
    tell(f"Target {image.name}, {shape}{' RGB' if len(image.image) == 3 else ''}")
    if spec.cases.by_name:
        tell(about_cases(spec))
    most = "at most " if the_plan.is_search else ""
    done = f", {the_plan.done:,} done" if the_plan.done else ""
    fewest, *_, most_members = sorted(2 * [int(count) for count in spec.values_of("fit.members")])
    members = counted(fewest, "member") if fewest == most_members else f"{fewest} to {most_members} members"
    fits = f"{counted(the_plan.fits, 'fit')} of {members}"
    tell(f"{counted(the_plan.settings, 'trial')}, {most}{fits}{done}")
    if most_members > 1:
        n = ensemble_of(spec).removesuffix("DD")
        what = "PSNR" if spec.score == "psnr" else "the judge's score"
        tell(f"{n}DD: {what} of the mean of {n} outputs; 1DD: mean {what.removeprefix('the ')} of single members")
    if spec.score == "judge":
        tell(about_judge(spec))
    fitted = spec.by_case or spec
    if the_plan.done >= the_plan.settings if the_plan.is_search else not the_plan.todo:
        tell("Nothing left to do.")
        return None
    to_try = list(the_plan.todo) or list(budgets_by_fit(fitted.search_space))
    where = f"{executor.slots} x {_device_of(executor, spec)}, {spec.fit.engine}"
    forecast = forecasting.kept_forecast(study, where) if study is not None else None
    if forecast is None:
        most = f"{forecasting.CALIBRATION_SECONDS:.0f} s at most, unless kernels are compiled"
        tell(f"Trying some iterations for a forecast: {most}")
        forecast = forecasting.calibrate(fitted, image, to_try, executor, study.leases if study else None)
        forecast.where = where
        if study is not None:
            forecasting.keep_forecast(study, forecast)
    if not forecast.known:
        tell("Forecast: known after the first fit")
        return forecast
    seconds = forecasting.forecast_seconds(fitted, image, the_plan, forecast, executor.slots)
    fitting = forecast.fitting(forecasting.work_ahead(fitted, image, the_plan)) / max(1, executor.slots)
    at_most = ", less where unstable fits are stopped" if spec.stability.prune else ""
    if "seconds" not in spec.objectives and executor.room(planner.job(fitted, image, to_try[0], (1,))) > 1:
        at_most += ", less in packs"
    tell(f"Forecast: about {duration(seconds)}, {duration(min(fitting, seconds))} of fitting{at_most}")
    return forecast


def _device_of(executor: Executor, spec: StudySpec) -> str:
    """The device that fits run on, as their trials name it."""
    return executor.device if isinstance(executor, Ray) else device_name(resolve_device(spec.fit.device))


def _import(writer: StudyWriter, source: StudyView, executor: Executor, tell: Callable[[str], object]) -> None:
    count = writer.reuse(source, device=_device_of(executor, writer.spec), marks=marks(writer))
    tell(f"{count:,} results of {source.name} imported")


def _measured_so_far(store: str, spec: StudySpec, image: Target | Targets) -> tuple[set[Setting], list[str]]:
    """Settings of the study that have a result, and what cannot be read of it, without writing anything."""
    try:
        with Store(store, read_only=True) as opened:
            if opened.check(spec, image) is None:
                return set(), []
            view = opened.view(spec.name)
    except NoStudiesError:
        return set(), []
    return {record.setting for record in view.records if record.has_result}, view.complaints


def _silent(line: str) -> None:
    """Where nobody wants to be told."""
