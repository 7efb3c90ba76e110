"""The command line: parse, call one function, print.

Heavy libraries are imported by the command that needs them, so `ddstudy --help` answers at once. A user's mistake
ends with two lines and exit code 2, a failure of ours or of the machine with exit code 1.
"""

from __future__ import annotations

import io
import math
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

import ddstudy
from ddstudy.errors import UserError, WorkError, counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from ddstudy.execution.executors import Executor
    from ddstudy.images.volumes import Target
    from ddstudy.spec.axes import Setting
    from ddstudy.spec.schema import StudySpec
    from ddstudy.store.database import Store
    from ddstudy.store.study import StudyView
    from ddstudy.store.writer import Driven

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # which would take [a default] for markup, and show nothing
)

StoreOption = Annotated[
    str,
    typer.Option(
        "--store", envvar="DDSTUDY_STORE", show_envvar=True, help="sqlite:///FILE.db or postgresql://USER:PW@HOST/DB."
    ),
]
ArtifactsOption = Annotated[
    Path | None,
    typer.Option(
        "--artifacts", envvar="DDSTUDY_ARTIFACTS", show_envvar=True, help="Folder of the trials' images [beside store]."
    ),
]
StudyArgument = Annotated[str | None, typer.Argument(help="Name of a study in the store [the latest].")]
DEFAULT_STORE = "sqlite:///ddstudy.db"
_RELOAD_SECONDS = 10
_MOST_CORES = 1024  # that workers or threads could fill
_SHOWN = ("psnr", "ssim", "ms_ssim", "vif", "psnr_foreground", "psnr_1dd", "cv_percent", "seconds", "parameters")


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ddstudy {ddstudy.__version__}")
        raise typer.Exit


@app.callback()
def _ddstudy(
    _: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Hyperparameter studies of the Deep Decoder on MR images."""


class _Run(TyperCommand):
    """`ddstudy run`, whose `--ray` may stand without an address: the parser knows no values that may be left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for place in [place for place, word in enumerate(args) if word == "--ray"]:
            following = args[place + 1] if place + 1 < len(args) else "-"
            if following.startswith("-") or following.endswith(".toml"):
                args = [*args[:place], "--ray=", *args[place + 1 :]]
        return super().parse_args(ctx, args)


@app.command(cls=_Run, epilog="Example: ddstudy run studies/tpe.toml --target brain.nii.gz --trials 50")
def run(
    study: Annotated[Path | None, typer.Argument(help="Study file (TOML) [a small packaged study].")] = None,
    grid: Annotated[bool, typer.Option("--grid", help="Every setting once.")] = False,
    tpe: Annotated[bool, typer.Option("--tpe", help="Search for the best PSNR with TPE.")] = False,
    pareto: Annotated[bool, typer.Option("--pareto", help="Search for PSNR against seconds with TPE.")] = False,
    target: Annotated[Path | None, typer.Option(help="Image or volume to fit [the study's].")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Settings to try [all; 100 for a search].")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the study in the store.")] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="[ADDRESS]", help="Run on Ray: local, auto or HOST:PORT [RAY_ADDRESS's, else local]."),
    ] = None,
    engine: Annotated[str | None, typer.Option(help="auto, fused or reference [the study's].")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=_MOST_CORES, help="Fits at a time [as the cores allow].")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=_MOST_CORES, help="Threads of a fit [one per member].")
    ] = None,
    reuse: Annotated[
        str | None, typer.Option(metavar="STUDY", help="Import the results of another study of this target first.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan and forecast only; writes nothing.")] = False,
    store: StoreOption = DEFAULT_STORE,
    artifacts: ArtifactsOption = None,
) -> None:
    """Run a study, or go on with one: the same command resumes."""
    from ddstudy.images.volumes import load_target
    from ddstudy.store.database import Store
    from ddstudy.study import runner
    from ddstudy.study.samplers import sampler
    from ddstudy.terminal import announce, live, print_summary, terminal

    spec = _override(
        _spec(study, name),
        grid=grid,
        tpe=tpe,
        pareto=pareto,
        target=target,
        trials=trials,
        name=name,
        engine=engine,
        ray=ray,
    )
    image = load_target(spec.target)
    console = terminal()
    if dry_run and reuse:
        raise UserError("--dry-run writes nothing, --reuse imports results", "Give one of them.")
    if dry_run:
        done, left_out = _measured_so_far(store, spec, image)
        the_plan = runner.plan(spec, image, done)
        with _executor(spec, image, workers, threads, console) as executor:
            announce(console, spec, image, the_plan, executor)
        _say_left_out(left_out)
        return
    runner.plan(spec, image, set())  # refuses what cannot be measured before anything is stored
    with Store(store, artifacts) as opened:
        source = opened.source(reuse, spec, image) if reuse is not None else None  # or refuses, before a study is made
        driven = opened.drive(spec, image, sampler(spec))
        with _executor(spec, image, workers, threads, console) as executor:
            if source is not None:
                _import(driven, source, executor, console)
            so_far = driven.measured()
            driven.study.sampler = sampler(spec, len(so_far))
            the_plan = runner.plan(spec, image, set(so_far), driven.reused)
            last = None
            try:
                forecast = announce(console, spec, image, the_plan, executor, driven)
                if forecast is not None:
                    with live(console) as show:
                        for progress in runner.run(driven, executor, forecast):
                            show(progress)
                            last = progress
            except KeyboardInterrupt:
                _complain("Stopped. What was finished is kept; the same command goes on.", 130)
        view = opened.view(spec.name)
        left_out = view.complaints
        default = store == DEFAULT_STORE or "DDSTUDY_STORE" in os.environ
        print_summary(console, view, opened.shown_url, "" if default else f" --store {opened.shown_url}")
    troubles = []
    if last is not None and last.failed:
        failed = f"{counted(last.failed, 'setting')} failed (`ddstudy status` says why)"
        troubles = [failed, "The same command tries them again."]
    if last is not None and last.images_lost:
        troubles += [f"all numbers are stored, but not all images: {last.images_lost.removeprefix('not kept: ')}"]
    _say_left_out(left_out, *troubles)


