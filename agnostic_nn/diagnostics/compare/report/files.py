"""Write the files of a report."""

import json
import os
from contextlib import ExitStack
from pathlib import Path

from ....core.files import replacing
from ..schema import Report
from .markdown import markdown

__all__ = ["write"]


def write(
    report: Report, folder: str | os.PathLike[str], page: str | None = None
) -> list[Path]:
    """Write report.json and report.md to `folder`, and return the paths of all files.

    The folder is created if needed. Each file is replaced atomically.

    page: the text of report.html. Without it an existing report.html is deleted,
    because it belongs to another report.

    Raises
    ------
    OSError
        If the files cannot be written; existing files then remain unchanged.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    data = report.to_json()
    text = json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False)
    texts = {"report.json": f"{text}\n", "report.md": markdown(report)}
    if page is not None:
        texts["report.html"] = page
    with ExitStack() as files:  # all files are complete before the first is renamed
        for name, text in texts.items():
            file = files.enter_context(replacing(folder / name))
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
    if page is None:
        (folder / "report.html").unlink(missing_ok=True)
    return [folder / name for name in texts]
