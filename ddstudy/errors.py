"""What a user is told: mistakes in what was given, work that could not be done, counts and durations in words.

The command line prints a `UserError` and exits with code 2, a `WorkError` with code 1. Any other exception is a
fault of ours and keeps its traceback.
"""


class UserError(Exception):
    """What was wrong and where (first line), and what is valid (second line)."""

    def __init__(self, wrong: str, valid: str = "") -> None:
        super().__init__(f"{wrong}\n{valid}" if valid else wrong)


class WorkError(Exception):
    """What was asked for is valid and could not be done: fits that fail, a store that is away."""


class StoppedError(WorkError):
    """A run or a fit ended early because its caller set the event that stops it."""


class StudyWarning(UserWarning):
    """What was done, or can be read of a store, is not all that was asked for; the rest is good."""


def counted(number: int, what: str) -> str:
    """`1 setting`, `2,268 settings`."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    """`45 s`, `20 min`, `3.5 h`, `2.1 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
