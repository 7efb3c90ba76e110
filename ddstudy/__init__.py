"""ddstudy: hyperparameter studies of the Deep Decoder on MR images.

Data flows one way: a module imports only from those above it, and a library has one home; tests hold both.

    errors      what the user is told instead of a traceback
    settings    a point of a study, a fit, the grid; no Optuna
    spec        the study file
    images      pictures and volumes as files: header first, then what is asked for
    target      volume or picture -> target; tiles
    noise       input tensors from a seed
    decoder     geometry, parameters and random starts of the network
    fit         the engine: reference (autograd), fused (by hand), its kernels for processors (simd) and for CUDA
    load        whether other programs disturbed a fit's seconds
    metrics     PSNR, SSIM, MS-SSIM, VIF
    stability   CV, the thesis' filter, the rule that stops a fit early; numbers only
    evaluate    one fit -> the results of every setting that it serves; no Optuna, no database
    urls        of stores: what is accepted, and what of one may be shown
    leases      which driver is fitting what
    trials      rows of Optuna's tables, written at a cost that does not grow and read whatever happened to them
    records     trials of ours: their attributes, with checks
    view        a study to look at, as tables
    driven      a study to record: ask, tell, import
    store       the database: opens it, gives a view or a driven study
    samplers    proposals that were not measured yet
    executors   where fits run: here, one or several at a time
    ray_pool    and on a Ray cluster
    runner      the loop: plan, claim, submit, receive, record; progress and forecast
    report      study -> tables, answers, figures -> page
    notebook    the same in one line each
    dashboard   optuna-dashboard over the store, for eyes only
    terminal    what commands print
    cli         commands
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
