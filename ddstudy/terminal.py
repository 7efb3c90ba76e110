"""What commands print on a terminal, or as plain lines where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Column, Table

from ddstudy.errors import counted
from ddstudy.execution.executors import Executor, resolve_device
from ddstudy.execution.ray_pool import Ray
from ddstudy.images.volumes import Target
from ddstudy.report.findings import TOGETHER, Answer
from ddstudy.report.thesis import differences
from ddstudy.spec.axes import budgets_by_fit
from ddstudy.spec.schema import BETTER, StudySpec
from ddstudy.store.database import Store
from ddstudy.store.study import StudyView, failed_settings
from ddstudy.store.writer import Driven
from ddstudy.study import runner
from ddstudy.study.evaluate import device_name
from ddstudy.study.runner import Forecast, Plan, Progress, outlook

NARROW = 100  # columns of a terminal


def terminal() -> Console:
    """Where a command prints."""
    # piped output has no width of its own: lines are for programs then, and may not wrap
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200)


def announce(
    console: Console,
    spec: StudySpec,
    image: Target,
    the_plan: Plan,
    executor: Executor,
    study: Driven | None = None,
) -> Forecast | None:
    """Says what a run will do, and how long it will take.

    Args:
        console: where it is said.
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
    console.print(f"Study {spec.name}: {spec.search.sampler}, {objectives}", soft_wrap=True)
    console.print(f"Target {image.name}, {shape}{' RGB' if len(image.image) == 3 else ''}", soft_wrap=True)
    most = "" if spec.search.sampler == "grid" else "at most "
    done = f", {the_plan.done:,} done" if the_plan.done else ""
    fits = f"{counted(the_plan.fits, 'fit')} of {counted(spec.fit.members, 'member')}"
    console.print(f"{counted(the_plan.settings, 'trial')}, {most}{fits}{done}")
    if not the_plan.todo if spec.search.sampler == "grid" else the_plan.done >= the_plan.settings:
        console.print("Nothing left to do.")
        return None
    to_try = list(the_plan.todo) or list(budgets_by_fit(spec.space.search_space))
    where = f"{executor.slots} x {device_of(executor, spec)}, {spec.fit.engine}"
    forecast = runner.kept_forecast(study, where) if study is not None else None
    if forecast is None:
        most = f"{runner.CALIBRATION_SECONDS:.0f} s at most, unless kernels are compiled"
        console.print(f"Trying some iterations for a forecast: {most}", soft_wrap=True)
        forecast = runner.calibrate(spec, image, to_try, executor, study.claims if study else None)
        forecast.where = where
        if study is not None:
            runner.keep_forecast(study, forecast)
    if not forecast.known:
        console.print("Forecast: known after the first fit")
        return forecast
    seconds = runner.forecast_seconds(spec, image, the_plan, forecast, executor.slots)
    fitting = forecast.fitting(runner.work_ahead(spec, image, the_plan)) / max(1, executor.slots)
    at_most = ", less where unstable fits are stopped" if spec.stability.prune else ""
    if "seconds" not in spec.objectives and executor.room(runner.job(spec, image, to_try[0], (1,))) > 1:
        at_most += ", less in packs"
    console.print(f"Forecast: about {_duration(seconds)}, {_duration(min(fitting, seconds))} of fitting{at_most}")
    return forecast


def device_of(executor: Executor, spec: StudySpec) -> str:
    """The device that fits run on, as their trials name it."""
    return executor.device if isinstance(executor, Ray) else device_name(resolve_device(spec.fit.device))


