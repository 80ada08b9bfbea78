"""Checkpoints: named arrays and a description, in one safetensors file that is whole or not there.

A new file is written beside the old one, flushed to the disk, read back, and only then
put in its place. A digest covers every byte: in most formats a flipped bit of a weight
loads as another weight.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["CheckpointError", "digest", "read", "write"]

FORMAT = 1


class CheckpointError(ValueError):
    """A file that is no checkpoint of ours, or no longer what was written."""


def write(path: str | os.PathLike, arrays: dict[str, np.ndarray], description: Any) -> None:
    """Put `arrays` and `description`, data for JSON, into the file at `path`.

    Until the new file is complete and on the disk an old one stays as it is; when
    anything fails, nothing else is left behind.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    from secrets import token_hex

    from safetensors.numpy import save

    # safetensors 0.8.0 writes wrong bytes for arrays that are not C-contiguous
    arrays = {name: np.array(array, order="C") for name, array in arrays.items()}
    text = json.dumps({"format": FORMAT, **description}, sort_keys=True)
    metadata = {"agnostic_nn": text, "sha256": digest(arrays, text)}
    data = save(arrays, metadata)
    _parse(data, "what was about to be written")

    path = Path(path)
    beside = path.with_name(f".{path.name}.{token_hex(4)}")
    try:
        with beside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename2 is None:
            error.filename = os.fspath(path)  # nobody knows the other name
        raise
    _flush_folder(path.parent)


def read(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], Any]:
    """The arrays and the description in the file at `path`.

    Raises
    ------
    CheckpointError
        If it is no checkpoint, or a byte of it has changed since it was written.
    OSError
        If it cannot be read.
    """
    return _parse(Path(path).read_bytes(), str(path))


def digest(arrays: dict[str, np.ndarray], text: str = "") -> str:
    """SHA-256 over `text` and the name, dtype, shape and bytes of every array."""
    from hashlib import sha256

    found = sha256(text.encode())
    for name, array in sorted(arrays.items()):
        found.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        found.update(np.array(array, order="C").tobytes())
    return found.hexdigest()


def _parse(data: bytes, name: str) -> tuple[dict[str, np.ndarray], Any]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(data)
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{name} is no safetensors file, or is damaged: {error}") from error
    text = metadata.get("agnostic_nn")
    if text is None:
        raise CheckpointError(f"{name} is a safetensors file, but no checkpoint of agnostic_nn")
    if metadata.get("sha256") != digest(arrays, text):
        raise CheckpointError(f"{name} is damaged: its digest does not fit its contents")
    description = json.loads(text)
    if description.get("format") != FORMAT:
        raise CheckpointError(
            f"{name} has format {description.get('format')}; this version reads format {FORMAT}"
        )
    return arrays, description


def _flush_folder(folder: Path) -> None:
    """Flush the entry that `os.replace` made, where the system lets a folder be opened."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
