"""Files of the repository that pages link to are copied beside them, so that the links work in the built pages, too."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"\]\(((?:\.\./)+[^)#]+)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Points links that leave the documentation to copies in `files/`."""
    from mkdocs.structure.files import File

    here = ROOT / "docs" / Path(page.file.src_uri).parent

    def moved(match: re.Match[str]) -> str:
        target = (here / match[1]).resolve()
        if target.is_relative_to(ROOT / "docs"):
            return match[0]
        name = f"files/{target.relative_to(ROOT).as_posix()}" + ".txt" * (target.suffix == ".md")  # no page of its own
        if target.is_file() and files.get_file_from_path(name) is None:
            files.append(File.generated(config, name, abs_src_path=str(target)))
        return f"]({os.path.relpath(name, Path(page.file.src_uri).parent)}"

    return _LINK.sub(moved, markdown)
