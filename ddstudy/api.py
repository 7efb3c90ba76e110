"""The Python API, as good as the command line, which calls it: `run` a study, `open_study`, and the `Study` they give.

A mistake in what was given raises `UserError`, what could not be done `WorkError`, both with the words of the command
line. What is done only in part (a setting that failed, a trial that cannot be read) comes as a `StudyWarning`.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddstudy import DEFAULT_STORE
from ddstudy.errors import StoppedError, StudyWarning, UserError, counted, duration
from ddstudy.execution.executors import Executor, InProcess, Threads, is_stopped, layout, resolve_device
from ddstudy.execution.ray_pool import Ray, Wish
from ddstudy.image_fit import arranged, check_cores, fit_setting, plain
from ddstudy.images.volumes import Target, load_target
from ddstudy.report.writing import write_file, write_files
from ddstudy.spec.axes import Setting, budgets_by_fit
from ddstudy.spec.files import parse_spec, read_spec, read_study, target_of
from ddstudy.spec.schema import BETTER, StudySpec
from ddstudy.store.database import NoStudiesError, Store
from ddstudy.store.study import StudyView, failed_settings
from ddstudy.store.writer import Driven
from ddstudy.study import runner
from ddstudy.study.evaluate import Check, device_name
from ddstudy.study.runner import Forecast, Plan, Progress
from ddstudy.study.samplers import Unseen, sampler

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ddstudy.report import thesis

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
        mode: "grid" for every setting once, "tpe" for a search for the best PSNR, "pareto" for PSNR against seconds,
            instead of what the study says; the study then has a name of its own.
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
    image = load_target(spec.target)
    runner.plan(spec, image, set())  # refuses what cannot be measured before anything is stored
    last = None
    with Store(_store(store), _artifacts(artifacts)) as opened:
        source = opened.source(reuse, spec, image) if reuse is not None else None  # or refuses, before a study is made
        driven = opened.drive(spec, image, sampler(spec))
        with (
            contextlib.suppress(StoppedError),
            executor_for(spec, image, workers=workers, threads=threads, tell=tell, stop=stop) as executor,
        ):
            if source is not None:
                _import(driven, source, executor, tell)
            so_far = driven.measured()
            driven.study.sampler = sampler(spec, len(so_far))
            the_plan = runner.plan(spec, image, set(so_far), driven.reused)
            forecast = announce(tell, spec, image, the_plan, executor, driven)
            if forecast is not None and not is_stopped(stop):
                steps = runner.run(driven, executor, forecast)
                with contextlib.closing(steps):  # type: ignore[type-var]  # a generator has close()
                    for last in steps:
                        if progress is not None:
                            progress(last)
                        if is_stopped(stop):
                            break
        view = opened.view(spec.name)
    troubles = []
    if last is not None and last.failed:
        failed = f"{counted(last.failed, 'setting')} failed (`ddstudy status` says why)"
        troubles = [failed, "The same command tries them again."]
    if last is not None and last.images_lost:
        troubles += [f"all numbers are stored, but not all images: {last.images_lost.removeprefix('not kept: ')}"]
    _warn([*troubles, *view.complaints])
    return Study(view, troubles)


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
    image = load_target(spec.target)
    done, complaints = _measured_so_far(_store(store), spec, image)
    the_plan = runner.plan(spec, image, done)
    with executor_for(spec, image, workers=workers, threads=threads, tell=tell, stop=stop) as executor:
        forecast = announce(tell, spec, image, the_plan, executor)
        seconds: float | None = 0.0
        if forecast is not None:
            ahead = runner.forecast_seconds(spec, image, the_plan, forecast, executor.slots)
            seconds = ahead if forecast.known else None
    _warn(complaints)
    return DryRun(spec, the_plan.settings, the_plan.fits, the_plan.done, seconds, complaints)


def open_study(name: str | Path | None = None, store: str | None = None, artifacts: str | Path | None = None) -> Study:
    """A study as it stands now; open it again to see what a run has added.

    Args:
        name: of the study, or its study file (`*.toml`); by default the latest of the store.
        store: see `run`.
        artifacts: see `run`.

    Raises:
        UserError: there is no such store or study, or it cannot be read.

    Warns:
        StudyWarning: trials of it, or without a name other studies, cannot be read.
    """
    if isinstance(name, Path) or (name is not None and name.endswith(".toml")):
        name = read_spec(Path(name)).name
    elif name is not None and "://" in name:
        raise UserError("a URL is no name of a study", "A store is the second argument: open_study(NAME, store=URL).")
    (study,), complaints = look(store, None if name is None else [name], artifacts)
    _warn(complaints)
    return study


def studies(store: str | None = None, artifacts: str | Path | None = None) -> list[Study]:
    """All studies of a store as they stand now, the latest first.

    Raises:
        UserError: there is no such store, or nothing in it.

    Warns:
        StudyWarning: studies or trials cannot be read.
    """
    found, complaints = look(store, None, artifacts, every=True)
    _warn(complaints)
    return found


def look(
    store: str | None, names: Sequence[str] | None, artifacts: str | Path | None = None, *, every: bool = False
) -> tuple[list[Study], list[str]]:
    """Studies of a store as they stand now, and what of them cannot be read, a line each.

    Args:
        store: see `run`.
        names: of the studies; by default the latest that can be read.
        artifacts: see `run`.
        every: without names, all that can be read.

    Raises:
        UserError: there is no such store or study, or it cannot be read.
    """
    with Store(_store(store), _artifacts(artifacts), read_only=True) as opened:
        complaints = [] if names else opened.complaints
        if names or not every:
            views = [opened.view(name) for name in names] if names else [opened.view()]
        else:
            views = []
            for name in opened.names():
                try:
                    views.append(opened.view(name))
                except UserError as error:
                    complaints.append(str(error).partition("\n")[0])
            if not views and not complaints:
                opened.view()  # which says so
    complaints += [line for view in views for line in view.complaints]
    return [Study(view) for view in views], complaints


class Study:
    """A study as it stood when it was opened, see `open_study` and `run`.

    Attributes:
        view: the study as reports take it.
        troubles: what went wrong in the run that returned it, in words; empty if nothing did.
    """

    def __init__(self, view: StudyView, troubles: Sequence[str] = ()) -> None:
        self.view = view
        self.troubles = list(troubles)

    def __repr__(self) -> str:
        return f"<Study {self.name}: {len(self.trials):,} trials of {self.facts.get('target', 'an unknown target')}>"

    @property
    def name(self) -> str:
        """Its name in the store."""
        return self.view.name

    @property
    def spec(self) -> StudySpec:
        """Its study file."""
        return self.view.spec

    @property
    def facts(self) -> dict[str, str]:
        """Target, versions, commit and creation time."""
        return self.view.facts

    @property
    def settings(self) -> list[Setting]:
        """Every setting of its space, measured or not."""
        return list(self.spec.space.search_space)

    @property
    def trials(self) -> pd.DataFrame:
        """One row per finished trial: setting, measurements, whether it is stable and why not."""
        return self.view.trials

    @property
    def checks(self) -> pd.DataFrame:
        """One row per member and check of every fit: `fit_id`, `iteration`, `seconds`, `member`, `psnr`."""
        return self.view.checks

    @property
    def best(self) -> pd.DataFrame:
        """The best stable trial by each metric: the rows of `trials`, indexed by the metric.

        Metrics that no stable trial has are left out; `study.best.loc["psnr"]` is the trial with the highest PSNR.
        """
        measured = self.trials[self.trials["state"].isin(["COMPLETE", "PRUNED"])]
        stable = measured[measured["stable"].eq(True)]
        directions = dict[str, str](BETTER) | {str(metric): way for metric, way in self.spec.objectives.items()}
        rows = {
            metric: scored.sort_values(metric, ascending=direction == "minimize", kind="stable").index[0]
            for metric, direction in directions.items()
            if len(scored := stable.dropna(subset=[metric]))
        }
        return stable.loc[list(rows.values())].set_index(pd.Index(list(rows), name="metric"))

    @property
    def failed(self) -> pd.DataFrame:
        """The rows of `trials` whose settings were given up and have no result; `run` tries them again."""
        return failed_settings(self.trials)

    def figure(self, kind: str, *others: Study, **fields: Any) -> go.Figure:
        """A figure of the report, for example `study.figure("pareto", x="seconds", y="psnr")`.

        Args:
            kind: of the panel.
            *others: studies that this one is compared with, for the kinds of dashboards/compare.toml.
            **fields: what the panel takes besides, as in `dashboards/*.toml`.

        Raises:
            UserError: there is no such kind or field, the kind is a table, or the study has no data for it.
        """
        from ddstudy.report import contents, panels

        panel = panels.parse_panel({"title": kind, **fields, "kind": kind}, f"figure {kind!r}")
        return contents.figure(panel, [self.view, *(other.view for other in others)])

    def findings(self, *others: Study) -> pd.DataFrame:
        """The thesis' findings, re-tested: one row per finding, with its verdict, effect and 95 % interval.

        Args:
            *others: studies of other slices, for the finding on slices away from the middle.
        """
        from ddstudy.report import claims

        return claims.as_table(claims.retest(self.view, [other.view for other in others]))

    def published(self, number: thesis.Number) -> pd.DataFrame:
        """A table of the thesis beside ours: "3.1", "4.1" to "4.5", or "text" for the numbers of its text.

        Title, source and what differs are in the table's `attrs`.

        Raises:
            UserError: there is no such table.
        """
        from ddstudy.report import thesis

        ours = thesis.beside(self.view, number)
        ours.table.attrs.update(title=ours.title, source=ours.source, ours=ours.ours, differences=ours.differences)
        return ours.table

    def target(self) -> NDArray[np.float32]:
        """The image of the study, read anew from its file: float32 in [0, 1], (H, W), or (H, W, 3) in colour.

        Raises:
            UserError: the file is not there any more, or its pixels have changed.
        """
        return arranged(self._target().image)

    def _target(self) -> Target:
        target = load_target(self.spec.target)
        if target.digest[:16] != self.facts.get("target digest", target.digest[:16]):
            raise UserError(
                f"{self.spec.target.file or target.name}: is not the image that study '{self.name}' was run on",
                "Valid: the same pixels; fit_image fits any other image.",
            )
        return target

    def reconstruct(
        self,
        setting: int | Mapping[str, Any] | Setting | pd.Series[Any],
        *,
        device: str | None = None,
        threads: int | None = None,
        progress: Callable[[Check], object] | None = None,
        stop: threading.Event | None = None,
    ) -> NDArray[np.float32]:
        """The image that a setting gives: it is fitted again, which takes as long as it took in the study.

        The seeds are the study's, so on the same kind of device this is, to the last bit, the output whose quality the
        trial has; a fit that the study stopped early is stopped at the same iteration. The images that a study keeps
        are for the eye, in 256 grey levels, and may have been left out.

        Args:
            setting: number of a trial; or a value for every axis, `{"k": 64, "s": 8, ...}`, where an axis on which the
                study has one value may be left out, and values that it has not measured are fine; or a row of `trials`
                or `best`.
            device: instead of the study's, "auto", "cpu", "cuda", ...
            threads: of the fit.
            progress: is called with a `Check` every `check_every` iterations and at the end.
            stop: ends the fit when another thread sets it.

        Returns:
            The mean of the members' outputs (thesis Eq. 3.3): float32 in [0, 1], as `target`, (H, W) or (H, W, 3).

        Raises:
            UserError: there is no such trial, axis, value or device, or the image of the study is not there any more.
            StoppedError: `stop` was set before the fit ended.
            WorkError: the fit diverged, or there is too little memory for it.
        """
        spec, wanted = self._setting(setting, device)
        found, _ = fit_setting(spec, self._target(), wanted, threads=threads, progress=progress, stop=stop)
        return arranged(found.output)

    def _setting(
        self, given: int | Mapping[str, Any] | Setting | pd.Series[Any], device: str | None
    ) -> tuple[StudySpec, Setting]:
        """What is meant by a setting, and the study with only that, on a device."""
        tree = _tree(self.spec)
        axes = tree["space"]
        if isinstance(given, int | np.integer):
            rows = self.trials[self.trials["number"] == int(given)]
            if rows.empty:
                last = f"0 to {self.trials['number'].max()}" if len(self.trials) else "none yet"
                raise UserError(f"study {self.name}: no finished trial {given}", f"Valid: {last}.")
            given = rows.iloc[0]
        if isinstance(given, pd.Series):
            values = {axis: given[axis] for axis in axes}
        else:
            values = dict(given if isinstance(given, Mapping) else vars(given))
        if unknown := [axis for axis in values if axis not in axes]:
            raise UserError(f"setting: {unknown[0]}: unknown axis", f"Valid: {', '.join(axes)}.")
        for axis, listed in axes.items():
            if axis not in values and len(listed) > 1:
                raise UserError(f"setting: {axis}: missing", f"In the study: {', '.join(map(str, listed))}.")
        space = {axis: [plain(values.get(axis, listed[0]))] for axis, listed in axes.items()}
        if device is not None:
            tree["fit"]["device"] = device
        spec = parse_spec(tree | {"space": space}, "setting")
        (setting,) = spec.space.search_space
        return spec, setting

    def report(
        self,
        out: str | Path = "report.html",
        *others: Study,
        dashboard: str | Path | None = None,
        reload_seconds: int = 0,
    ) -> int:
        """Writes one self-contained HTML page about this study and others.

        Args:
            out: the page.
            *others: further studies; several are set side by side first.
            dashboard: which panels are shown, a TOML file as in `dashboards/`; by default an overview.
            reload_seconds: the page loads itself again so often, for a file that is written anew; 0 is never.

        Returns:
            Its size in bytes.

        Raises:
            UserError: the file of panels is not valid, or the page cannot be written.
        """
        from ddstudy.report import page, panels

        shown = panels.read_panels(Path(dashboard) if dashboard else panels.OVERVIEW)
        if dashboard is None and others:
            shown = panels.read_panels(panels.COMPARE) + shown
        content = page.render([study.view for study in (self, *others)], shown, reload_seconds).encode()
        write_file(Path(out), content)
        return len(content)

    def export(self, stem: str | Path | None = None) -> list[Path]:
        """Writes all trials as CSV and Parquet, one row a trial, and the members' curves as CSV.

        Args:
            stem: folder and name of the files, without suffix; by default `export-NAME` in the current folder.

        Returns:
            The files: `*.csv`, `*.parquet` and `*-checks.csv`.

        Raises:
            UserError: they cannot be written.
        """
        parquet = io.BytesIO()
        self.trials.to_parquet(parquet, index=False)
        table, curves = (rows.to_csv(index=False).encode() for rows in (self.trials, self.checks))
        files = {".csv": table, ".parquet": parquet.getvalue(), "-checks.csv": curves}
        return write_files(Path(stem or f"export-{self.name}"), files)


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
        image = load_target(target) if target is not None else None
        if spec is not None and image is not None:
            runner.plan(spec, image, set())
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
    tree = _tree(spec)
    if mode is not None:
        if mode not in ("grid", "tpe", "pareto"):
            raise UserError(f"mode: cannot be {mode!r}", "Valid: 'grid', 'tpe', 'pareto'.")
        tree["search"]["sampler"] = "grid" if mode == "grid" else "tpe"
        if mode != "grid":
            tree["objectives"] = {"psnr": "maximize"} | ({"seconds": "minimize"} if mode == "pareto" else {})
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
    image: Target,
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
    timed, bytes_per_fit = "seconds" in spec.objectives, partial(runner.bytes_of_largest_fit, spec, image)
    executor: Executor
    if spec.executor.kind == "ray":
        if workers or threads:
            raise UserError("--workers and --threads are for this machine", "Ray's slots follow from its cluster.")
        bytes_on_gpu = partial(runner.bytes_of_largest_fit, spec, image, "cuda:0")
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
    image: Target,
    the_plan: Plan,
    executor: Executor,
    study: Driven | None = None,
) -> Forecast | None:
    """Says what a run will do, and how long it will take.

    Args:
        tell: takes the lines.
        spec: the study.
        image: its target.
        the_plan: what is to do.
        executor: where it is done.
        study: driven by us, whose forecast is kept; None where nothing is stored.

    Returns:
        The forecast, None if nothing is left to do.
    """
    objectives = ", ".join(f"{metric} ({direction})" for metric, direction in spec.objectives.items())
    shape = "x".join(map(str, image.image.shape[1:]))
    tell(f"Study {spec.name}: {spec.search.sampler}, {objectives}")
    tell(f"Target {image.name}, {shape}{' RGB' if len(image.image) == 3 else ''}")
    most = "" if spec.search.sampler == "grid" else "at most "
    done = f", {the_plan.done:,} done" if the_plan.done else ""
    fits = f"{counted(the_plan.fits, 'fit')} of {counted(spec.fit.members, 'member')}"
    tell(f"{counted(the_plan.settings, 'trial')}, {most}{fits}{done}")
    if not the_plan.todo if spec.search.sampler == "grid" else the_plan.done >= the_plan.settings:
        tell("Nothing left to do.")
        return None
    to_try = list(the_plan.todo) or list(budgets_by_fit(spec.space.search_space))
    where = f"{executor.slots} x {_device_of(executor, spec)}, {spec.fit.engine}"
    forecast = runner.kept_forecast(study, where) if study is not None else None
    if forecast is None:
        most = f"{runner.CALIBRATION_SECONDS:.0f} s at most, unless kernels are compiled"
        tell(f"Trying some iterations for a forecast: {most}")
        forecast = runner.calibrate(spec, image, to_try, executor, study.claims if study else None)
        forecast.where = where
        if study is not None:
            runner.keep_forecast(study, forecast)
    if not forecast.known:
        tell("Forecast: known after the first fit")
        return forecast
    seconds = runner.forecast_seconds(spec, image, the_plan, forecast, executor.slots)
    fitting = forecast.fitting(runner.work_ahead(spec, image, the_plan)) / max(1, executor.slots)
    at_most = ", less where unstable fits are stopped" if spec.stability.prune else ""
    if "seconds" not in spec.objectives and executor.room(runner.job(spec, image, to_try[0], (1,))) > 1:
        at_most += ", less in packs"
    tell(f"Forecast: about {duration(seconds)}, {duration(min(fitting, seconds))} of fitting{at_most}")
    return forecast


def _device_of(executor: Executor, spec: StudySpec) -> str:
    """The device that fits run on, as their trials name it."""
    return executor.device if isinstance(executor, Ray) else device_name(resolve_device(spec.fit.device))


def _import(driven: Driven, source: StudyView, executor: Executor, tell: Callable[[str], object]) -> None:
    sampler = driven.study.sampler
    marks = sampler.marks(driven.trials()) if isinstance(sampler, Unseen) else {}
    count = driven.reuse(source, device=_device_of(executor, driven.spec), marks=marks)
    tell(f"{count:,} results of {source.name} imported")


def _measured_so_far(store: str, spec: StudySpec, image: Target) -> tuple[set[Setting], list[str]]:
    """Settings of the study that have a result, and what cannot be read of it, without writing anything."""
    try:
        with Store(store, read_only=True) as opened:
            if opened.check(spec, image) is None:
                return set(), []
            view = opened.view(spec.name)
    except NoStudiesError:
        return set(), []
    return {record.setting for record in view.records if record.has_result}, view.complaints


def _tree(spec: StudySpec) -> dict[str, Any]:
    """A study as a study file has it."""
    return spec.model_dump(exclude_none=True)


def _store(store: str | None) -> str:
    return store if store is not None else os.environ.get("DDSTUDY_STORE") or DEFAULT_STORE


def _artifacts(artifacts: str | Path | None) -> Path | None:
    folder = artifacts if artifacts is not None else os.environ.get("DDSTUDY_ARTIFACTS")
    return Path(folder) if folder else None


def _silent(line: str) -> None:
    """Where nobody wants to be told."""


def _warn(lines: Sequence[str]) -> None:
    if lines:
        warnings.warn("\n".join(lines), StudyWarning, stacklevel=3)
