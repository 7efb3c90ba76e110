"""What a user is told: mistakes in what was given, work that could not be done, and counts in words.

The command line prints a `UserError` and exits with code 2, a `WorkError` with code 1. Any other exception is a
fault of ours and keeps its traceback.
"""


class UserError(Exception):
    """What was wrong and where (first line), and what is valid (second line)."""

    def __init__(self, wrong: str, valid: str = "") -> None:
        super().__init__(f"{wrong}\n{valid}" if valid else wrong)


class WorkError(Exception):
    """What was asked for is valid and could not be done: fits that fail, a store that is away."""


def counted(number: int, what: str) -> str:
    """`1 setting`, `2,268 settings`."""
    return f"{number:,} {what}{'s' * (number != 1)}"
