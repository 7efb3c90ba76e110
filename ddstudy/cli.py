"""The command line: parse, call one function, print.

Heavy libraries are imported by the command that needs them, so `ddstudy --help` answers at once. A user's mistake
ends with two lines and exit code 2, a failure of ours or of the machine with exit code 1.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperCommand

import ddstudy
from ddstudy import DEFAULT_STORE
from ddstudy.errors import StudyWarning, UserError, WorkError, counted, duration

if TYPE_CHECKING:
    from ddstudy.live import Beside

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
_COMPLETE = "_DDSTUDY_COMPLETE"  # by which a shell asks for completions
_MOST_CORES = 1024  # that workers or threads could fill


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
    tpe: Annotated[bool, typer.Option("--tpe", help="Search for the best PSNR, or judge's score, with TPE.")] = False,
    pareto: Annotated[bool, typer.Option("--pareto", help="Search for the same against seconds with TPE.")] = False,
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
    open_: Annotated[bool, typer.Option("--open", help="Show the report in the browser as trials arrive.")] = False,
    store: StoreOption = DEFAULT_STORE,
    artifacts: ArtifactsOption = None,
) -> None:
    """Run a study, or go on with one: the same command resumes."""
    from ddstudy.store.urls import parse_url, shown
    from ddstudy.terminal import live, print_summary, teller, terminal

    modes = [mode for mode, wanted in (("grid", grid), ("tpe", tpe), ("pareto", pareto)) if wanted]
    if len(modes) > 1:
        raise UserError("--grid, --tpe and --pareto are three modes", "Give one of them.")
    if dry_run and (reuse or open_):
        what = "--reuse imports results" if reuse else "--open shows them"
        raise UserError(f"--dry-run writes nothing, {what}", "Give one of them.")
    console = terminal()
    options: dict[str, Any] = {
        "mode": modes[0] if modes else None, "target": target, "trials": trials, "name": name, "engine": engine,
        "ray": ray or ray is not None, "workers": workers, "threads": threads, "store": store, "tell": teller(console),
    }  # fmt: skip
    if dry_run:
        _say_left_out(ddstudy.dry_run(study, **options).complaints)
        return
    with _open_beside(study, options, artifacts) if open_ else contextlib.nullcontext() as beside:
        try:
            with live(console) as show:
                done = ddstudy.run(study, **options, reuse=reuse, artifacts=artifacts, progress=show)
        except KeyboardInterrupt:
            _complain("Stopped. What was finished is kept; the same command goes on.", 130)
        where = shown(parse_url(store))
        default = store == DEFAULT_STORE or "DDSTUDY_STORE" in os.environ
        print_summary(console, done, where, "" if default else f" --store {where}")
        if beside is not None:
            console.print("The report stays in the browser until Ctrl-C.")
            beside.wait()
    _say_left_out(done.view.complaints, *done.troubles)


def _open_beside(study: Path | None, options: Mapping[str, Any], artifacts: Path | None) -> Beside:
    """Opens the live report of a study that is going to be run."""
    from ddstudy.api import asked
    from ddstudy.live import Beside, open_browser

    tell = options["tell"]

    def ready(url: str) -> None:
        tell(f"Report at {url}" + "; open it in a browser" * (not open_browser(url)))

    of_study = {key: options[key] for key in ("mode", "target", "trials", "name", "engine", "ray")}
    return Beside(options["store"], artifacts, asked(study, **of_study).name, ready)


# files that are no options of a search: what they are for
_TASKS_OF = {"mask": ("task.kind", ("inpaint",)), "maps": ("task.kind", ("mri",))}


def _need(options: Mapping[str, tuple[str, tuple[Any, ...]] | None], flag: str, kind: str) -> None:
    """Refuses what means nothing for the task or prior that was chosen; options by name, with the kinds they need."""
    for key, needs in options.items():
        _, kinds = needs or ("", ())
        if kind not in kinds:
            raise UserError(
                f"--{key.replace('_', '-')} means nothing for --{flag} {kind}",
                f"It is for {' or '.join(map(str, kinds))}.",
            )


@app.command(epilog="Example: ddstudy fit brain.nii.gz --k 64 --s 16 --l 5 --iterations 2000 --out brain-dd")
def fit(
    context: typer.Context,
    target: Annotated[Path | None, typer.Argument(help="Image or volume [the packaged MNI152 slice].")] = None,
    k: Annotated[int | None, typer.Option(min=1, max=1024, help="Channels [64].")] = None,
    s: Annotated[int | None, typer.Option(min=1, max=1024, help="Scale factor [16].")] = None,
    l: Annotated[int | None, typer.Option("--l", min=1, max=16, help="Blocks [5].")] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="Iterations [2000].")] = None,
    noise: Annotated[str | None, typer.Option(help="uniform, blur3 or simplex [uniform].")] = None,
    tiling: Annotated[str | None, typer.Option(help="1x1, 2x2, 3x3 or 4x5 [1x1].")] = None,
    prior: Annotated[
        str, typer.Option(help="deep_decoder, deep_decoder_2019, conv_decoder, dip, siren, tv, wavelet or nlm.")
    ] = "deep_decoder",
    skip_channels: Annotated[int | None, typer.Option(min=0, max=1024, help="Of skip connections, of dip.")] = None,
    omega: Annotated[float | None, typer.Option(help="Frequency of the sines, of siren.")] = None,
    strength: Annotated[float | None, typer.Option(help="Of tv, wavelet or nlm.")] = None,
    optimiser: Annotated[str, typer.Option(help="adam, adamw, radam, sgd, rmsprop, lbfgs or sgld.")] = "adam",
    learning_rate: Annotated[float, typer.Option(help="Of the optimiser.")] = 0.01,
    loss: Annotated[str, typer.Option(help="mse, l1, huber or log_mse.")] = "mse",
    task: Annotated[str, typer.Option(help="represent, denoise, inpaint, super_resolve or mri.")] = "represent",
    measured: Annotated[
        bool, typer.Option("--measured", help="The image is the measurement itself; else one is simulated from it.")
    ] = False,
    sigma: Annotated[float | None, typer.Option(min=0, help="Noise level, relative to the image's range.")] = None,
    share: Annotated[float | None, typer.Option(min=0, max=1, help="Share of pixels measured, to inpaint.")] = None,
    mask: Annotated[Path | None, typer.Option(help="Image or NumPy file, not 0 where measured, to inpaint.")] = None,
    factor: Annotated[int | None, typer.Option(min=2, max=16, help="Of super-resolution.")] = None,
    acceleration: Annotated[float | None, typer.Option(min=1, max=64, help="Of undersampled MR.")] = None,
    coils: Annotated[int | None, typer.Option(min=1, max=64, help="Of simulated MR.")] = None,
    maps: Annotated[Path | None, typer.Option(help="NumPy file of coil sensitivities, for MR.")] = None,
    consistency: Annotated[str | None, typer.Option(help="Of MR, after the fit: none or hard.")] = None,
    stop: Annotated[str, typer.Option(help="budget, wmv, emv or discrepancy: which iterate is the answer.")] = "budget",
    check_every: Annotated[int, typer.Option(min=1, help="Iterations between checks.")] = 100,
    members: Annotated[int, typer.Option(min=1, max=100, help="Members of the ensemble.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    plane: Annotated[str, typer.Option(help="axial, coronal or sagittal.")] = "axial",
    slice_: Annotated[str, typer.Option("--slice", help="Slice index or mid.")] = "mid",
    all_slices: Annotated[
        bool, typer.Option("--all-slices", help="Reconstruct every slice of the plane, and write one volume in place.")
    ] = False,
    slices: Annotated[
        str | None, typer.Option(help="Only these: indices, ranges as 40:140:10, mid+-30:10 around the middle.")
    ] = None,
    start: Annotated[
        str | None, typer.Option(help="Where a slice of several starts: random, or the weights of its neighbour.")
    ] = None,
    start_iterations: Annotated[
        int | None, typer.Option(min=1, help="Of a slice that starts from its neighbour [as many as of the first].")
    ] = None,
    joint: Annotated[int | None, typer.Option(min=1, help="Adjacent slices of several that share one network.")] = None,
    volume: Annotated[int | None, typer.Option(min=0, help="Volume of a 4-D series.")] = None,
    size: Annotated[tuple[int, int] | None, typer.Option(help="Rows and columns to resize and pad to.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    engine: Annotated[str, typer.Option(help="auto, fused or reference.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32, or bfloat16 on a CUDA GPU.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, max=_MOST_CORES, help="Threads [one per member, as cores allow].")
    ] = None,
    study: Annotated[
        str | None, typer.Option(help="Study of the store: fit its best stable setting, with all else that it says.")
    ] = None,
    trial: Annotated[int | None, typer.Option(min=0, help="Another trial of the study, by its number.")] = None,
    store: StoreOption = DEFAULT_STORE,
    out: Annotated[Path, typer.Option(help="Files to write, without suffix.")] = Path("reconstruction"),
) -> None:
    """Fit one setting to one image, as it is or as a task measures it; writes PNG and, for volumes, NIfTI.

    With --all-slices or --slices the setting is fitted to slices of a volume, which all go into one NIfTI; what they
    measure goes into a CSV. The same command goes on after whatever ended it.

    With --study the setting is what a study chose, fitted to its image or to another one.
    """
    from ddstudy.report.writing import check_stem
    from ddstudy.spec.options import OPTIONS
    from ddstudy.terminal import live, print_fit, print_volume, progress_of, teller, terminal

    check_stem(out)
    console = terminal()

    cut: dict[str, Any] = {"plane": plane, "slice": int(slice_) if re.fullmatch("[0-9]{1,9}", slice_) else slice_}
    cut |= ({"volume": volume} if volume is not None else {}) | ({"size": size} if size else {})
    given: dict[str, Any] = {
        "sigma": sigma, "share": share, "mask": mask, "factor": factor, "acceleration": acceleration, "coils": coils,
        "maps": maps, "consistency": consistency,
    }  # fmt: skip
    given = {key: value for key, value in given.items() if value is not None}
    model: dict[str, Any] = {"skip_channels": skip_channels, "omega": omega, "strength": strength}
    model = {key: value for key, value in model.items() if value is not None}
    _need({key: OPTIONS[f"prior.{key}"].needs for key in model}, "prior", prior)
    table: dict[str, Any] = {"kind": task, **given} | ({"source": "file"} if measured else {})
    _need({key: _TASKS_OF.get(key) or OPTIONS[f"task.{key}"].needs for key in given}, "task", task)
    options: dict[str, Any] = {
        "task": table, "rule": stop, "check_every": check_every, "k": k, "s": s, "l": l, "iterations": iterations,
        "noise": noise, "tiling": tiling, "prior": {"kind": prior, **model}, "target": cut, "threads": threads,
        "optimiser": optimiser, "learning_rate": learning_rate, "loss": loss, "members": members, "seed": seed,
        "device": device, "engine": engine, "precision": precision, "tell": teller(console),
    }  # fmt: skip
    several: dict[str, Any] = {"start": start, "start_iterations": start_iterations, "joint": joint}
    several = {key: value for key, value in several.items() if value is not None}
    if study is not None:
        _need_no_others(context)
        chosen = ddstudy.open_study(study, store)
        own = {key: options[key] for key in ("threads", "device", "tell")}
        options = chosen.options(trial) | own
        of_study = chosen.spec.target
        if target is None:
            target = Path(of_study.file) if of_study.file is not None else None
            cut = {"slice": of_study.slice, "volume": of_study.volume} | ({} if slice_ == "mid" else cut)
        options["target"] |= {key: cut[key] for key in ("slice", "volume") if cut.get(key) is not None}
        measured = options["task"].get("source") == "file"
    elif trial is not None:
        raise UserError("--trial is of a study", "Give --study, too.")
    if not all_slices and slices is None:
        if several:
            flag = next(iter(several)).replace("_", "-")
            raise UserError(f"--{flag} is for slices of a volume", "Give --all-slices or --slices, too.")
        with live(console) as show:
            found = ddstudy.fit(target, progress=lambda check: show(progress_of(check, measured=measured)), **options)
        print_fit(console, found)
        written: Sequence[Path] = found.save(out)
    else:
        if slice_ != "mid" or (all_slices and slices is not None):
            raise UserError("--slice, --slices and --all-slices exclude each other", "Give one of them.")
        try:
            with live(console) as show_slices:
                volume_fit = ddstudy.fit_volume(
                    target, slices or "all", out=out, progress=show_slices, **(options | several)
                )
        except KeyboardInterrupt:
            _complain("Stopped. What was finished is kept; the same command goes on.", 130)
        print_volume(console, volume_fit)
        written = volume_fit.files
    for path in written:
        console.print(f"Wrote {path}")


def _need_no_others(context: typer.Context) -> None:
    """Refuses what a study says already."""
    of_slices = ("slice_", "slices", "all_slices", "volume", "start", "start_iterations", "joint")
    flags = (*of_slices, "device", "threads", "out")
    beside = ("target", "study", "trial", "store", *flags)
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in beside and source is not None and source.name == "COMMANDLINE":
            named = ", ".join("--" + each.strip("_").replace("_", "-") for each in ("trial", "store", *flags))
            raise UserError(
                f"--{name.replace('_', '-')} and --study exclude each other: the study says it",
                f"Valid beside it: an image, {named}.",
            )


@app.command(epilog="Example: ddstudy validate studies/*.toml")
def validate(studies: Annotated[list[Path], typer.Argument(help="Study files.")]) -> None:
    """Check study files and their targets; says how many settings and fits each has, or all that is wrong."""
    from ddstudy.api import check_study
    from ddstudy.spec.axes import budgets_by_fit

    mistakes = []
    for path in studies:
        found, spec = check_study(path)
        mistakes += found
        if spec is not None and not found:
            space, cases = spec.search_space, len(spec.cases.chosen_by) if spec.by_case else 0
            on = f" on {counted(cases, 'case')}" * bool(cases)
            fits = len(budgets_by_fit(space)) * max(1, cases)
            typer.echo(f"{path}: valid, {counted(len(space), 'setting')}{on}, {counted(fits, 'fit')}")
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
    from ddstudy.results import look
    from ddstudy.store.database import Store
    from ddstudy.terminal import follow, print_studies, terminal

    if watch:
        with Store(store, read_only=True) as opened:
            damaged = [] if study else opened.complaints
            _say_left_out([*damaged, *follow(terminal(), opened, study).complaints])
        return
    found, left_out = look(store, [study] if study else None, artifacts, every=True)
    print_studies(terminal(), found)
    _say_left_out(left_out)


@app.command(epilog="Example: ddstudy logs quick")
def logs(study: StudyArgument = None, store: StoreOption = DEFAULT_STORE) -> None:
    """Print all that is known about the fits of a study that failed."""
    from ddstudy.results import look

    (found,), left_out = look(store, [study] if study else None)
    logs = found.view.logs
    for setting, (why, log) in logs.items():
        typer.echo(f"{setting}: {why}\n{log}".rstrip() + "\n")
    if not logs:
        typer.echo(f"{found.name}: no fit failed")
    _say_left_out(left_out)


@app.command(epilog="Example: ddstudy report quick --out page.html")
def report(
    studies: Annotated[list[str] | None, typer.Argument(help="Names of studies [the latest].")] = None,
    dashboard: Annotated[Path | None, typer.Option(help="Panels to show (TOML) [the packaged overview].")] = None,
    out: Annotated[Path | None, typer.Option(help="Page to write [report-STUDY.html].")] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Write nothing; show it on 127.0.0.1 as trials arrive, until Ctrl-C.")
    ] = False,
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of --watch; 0 picks a free one.")] = 0,
    store: StoreOption = DEFAULT_STORE,
    artifacts: ArtifactsOption = None,
) -> None:
    """Write one self-contained HTML page about one or more studies, or show it while they run."""
    import ddstudy.thesis.panels  # adds its kinds
    from ddstudy import live
    from ddstudy.report.panels import read_panels
    from ddstudy.results import page_name
    from ddstudy.store.database import Store

    if watch and out is not None:
        raise UserError("--watch shows the page, --out writes it", "Give one of them.")
    if dashboard is not None:
        read_panels(dashboard)  # or is refused before a study is looked at
    with Store(store, artifacts, read_only=True) as opened:
        damaged = [] if studies else opened.complaints
        names, all_names = list(dict.fromkeys(studies or [opened.view().name])), opened.names()
        page = out or page_name(names)
        if not studies and len(all_names) > 1:
            others = ", ".join(name for name in all_names if name not in names)
            shown = f"{names[0]} is the latest of {len(all_names)} studies"
            typer.echo(
                f"{shown}; `ddstudy report NAME...` shows others: {others}", err=page.exists() and not page.is_file()
            )
        if watch:
            live.serve(opened, names, dashboard, port, ready=lambda url: _say_where(names, url, open_))
            typer.echo("Ended.")
        else:
            first, *rest = found = [ddstudy.Study(opened.view(name)) for name in names]
            size = first.report(page, *rest, dashboard=dashboard)
            trials = counted(sum(len(study.trials) for study in found), "trial")
            opens = open_ and live.open_browser(page.absolute().as_uri())
            typer.echo(
                f"Wrote {page} ({size / 1e6:.1f} MB, {trials})" + "; open it in a browser" * (not opens),
                err=not page.is_file(),
            )
        _say_left_out([*damaged, *(line for name in names for line in opened.view(name).complaints)])


def _say_where(names: Sequence[str], url: str, opened: bool) -> None:
    """Says where a live report is, and opens it."""
    from ddstudy.live import open_browser

    there = "" if opened and open_browser(url) else "; open it in a browser"
    typer.echo(f"Report of {', '.join(names)} at {url} (read-only; Ctrl-C ends it){there}")


@app.command(epilog="Example: ddstudy judge slices")
def judge(
    study: StudyArgument = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=_MOST_CORES, help="Fits at a time [as the cores allow].")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=_MOST_CORES, help="Threads of a fit [one per member].")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    artifacts: ArtifactsOption = None,
) -> None:
    """Fit the chosen settings of a study once on the cases that it holds out, and say what they keep."""
    from ddstudy.terminal import live, print_judged, teller, terminal

    console = terminal()
    try:
        with live(console) as show:
            done = ddstudy.judge(
                study, workers=workers, threads=threads, store=store, artifacts=artifacts, progress=show,
                tell=teller(console),
            )  # fmt: skip
    except KeyboardInterrupt:
        _complain("Stopped. What was finished is kept; the same command goes on.", 130)
    print_judged(console, done)
    _say_left_out(done.view.complaints, *done.troubles)


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
    from ddstudy.results import look
    from ddstudy.terminal import print_answers, print_trials, terminal
    from ddstudy.thesis.findings import FINDINGS, about, ask, retest

    by_name = {finding.name: finding for finding in FINDINGS}
    if trials is not None and trials not in by_name:
        raise UserError(f"no finding '{trials}'", f"Valid: {', '.join(by_name)}.")
    found, left_out = look(store, studies)
    views = [study.view for study in found]
    console = terminal()
    for view in views:
        others = [other for other in views if other is not view]
        if trials is None or about(view.spec) is None:
            print_answers(console, view, retest(view, others))
        else:
            print_trials(console, view, ask(by_name[trials], view, others))
    if trials is None and any(about(view.spec) for view in views):
        console.print("How one is decided, and its trials: --trials NAME", soft_wrap=True)
    _say_left_out(left_out)


@app.command(epilog="Example: ddstudy export quick --out quick")
def export(
    study: StudyArgument = None,
    out: Annotated[Path | None, typer.Option(help="Files to write, without suffix [the study's name].")] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Write all trials of a study as CSV and Parquet, one row a trial, and the members' curves as CSV."""
    from ddstudy.results import look

    (found,), left_out = look(store, [study] if study else None)
    trials, checks = f"{len(found.trials)} trials", f"{len(found.checks)} checks of members"
    cases = f"{len(found.cases.trials)} trials of cases" if found.cases is not None else ""
    for path, rows in zip(found.export(out), filter(None, (trials, trials, checks, cases)), strict=True):
        typer.echo(f"Wrote {path} ({rows})")
    _say_left_out(left_out)


