"""How axes, metrics and settings are written, for people: one place for tables, figures, panels and pages."""

from __future__ import annotations

from ddstudy.images.metrics import METRICS

_STATISTICS = ("1dd", "mean", "min", "q25", "median", "q75", "max")  # of a metric, as columns of tables have them
_TITLES = {
    "k": "channels k",
    "s": "scale factor s",
    "l": "blocks l",
    "mse": "mean squared error",
}


def title_of(name: str) -> str:
    """An axis or a metric with its unit, as it stands beside an axis of a figure."""
    return METRICS[name].title if name in METRICS else _TITLES.get(name, name)


def digits_of(column: str) -> int | None:
    """Digits after the point of a metric, or of a statistic of one; None of other columns."""
    if column not in METRICS:
        column, _, statistic = column.rpartition("_")
        if statistic not in _STATISTICS:
            return None
    return METRICS[column].digits if column in METRICS else None
