"""Command line (being built)."""


def main() -> None:
    pass
