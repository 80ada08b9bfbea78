"""Checkpoints: named arrays and a description, in one safetensors file that is written atomically.

A digest covers every byte: in most formats a flipped bit of a weight loads as another weight. It
shows damage, not bad intent, since anybody can compute it. So a file is read as if it came from
an attacker: what its header claims is compared with its size, and what it says with what is
expected, before memory is taken. Whether the numbers are sensible, or finite, is not looked at.
"""

import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

import numpy as np

from ..core.files import kind_of, replacing
from .safetensors_format import LONGEST, Entry, entry_of, header, parse, parsed_json, plain, short

__all__ = ["CheckpointError", "OpenedCheckpoint", "digest", "opened", "read", "write"]

FORMAT = 1
_CHUNK = 2**20  # bytes that are hashed at a time
_QUICK = 2**26  # bytes that are hashed to explain an error
_ZIP = "a zip archive"
_FOREIGN = {
    b"PK\x03\x04": _ZIP,
    b"PK\x05\x06": _ZIP,
    **{b"\x80" + bytes([n]): "a pickle, such as PyTorch's older files" for n in range(2, 6)},
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, such as Keras's",
    b"\x93NUMPY": "a NumPy array",
    b"\x1f\x8b": "a gzip file",
    b"GGUF": "a GGUF file",
    b"version https://git-lfs": "a Git LFS pointer: the file itself was not downloaded",
    b"<!DOCTYPE": "a page of HTML",
    b"<!doctype": "a page of HTML",
    b"<html": "a page of HTML",
}
_ZIPPED = {  # by a name within its first bytes
    b"/data.pkl": "a file of PyTorch",
    b"/byteorder": "a file of PyTorch",
    b".npy": "an npz file of NumPy",
    b"metadata.json": "a file of Keras",
}


class CheckpointError(ValueError):
    """A file that is not a checkpoint of ours, or not what was written."""


def write(path: str | os.PathLike, arrays: dict[str, np.ndarray], description: Any) -> None:
    """Write `arrays` and `description`, data for JSON, to the file at `path`.

    The new file is read back before it replaces the old one: see `files.replacing`. Besides
    `arrays` that takes as much memory as the largest of them that is not contiguous.

    Raises
    ------
    OSError
        If the file cannot be written.
    CheckpointError
        If it is not what was written when it is read back, or could not be loaded.
    TypeError
        If an array has a dtype that the format lacks, or the description is not data for JSON.
    """
    entries = {name: entry_of(name, array) for name, array in arrays.items()}
    for name, value in description.items():
        _expect_json(name, value)
    text = json.dumps({"format": FORMAT, **description}, sort_keys=True)
    total = _begun(text)
    for name, entry in sorted(entries.items()):
        _add(total, name, plain(arrays[name], entry))
    head, order = header(entries, {"agnostic_nn": text, "sha256": total.hexdigest()})
    with replacing(path) as file:
        file.write(head)
        for name in order:
            file.write(_raw(plain(arrays[name], entries[name])).data)
        file.flush()
        file.seek(0)
        _open(file, f"what was about to be saved to {os.fspath(path)}").verify()


def read(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], Any]:
    """Return the arrays and the description in the file at `path`.

    Raises
    ------
    CheckpointError
        If it is not a checkpoint, or a byte of it has changed since it was written.
    OSError
        If it cannot be read.
    """
    with opened(path) as file:
        return file.arrays(), file.description


@contextmanager
def opened(path: str | os.PathLike) -> Iterator["OpenedCheckpoint"]:
    """Open the checkpoint at `path`, of which the header alone is read.

    Raises
    ------
    CheckpointError
        If it is not a checkpoint.
    OSError
        If it cannot be opened.
    """
    named = os.fspath(path)
    _expect_file(os.stat(path).st_mode, named)  # to open a device may have effects
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags | getattr(os, "O_CLOEXEC", 0)), "rb") as file:
        _expect_file(os.fstat(file.fileno()).st_mode, named)
        yield _open(file, str(named))


