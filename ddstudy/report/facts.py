"""What was run, in words: what a reader of a study's numbers must know before them, the same on paper and terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from ddstudy.errors import duration
from ddstudy.report import tables
from ddstudy.report.words import about_cases, about_judge, ensemble_of, text_of

if TYPE_CHECKING:
    from ddstudy.store.study import StudyView

_ITERATES = {
    "last": "the last one",
    "best": "the one with the least loss so far",
    "average": "a running average",
}
_RULES = {
    "budget": "none: the last iterate of the budget is the answer",
    "wmv": "windowed moving variance (ES-WMV)",
    "emv": "exponential moving variance (ES-EMV)",
    "discrepancy": "discrepancy principle: loss down to the noise level",
    "held_out": "least error on held-out samples",
}
_LOSSES = {
    "mse": "mean squared error",
    "l1": "mean absolute error",
    "huber": "Huber's function",
    "log_mse": "logarithm of the mean squared error",
}
_NOISES = {"gaussian": "Gaussian", "clipped": "clipped Gaussian", "rician": "Rician", "poisson": "Poisson"}
_EARLIER = (
    "target",
    "target shape",
    "targets",
    "target digest",
    "created",
)  # told before the versions, under names of their own


def facts(view: StudyView) -> dict[str, str]:
    """Name -> text: the image, what was searched and how, what "stable" means, where and when, the versions last."""
    spec, stored, measured = view.spec, view.facts, tables.finished(view.trials)
    told = {
        "target": ", ".join(filter(None, [stored.get("target"), stored.get("target shape", "").removeprefix("1x")])),
        "task": _task(view),
        "judge": _judge(view),
        "cases": about_cases(spec) if spec.cases.by_name else "",
        "objectives": ", ".join(f"{direction} {metric}" for metric, direction in spec.objectives.items()),
        "sampler": spec.search.sampler + (f", seed {spec.search.seed}" if spec.search.sampler != "grid" else ""),
        "members": _members(view),
        "seed": _values(view, "fit.seed"),
        "optimiser": _values(view, "fit.optimiser") if spec.values_of("fit.optimiser") != ("adam",) else "",
        "learning rate": _values(view, "fit.learning_rate"),
        "loss": _values(view, "fit.loss", _LOSSES) if spec.values_of("fit.loss") != ("mse",) else "",
        "iterate that counts": _values(view, "fit.keep", _ITERATES),
        "stopping rule": _values(view, "fit.stop", _RULES) if spec.is_task else "",
        "stable means": _limits(view),
        "trials by state": ", ".join(f"{n:,} {state}" for state, n in view.trials["state"].value_counts().items())
        or "none yet",
        "measured": f"{len(measured.drop_duplicates(list(view.axes))):,} of {len(spec.search_space):,} settings",
        "unstable": _share(measured),
        "ended early": _ended_early(measured),
        "device": _kinds(measured["device"]),
        "engine": _kinds(measured["engine"]),
        "duration": _duration(measured if view.by_case is None else tables.finished(view.by_case.trials)),
        "load": _load(measured),
        "created": stored.get("created", ""),
        "target digest": stored.get("target digest", ""),
        "versions": ", ".join(f"{name} {text}" for name, text in stored.items() if text and name not in _EARLIER),
    }
    return {name: text for name, text in told.items() if text}


def _task(view: StudyView) -> str:
    """How a measurement comes from the image, or that the image is one; empty where it is copied."""
    task, kinds = view.spec.task, [str(kind) for kind in view.spec.values_of("task.kind")]
    if not view.spec.is_task:
        return ""

    def told(path: str, words: str, known: dict[str, str] | None = None) -> str:
        *others, last = [(known or {}).get(str(value), text_of(value)) for value in view.spec.values_of(f"task.{path}")]
        return words.format(f"{', '.join(others)} or {last}" if others else last)

    mask = f"pixels of {task.mask}" if task.mask else told("share", "a share {} of the pixels, at random")
    lines = "columns of a mask file" if task.mask else told("acceleration", "{}-fold undersampled k-space")
    sampled = [told("sampling", "{} columns"), told("center_fraction", "centre {}")] if not task.mask else []
    about = {
        "inpaint": [mask],
        "super_resolve": [told("factor", "factor {}"), told("filter", "{} filter")],
        "mri": [lines, *sampled, told("coils", "{} coils")],
    }
    parts = [part for kind in kinds if kind in about for part in about[kind]]
    if view.spec.values_of("task.sigma") != (0,):
        noise = "complex Gaussian" if kinds == ["mri"] else told("noise", "{}", _NOISES)
        parts.append(told("sigma", f"{noise} noise of sigma {{}}"))
    if view.spec.knows_truth:
        parts.append(told("seed", "measurement seed {}"))
    else:
        parts.insert(0, "the file is the measurement, the truth is not known")
    return told("kind", f"{{}}: {', '.join(parts)}")


def _judge(view: StudyView) -> str:
    """What reconstructions are judged against; empty where a clean image is copied."""
    spec = view.spec
    if not spec.is_task:
        return ""
    if spec.score == "psnr":
        return "the truth: PSNR against it"
    also = "; the truth is known, too, and does not choose" if spec.knows_truth else ""
    text = about_judge(spec).removeprefix("The judge's score is ").rstrip(".") + also
    return text.replace("held-out samples", f"held-out samples ({spec.judge.share:.0%})")


def _values(view: StudyView, path: str, words: dict[str, str] | None = None) -> str:
    found = [(words or {}).get(str(value), text_of(value)) for value in view.spec.values_of(path)]
    return found[0] if len(found) == 1 else f"searched: {', '.join(found)}"


def _members(view: StudyView) -> str:
    if view.spec.values_of("fit.members") == (1,):
        return "1, so there is no ensemble"
    name = ensemble_of(view.spec)
    return f"{_values(view, 'fit.members')}; {name} is the mean of their outputs, 1DD the mean of their own numbers"


def _limits(view: StudyView) -> str:
    limits = view.spec.stability
    text = (
        f"CV of the members' PSNR <= {limits.cv_percent:g} %, ensemble PSNR >= {limits.min_psnr:g} dB, "
        f"VIF <= {limits.max_vif:g}"
        if view.spec.score == "psnr"
        else f"spread of the members' outputs <= {limits.spread_percent:g} % of their mean, which takes no truth"
    )
    if not limits.prune:
        return f"{text}; no fit is stopped for it"
    return f"{text}; unstable fits are stopped early, from iteration {limits.warmup:,} on"


def _share(measured: pd.DataFrame) -> str:
    if measured.empty:
        return "no trial is measured yet"
    measured = measured[measured["pruner"].isna()] if "pruner" in measured else measured  # whose end is unknown
    if measured.empty:
        return ""
    unstable = int((~measured["stable"]).sum())
    return f"{unstable / len(measured):.1%} ({unstable:,} of {len(measured):,} measured trials)"


def _ended_early(measured: pd.DataFrame) -> str:
    """What the study's pruner ended."""
    ended = measured["pruner"].dropna() if "pruner" in measured else measured["state"].iloc[:0]
    return f"{len(ended):,} trials by the {ended.iloc[0]} pruner" if len(ended) else ""


