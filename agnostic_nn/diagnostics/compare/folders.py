"""Folders of reports: every run gets a new one, and `latest` leads to the newest.

In the output folder, such as `report`, a run gets a folder named by its start in UTC
and its workload: `report/2026-11-30T09-12-31-digits-mlp`. After a run is complete,
`report/latest` is a relative symbolic link to its folder. Where the system does not
allow symbolic links, as Windows without developer mode, or where `latest` is something
else already, `report/latest.txt` has the name of the folder instead.
"""

import os
import re
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex

from ...core.files import write_text
from .workloads import CannotCompare

__all__ = ["STATE", "complete", "latest", "new_folder", "report_file"]

STATE = "unfinished.npz"  # in the folder of a run; see `resume`
LINK = "latest"
TEXT = "latest.txt"
MAX_NAME = 60  # characters of a workload's name in the name of a folder


def new_folder(
    output: str | os.PathLike[str], workload: str, start: datetime | None = None
) -> Path:
    """Create a folder for a run in `output`, and return its path.

    start: when the run began; by default now. A folder that begins in the same second
    gets a number at its end.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    start = (start or datetime.now(UTC)).astimezone(UTC)
    words = re.sub(r"[^A-Za-z0-9._]+", "-", workload).strip("-.")[:MAX_NAME]
    name = f"{start:%Y-%m-%dT%H-%M-%S}-{words or 'run'}"
    number = 1
    while True:
        folder = output / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def complete(folder: Path) -> Path:
    """Make `latest` lead to a folder with a complete report; return its path.

    The files that only a resumed run needs are removed first. The link is replaced by a
    rename, so that it leads to a complete report at any moment.

    Raises
    ------
    OSError
        If neither the link nor the file can be written.
    """
    (folder / STATE).unlink(missing_ok=True)
    if not folder.name:  # the current folder
        folder = folder.resolve()
    output = folder.parent
    link = output / LINK
    text = output / TEXT
    if link.is_symlink() or not link.exists():
        temporary = output / f".{LINK}.{token_hex(4)}"
        try:
            temporary.symlink_to(folder.name, target_is_directory=True)
            os.replace(temporary, link)
        except (OSError, NotImplementedError):
            temporary.unlink(missing_ok=True)
        else:
            text.unlink(missing_ok=True)
            return link
    write_text(text, f"{folder.name}\n")
    if link.is_symlink():  # a file and a link must not lead to different folders
        with suppress(OSError):
            link.unlink()
    return text


def latest(output: Path) -> Path | None:
    """Return the folder that `latest` in `output` leads to; None if there is none."""
    text = output / TEXT
    if text.is_file():
        return output / text.read_text(encoding="utf-8").strip()
    link = output / LINK
    return link if link.is_dir() else None


def report_file(path: str | os.PathLike[str]) -> Path:
    """Return the path of a report.json: `path` itself, or that of a folder.

    The folder is that of a run, or an output folder, whose latest run is taken.

    Raises
    ------
    CannotCompare
        If a folder has neither a report.json nor a latest run.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    if (path / "report.json").is_file():
        return path / "report.json"
    newest = latest(path)
    if newest is None:
        raise CannotCompare(
            f"the folder {path} has no report.json, and no {LINK} that leads to the "
            "folder of a complete run"
        )
    return newest / "report.json"
