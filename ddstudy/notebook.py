"""A study in a notebook: its trials as a DataFrame, its figures as plotly objects, in one line each.

The kinds of figures are those of the panels of a report (`ddstudy.report.panels`), and so are their fields.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from ddstudy.report import contents, findings, panels, thesis
from ddstudy.store.database import Store
from ddstudy.store.study import StudyView

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from ddstudy.spec.schema import StudySpec


def open_study(store: str = "sqlite:///ddstudy.db", name: str | None = None) -> Study:
    """A study as it stands now; open it again to see what a run has added.

    Args:
        store: `sqlite:///FILE.db` or `postgresql://USER:PASSWORD@HOST/DATABASE`.
        name: of the study; by default the latest.

    Raises:
        UserError: there is no such store or study, or it cannot be read. Of trials that cannot be, and without a
            name of studies, a warning tells.
    """
    with Store(store, read_only=True) as opened:
        view = opened.view(name)
        complaints = ([] if name else opened.complaints) + view.complaints
    if complaints:
        warnings.warn("\n".join(complaints), stacklevel=2)
    return Study(view)


class Study:
    """What a study holds, see `open_study`.

    Attributes:
        view: the study as reports take it.
    """

    def __init__(self, view: StudyView) -> None:
        self.view = view

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
    def trials(self) -> pd.DataFrame:
        """One row per finished trial: setting, measurements, whether it is stable and why not."""
        return self.view.trials

    @property
    def checks(self) -> pd.DataFrame:
        """One row per member and check of every fit: `fit_id`, `iteration`, `seconds`, `member`, `psnr`."""
        return self.view.checks

    def figure(self, kind: str, *others: Study, **fields: Any) -> go.Figure:
        """A figure of the report, for example `study.figure("pareto", x="seconds", y="psnr")`.

        Args:
            kind: of the panel.
            *others: studies that this one is compared with, for the kinds of dashboards/compare.toml.
            **fields: what the panel takes besides, as in `dashboards/*.toml`.

        Raises:
            UserError: there is no such kind or field, the kind is a table, or the study has no data for it.
        """
        panel = panels.parse_panel({"title": kind, **fields, "kind": kind}, f"figure {kind!r}")
        return contents.figure(panel, [self.view, *(other.view for other in others)])

    def findings(self, *others: Study) -> pd.DataFrame:
        """The thesis' findings, re-tested: one row per finding, see `ddstudy.report.findings`.

        Args:
            *others: studies of other slices, for the finding on slices away from the middle.
        """
        return findings.as_table(findings.retest(self.view, [other.view for other in others]))

    def published(self, number: thesis.Number) -> pd.DataFrame:
        """A table of the thesis beside ours: "3.1", "4.1" to "4.5", or "text" for the numbers of its text.

        Title, source and what differs are in the table's `attrs`.

        Raises:
            UserError: there is no such table.
        """
        ours = thesis.beside(self.view, number)
        ours.table.attrs.update(title=ours.title, source=ours.source, ours=ours.ours, differences=ours.differences)
        return ours.table
