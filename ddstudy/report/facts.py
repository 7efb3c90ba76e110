"""What was run, in words: what a reader of a study's numbers must know before them, the same on paper and terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from ddstudy.errors import duration
from ddstudy.report import tables
from ddstudy.report.words import ensemble_of, text_of

if TYPE_CHECKING:
    from ddstudy.store.study import StudyView

_ITERATES = {
    "last": "the last one",
    "best": "the one with the least loss so far",
    "average": "a running average",
}
_EARLIER = ("target", "target shape", "target digest", "created")  # told before the versions, under names of their own


def facts(view: StudyView) -> dict[str, str]:
    """Name -> text: the image, what was searched and how, what "stable" means, where and when, the versions last."""
    spec, stored, measured = view.spec, view.facts, tables.finished(view.trials)
    told = {
        "target": ", ".join(filter(None, [stored.get("target"), stored.get("target shape", "").removeprefix("1x")])),
        "objectives": ", ".join(f"{direction} {metric}" for metric, direction in spec.objectives.items()),
        "sampler": spec.search.sampler + (f", seed {spec.search.seed}" if spec.search.sampler != "grid" else ""),
        "members": _members(view),
        "seed": _values(view, "fit.seed"),
        "learning rate": _values(view, "fit.learning_rate"),
        "iterate that counts": _values(view, "fit.keep", _ITERATES),
        "stable means": _limits(view),
        "trials by state": ", ".join(f"{n:,} {state}" for state, n in view.trials["state"].value_counts().items())
        or "none yet",
        "measured": f"{len(measured.drop_duplicates(list(view.axes))):,} of {len(spec.search_space):,} settings",
        "unstable": _share(measured),
        "device": _kinds(measured["device"]),
        "engine": _kinds(measured["engine"]),
        "duration": _duration(measured),
        "load": _load(measured),
        "created": stored.get("created", ""),
        "target digest": stored.get("target digest", ""),
        "versions": ", ".join(f"{name} {text}" for name, text in stored.items() if text and name not in _EARLIER),
    }
    return {name: text for name, text in told.items() if text}


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
    )
    if not limits.prune:
        return f"{text}; no fit is stopped for it"
    return f"{text}; unstable fits are stopped early, from iteration {limits.warmup:,} on"


def _share(measured: pd.DataFrame) -> str:
    if measured.empty:
        return "no trial is measured yet"
    unstable = int((~measured["stable"]).sum())
    return f"{unstable / len(measured):.1%} ({unstable:,} of {len(measured):,} measured trials)"


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
