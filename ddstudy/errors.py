"""The one error that a user can cause.

Everything that is wrong with what a person typed or gave us (a file, a study, a URL, a name) is raised as
`UserError` with a message for that person. The command line prints it and exits with code 2; any other
exception is our fault and exits with code 1.
"""


class UserError(Exception):
    """What was wrong and where (first line), and what is valid (second line)."""

    def __init__(self, wrong: str, valid: str = "") -> None:
        super().__init__(f"{wrong}\n{valid}" if valid else wrong)