def _kinds(column: pd.Series[str]) -> str:
    """The one there is, or each with its trials."""
    counts = column.dropna().value_counts()
    return (
        str(counts.index[0]) if len(counts) == 1 else ", ".join(f"{kind} ({n:,} trials)" for kind, n in counts.items())
    )


def _duration(measured: pd.DataFrame) -> str:
    """Of the fits of this study: what was imported took its time elsewhere."""
    ours = measured[measured["reused_from"].isna()] if "reused_from" in measured else measured
    if ours.empty:
        return ""
    fitting = ours.groupby("fit_id")["seconds"].max().sum()  # a fit passes its smaller budgets on its way
    begun, ended = (f"{time:%Y-%m-%d %H:%M}" for time in (ours["started"].min(), ours["finished"].max()))
    return f"{duration(float(fitting))} of fitting, between {begun} and {ended}"


def _load(measured: pd.DataFrame) -> str:
    if measured["disturbed"].isna().all():
        return "" if measured.empty else "not recorded"
    rough, told = int(measured["disturbed"].eq(True).sum()), int(measured["disturbed"].notna().sum())
    if not rough:
        return f"none of {told:,} trials was disturbed by other programs"
    return f"the seconds of {rough:,} of {told:,} trials were disturbed by other programs on their machine"
