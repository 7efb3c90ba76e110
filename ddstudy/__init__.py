"""ddstudy: hyperparameter studies of the Deep Decoder on MR images.

Data flows one way: a module imports only from those above it, and a library has one home; tests hold both.

    errors       what the user is told instead of a traceback
    spec/        what is asked: axes (a point of a study, a fit, the grid), schema (the study file), files (reads one)
    images/      tiling (slice <-> tiles), files (header first, then what is asked for), volumes (volume or picture ->
                 target), inputs (input tensors from a seed), metrics (PSNR, SSIM, MS-SSIM, VIF)
    priors/      deep_decoder: geometry, parameters and random starts
    fit/         the engine: reference (autograd), fused (by hand), its kernels for processors (simd) and for CUDA
    study/       load (did other programs disturb a fit?), stability (CV, the thesis' filter, the rule that stops a fit
                 early), evaluate (one fit -> the results of every setting that it serves), samplers (proposals that
                 were not measured yet), runner (the loop: plan, claim, submit, receive, record; progress, forecast)
    store/       urls (what of one may be shown), leases (which driver is fitting what), optuna_rows (all that stands on
                 private parts of Optuna: trials as rows of its tables), records (trials of ours, checked), study (one
                 to look at, as tables), writer (one to record: ask, tell, import), database (opens it, gives a study
                 of either kind)
    execution/   where fits run: executors (here, one or several at a time, or packed), ray_pool (on a Ray cluster)
    report/      study -> tables, intervals, findings, figures -> page
    notebook     the same in one line each
    dashboard    optuna-dashboard over the store, for eyes only
    terminal     what commands print
    cli          commands
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddstudy.notebook import Study, open_study

__all__ = ["Study", "__version__", "open_study"]
__version__ = version("ddstudy")


def __getattr__(name: str) -> Any:
    """Imports what a notebook uses when it is used: `import ddstudy` stays light."""
    if name in ("Study", "open_study"):
        from ddstudy import notebook

        return getattr(notebook, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