@app.command(epilog="Example: ddstudy init brain.nii.gz --measured")
def init(
    image: Annotated[Path, typer.Argument(help="Image or volume.")],
    out: Annotated[Path | None, typer.Option(help="Study file to write [the image's name].")] = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="That the study may take on this machine.")] = 10.0,
    measured: Annotated[
        bool, typer.Option("--measured", help="The image is a measurement with noise, not the truth.")
    ] = False,
    plane: Annotated[str | None, typer.Option(help="Of a volume: axial, coronal or sagittal [axial].")] = None,
    volume: Annotated[int | None, typer.Option(min=0, help="Which volume of a 4-D series.")] = None,
) -> None:
    """Write a commented study of an image, as large as this machine finishes in ten minutes."""
    from ddstudy import first_study
    from ddstudy.terminal import teller, terminal

    written = first_study.write(
        image, out, minutes=minutes, measured=measured, plane=plane, volume=volume, tell=teller(terminal())
    )
    typer.echo(
        f"Wrote {written.path}: {counted(len(written.spec.search_space), 'setting')}, about "
        f"{duration(written.seconds)} by forecast. Next: ddstudy run {written.path}"
    )


@app.command(epilog="Example: ddstudy delete quick")
def delete(
    study: Annotated[str, typer.Argument(help="Name of a study in the store.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    store: StoreOption = DEFAULT_STORE,
    artifacts: ArtifactsOption = None,
) -> None:
    """Delete a study with its trials and images."""
    from ddstudy import housekeeping
    from ddstudy.results import look

    (found,), _ = look(store, [study])
    what = f"study '{study}' with {counted(len(found.trials), 'trial')}"
    if not yes and not typer.confirm(f"Delete {what}?"):
        raise UserError("nothing was deleted", "Answer y, or give --yes.")
    housekeeping.delete(study, store=store, artifacts=artifacts)
    typer.echo(f"Deleted {what}")


@app.command(epilog="Example: ddstudy rename quick first-try")
def rename(
    study: Annotated[str, typer.Argument(help="Name of a study in the store.")],
    new: Annotated[str, typer.Argument(help="Its new name.")],
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Give a study another name."""
    from ddstudy import housekeeping

    housekeeping.rename(study, new, store=store)
    typer.echo(f"Study '{study}' is '{new}' now; go on with it by --name {new}")


@app.command(epilog="Example: ddstudy copy quick --to postgresql://me@host/studies")
def copy(
    study: Annotated[str, typer.Argument(help="Name of a study in the store.")],
    to: Annotated[str | None, typer.Option(metavar="URL", help="The other store [the same].")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the copy [the same].")] = None,
    to_artifacts: Annotated[Path | None, typer.Option(help="Folder of the copy's images [beside its store].")] = None,
    store: StoreOption = DEFAULT_STORE,
    artifacts: ArtifactsOption = None,
) -> None:
    """Copy a study with its images to another store, or within one under another name."""
    from ddstudy import housekeeping
    from ddstudy.store.urls import parse_url, shown

    housekeeping.copy(study, to=to, new=name, store=store, artifacts=artifacts, to_artifacts=to_artifacts)
    typer.echo(f"Copied study '{study}' to {shown(parse_url(to or store))}" + f" as '{name}'" * bool(name))


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
    from ddstudy.results import look
    from ddstudy.study.stability import StopRule, audit
    from ddstudy.terminal import teller, terminal

    asked, left_out = look(store, studies)
    found_studies = [study.cases or study for study in asked]  # where a fit is one fit
    for study in found_studies:
        if study.spec.score == "judge":
            what = "stable means a small spread of the members' outputs there, since the truth does not judge"
            raise UserError(f"{study.name}: {what}", "Valid: studies that the truth judges.")
    fits = [fit for study in found_studies for fit in recorded(study.trials, study.checks, study.spec)]
    names = ", ".join(study.name for study in found_studies)
    if not fits:
        raise UserError(f"{names}: no fit ran to its end", "Run one with [stability] prune = false.")
    table, longest = found_studies[0].spec.stability, max(max(fit.results) for fit in fits)
    own = StopRule(table.cv_percent, table.stop, table.warmup, table.window, table.patience)
    warmups = warmup or sorted({longest * tenths // 10 for tenths in (0, 1, 2, 3, 5)})
    axes = (cv or [own.percent], stop or [1, 1.5, 2], warmups, window or [own.window], patience or [1, 3, 5])
    others = [rule for values in product(*axes) if (rule := StopRule(*values)) != own]
    audits = {rule: audit(fits, rule) for rule in (own, *others)}
    shown = Table(title=f"Rules that stop unstable fits, replayed on {counted(len(fits), 'fit')} of {names}")
    for column in ("", "CV %", "stop", "warm-up", "window", "patience", "saved", "caught", "wronged", "best lost"):
        shown.add_column(column, justify="right")
    kept = [rule for rule in audits if rule == own or audits[rule].saved >= 0.005]
    for rule in kept:
        found = audits[rule]
        shown.add_row(
            "own" if rule == own else "",
            *(f"{value:g}" for value in (rule.percent, rule.stop, rule.warmup, rule.window, rule.patience)),
            f"{100 * found.saved:.0f} %",
            f"{found.caught} of {found.unstable}",
            f"{found.wronged} of {found.stable}",
            f"{found.best_lost:.2f} dB" if found.best_lost < math.inf else "all",
        )
    terminal().print(shown)
    tell, found = teller(terminal()), audits[own]
    tell(
        f"{found.unstable} of {counted(len(fits), 'fit')} ended unstable. {names}'s own rule, the first row, ends "
        f"{found.caught} of them early and saves {100 * found.saved:.0f} % of all iterations; it also ends "
        f"{found.wronged} of the {found.stable} fits that would have ended stable."
    )
    if len(kept) < len(audits):
        tell(f"Left out: {counted(len(audits) - len(kept), 'other rule')} that would save nothing.")
    tell(
        "A rule stops a fit once the CV of its members is above `CV %` for `patience` checks in a row, the first of "
        "them above `stop` times that, from iteration `warm-up` on; a check is a median over `window` of them. saved: "
        "share of all iterations; caught: unstable fits that it ends early; wronged: fits that it ends and that would "
        "have been stable; best lost: how far the best stable result that is left is below the best of all."
    )
    _say_left_out(left_out)


@app.command(name="stop-audit", epilog="Example: ddstudy stop-audit denoise --patience 200 --patience 1000")
def stop_audit(
    studies: Annotated[
        list[str] | None, typer.Argument(help="Studies of a task with fit.stop = 'budget' [the latest].")
    ] = None,
    patience: Annotated[list[int] | None, typer.Option(min=1, help="Patiences in iterations [200, 500, 1000].")] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Replay the stopping rules on finished studies: how far from the oracle's their answers are, what they save."""
    from rich.table import Table

    from ddstudy.report.tables import curves_of_tasks
    from ddstudy.results import look
    from ddstudy.study.stopping import NAMES, audit, takes_patience
    from ddstudy.terminal import terminal

    asked, left_out = look(store, studies)
    found_studies = [study.cases or study for study in asked]  # where a fit is one fit
    curves = [curve for study in found_studies for curve in curves_of_tasks(study.view.records, study.spec)]
    names = ", ".join(study.name for study in found_studies)
    if not curves:
        raise UserError(
            f"{names}: no fit ran to its end that tells what stopping rules look at",
            "Valid: a study with a [task] other than 'represent', with fit.stop = 'budget'.",
        )
    shown = Table(title=f"Stopping rules on {counted(len(curves), 'fit')} of {names} that ran to their end")
    for column in ("rule", "patience", "fits", "mean gap", "worst gap", "saved", "never"):
        shown.add_column(column, justify="left" if column == "rule" else "right")
    unknown, scored = [], sum(bool(curve.score) for curve in curves)
    for name in NAMES:
        for waits in (patience or [200, 500, 1000]) if takes_patience(name) else [1]:
            found = audit(curves, name, waits)
            if not found.fits:
                unknown.append(name)
                break
            shown.add_row(
                name,
                str(waits) if takes_patience(name) else "",
                str(found.fits),
                *(f"{gap:.2f} dB" if found.scored else "not known" for gap in (found.mean_gap, found.worst_gap)),
                f"{100 * found.saved:.0f} %",
                f"{found.never} of {found.fits}",
            )
    terminal().print(shown)
    typer.echo(
        "gap: between the best check of a fit, the oracle's, and the rule's; saved: share of iterations; never: "
        "fits that it did not end early."
    )
    if not scored:
        typer.echo("The gap cannot be told: the truth is not known.")
    elif scored < len(curves):
        typer.echo(f"The gaps are those of {counted(scored, 'fit')}: of the others the truth is not known.")
    if unknown:
        typer.echo(f"Not recorded here: what {', '.join(unknown)} would look at.")
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


@app.command(epilog="Example: ddstudy completion bash")
def completion(shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="bash, zsh or fish.")]) -> None:
    """Print the script by which a shell completes commands, options and files."""
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    typer.echo(get_completion_script(prog_name="ddstudy", complete_var=_COMPLETE, shell=shell))


def main() -> None:
    """Entry point: runs a command and turns exceptions into messages and exit codes."""
    warnings.filterwarnings("ignore", module=r"(optuna|piq|ray)\b")
    warnings.filterwarnings("ignore", category=StudyWarning)  # commands say these things themselves
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without the letters, a file name that is no UTF-8
            stream.reconfigure(errors="replace")
    for name in ("COLUMNS", "TERMINAL_WIDTH"):  # of which rich makes lines as long
        if len(os.environ.get(name, "")) > 3:
            os.environ[name] = "999"
    if _COMPLETE in os.environ:
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()  # left out where an app has no options of its own for it
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


def _complain(message: str, code: int) -> NoReturn:
    typer.echo(f"ddstudy: {message}", err=True)
    sys.exit(code)


def _say_left_out(lines: Sequence[str], *troubles: str) -> None:
    """Names what cannot be read of a store, behind other troubles; any of them ends the command with exit code 1."""
    if lines:
        troubles = (*troubles, "not all of the store can be read, the rest is shown:", *lines)
    if troubles:
        raise WorkError("\n".join(troubles))


if __name__ == "__main__":
    main()
