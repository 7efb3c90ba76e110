"""What a store holds, to look at: a `Study` with its tables, figures, findings and images, in one call each."""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddstudy import DEFAULT_STORE
from ddstudy.errors import StudyWarning, UserError
from ddstudy.image_fit import arranged, fit_setting, options_of, plain
from ddstudy.images.metrics import METRICS
from ddstudy.images.targets import load_targets
from ddstudy.images.volumes import Target, Targets, short_digest
from ddstudy.report.panels.base import chosen_by
from ddstudy.report.writing import write_file, write_files
from ddstudy.spec.axes import Setting
from ddstudy.spec.files import parse_spec, read_spec
from ddstudy.spec.options import OPTIONS
from ddstudy.spec.schema import StudySpec
from ddstudy.store.database import Store
from ddstudy.store.records import never_measured
from ddstudy.store.study import StudyView, failed_settings
from ddstudy.study.evaluate import Check

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ddstudy.thesis.published import Number


_IMAGES = ("output", "target", "measurement")  # that a study keeps in grey levels


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
    warn(complaints)
    return study


def studies(store: str | None = None, artifacts: str | Path | None = None) -> list[Study]:
    """All studies of a store as they stand now, the latest first.

    Raises:
        UserError: there is no such store, or nothing in it.

    Warns:
        StudyWarning: studies or trials cannot be read.
    """
    found, complaints = look(store, None, artifacts, every=True)
    warn(complaints)
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
    with Store(store_url(store), images_folder(artifacts), read_only=True) as opened:
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

    def _repr_html_(self) -> str:
        """What a notebook shows of it."""
        from ddstudy.report import notebook

        return notebook.of_study(self.view)

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
        return list(self.spec.search_space)

    @property
    def trials(self) -> pd.DataFrame:
        """One row per finished trial: setting, measurements, whether it is stable and why not."""
        return self.view.trials

    @property
    def checks(self) -> pd.DataFrame:
        """One row per member and check of every fit: `fit_id`, `iteration`, `seconds`, `member`, `psnr`.

        `judge`, the judge's score, stands in for `psnr` where the truth does not judge.
        """
        return self.view.checks.rename(columns={"psnr": self.spec.score})

    @property
    def cases(self) -> Study | None:
        """The study whose trials are the settings of this one on each case, `cases.case`; None without cases."""
        return None if self.view.by_case is None else Study(self.view.by_case)

    @property
    def judged(self) -> pd.DataFrame:
        """The settings that `judge` fitted on the held-out cases, the best by the other cases first.

        Besides the axes: `chosen`, the first objective over the cases that settings were chosen by; `held_out`, its
        mean over those held out, with `low` and `high` of its 95 % interval; `difference`, what the first setting gains
        over this one on the same cases, with its interval.
        """
        from ddstudy.report import cases

        return cases.judged(self.view, chosen_by(self.view))

    @property
    def best(self) -> pd.DataFrame:
        """The best stable trial by each metric: the rows of `trials`, indexed by the metric.

        Metrics that no stable trial has are left out; `study.best.loc["psnr"]` is the trial with the highest PSNR,
        and where the truth is not known, `study.best.loc["judge"]` that with the best score by the judge.
        """
        measured = self.trials[self.trials["state"].isin(["COMPLETE", "PRUNED"])]
        stable = measured[measured["stable"].eq(True)]
        directions = {metric.name: str(metric.better) for metric in METRICS.values()} | {
            str(metric): way for metric, way in self.spec.objectives.items()
        }
        rows = {
            metric: scored.sort_values(ascending=direction == "minimize", kind="stable").index[0]
            for metric, direction in directions.items()
            if len(scored := stable[metric].dropna())
        }
        return stable.loc[list(rows.values())].set_index(pd.Index(list(rows), name="metric"))

    @property
    def failed(self) -> pd.DataFrame:
        """The rows of `trials` whose settings were given up and have no result; `run` tries them again."""
        return failed_settings(self.trials, self.view.axes)

    def compare(self, *trials: int | pd.Series[Any]) -> Comparison:
        """Trials beside each other: settings, measurements and, in a notebook, their images.

        Args:
            *trials: numbers, or rows of `trials` or `best`; by default all of `best`.

        Raises:
            UserError: there is no such trial.
        """
        from ddstudy.report import notebook

        given = trials or tuple(self.best["number"])
        numbers = [int(one["number"] if isinstance(one, pd.Series) else one) for one in given]
        for number in numbers:
            self._row(number)
        return Comparison(notebook.compared(self.view, list(dict.fromkeys(numbers))), self)

    def image(
        self, trial: int | pd.Series[Any], what: Literal["output", "target", "measurement"] = "output"
    ) -> NDArray[np.float32]:
        """An image that the study keeps of a trial; in 256 grey levels, `reconstruct` fits it again to the last bit.

        Args:
            trial: its number, or a row of `trials` or `best`.
            what: the reconstruction, the image itself, or the measurement as it is looked at.

        Returns:
            float32 in [0, 1], as `target`, (H, W) or (H, W, 3).

        Raises:
            UserError: there is no such trial, or its image was not kept, is damaged or not there any more.
        """
        from ddstudy.report import images

        number = int(trial["number"] if isinstance(trial, pd.Series) else trial)
        self._row(number)
        files = self.view.images.get(number, {})
        kept = {name: files[f"{name}.png"] for name in _IMAGES if f"{name}.png" in files}
        image = images.read(kept[what]) if what in kept else None
        if image is None:
            has = ", ".join(map(repr, kept))
            raise UserError(
                f"study {self.name}: no image {what!r} of trial {number}",
                f"Valid: {has}." if has else "None were kept; `reconstruct` fits it again.",
            )
        return arranged(image)

    def _row(self, number: int) -> pd.Series[Any]:
        """A finished trial.

        Raises:
            UserError: there is none of this number.
        """
        rows = self.trials[self.trials["number"] == number]
        if rows.empty:
            last = f"0 to {self.trials['number'].max()}" if len(self.trials) else "none yet"
            raise UserError(f"study {self.name}: no finished trial {number}", f"Valid: {last}.")
        return rows.iloc[0]

    def figure(self, kind: str, *others: Study, **fields: Any) -> go.Figure:
        """A figure of the report, for example `study.figure("pareto", x="seconds", y="psnr")`.

        Args:
            kind: of the panel.
            *others: studies that this one is compared with, for the kinds of dashboards/compare.toml.
            **fields: what the panel takes besides, as in `dashboards/*.toml`.

        Raises:
            UserError: there is no such kind or field, the kind is a table, or the study has no data for it.
        """
        import ddstudy.thesis.panels  # noqa: F401 - adds its kinds
        from ddstudy.report import panels

        panel = panels.parse_panel({"title": kind, **fields, "kind": kind}, f"figure {kind!r}")
        return panel.figure([self.view, *(other.view for other in others)])

    def findings(self, *others: Study) -> pd.DataFrame:
        """The thesis' findings, re-tested: one row per finding, with its verdict, effect and 95 % interval.

        Args:
            *others: studies of other slices, for the finding on slices away from the middle.
        """
        from ddstudy.thesis import findings

        return findings.as_table(findings.retest(self.view, [other.view for other in others]))

    def published(self, number: Number) -> pd.DataFrame:
        """A table of the thesis beside ours: "3.1", "4.1" to "4.5", or "text" for the numbers of its text.

        Title, source and what differs are in the table's `attrs`.

        Raises:
            UserError: there is no such table.
        """
        from ddstudy.thesis.published import beside

        ours = beside(self.view, number)
        ours.table.attrs.update(title=ours.title, source=ours.source, ours=ours.ours, differences=ours.differences)
        return ours.table

    def target(self) -> NDArray[np.float32]:
        """The image of the study, read anew from its file: float32 in [0, 1], (H, W), or (H, W, 3) in colour.

        Raises:
            UserError: the file is not there any more, or its pixels have changed.
        """
        return arranged(self._target().image)

    def _target(self) -> Target | Targets:
        target = load_targets(self.spec.by_case or self.spec)
        if short_digest(target) != self.facts.get("target digest", short_digest(target)):
            raise UserError(
                f"{self.spec.target.file or target.name}: is not the image that study '{self.name}' was run on",
                "Valid: the same pixels; fit fits any other image.",
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
        if self.spec.by_case is not None:
            raise UserError(
                f"study '{self.name}' has several cases",
                "Valid: study.cases.reconstruct, of which 'cases.case' is an axis.",
            )
        spec, wanted = self._setting(setting, device)
        found, _ = fit_setting(spec, self._target(), wanted, threads=threads, progress=progress, stop=stop)
        return arranged(found.output)

    def options(self, setting: int | Mapping[str, Any] | Setting | pd.Series[Any] | None = None) -> dict[str, Any]:
        """A setting and all else that the study says of a fit, as `ddstudy.fit` and `ddstudy.fit_volume` take it.

        `ddstudy.fit_volume("other.nii.gz", **study.options())` does with another volume what was chosen here.

        Args:
            setting: see `reconstruct`; by default the best stable one by the first objective.

        Raises:
            UserError: there is no such trial, axis or value, or no stable setting yet.
        """
        if setting is None:
            objective = next(iter(self.spec.objectives))
            if objective not in self.best.index:
                raise UserError(f"study '{self.name}' has no stable setting yet", "Run it first: ddstudy run.")
            setting = int(self.best.loc[[objective], "number"].iloc[0])
        spec, wanted = self._setting(setting, None)
        return options_of(spec, wanted)

    def _setting(
        self, given: int | Mapping[str, Any] | Setting | pd.Series[Any], device: str | None
    ) -> tuple[StudySpec, Setting]:
        """What is meant by a setting, and the study with only that, on a device."""
        tree = tree_of(self.spec)
        axes = {axis.name: list(axis.values) for axis in self.spec.search_space.axes}
        if isinstance(given, int | np.integer):
            given = self._row(int(given))
        if isinstance(given, pd.Series):
            values = {axis: given[axis] for axis in axes if not pd.isna(given[axis])}
        else:
            values = dict(given)
        if unknown := [axis for axis in values if axis not in axes]:
            raise UserError(f"setting: {unknown[0]}: unknown axis", f"Valid: {', '.join(axes)}.")
        for axis, listed in axes.items():
            applies = self.spec.search_space.applies(OPTIONS[axis], values)
            if axis not in values and len(listed) > 1 and applies:
                raise UserError(f"setting: {axis}: missing", f"In the study: {', '.join(map(str, listed))}.")
        whole = {axis: plain(values.get(axis, listed[0])) for axis, listed in axes.items()}
        space = {axis: [value] for axis, value in whole.items() if self.spec.search_space.applies(OPTIONS[axis], whole)}
        if device is not None:
            tree["fit"]["device"] = device
        spec = parse_spec(tree | {"space": space}, "setting")
        (setting,) = spec.search_space
        return spec, setting

    def report(
        self,
        out: str | Path | None = None,
        *others: Study,
        dashboard: str | Path | None = None,
    ) -> int:
        """Writes one self-contained HTML page about this study and others.

        Args:
            out: the page; by default `report-NAME.html` in the current folder.
            *others: further studies; several are set side by side first.
            dashboard: which panels are shown, a TOML file as in `dashboards/`; by default an overview.

        Returns:
            Its size in bytes.

        Raises:
            UserError: the file of panels is not valid, or the page cannot be written.
        """
        content = report_page([self, *others], dashboard)
        write_file(page_name([self.name, *(other.name for other in others)]) if out is None else Path(out), content)
        return len(content)

    def export(self, stem: str | Path | None = None) -> list[Path]:
        """Writes all trials as CSV and Parquet, one row a trial, and the members' curves as CSV.

        Args:
            stem: folder and name of the files, without suffix; by default `export-NAME` in the current folder.

        Returns:
            The files: `*.csv`, `*.parquet` and `*-checks.csv`; of a study with cases also `*-cases.csv`, a row for each
            setting on each case.

        Raises:
            UserError: they cannot be written.
        """
        trials, parquet = self.trials.drop(columns=sorted(never_measured(self.spec))), io.BytesIO()
        trials.to_parquet(parquet, index=False)
        table, curves = (rows.to_csv(index=False).encode() for rows in (trials, self.checks))
        files = {".csv": table, ".parquet": parquet.getvalue(), "-checks.csv": curves}
        if self.cases is not None:
            each = self.cases.trials.drop(columns=sorted(never_measured(self.spec)))
            files["-cases.csv"] = each.to_csv(index=False).encode()
        return write_files(Path(stem or f"export-{self.name}"), files)


@dataclass(frozen=True)
class Comparison:
    """Trials of a study beside each other.

    Attributes:
        table: a column for each trial: its setting, whether it is stable, and what was measured.
    """

    table: pd.DataFrame
    _study: Study

    def __repr__(self) -> str:
        return repr(self.table)

    def _repr_html_(self) -> str:
        """What a notebook shows of it."""
        from ddstudy.report import notebook

        return notebook.of_trials(self._study.view, self.table)


def report_page(studies: Sequence[Study], dashboard: str | Path | None = None, version: str = "") -> bytes:
    """The page about some studies; several are set side by side first.

    Args:
        studies: that are shown.
        dashboard: see `Study.report`.
        version: see `page.render`.

    Raises:
        UserError: the file of panels is not valid.
    """
    import ddstudy.thesis.panels  # noqa: F401 - adds its kinds
    from ddstudy.report import page, panels

    shown = panels.read_panels(Path(dashboard) if dashboard else panels.OVERVIEW)
    if dashboard is None and len(studies) > 1:
        shown = panels.read_panels(panels.COMPARE) + shown
    return page.render([study.view for study in studies], shown, version).encode()


def page_name(names: Sequence[str]) -> Path:
    """The page about some studies where no other is named: `report-quick.html`, `report-one-and-2-more.html`."""
    first, *others = names
    more = f"-{others[0]}" if len(others) == 1 else f"-and-{len(others)}-more" * bool(others)
    return Path(f"report-{first}{more}.html")


def tree_of(spec: StudySpec) -> dict[str, Any]:
    """A study as a study file has it."""
    return spec.model_dump(exclude_none=True)


def store_url(store: str | None) -> str:
    """The store that a call names, or that is meant without a name."""
    return store if store is not None else os.environ.get("DDSTUDY_STORE") or DEFAULT_STORE


def images_folder(artifacts: str | Path | None) -> Path | None:
    """The folder for images that a call names, or that is meant without a name; None for that beside the store."""
    folder = artifacts if artifacts is not None else os.environ.get("DDSTUDY_ARTIFACTS")
    return Path(folder) if folder else None


def warn(lines: Sequence[str]) -> None:
    """Tells the caller of whoever calls this what was left out or went wrong."""
    if lines:
        warnings.warn("\n".join(lines), StudyWarning, stacklevel=3)
