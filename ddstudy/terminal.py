"""What commands print on a terminal, or as plain lines where there is none."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, cast

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Column, Table

from ddstudy.errors import counted, duration
from ddstudy.images.metrics import METRICS, psnr_of
from ddstudy.report import tables
from ddstudy.report.facts import facts
from ddstudy.report.panels.base import chosen_by
from ddstudy.report.words import ensemble_of, text_of, with_whose
from ddstudy.results import Study
from ddstudy.spec.axes import setting_id
from ddstudy.store.database import Store
from ddstudy.store.study import StudyView, failed_settings
from ddstudy.study.forecasting import outlook
from ddstudy.study.runner import Progress
from ddstudy.thesis.findings import TOGETHER, Answer, about, in_short
from ddstudy.thesis.published import beside_the_thesis, differences
from ddstudy.volume_fit import SliceProgress, VolumeFit

if TYPE_CHECKING:
    from ddstudy.image_fit import ImageFit
    from ddstudy.study.evaluate import Check

NARROW = 100  # columns of a terminal


def terminal() -> Console:
    """Where a command prints."""
    # piped output has no width of its own: lines are for programs then, and may not wrap
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200)


def teller(console: Console) -> Callable[[str], None]:
    """Prints lines as they come; the terminal wraps those that are long."""
    return partial(console.print, soft_wrap=True)


@dataclass(frozen=True)
class FitProgress:
    """How far one fit is.

    Attributes:
        done: iterations, of `total`.
        total: iterations of the fit.
        current: how good it is, for people.
        seconds: so far.
    """

    done: int
    total: int
    current: str
    seconds: float

    @property
    def eta_seconds(self) -> float | None:
        """Time that is left, None while nothing is known."""
        return self.seconds * (self.total - self.done) / self.done if self.done else None

    @property
    def message(self) -> str:
        """A line of a log."""
        return f"{self.current}, {self.seconds:.1f} s"


AnyProgress = Progress | SliceProgress | FitProgress


def progress_of(check: Check, *, measured: bool) -> FitProgress:
    """How far one fit is.

    Args:
        check: its latest.
        measured: the image is the measurement, so that scores say how close members are to it, and not how good.
    """
    scores = check.psnr_members
    told = f"1DD {sum(scores) / len(scores):.2f} dB"
    if measured:
        told = f"{psnr_of(check.watched['loss']):.2f} dB from the measurement"
    return FitProgress(check.iteration, check.of, told, check.seconds)


@contextmanager
def live(console: Console) -> Iterator[Callable[[AnyProgress], None]]:
    """A bar on a terminal, plain lines elsewhere."""
    if not console.is_terminal:
        yield lambda progress: _log_line(console, progress)
        return

    # where the terminal is narrow the words lose their end, and the bar, the count and the time stay
    words = TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1))
    columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(), words)
    bar = Bar(*columns, console=console, refresh_per_second=4, expand=True)
    with ExitStack() as stack:

        def show(progress: AnyProgress) -> None:
            if not bar.tasks:  # what is said before the first fit needs no bar
                stack.enter_context(bar)
                bar.add_task("", total=None)
            bar.update(bar.task_ids[0], completed=progress.done, total=progress.total, description=_describe(progress))

        yield show


def _describe(progress: AnyProgress) -> str:
    parts = []
    if progress.eta_seconds is not None:
        parts.append(f"{duration(progress.eta_seconds)} left")
    if not isinstance(progress, Progress):
        return " | ".join([*parts, progress.current])
    if progress.best:
        parts.append(f"best {progress.objective} {progress.best[1]:.2f}")
    parts.append(f"{progress.pruned} pruned, {progress.failed} failed")
    if progress.best:
        parts.append(progress.best[0].id)
    return " | ".join([*parts, progress.current] if progress.current else parts)


def _log_line(console: Console, progress: AnyProgress) -> None:
    if progress.message:
        left = f", {duration(progress.eta_seconds)} left" if progress.eta_seconds is not None else ""
        stamp = time.strftime("%H:%M:%S")
        console.print(f"{stamp} [{progress.done}/{progress.total}{left}] {progress.message}", soft_wrap=True)


def print_studies(console: Console, studies: Sequence[Study]) -> None:
    """The studies of a store: what is done, pruned, failed, and the best so far; below, what failed and why."""
    table, notes = Table(), []
    for column in ("study", "target", "measured", "of", "pruned", "failed", "best"):
        table.add_column(column)
    for study in studies:
        metric, rows, best = next(iter(study.spec.objectives)), study.best, ""
        if metric in rows.index:
            row = rows.loc[metric]
            whose = with_whose(metric, ensemble_of(study.spec))
            best = f"{whose} {row[metric]:.4g} at {setting_id(str(row['fit_id']), cast(int, row['iterations']))}"
        if lost := study.view.lost_images:
            notes.append(f"{study.name}: {lost}; the numbers are complete")
        pruned, failed = int(study.trials["state"].eq("PRUNED").sum()), study.failed
        counts = (study.view.measured, study.spec.trials, pruned, len(failed))
        table.add_row(study.name, study.facts["target"], *map(str, counts), best)
        if len(failed):
            last = failed.iloc[-1]
            notes.append(
                f"{study.name}: {counted(len(failed), 'setting')} failed, `ddstudy run` tries them again, "
                f"`ddstudy logs {study.name}` tells all; "
                f"the last, {setting_id(last['fit_id'], last['iterations'])}: {last['reason']}"
            )
    console.print(table)
    for note in notes:
        console.print(note, soft_wrap=True)


def print_summary(console: Console, study: Study, shown_url: str, option: str) -> None:
    """What was run, its best settings, and the next command to type, with the option by which it finds the store."""
    results = study.trials[study.trials["state"].isin(["COMPLETE", "PRUNED"])]
    table = Table(title=f"Best settings of {study.name}, stable ones only")
    axes = study.view.axes
    for column in ("metric", "value", *axes):
        table.add_column(column)
    ensemble = ensemble_of(study.spec)
    for metric, (_, row) in zip(study.best.index, study.best.iterrows(), strict=True):
        if metric == "judge" and study.spec.score == "psnr":
            continue  # the same number
        table.add_row(with_whose(metric, ensemble), f"{row[metric]:.4g}", *(text_of(row[axis]) for axis in axes))
    console.print(table)
    if len(study.spec.objectives) > 1:
        console.print(_front(study, ensemble))
    about = Table.grid("", "", padding=(0, 2))
    for name, text in facts(study.view).items():
        about.add_row(name, text)
    console.print(about)
    unstable = int(results["stable"].eq(False).sum())
    share = 100 * unstable / max(1, len(results))
    pruned = int((results["state"] == "PRUNED").sum())
    console.print(f"{counted(len(results), 'setting')} measured, {unstable} unstable ({share:.0f} %), {pruned} pruned.")
    console.print(f"Results are in {shown_url}. Next: ddstudy report {study.name}{option}", soft_wrap=True)


def print_judged(console: Console, study: Study) -> None:
    """What the chosen settings of a study keep on the cases that it holds out."""
    judged, metric = study.judged, chosen_by(study.view)
    name = with_whose(metric, ensemble_of(study.spec))
    held_out = counted(len(study.spec.cases.held_out), "held-out case")
    table = Table(title=f"Settings of {study.name} on {held_out}: mean {name}, 95 % interval")
    axes = study.view.axes
    for column in (*axes, "by choice", "held out", "interval", "gain of the first", "its interval"):
        table.add_column(column)
    for row in judged.to_dict("records"):
        gain, interval = "", ""
        if row.get("difference") == row.get("difference") and "difference" in row:
            gain = f"{row['difference']:+.2f}"
            interval = _interval(row["difference_low"], row["difference_high"], "+")
        numbers = (f"{row['chosen']:.4g}", f"{row['held_out']:.4g}", _interval(row["low"], row["high"]))
        table.add_row(*(text_of(row[axis]) for axis in axes), *numbers, gain, interval)
    console.print(table)


def _interval(low: float, high: float, sign: str = "") -> str:
    """An interval, empty where one number has none."""
    return "" if math.isnan(low) else f"{low:{sign}.2f} to {high:{sign}.2f}"


def _front(study: Study, ensemble: str) -> Table:
    """The stable trials that no other one is better than in every objective."""
    objectives, axes = study.spec.objectives, study.view.axes
    first, way = next(iter(objectives.items()))
    front = study.trials[tables.pareto_front(study.trials, objectives)]
    table = Table(title=f"Pareto front of {study.name}, stable settings only: {counted(len(front), 'trial')}")
    for column in ("trial", *(with_whose(metric, ensemble) for metric in objectives), *axes):
        table.add_column(column)
    for row in front.sort_values(first, ascending=way == "minimize", kind="stable").to_dict("records"):
        scores = (f"{row[metric]:.4g}" for metric in objectives)
        table.add_row(str(row["number"]), *scores, *(text_of(row[axis]) for axis in axes))
    return table


def print_fit(console: Console, fit: ImageFit) -> None:
    """The measurements of one fit, those of the ensemble and of single members under names of their own.

    Where the truth is not known, nothing says how good the reconstruction is, and that is said.
    """
    members, values = len(fit.members), fit.values
    known = "psnr" in values
    of_judge = () if known else ("cv_percent",)  # which there is none of
    told = {with_whose(name, f"{members}DD"): values[name] for name in METRICS if name in values}
    told = {name: value for name, value in told.items() if not name.startswith("judge") and name not in of_judge}
    if "psnr_1dd" in values:
        told["psnr 1DD"] = values["psnr_1dd"]
    if known and "baseline" in values:
        told["psnr measurement"] = values["baseline"]
    for name, value in told.items():
        console.print(f"{name:20s} {value:.4g}")
    if members > 1 and known:
        console.print(f"{members}DD is the mean of the members' outputs, 1DD the mean of their own numbers.")
    if not known:
        _say_unjudged(console, members)
    if (answer := values.get("chosen_iteration", values["iterations_done"])) != values["iterations_done"]:
        console.print(f"The stopping rule chose the iterate at {answer} of {values['iterations_done']} iterations.")


def _say_unjudged(console: Console, members: int) -> None:
    spread = "; spread is how far the members disagree, relative to their mean" * (members > 1)
    console.print(
        f"The image is the measurement and its truth is not known: nothing here says how good this is{spread}. "
        "The reconstruction is the mean of the members' outputs.",
        soft_wrap=True,
    )


def print_volume(console: Console, fit: VolumeFit) -> None:
    """What was measured of the slices of a volume: means over them, and the worst."""
    table = Table(title=f"Over {counted(len(fit.slices), 'slice')}")
    for column in ("metric", "mean", "worst", "in slice"):
        table.add_column(column)
    for name in (name for name in METRICS if name in fit.slices and name not in ("judge", "parameters", "seconds")):
        numbers = fit.slices[name]
        where, worst = numbers.idxmin(), numbers.min()
        if METRICS[name].better == "minimize":
            where, worst = numbers.idxmax(), numbers.max()
        table.add_row(with_whose(name, f"{fit.members}DD"), f"{numbers.mean():.4g}", f"{worst:.4g}", str(where))
    console.print(table)
    console.print(f"{duration(float(fit.slices['seconds'].sum()))} of fitting.")
    if fit.constant:
        console.print(f"{counted(len(fit.constant), 'slice')} of one value were left as they were.")
    if "psnr" not in fit.slices:
        _say_unjudged(console, fit.members)


def follow(console: Console, opened: Store, name: str | None) -> StudyView:
    """Shows who is fitting what until a study is over; returns it as it is then."""
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            view = opened.view(name)
            at_work, results = opened.at_work(view.name), view.measured
            ahead = outlook(view, at_work, datetime.now())
            line = f"{view.name}: {results} of {view.spec.trials} settings, {ahead.per_minute:.1f} a minute"
            line += f", about {duration(ahead.eta_seconds)} left" if ahead.eta_seconds is not None else ""
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
    failed = len(failed_settings(view.trials, view.axes))
    console.print(f"{view.name}: {results} of {view.spec.trials} settings measured, {failed} failed", soft_wrap=True)
    return view


def print_answers(console: Console, view: StudyView, answers: list[Answer]) -> None:
    """The answers to the thesis' findings as a table; as paragraphs where a table would be all columns of one word."""
    if about(view.spec) is None:
        console.print(f"{view.name}: {beside_the_thesis(view.spec)}", soft_wrap=True)
        return
    title = f"The thesis' findings on {view.name}, {view.facts['target']}"
    ends = f"{in_short(answers)} {TOGETHER} {' '.join(differences(view).values())}"
    if console.width < NARROW:
        console.print(title)
        for answer in answers:
            console.print(f"\n{answer.finding.name}: {answer.finding.statement}")
            console.print(f"{answer.verdict}: {answer.effect_text}, {len(answer.numbers):,} trials. {answer.tested}")
        console.print()
        console.print(ends)
        return
    table = Table(title=title, show_lines=True)
    for column in ("name", "finding", "answer", "effect [95 %]", "trials", "compared"):
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    for answer in answers:
        finding, count = answer.finding, f"{len(answer.numbers):,}"
        table.add_row(finding.name, finding.statement, answer.verdict, answer.effect_text, count, answer.tested)
    console.print(table)
    # soft, it would break in words
    console.print(ends, soft_wrap=not console.is_terminal)


def print_trials(console: Console, view: StudyView, answer: Answer) -> None:
    """How a finding was decided, and the trials behind it."""
    finding = answer.finding
    for line in (
        f"{view.name}: {finding.statement} ({finding.source})",
        f"{answer.verdict}: {answer.effect_text}. {answer.tested}",
        f"Rule: {finding.rule}",
    ):
        console.print(line, soft_wrap=not console.is_terminal)
    if len(answer.rows):
        console.print(answer.rows.to_string(index=False, float_format="%.4g"), soft_wrap=True)
