"""ddstudy: hyperparameter studies of the Deep Decoder on MR images."""

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