@dataclass(frozen=True)
class OpenedCheckpoint:
    """A checkpoint of which the arrays are still to be read.

    entries: dtype and shape of each array by name, which the file's size allows. description: as
    it was given to `write`, with "format".
    """

    file: BinaryIO
    name: str
    entries: dict[str, Entry]
    description: dict[str, Any]
    _text: str
    _digest: str

    def arrays(self, convert: Callable[[str, np.ndarray], Any] | None = None) -> dict[str, Any]:
        """Read all arrays; with `convert`, what it makes of (name, array), one at a time.

        Raises
        ------
        CheckpointError
            If a byte has changed since the file was written.
        """
        found, total = {}, _begun(self._text)
        for name, entry in sorted(self.entries.items()):
            array = self._empty(entry)
            self._read(entry.start, _raw(array))
            if entry.dtype.kind == "b" and _raw(array).max(initial=0) > 1:
                raise CheckpointError(f"{self.name}: {name} holds what is not true or false")
            _add(total, name, array)
            found[name] = array if convert is None else convert(name, array)
        self._expect(total.hexdigest())
        return found

    def verify(self) -> None:
        """Compare the digest with all bytes, without keeping them.

        Raises
        ------
        CheckpointError
            If a byte has changed since the file was written.
        """
        total, chunk = _begun(self._text), np.empty(_CHUNK, np.uint8)
        for name, entry in sorted(self.entries.items()):
            total.update(_title(name, entry))
            for start in range(0, entry.nbytes, _CHUNK):
                part = chunk[: min(_CHUNK, entry.nbytes - start)]
                self._read(entry.start + start, part)
                total.update(part)
        self._expect(total.hexdigest())

    def refuse(self, message: str) -> NoReturn:
        """Raise a CheckpointError: that the file is damaged, if it is, or else `message`.

        A large file is not read for that.
        """
        if sum(entry.nbytes for entry in self.entries.values()) <= _QUICK:
            self.verify()
        raise CheckpointError(f"{self.name} {message}")

    def _empty(self, entry: Entry) -> np.ndarray:
        try:
            return np.empty(entry.shape, entry.dtype)
        except (MemoryError, ValueError):
            message = f"{self.name} needs {entry.nbytes:,} bytes, more than there are"
            raise CheckpointError(message) from None

    def _read(self, start: int, raw: np.ndarray) -> None:
        self.file.seek(start)
        if self.file.readinto(raw) != raw.size:  # type: ignore[attr-defined]
            raise CheckpointError(f"{self.name} became shorter while it was read")

    def _expect(self, found: str) -> None:
        if found != self._digest:
            raise CheckpointError(f"{self.name} is damaged: its digest does not fit its contents")


def _expect_json(name: str, data: Any) -> None:
    """Raise TypeError for what JSON would refuse, or change: keys that are not text."""
    if isinstance(data, dict):
        for key, value in data.items():
            if not isinstance(key, str):
                raise TypeError(f"cannot save {name}: expected text as the key, got {key!r}")
            _expect_json(f"{name}[{key!r}]", value)
    elif isinstance(data, list | tuple):
        for i, value in enumerate(data):
            _expect_json(f"{name}[{i}]", value)
    elif not isinstance(data, str | int | float | None):
        kind = type(data).__qualname__
        raise TypeError(f"cannot save {name}: expected data for JSON, got a {kind}")


def digest(arrays: dict[str, np.ndarray], text: str = "") -> str:
    """SHA-256 over `text` and the name, dtype, shape and bytes of every array."""
    total = _begun(text)
    for name, array in sorted(arrays.items()):
        _add(total, name, np.asarray(array, order="C"))
    return total.hexdigest()


def _begun(text: str) -> Any:
    from hashlib import sha256

    return sha256(text.encode())


def _add(total: Any, name: str, array: np.ndarray) -> None:
    total.update(_title(name, array))
    total.update(_raw(array))


def _title(name: str, array: Any) -> bytes:
    return f"\n{name} {array.dtype.str} {array.shape}\n".encode()


def _raw(array: np.ndarray) -> np.ndarray:
    """The bytes of a contiguous array, which share its memory."""
    return array.reshape(-1).view(np.uint8)


def _expect_file(mode: int, name: str) -> None:
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"expected a checkpoint, but {name} is {kind_of(mode)}")


def _open(file: BinaryIO, name: str) -> OpenedCheckpoint:
    """The checkpoint in an open file, whose header is read and checked here."""
    size = os.fstat(file.fileno()).st_size
    length = _length(file, size, name)
    try:
        entries, metadata = parse(file.read(length), size)
        text, total = metadata.get("agnostic_nn"), metadata.get("sha256", "")
        if text is None:
            message = f"{name} is a safetensors file, but not a checkpoint of agnostic_nn"
            raise CheckpointError(message)
        description = parsed_json("its description", text, size)
        "".join((text, *entries)).encode()  # not everything in JSON is Unicode
    except CheckpointError:
        raise
    except (ValueError, MemoryError) as error:
        reason = str(error) or "out of memory"
        message = f"{name} is not a safetensors file, or is damaged: {reason}"
        raise CheckpointError(message) from None
    if not isinstance(description, dict):
        raise CheckpointError(f"{name} is damaged: its description is {short(description)}")
    found = OpenedCheckpoint(file, name, entries, description, text, total)
    form = description.get("format")
    if type(form) is not int or form != FORMAT:
        found.refuse(f"has format {short(form)}; this version reads format {FORMAT}")
    return found


def _length(file: BinaryIO, size: int, name: str) -> int:
    """The length of the header, which fits into the file."""
    begin = file.read(128)
    length = int.from_bytes(begin[:8], "little")
    if len(begin) > 8 and length <= min(size - 8, LONGEST) and begin[8:9] == b"{":
        file.seek(8)
        return length
    kind = next((kind for mark, kind in _FOREIGN.items() if begin.startswith(mark)), "")
    if kind == _ZIP:
        kind = next((inside for mark, inside in _ZIPPED.items() if mark in begin), kind)
    if kind:
        raise CheckpointError(f"{name} is {kind}, not a safetensors file")
    if not size:
        raise CheckpointError(f"{name} is empty, not a safetensors file")
    raise CheckpointError(
        f"{name} is not a safetensors file, or is damaged: it has {size} bytes, and its header "
        f"would have {length if len(begin) >= 8 else 'a length of 8'}"
    )