@app.command(epilog="Example: ddstudy fit brain.nii.gz --k 64 --s 16 --l 5 --iterations 2000 --out brain-dd")
def fit(
    target: Annotated[Path | None, typer.Argument(help="Image or volume [the packaged MNI152 slice].")] = None,
    k: Annotated[int, typer.Option(min=1, max=1024, help="Channels.")] = 64,
    s: Annotated[int, typer.Option(min=1, max=1024, help="Scale factor.")] = 16,
    l: Annotated[int, typer.Option("--l", min=1, max=16, help="Blocks.")] = 5,
    iterations: Annotated[int, typer.Option(min=1, help="Iterations.")] = 2000,
    noise: Annotated[str, typer.Option(help="uniform, blur3 or simplex.")] = "uniform",
    tiling: Annotated[str, typer.Option(help="1x1, 2x2, 3x3 or 4x5.")] = "1x1",
    members: Annotated[int, typer.Option(min=1, max=100, help="Members of the ensemble.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    plane: Annotated[str, typer.Option(help="axial, coronal or sagittal.")] = "axial",
    slice_: Annotated[str, typer.Option("--slice", help="Slice index or mid.")] = "mid",
    volume: Annotated[int | None, typer.Option(min=0, help="Volume of a 4-D series.")] = None,
    size: Annotated[tuple[int, int] | None, typer.Option(help="Rows and columns to resize and pad to.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    engine: Annotated[str, typer.Option(help="auto, fused or reference.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32, or bfloat16 on a CUDA GPU.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, max=_MOST_CORES, help="Threads [one per member, as cores allow].")
    ] = None,
    out: Annotated[Path, typer.Option(help="Files to write, without suffix.")] = Path("reconstruction"),
) -> None:
    """Fit one setting to one image; writes the reconstruction as PNG and, for volumes, as NIfTI."""
    from ddstudy.execution.executors import careful, layout, resolve_device
    from ddstudy.images.volumes import load_target, nifti_bytes, png_bytes
    from ddstudy.spec.axes import Fit
    from ddstudy.spec.files import parse_spec
    from ddstudy.study import runner
    from ddstudy.study.evaluate import Check
    from ddstudy.terminal import terminal

    spec = parse_spec(
        {
            "name": "fit",
            "target": {"plane": plane, "slice": int(slice_) if re.fullmatch("[0-9]{1,9}", slice_) else slice_}
            | ({"file": str(target)} if target else {})
            | ({"volume": volume} if volume is not None else {})
            | ({"size": list(size)} if size else {}),
            "space": {"k": [k], "s": [s], "l": [l], "iterations": [iterations], "noise": [noise], "tiling": [tiling]},
            "fit": {"members": members, "seed": seed, "device": device, "engine": engine, "precision": precision},
            "stability": {"prune": False},
        },
        "ddstudy fit",
    )
    _check_stem(out)
    image = load_target(spec.target)
    what = Fit(k, s, l, spec.space.noise[0], spec.space.tiling[0])
    console = terminal()
    console.print(f"Fitting {what.id} to {image.name}, {members} members, {iterations} iterations")
    job = runner.job(spec, image, what, (iterations,))
    device = resolve_device(device)
    cores = layout(spec.fit, device, exclusive=True, bytes_per_fit=lambda: 0, threads=threads)
    for event in careful(job, device=device, threads=cores.threads):
        if isinstance(event, Check):
            scores = event.psnr_members
            console.print(f"  {event.iteration}: {sum(scores) / len(scores):.2f} dB, {event.seconds:.1f} s")
        else:
            result = event
    if "psnr" not in result.values:
        raise WorkError("the fit diverged; try fewer channels or another seed")
    for name in _SHOWN:
        if name in result.values:
            console.print(f"{name:16s} {result.values[name]:.4g}")
    files = {".png": png_bytes(result.output)}
    if image.affine is not None:
        files[".nii.gz"] = nifti_bytes(result.output, image)
    for suffix, content in files.items():
        path = out.with_name(out.name + suffix)
        _write(path, content)
        console.print(f"Wrote {path}")


@app.command(epilog="Example: ddstudy validate studies/*.toml")
def validate(studies: Annotated[list[Path], typer.Argument(help="Study files.")]) -> None:
    """Check study files and their targets; says how many settings and fits each has, or all that is wrong."""
    from ddstudy.spec.axes import budgets_by_fit

    mistakes = []
    for path in studies:
        found, spec = _check(path)
        mistakes += found
        if spec is not None and not found:
            space = spec.space.search_space
            typer.echo(f"{path}: valid, {counted(len(space), 'setting')}, {counted(len(budgets_by_fit(space)), 'fit')}")
    if mistakes:
        raise UserError("\n".join(mistakes))


@app.command(epilog="Example: ddstudy status --store sqlite:///ddstudy.db")
def status(
    watch: Annotated[bool, typer.Option("--watch", help="Follow the runs of a study until they end.")] = False,
    study: StudyArgument = None,
    store: StoreOption = DEFAULT_STORE,
    artifacts: ArtifactsOption = None,
) -> None:
    """List the studies of a store: what is done, pruned, failed, and the best so far."""
    from rich.table import Table

    from ddstudy.store.database import Store
    from ddstudy.store.study import failed_settings
    from ddstudy.terminal import follow, terminal

    console = terminal()
    if watch:
        with Store(store, read_only=True) as opened:
            damaged = [] if study else opened.complaints
            _say_left_out([*damaged, *follow(console, opened, study).complaints])
        return

    table, notes = Table(), []
    for column in ("study", "target", "measured", "of", "pruned", "failed", "best"):
        table.add_column(column)
    with Store(store, artifacts, read_only=True) as opened:
        left_out = [] if study else opened.complaints
        names = [study] if study else opened.names()
        if not names and not left_out:
            opened.view()  # which says so
        for name in names:
            try:
                view = opened.view(name)
            except UserError as error:
                if study:
                    raise
                left_out.append(str(error).partition("\n")[0])
                continue
            left_out += view.complaints
            states = view.trials["state"].value_counts()
            metric, direction = next(iter(view.spec.objectives.items()))
            measured_ones = view.trials[view.trials["state"].isin(["COMPLETE", "PRUNED"])]
            stable = measured_ones[measured_ones["stable"].eq(True)].dropna(subset=[metric])
            best = ""
            if len(stable):
                row = stable.sort_values(metric, ascending=direction == "minimize").iloc[0]
                best = f"{metric} {row[metric]:.4g} at {row['fit_id']}-i{row['iterations']}"
            measured = int(states.get("COMPLETE", 0) + states.get("PRUNED", 0))
            if lost := view.lost_images:
                notes.append(f"{view.name}: {lost}; the numbers are complete")
            failed = failed_settings(view.trials)
            counts = (measured, view.spec.trials, states.get("PRUNED", 0), len(failed))
            table.add_row(view.name, view.facts["target"], *map(str, counts), best)
            if len(failed):
                last = failed.iloc[-1]
                notes.append(
                    f"{view.name}: {counted(len(failed), 'setting')} failed, `ddstudy run` tries them again, "
                    f"`ddstudy logs {view.name}` tells all; "
                    f"the last, {last['fit_id']}-i{last['iterations']}: {last['reason']}"
                )
    console.print(table)
    for note in notes:
        console.print(note, soft_wrap=True)
    _say_left_out(left_out)


@app.command(epilog="Example: ddstudy logs quick")
def logs(study: StudyArgument = None, store: StoreOption = DEFAULT_STORE) -> None:
    """Print all that is known about the fits of a study that failed."""
    from ddstudy.store.database import Store

    with Store(store, read_only=True) as opened:
        (view,), left_out = _look(opened, [study] if study else None)
    for setting, (why, log) in view.logs.items():
        typer.echo(f"{setting}: {why}\n{log}".rstrip() + "\n")
    if not view.logs:
        typer.echo(f"{view.name}: no fit failed")
    _say_left_out(left_out)


@app.command(epilog="Example: ddstudy report quick --out report.html")
def report(
    studies: Annotated[list[str] | None, typer.Argument(help="Names of studies [the latest].")] = None,
    dashboard: Annotated[Path | None, typer.Option(help="Panels to show (TOML) [the packaged overview].")] = None,
    out: Annotated[Path, typer.Option(help="Page to write.")] = Path("report.html"),
    watch: Annotated[bool, typer.Option("--watch", help="Write it anew as trials arrive; the page reloads.")] = False,
    store: StoreOption = DEFAULT_STORE,
    artifacts: ArtifactsOption = None,
) -> None:
    """Write one self-contained HTML page about one or more studies."""
    from ddstudy.report.page import render
    from ddstudy.report.panels import COMPARE, OVERVIEW, read_panels
    from ddstudy.store.database import Store

    panels = read_panels(dashboard or OVERVIEW)
    if dashboard is None and len(studies or ()) > 1:
        panels = read_panels(COMPARE) + panels
    with Store(store, artifacts, read_only=True) as opened:
        damaged = [] if studies else opened.complaints
        names = list(dict.fromkeys(studies or [opened.view().name]))

        def write(*, live: bool) -> bool:
            """Writes the page; whether results are missing that may come."""
            views = [opened.view(name) for name in names]
            page = render(views, panels, _RELOAD_SECONDS if live else 0).encode()
            _write(out, page)
            size, trials = len(page) / 1e6, sum(len(view.trials) for view in views)
            typer.echo(
                f"Wrote {out} ({size:.1f} MB, {trials:,} trials)" + "; open it in a browser" * (not live),
                err=not out.is_file(),
            )
            return not all(view.is_over for view in views)

        if watch:
            _follow(
                lambda: [opened.finished(name) for name in names],
                lambda: write(live=True),
                lambda: any(opened.at_work(name) for name in names),
            )
        write(live=False)
        _say_left_out([*damaged, *_look(opened, names)[1]])


@app.command("claims", hidden=True)  # as earlier versions named it
@app.command(epilog="Example: ddstudy findings quick --trials blur")
def findings(
    studies: Annotated[
        list[str] | None, typer.Argument(help="Names of studies, that of the mid slice and others of it [the latest].")
    ] = None,
    trials: Annotated[
        str | None, typer.Option(metavar="NAME", help="Say how one finding is decided, and list the trials behind it.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Re-test the thesis' findings: supported, contradicted or not enough data, and by how much."""
    from ddstudy.report.findings import FINDINGS, ask, retest
    from ddstudy.store.database import Store
    from ddstudy.terminal import print_answers, print_trials, terminal

    by_name = {finding.name: finding for finding in FINDINGS}
    if trials is not None and trials not in by_name:
        raise UserError(f"no finding '{trials}'", f"Valid: {', '.join(by_name)}.")
    with Store(store, read_only=True) as opened:
        views, left_out = _look(opened, studies)
    console = terminal()
    for view in views:
        others = [other for other in views if other is not view]
        if trials is None:
            print_answers(console, view, retest(view, others))
        else:
            print_trials(console, view, ask(by_name[trials], view, others))
    if trials is None:
        console.print("How one is decided, and its trials: --trials NAME", soft_wrap=True)
    _say_left_out(left_out)


@app.command(epilog="Example: ddstudy export quick --out quick")
def export(
    study: StudyArgument = None,
    out: Annotated[Path | None, typer.Option(help="Files to write, without suffix [the study's name].")] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Write all trials of a study as CSV and Parquet, one row a trial, and the members' curves as CSV."""
    import io

    from ddstudy.store.database import Store

    with Store(store, read_only=True) as opened:
        (view,), left_out = _look(opened, [study] if study else None)
    stem = out or Path(f"export-{view.name}")
    _check_stem(stem)
    parquet = io.BytesIO()
    view.trials.to_parquet(parquet, index=False)
    table, checks = (rows.to_csv(index=False).encode() for rows in (view.trials, view.checks))
    files = {".csv": table, ".parquet": parquet.getvalue(), "-checks.csv": checks}
    for suffix, content in files.items():
        path = stem.with_name(stem.name + suffix)
        _write(path, content)
        rows = f"{len(view.checks)} checks of members" if "checks" in suffix else f"{len(view.trials)} trials"
        typer.echo(f"Wrote {path} ({rows})")
    _say_left_out(left_out)


@app.command(name="prune-audit", epilog="Example: ddstudy prune-audit audit --warmup 300 --warmup 1000 --patience 3")
def prune_audit(
    studies: Annotated[list[str] | None, typer.Argument(help="Studies that ran without pruning [the latest].")] = None,
    cv: Annotated[list[float] | None, typer.Option(min=0.01, help="Thresholds in percent [the study's].")] = None,
    stop: Annotated[list[float] | None, typer.Option(min=1, help="Multiples that begin [1, 1.5, 2].")] = None,
    warmup: Annotated[list[int] | None, typer.Option(min=0, help="Warm-ups in iterations [tenths of a fit].")] = None,
    window: Annotated[list[int] | None, typer.Option(min=1, help="Windows in checks [the study's].")] = None,
    patience: Annotated[list[int] | None, typer.Option(min=1, help="Patiences in checks [1, 3, 5, 8].")] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Replay the stop rule on finished studies: what it would have saved, caught and wrongly stopped."""
    from itertools import product

    from rich.table import Table

    from ddstudy.report.tables import recorded
    from ddstudy.store.database import Store
    from ddstudy.study.stability import audit
    from ddstudy.terminal import terminal

    with Store(store, read_only=True) as opened:
        views, left_out = _look(opened, studies)
        fits = [fit for view in views for fit in recorded(view.trials, view.checks, view.spec)]
    names = ", ".join(view.name for view in views)
    if not fits:
        raise UserError(f"{names}: no fit ran to its end", "Run one with [stability] prune = false.")
    rule, longest = views[0].spec.stability, max(max(fit.results) for fit in fits)
    warmups = warmup or sorted({longest * tenths // 10 for tenths in (0, 1, 2, 3, 5)})
    axes = (cv or [rule.cv_percent], stop or [1, 1.5, 2], warmups, window or [rule.window], patience or [1, 3, 5])
    table = Table(title=f"The stop rule on {len(fits)} fits of {names} that ran to their end")
    for column in ("CV %", "stop", "warm-up", "window", "patience", "saved", "caught", "wronged", "best lost"):
        table.add_column(column, justify="right")
    for values in product(*axes):
        changes = dict(zip(("cv_percent", "stop", "warmup", "window", "patience"), values, strict=True))
        found = audit(fits, rule.model_copy(update=changes))
        table.add_row(
            *(f"{value:g}" for value in changes.values()),
            f"{100 * found.saved:.0f} %",
            f"{found.caught} of {found.unstable}",
            f"{found.wronged} of {found.stable}",
            f"{found.best_lost:.2f} dB" if found.best_lost < math.inf else "all",
        )
    terminal().print(table)
    typer.echo(
        "saved: share of iterations; caught: unstable fits stopped early; wronged: fits stopped that would have ended "
        "stable."
    )
    _say_left_out(left_out)


@app.command(epilog="Example: ddstudy dashboard --port 8080")
def dashboard(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")] = 8080,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Listen on other addresses: whoever reaches them can read all.")
    ] = False,
    store: StoreOption = DEFAULT_STORE,
    artifacts: ArtifactsOption = None,
) -> None:
    """Serve optuna-dashboard over the store, read-only."""
    from ddstudy.dashboard import serve
    from ddstudy.store.database import Store

    remote = (
        "\nRemote readers are allowed: no login, no encryption; whoever reaches the port sees every study and image."
    )
    remote *= allow_remote
    with Store(store, artifacts, read_only=True) as opened:
        files = opened.artifacts if opened.artifacts.is_dir() else None
        for line in opened.complaints:
            typer.echo(line, err=True)
        for name in opened.names():
            try:
                view = opened.view(name)
            except UserError as error:  # shown as far as Optuna's dashboard can
                typer.echo(str(error).partition("\n")[0], err=True)
                continue
            for line in [*view.complaints, *([f"{name}: {view.lost_images}"] if view.lost_images else [])]:
                typer.echo(line, err=True)
        serve(
            opened.storage,
            files,
            host,
            port,
            allow_remote=allow_remote,
            ready=lambda url: typer.echo(
                f"Dashboard of {opened.shown_url} at {url} (read-only; Ctrl-C ends it){remote}"
            ),
        )


def main() -> None:
    """Entry point: runs a command and turns exceptions into messages and exit codes."""
    warnings.filterwarnings("ignore", module=r"(optuna|piq|ray)\b")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without the letters, a file name that is no UTF-8
            stream.reconfigure(errors="replace")
    for name in ("COLUMNS", "TERMINAL_WIDTH"):  # of which rich makes lines as long
        if len(os.environ.get(name, "")) > 3:
            os.environ[name] = "999"
    try:
        _refuse_urls(sys.argv[1:])
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except UserError as error:
        _complain(str(error), 2)
    except Exception as error:  # the last resort: parser's mistakes and failures in words, ours re-raised
        _unexpected(error)


def _refuse_urls(words: list[str]) -> None:
    """Refuses URLs in other places than their own: a message may repeat what stands there, and with it a password."""
    for before, word in zip(["", *words], words, strict=False):
        option, _, value = word.partition("=") if word.startswith("--") else (before, "", word)
        if "://" in word and option != "--store" and not (option == "--ray" and value.startswith("ray://")):
            where = f"behind {option}" if re.fullmatch("--[a-z-]+", option) else "among the arguments"
            raise UserError(f"a URL {where} is not valid", "A store goes behind --store, a file is a path.")


def _unexpected(error: Exception) -> None:
    usage = getattr(error, "exit_code", None)  # a mistake on the command line, in the words of the parser
    if usage is not None and hasattr(error, "show"):
        error.show()
        sys.exit(usage)
    if isinstance(error, OSError | WorkError):
        _complain(str(error), 1)
    if _is_short_of_memory(error):
        line = str(error).strip().partition("\n")[0][:200]
        _complain(f"there is too little memory{f': {line}' if line else ''}", 1)
    raise error  # a fault of ours: whoever reports it needs the traceback


def _is_short_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError) or "torch" not in sys.modules:  # no time to import it
        return isinstance(error, MemoryError)
    from ddstudy.execution.executors import is_short_of_memory

    return is_short_of_memory(error)


def _complain(message: str, code: int) -> None:
    typer.echo(f"ddstudy: {message}", err=True)
    sys.exit(code)


def _say_left_out(lines: list[str], *troubles: str) -> None:
    """Names what cannot be read of a store, behind other troubles; any of them ends the command with exit code 1."""
    if lines:
        troubles = (*troubles, "not all of the store can be read, the rest is shown:", *lines)
    if troubles:
        raise WorkError("\n".join(troubles))


def _look(opened: Store, names: list[str] | None) -> tuple[list[StudyView], list[str]]:
    """Studies to look at, without names the latest that can be read, and what of them or before it cannot be."""
    views = [opened.view(name) for name in names] if names else [opened.view()]
    left_out = [] if names else opened.complaints
    return views, [*left_out, *(line for view in views for line in view.complaints)]


def _follow(count: Callable[[], list[int]], write: Callable[[], bool], at_work: Callable[[], bool]) -> None:
    """Writes a page whenever there are more trials, until there can be no more and nobody is at work, or Ctrl-C."""
    try:
        known, more = count(), write()
        while more or at_work():
            time.sleep(2)
            begun = time.monotonic()
            if (now := count()) != known:
                known, more = now, write()
                time.sleep(4 * (time.monotonic() - begun))  # a large page leaves the processor to the study
    except KeyboardInterrupt:
        typer.echo("Stopped following.")


def _write(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all; a link is followed, and a device or a pipe is written into."""
    part = None
    try:
        if path.exists() and not path.is_file():  # /dev/stdout may lead to a pipe, which has no path of its own
            with path.open("wb") as special:
                special.write(content)
            return
        path_itself = path.resolve()
        folder = path_itself.parent
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder", "Name a file in a folder that exists.")
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            part = Path(file.name)
            file.write(content)
        part.chmod(0o666 & ~_umask())
        part.replace(path_itself)
    except (OSError, RuntimeError) as error:  # RuntimeError: a circle of links
        if part is not None:
            part.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be written ({reason})", "Name a file in a writable folder.") from None


def _check_stem(out: Path) -> None:
    """Refuses what could not be written before hours are spent on it."""
    folder = out.absolute().parent
    if not out.name or not folder.is_dir():
        raise UserError(f"--out {out}: no name of files in a folder that exists", "Valid: FOLDER/NAME, without suffix.")
    try:
        out.with_name(out.name + "-checks.csv").exists()  # or is too long
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"--out {out}: cannot be written ({error.strerror})", "Name a file in a writable folder."
        ) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _check(path: Path) -> tuple[list[str], StudySpec | None]:
    """All that is wrong with a study file, with its target, and with what it asks of that target."""
    from ddstudy.images.volumes import load_target
    from ddstudy.spec.files import parse_spec, read_study, target_of
    from ddstudy.study import runner

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


def _spec(path: Path | None, name: str | None) -> StudySpec:
    from ddstudy.spec.files import read_spec

    return read_spec(path or Path(__file__).parent / "data" / "quick.toml", name)


def _override(
    spec: StudySpec,
    *,
    grid: bool,
    tpe: bool,
    pareto: bool,
    target: Path | None,
    trials: int | None,
    name: str | None,
    engine: str | None,
    ray: str | None,
) -> StudySpec:
    """What the command line changes in a study. A mode that is not the file's own gives the study another name."""
    from ddstudy.spec.files import parse_spec

    if grid + tpe + pareto > 1:
        raise UserError("--grid, --tpe and --pareto are three modes", "Give one of them.")
    tree: dict[str, Any] = spec.model_dump(exclude_none=True)
    if grid or tpe or pareto:
        mode = "grid" if grid else "tpe" if tpe else "pareto"
        tree["search"]["sampler"] = "grid" if grid else "tpe"
        if tpe or pareto:
            tree["objectives"] = {"psnr": "maximize"} | ({"seconds": "minimize"} if pareto else {})
        changed = tree["search"]["sampler"] != spec.search.sampler or tree["objectives"] != spec.objectives
        if changed:
            tree["name"] = f"{spec.name}-{mode}"
    if target is not None:
        tree["target"]["file"] = str(target.absolute())
    if trials is not None:
        tree["search"]["trials"] = trials
    if name is not None:
        tree["name"] = name
    if engine is not None:
        tree["fit"]["engine"] = engine
    if ray is not None:
        tree["executor"] |= {"kind": "ray"} | ({"address": ray} if ray else {})
    return parse_spec(tree, "ddstudy run")


def _import(driven: Driven, source: StudyView, executor: Executor, console: Console) -> None:
    from ddstudy.study.samplers import Unseen
    from ddstudy.terminal import device_of

    sampler = driven.study.sampler
    marks = sampler.marks(driven.trials()) if isinstance(sampler, Unseen) else {}
    count = driven.reuse(source, device=device_of(executor, driven.spec), marks=marks)
    console.print(f"{count:,} results of {source.name} imported", soft_wrap=True)


@contextmanager
def _executor(
    spec: StudySpec, image: Target, workers: int | None, threads: int | None, console: Console
) -> Iterator[Executor]:
    from functools import partial

    from ddstudy.execution.executors import InProcess, Threads, layout, resolve_device
    from ddstudy.execution.ray_pool import Ray, Wish
    from ddstudy.study.runner import bytes_of_largest_fit

    timed, bytes_per_fit = "seconds" in spec.objectives, partial(bytes_of_largest_fit, spec, image)
    bytes_on_gpu = partial(bytes_of_largest_fit, spec, image, "cuda:0")
    executor: Executor
    if spec.executor.kind == "ray":
        if workers or threads:
            raise UserError("--workers and --threads are for this machine", "Ray's slots follow from its cluster.")
        executor = Ray(Wish(spec.fit, spec.executor, timed, bytes_per_fit, bytes_on_gpu), console.print)
    else:
        cores = layout(
            spec.fit,
            resolve_device(spec.fit.device),
            exclusive=timed,
            bytes_per_fit=bytes_per_fit,
            workers=workers,
            threads=threads,
        )
        executor = InProcess(cores.threads) if cores.workers == 1 else Threads(cores)
    try:
        yield executor
    finally:
        executor.close()


def _measured_so_far(store: str, spec: StudySpec, image: Target) -> tuple[set[Setting], list[str]]:
    """Settings of the study that have a result, and what cannot be read of it, without writing anything."""
    from ddstudy.store.database import NoStudiesError, Store

    try:
        with Store(store, read_only=True) as opened:
            if opened.check(spec, image) is None:
                return set(), []
            view = opened.view(spec.name)
    except NoStudiesError:
        return set(), []
    return {record.setting for record in view.records if record.has_result}, view.complaints


if __name__ == "__main__":
    main()