@contextmanager
def live(console: Console) -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal, plain lines elsewhere."""
    if not console.is_terminal:
        yield lambda progress: _log_line(console, progress)
        return

    # where the terminal is narrow the words lose their end, and the bar, the count and the time stay
    words = TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1))
    columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(), words)
    with Bar(*columns, console=console, refresh_per_second=4, expand=True) as bar:
        task = bar.add_task("starting", total=None)

        def show(progress: Progress) -> None:
            bar.update(task, completed=progress.done, total=progress.total, description=_describe(progress))

        yield show


def _describe(progress: Progress) -> str:
    parts = []
    if progress.eta_seconds is not None:
        parts.append(f"{_duration(progress.eta_seconds)} left")
    if progress.best:
        parts.append(f"best {progress.best[1]:.2f}")
    parts.append(f"{progress.pruned} pruned, {progress.failed} failed")
    if progress.best:
        parts.append(progress.best[0].id)
    return " | ".join([*parts, progress.current] if progress.current else parts)


def _log_line(console: Console, progress: Progress) -> None:
    if progress.message:
        left = f", {_duration(progress.eta_seconds)} left" if progress.eta_seconds is not None else ""
        stamp = time.strftime("%H:%M:%S")
        console.print(f"{stamp} [{progress.done}/{progress.total}{left}] {progress.message}", soft_wrap=True)


def print_summary(console: Console, view: StudyView, shown_url: str, option: str) -> None:
    """Best settings, and the next command to type, with the option that it needs to find the store."""
    results = view.trials[view.trials["state"].isin(["COMPLETE", "PRUNED"])]
    stable = results[results["stable"].eq(True)]
    table = Table(title=f"Best settings of {view.name}, stable ones only")
    for column in ("metric", "value", *("k", "s", "l", "iterations", "noise", "tiling")):
        table.add_column(column)
    for metric, direction in BETTER.items():
        scored = stable.dropna(subset=[metric])
        if len(scored):
            row = scored.sort_values(metric, ascending=direction == "minimize", kind="stable").iloc[0]
            setting = [str(row[axis]) for axis in ("k", "s", "l", "iterations", "noise", "tiling")]
            table.add_row(metric, f"{row[metric]:.4g}", *setting)
    console.print(table)
    unstable = int(results["stable"].eq(False).sum())
    share = 100 * unstable / max(1, len(results))
    pruned = int((results["state"] == "PRUNED").sum())
    console.print(f"{counted(len(results), 'setting')} measured, {unstable} unstable ({share:.0f} %), {pruned} pruned.")
    if rough := int(results["disturbed"].eq(True).sum()):
        console.print(f"The seconds of {rough} were disturbed by other programs on their machine.")
    console.print(f"Results are in {shown_url}. Next: ddstudy report {view.name}{option}", soft_wrap=True)


def follow(console: Console, opened: Store, name: str | None) -> StudyView:
    """Shows who is fitting what until a study is over; returns it as it is then."""
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            view = opened.view(name)
            at_work, results = opened.at_work(view.name), view.measured
            ahead = outlook(view, at_work, datetime.now())
            line = f"{view.name}: {results} of {view.spec.trials} settings, {ahead.per_minute:.1f} a minute"
            line += f", about {_duration(ahead.eta_seconds)} left" if ahead.eta_seconds is not None else ""
            table = Table("worker", "fit", "iteration", "of", "run")
            for each in at_work:
                progress = (str(each.iteration), str(each.of)) if each.worker else ("", "")
                table.add_row(each.worker or "waiting", each.fit, *progress, each.driver)
            if console.is_terminal:
                live.update(Group(line, table), refresh=True)
            else:
                console.print(f"{line}; {len(at_work)} fits at work", soft_wrap=True)
                for each in at_work:
                    console.print(f"  {each.worker or 'waiting'}: {each.fit} at {each.iteration} of {each.of}")
            if view.is_over and not at_work:
                break
            time.sleep(2)
    failed = len(failed_settings(view.trials))
    console.print(f"{view.name}: {results} of {view.spec.trials} settings measured, {failed} failed", soft_wrap=True)
    return view


def print_answers(console: Console, view: StudyView, answers: list[Answer]) -> None:
    """The answers to the thesis' findings as a table; as paragraphs where a table would be all columns of one word."""
    title = f"The thesis' findings on {view.name}, {view.facts['target']}"
    if console.width < NARROW:
        console.print(title)
        for answer in answers:
            console.print(f"\n{answer.finding.name}: {answer.finding.statement}")
            console.print(f"{answer.verdict}: {answer.effect_text}, {len(answer.numbers):,} trials. {answer.tested}")
        console.print()
        console.print(f"{TOGETHER} {' '.join(differences(view).values())}")
        return
    table = Table(title=title, show_lines=True)
    for column in ("name", "finding", "answer", "effect [95 %]", "trials", "compared"):
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    for answer in answers:
        finding, count = answer.finding, f"{len(answer.numbers):,}"
        table.add_row(finding.name, finding.statement, answer.verdict, answer.effect_text, count, answer.tested)
    console.print(table)
    console.print(f"{TOGETHER} {' '.join(differences(view).values())}", soft_wrap=True)


def print_trials(console: Console, view: StudyView, answer: Answer) -> None:
    """How a finding was decided, and the trials behind it."""
    finding = answer.finding
    for line in (
        f"{view.name}: {finding.statement} ({finding.source})",
        f"{answer.verdict}: {answer.effect_text}. {answer.tested}",
        f"Rule: {finding.rule}",
    ):
        console.print(line, soft_wrap=True)
    if len(answer.rows):
        console.print(answer.rows.to_string(index=False, float_format="%.4g"), soft_wrap=True)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
