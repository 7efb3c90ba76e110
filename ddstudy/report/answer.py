"""Study -> its answer: the best stable setting, how sure that is, and which cheaper ones cannot be told from it.

How sure it is, is told over what a setting was repeated on: the cases of the study, measurements or targets that it
searches as axes, or else the members of its ensemble. On cases and measurements settings are compared pair by pair, by
the 95 % interval of the mean difference. Members of two settings have nothing in common but the image; there, those
settings are alike whose members' mean, or whose ensemble, is behind that of the best by no more than the interval of
the best one's members reaches down. Levels of a task, such as noise levels, each have an answer of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ddstudy.errors import counted, duration
from ddstudy.images.metrics import METRICS
from ddstudy.report import cases, tables
from ddstudy.report.intervals import Mean, mean_of
from ddstudy.report.inverse import ends_of, levels_of
from ddstudy.report.panels.base import Table, chosen_by, settings_of
from ddstudy.report.priors import repeats_of
from ddstudy.report.words import MISSING, about_judge, in_words, title_of

if TYPE_CHECKING:
    from ddstudy.store.study import StudyView


_REPEATS = {"fit.seed": "seeds", "task.seed": "measurements", "cases.case": "cases"}  # all others are of the target


@dataclass(frozen=True)
class Best:
    """The best stable setting at one level of a task; of a study without levels there is one.

    Attributes:
        at: axis of the task -> the level's value.
        setting: row of the setting, as those of `alike`.
        over: what `mean` is over, in words: `cases`, `members`, `measurements`, ...; empty where that is one number.
        mean: of its numbers on these, with its interval; None where a setting has one number.
        settings: how many stable ones were compared, itself included.
        alike: others that the numbers do not tell from it, the cheapest first: axes, `number` of a trial, `value`, and
            `seconds`, NaN where they cannot be compared.
    """

    at: dict[str, Any]
    setting: dict[str, Any]
    over: str
    mean: Mean | None
    settings: int
    alike: pd.DataFrame

    @property
    def cheaper(self) -> dict[str, Any] | None:
        """The one that takes least time of those that are alike; None where none takes less than itself."""
        rows = self.alike[self.alike["seconds"] < self.setting["seconds"]]
        return _records(rows)[0] if len(rows) else None


def best_of(view: StudyView) -> list[Best]:
    """The best stable setting of a study by its first objective of quality, at each level of its task.

    Returns:
        One for each level at which a setting is stable, in the levels' order; empty where none is.
    """
    metric, levels = chosen_by(view), levels_of(view)
    trials = tables.comparable(view.trials, metric)
    trials = trials[trials["stable"]]
    if not levels:
        groups: Any = [((), trials)]
    else:
        groups = tables.in_order(trials, levels).groupby(levels, dropna=False, observed=True, sort=False)
    return [_best(view, rows, metric, dict(zip(levels, at, strict=True))) for at, rows in groups if len(rows)]


def _best(view: StudyView, trials: pd.DataFrame, metric: str, at: dict[str, Any]) -> Best:
    """The best setting among the stable trials of one level."""
    sign = -1.0 if METRICS[metric].minimized else 1.0
    rows, numbers, over = _numbers(view, trials, metric, at)
    rows = rows.assign(seconds=_seconds(trials, rows["number"]))
    place = int((sign * rows["value"]).argmax())
    best, others = numbers[place], [other for other in range(len(rows)) if other != place]
    if len(best) < 2:
        return Best(at, _records(rows)[place], "", None, len(rows), rows.iloc[:0])
    mean = mean_of(best)
    if over == "members":
        reach = mean.mean - mean.low if sign > 0 else mean.high - mean.mean
        means = np.array([each.mean() if len(each) else np.nan for each in numbers])
        behind = np.fmin(sign * (mean.mean - means), sign * (rows["value"].iloc[place] - rows["value"].to_numpy()))
        alike = [other for other in others if behind[other] <= reach]
    else:
        alike = [other for other in others if not mean_of(sign * (best - numbers[other])).low > 0]
    table = rows.iloc[alike].sort_values(["seconds", "number"], kind="stable")
    return Best(at, _records(rows)[place], over, mean, len(rows), table.reset_index(drop=True))


def _numbers(
    view: StudyView, trials: pd.DataFrame, metric: str, at: dict[str, Any]
) -> tuple[pd.DataFrame, list[np.ndarray[Any, Any]], str]:
    """Settings with `number` and `value`, the numbers of each, and what these are over."""
    axes, repeats = list(view.axes), repeats_of(view.axes, list(at))
    ordered = trials.sort_values("number")
    if view.by_case is not None and (found := cases.scores(view, metric)) is not None and len(found.cases) > 1:
        rows = found.settings.assign(value=found.sign * found.over, place=range(len(found.settings)))
        rows = rows.merge(ordered.drop_duplicates(axes, keep="last")[[*axes, "number"]], on=axes)
        return rows.drop(columns="place"), list(found.sign * found.values[rows["place"]]), "cases"
    if repeated := [axis for axis in repeats if trials[axis].nunique(dropna=False) > 1]:
        setting = [axis for axis in axes if axis not in repeats]
        wide = ordered.pivot_table(
            index=setting, columns=repeats, values=metric, aggfunc="last", dropna=False, observed=True
        )
        wide = wide.dropna(axis=1, how="all").dropna()  # stable on all of them
        rows = wide.index.to_frame(index=False).assign(value=wide.mean(axis=1).to_numpy())
        rows = rows.merge(ordered.drop_duplicates(setting)[[*axes, "number"]], on=setting)
        kinds = {_REPEATS.get(axis, "targets") for axis in repeated}
        return rows, list(wide.to_numpy(dtype=float)), kinds.pop() if len(kinds) == 1 else "repeats"
    columns = [column for column in trials if str(column).startswith(f"{metric}_member_")]
    rows = ordered.drop_duplicates(axes, keep="last")
    members = rows[columns].to_numpy(dtype=float)
    values = [numbers[np.isfinite(numbers)] for numbers in members]
    return rows[[*axes, "number"]].assign(value=rows[metric]), values, "members"


def _records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]


def _seconds(trials: pd.DataFrame, numbers: pd.Series[int]) -> list[float]:
    """Of these trials; NaN where they are not those of the fit alone, or of another device than most."""
    timed = tables.timed(trials)
    timed = timed[timed["device"].eq(timed["device"].mode().iloc[0])] if len(timed) else timed
    return numbers.map(timed.set_index("number")["seconds"]).astype(float).tolist()


@dataclass(frozen=True)
class Answer:
    """The answer in words, the same on paper and terminal.

    Attributes:
        lead: what is best, and what else to use.
        sentences: how sure that is, and what it leaves open.
        how: how it is computed; empty where nothing is.
        number: of the trial whose images are shown; None where no setting is stable.
        table: a row per level of the task, or the Pareto front; None where the words say it all.
        about: what the table is.
    """

    lead: str
    sentences: tuple[str, ...] = ()
    how: str = ""
    number: int | None = None
    table: Table | None = None
    about: str = ""


_UNSURE = "How sure this is cannot be said: each setting has one number."
_PAIRED = (
    "settings are compared on the same {over}, by the 95 % interval of their mean difference (the wider of Student's "
    "and of a studentised bootstrap), and cannot be told apart where it reaches 0."
)
_MEMBERS = (
    "the interval is that of the mean of the members' own numbers (the wider of Student's and of a studentised "
    "bootstrap), and settings cannot be told from the best one whose members' mean, or whose ensemble, is behind by no "
    "more than this interval reaches down; some that are further behind may be as good, too."
)
_LUCK = "The best of many was lucky, too: expect a little less of it on another image or from other random starts."


def answer(view: StudyView) -> Answer:
    """The answer of a study as it stands."""
    found = best_of(view)
    so_far = "" if view.is_over else f"So far {view.measured:,} of {counted(view.spec.trials, 'setting')} are measured."
    if not found:
        measured = len(tables.finished(view.trials))
        none = f"None of {counted(measured, 'measured trial')} is stable, so none can be recommended."
        return Answer(none if measured else "No trial is measured yet.", tuple(filter(None, [so_far])))
    table: Table | None
    if found[0].at:
        lead, sentences = _of_levels(view, found)
        table, about = _levels(view, found), "The best stable setting at each level:"
    else:
        lead, sentences = _of_one(view, found[0])
        table, about = _front(view)
    sentences += [so_far, about_judge(view.spec) if view.spec.score == "judge" else ""]
    over = dict.fromkeys(best.over for best in found if best.mean is not None)
    how = [_MEMBERS if one == "members" else _PAIRED.format(over=one) for one in over]
    told = f"Only stable settings count; {' '.join(how)} {_LUCK}" if how else ""
    minimized = METRICS[chosen_by(view)].minimized
    first = (min if minimized else max)(found, key=lambda best: best.setting["value"])
    return Answer(lead, tuple(filter(None, sentences)), told, int(first.setting["number"]), table, about)


def _of_one(view: StudyView, best: Best) -> tuple[str, list[str]]:
    """What is best in a study without levels."""
    metric, axes, setting = chosen_by(view), _chosen_axes(view), best.setting
    row = view.trials.set_index("number").loc[setting["number"]]
    known = view.spec.score == "psnr" and metric == "psnr" and pd.notna(row.get("baseline"))
    measurement = f" (the measurement itself: {row['baseline']:.2f} dB)" if known else ""
    among = f"of {counted(best.settings, 'stable setting')}" if best.settings > 1 else "and the only stable setting"
    lead = f"Best {among}: {in_words(setting, axes)}, {_value(metric, setting['value'])}{measurement}."
    sentences, alike = [_sure(metric, best)], counted(len(best.alike), "other setting")
    if (cheaper := best.cheaper) is not None:
        lead += f" Where time counts: {in_words(cheaper, axes)}, {_value(metric, cheaper['value'])}."
        sentences.append(
            f"{alike} cannot be told from it by these numbers; the cheapest of them (trial {cheaper['number']}) takes "
            f"{_time(cheaper['seconds'])} instead of {_time(setting['seconds'])}."
        )
    elif best.mean is not None and len(best.alike):
        timed = pd.notna(setting["seconds"]) and best.alike["seconds"].notna().all()
        less = "none of them takes less time" if timed else "their times cannot be compared"
        sentences.append(f"{alike} cannot be told from it by these numbers; {less}.")
    elif best.mean is not None:
        sentences.append("No other setting comes close enough to pass for as good.")
    if view.spec.cases.held_out and len(judged := cases.judged(view, metric)):
        kept, on = judged.iloc[0], counted(len(view.spec.cases.held_out), "case")
        reached = _value(metric, kept["held_out"])
        interval = "" if pd.isna(kept["low"]) else f" (95 % interval {_between(metric, kept['low'], kept['high'])})"
        sentences.append(f"On {on} that took no part in the choice it has {reached}{interval}.")
    space = view.spec.search_space
    if ends := ends_of(setting, {axis: space[axis] for axis in axes}):
        sentences.append(f"It has the first or last listed value of {', '.join(ends)}: values beyond may be better.")
    return lead, sentences


def _of_levels(view: StudyView, found: Sequence[Best]) -> tuple[str, list[str]]:
    """What is best where each level of the task has an answer of its own."""
    metric, axes = chosen_by(view), _chosen_axes(view)
    chosen = list(dict.fromkeys(in_words(best.setting, axes) for best in found))
    levels = " and ".join(title_of(axis) for axis in found[0].at)
    lead = (
        f"The same setting is best at each of {len(found)} levels of {levels}: {chosen[0]}."
        if len(chosen) == 1
        else f"What is best depends on {levels}: {len(chosen)} settings are best at {len(found)} levels."
    )
    # one that is at every level the best, or not to be told from it
    everywhere = [{in_words(row, axes) for row in (best.setting, *_records(best.alike))} for best in found]
    shared = [words for words in chosen if all(words in each for each in everywhere)]
    if len(chosen) > 1 and shared and all(best.mean is not None for best in found):
        lead += f" At no level can {shared[0]} be told from the best."
    return lead, [_sure(metric, found[0])] if found[0].mean is None else []


def _levels(view: StudyView, found: Sequence[Best]) -> Table:
    metric, axes = chosen_by(view), _chosen_axes(view)
    rows = []
    for best in found:
        mean, cheaper = best.mean, best.cheaper
        rows.append(
            best.at
            | {axis: best.setting[axis] for axis in axes}
            | {
                metric: best.setting["value"],
                "interval": MISSING if mean is None else f"{_between(metric, mean.low, mean.high)} ({best.over})",
                "settings": best.settings,
                "alike": MISSING if mean is None else len(best.alike),
                "cheaper": MISSING if cheaper is None else f"{in_words(cheaper, axes)} ({_time(cheaper['seconds'])})",
                "number": best.setting["number"],
            }
        )
    columns = {axis: axis for axis in [*found[0].at, *axes]} | {title_of(metric): metric}
    columns |= {"95 % interval over": "interval", "stable settings": "settings", "alike": "alike"}
    columns |= {"cheapest alike": "cheaper", "trial": "number"}
    return Table(settings_of(pd.DataFrame(rows), [*found[0].at, *axes]), columns)


def _front(view: StudyView) -> tuple[Table | None, str]:
    """The Pareto front of a study of several objectives."""
    objectives, axes = view.spec.objectives, _chosen_axes(view)
    if len(objectives) < 2:
        return None, ""
    first, way = next(iter(objectives.items()))
    front = view.trials[tables.pareto_front(view.trials, objectives)]
    front = front.sort_values(first, ascending=way == "minimize", kind="stable")
    columns = {title_of(name): name for name in objectives} | {axis: axis for axis in axes} | {"trial": "number"}
    names = " and ".join(title_of(name) for name in objectives)
    about = f"The Pareto front of {names}: {counted(len(front), 'setting')} that no stable one beats in all of these."
    return Table(settings_of(front, axes), columns), about


def _sure(metric: str, best: Best) -> str:
    """How sure the best setting's number is."""
    if best.mean is None:
        return _UNSURE
    count = len(best.mean.values)
    reached, interval = _number(metric, best.mean.mean), _between(metric, best.mean.low, best.mean.high)
    who = f"Its {count} members alone have" if best.over == "members" else f"Over {count} {best.over} it has"
    return f"{who} {reached} on average, with a 95 % interval of {interval}."


def _chosen_axes(view: StudyView) -> list[str]:
    """The axes that somebody chooses a value of."""
    repeats = repeats_of(view.axes, levels_of(view))
    axes = [axis for axis in view.axes if axis not in repeats and axis not in levels_of(view)]
    return [axis for axis in axes if len(view.spec.search_space[axis]) > 1] or axes


def _value(metric: str, value: float) -> str:
    ensemble = "" if metric == "judge" else "ensemble "
    return f"{ensemble}{METRICS[metric].label} {_number(metric, value)}"


def _number(metric: str, value: float) -> str:
    return f"{value:,{METRICS[metric].format}} {METRICS[metric].unit}".strip()


def _between(metric: str, low: float, high: float) -> str:
    return f"{low:,{METRICS[metric].format}} to {high:,{METRICS[metric].format}}"


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)
