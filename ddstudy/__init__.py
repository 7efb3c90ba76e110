"""ddstudy: hyperparameter studies of the Deep Decoder on MR images.

Data flows one way: a module imports only from those above it, and a library has one home; tests hold both.

    errors       what the user is told instead of a traceback
    spec/        what is asked: options (what can be searched), axes (a point of a study, a fit, the grid), schema (the
                 study file), files (reads one)
    images/      tiling (slice <-> tiles), files (header first, then what is asked for), volumes (volume or picture ->
                 target), slices (of a volume, and back), kspace (measured k-space -> target), targets (of a study),
                 inputs (input tensors from a seed), metrics (one registry)
    tasks/       base (what a solver may see), operators (downsampling, MRI), measurements (simulated or taken from a
                 file; pictures of them, data consistency, held-out samples), judges, cases (what is measured of an
                 image, and what judges it)
    priors/      base (the protocol); deep_decoder, conv_decoder, dip, siren: geometry, cost, random starts, and their
                 networks in torch; handcrafted: those without weights
    solvers/     base (the protocol: problem, configuration, snapshots), fidelity (losses, through operators, too),
                 optimisers (torch's, schedules, Langevin noise), cuda (locks, streams, graphs), torch_loop (autograd;
                 the oracle), direct (applies what has no weights), fused/ (step: gradients by hand; groups of members;
                 kernels for processors, with simd, and for CUDA)
    study/       load (did other programs disturb a fit?), stability (CV, the thesis' filter, the rule that stops a fit
                 early), stopping (rules that choose an iterate without the truth), evaluate (one fit -> the results of
                 every setting that it serves), samplers (proposals that were not measured yet), planner (which fits,
                 and what they cost), forecasting (how long), runner (the loop: plan, lease, submit, receive, record)
    store/       urls (what of one may be shown), leases (which driver is fitting what), optuna_rows (all that stands on
                 private parts of Optuna: trials as rows of its tables), records (trials of ours, checked), study (one
                 to look at, as tables), writer (one to record: ask, tell, import), database (opens it, gives a study
                 of either kind)
    execution/   where fits run: executors (here, one or several at a time, or packed), ray_pool (on a Ray cluster)
    report/      study -> tables, intervals, figures, panels -> page
    thesis/      a plug-in, the thesis beside a study: published numbers, findings re-tested, panels of both
    image_fit    one setting fitted to one image, without a study: arrays in, arrays out
    results      a study to look at: tables, figures, findings, images
    api          runs a study in one call: what Python and the command line share
    volume_fit   one setting fitted to every slice of a volume, without a study
    housekeeping whole studies: delete, rename, copy
    first_study  a commented study file for one's own image
    web          a server for one reader on this machine, who can change nothing
    dashboard    optuna-dashboard over the store, for eyes only
    live         the report of a study while it runs
    terminal     what commands print
    cli          commands
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddstudy.api import DryRun, dry_run, judge, run
    from ddstudy.errors import StoppedError, StudyWarning, UserError, WorkError
    from ddstudy.housekeeping import copy, delete, rename
    from ddstudy.image_fit import ImageFit, fit
    from ddstudy.results import Study, open_study, studies
    from ddstudy.spec.schema import StudySpec
    from ddstudy.study.evaluate import Check
    from ddstudy.study.runner import Progress
    from ddstudy.volume_fit import SliceProgress, VolumeFit, fit_volume

__all__ = [
    "DEFAULT_STORE",
    "Check",
    "DryRun",
    "ImageFit",
    "Progress",
    "SliceProgress",
    "StoppedError",
    "Study",
    "StudySpec",
    "StudyWarning",
    "UserError",
    "VolumeFit",
    "WorkError",
    "__version__",
    "copy",
    "delete",
    "dry_run",
    "fit",
    "fit_volume",
    "judge",
    "open_study",
    "rename",
    "run",
    "studies",
]
__version__ = version("ddstudy")
DEFAULT_STORE = "sqlite:///ddstudy.db"  # where neither a caller nor DDSTUDY_STORE names one

_HOMES = {
    **dict.fromkeys(("DryRun", "dry_run", "judge", "run"), "ddstudy.api"),
    **dict.fromkeys(("copy", "delete", "rename"), "ddstudy.housekeeping"),
    **dict.fromkeys(("Study", "open_study", "studies"), "ddstudy.results"),
    **dict.fromkeys(("StoppedError", "StudyWarning", "UserError", "WorkError"), "ddstudy.errors"),
    **dict.fromkeys(("ImageFit", "fit"), "ddstudy.image_fit"),
    **dict.fromkeys(("SliceProgress", "VolumeFit", "fit_volume"), "ddstudy.volume_fit"),
    "StudySpec": "ddstudy.spec.schema",
    "Check": "ddstudy.study.evaluate",
    "Progress": "ddstudy.study.runner",
}


def __getattr__(name: str) -> Any:
    """Imports a part of the API when it is first used: `import ddstudy` stays light."""
    if name in _HOMES:
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """For completion: what was not imported yet, too."""
    return sorted({*globals(), *__all__})
