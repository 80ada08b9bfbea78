"""Checkpoints: arrays and a description, written atomically to one safetensors file.

A digest covers every byte. Without one, a flipped bit in a weight would load as another
weight. The digest detects damage, not attacks, because an attacker can compute it too.
Files are therefore treated as untrusted: the claims of the header are compared with the
size of the file, and the description with what is expected, before memory is allocated.
The numbers are not checked: they may be NaN or infinite.

A binary file object, such as `io.BytesIO`, may stand for a path. It is written from its
position on, and read from its position to its end.
"""

import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import SEEK_END, BytesIO, TextIOBase
from typing import Any, BinaryIO, NoReturn

import numpy as np

from ..core.errors import expect
from ..core.files import is_file_object, kind_of, replacing
from .safetensors_format import (
    LONGEST,
    Entry,
    entry_of,
    header,
    parse,
    parsed_json,
    plain,
    short,
)

__all__ = [
    "CheckpointError",
    "OpenedCheckpoint",
    "Place",
    "digest",
    "opened",
    "read",
    "write",
]

FORMAT = 1
_CHUNK = 2**20  # bytes hashed at a time
_MAX_HASHED = 2**26  # larger files are not hashed to explain an error
_ZIP = "a zip archive"
_FOREIGN = {  # other file formats, by their first bytes
    b"PK\x03\x04": _ZIP,
    b"PK\x05\x06": _ZIP,
    **{
        b"\x80" + bytes([n]): "a pickle, such as PyTorch's older files"
        for n in range(2, 6)
    },
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, such as Keras's",
    b"\x93NUMPY": "a NumPy array",
    b"\x1f\x8b": "a gzip file",
    b"GGUF": "a GGUF file",
    b"version https://git-lfs": "a Git LFS pointer: the file itself was not downloaded",
    b"<!DOCTYPE": "an HTML page",
    b"<!doctype": "an HTML page",
    b"<html": "an HTML page",
}
_ZIPPED = {  # zip archives, by a file name within their first bytes
    b"/data.pkl": "a PyTorch file",
    b"/byteorder": "a PyTorch file",
    b".npy": "a NumPy npz file",
    b"metadata.json": "a Keras file",
}


class CheckpointError(ValueError):
    """The file is not a checkpoint of this library, or was changed afterwards."""


# what a checkpoint may be written to and read from
Place = str | os.PathLike[str] | BinaryIO


def write(path: Place, arrays: dict[str, np.ndarray], description: Any) -> None:
    """Write `arrays` and `description`, a dict of JSON data, to a file.

    The new file at a path is read back before it replaces the old one: see
    `files.replacing`. The memory needed in addition to `arrays` is that of the largest
    array that is not contiguous.

    A file object is written from its position on, then flushed, and neither read back
    nor closed. If an exception comes, it is truncated to what it was. A file that
    cannot be truncated may then hold the beginning of a checkpoint, which `read`
    refuses.

    Raises
    ------
    OSError
        If the file cannot be written.
    CheckpointError
        If the file differs when it is read back, or could not be loaded.
    TypeError
        If an array has a dtype that the format lacks, the description is not JSON data,
        or a file object is open for text.
    ValueError
        If a file object has bytes after its position.
    """
    entries = {name: entry_of(name, array) for name, array in arrays.items()}
    for name, value in description.items():
        _expect_json(name, value)
    text = json.dumps({"format": FORMAT, **description}, sort_keys=True)
    total = _new_hash(text)
    for name, entry in sorted(entries.items()):
        _add(total, name, plain(arrays[name], entry))
    head, order = header(entries, {"agnostic_nn": text, "sha256": total.hexdigest()})

    def chunks() -> Iterator[bytes]:
        yield head
        for name in order:
            raw = _raw(plain(arrays[name], entries[name]))
            for start in range(0, raw.size, _CHUNK):
                yield raw[start : start + _CHUNK].tobytes()

    if is_file_object(path, "write"):
        _write_to_object(path, chunks())
        return
    with replacing(path) as file:  # type: ignore[arg-type]
        for chunk in chunks():
            file.write(chunk)
        file.flush()
        file.seek(0)
        size = os.fstat(file.fileno()).st_size
        _open(file, size, f"the new file for {os.fspath(path)}").verify()  # type: ignore[arg-type]


def read(path: Place) -> tuple[dict[str, np.ndarray], Any]:
    """Return the arrays and the description in a file.

    Raises
    ------
    CheckpointError
        If the file is not a checkpoint, or a byte has changed since it was written.
    OSError
        If the file cannot be read.
    """
    with opened(path) as file:
        return file.arrays(), file.description


@contextmanager
def opened(path: Place) -> Iterator["OpenedCheckpoint"]:
    """Open the checkpoint at `path` and read its header only.

    A file object is read whole into memory.

    Raises
    ------
    CheckpointError
        If the file is not a checkpoint.
    OSError
        If the file cannot be opened.
    TypeError
        If a file object is open for text.
    """
    if is_file_object(path, "read"):
        data, label = _read_from_object(path)
        yield _open(BytesIO(data), len(data), label)
        return
    name = os.fspath(path)  # type: ignore[arg-type]
    # opening a device could have side effects
    _expect_file(os.stat(name).st_mode, name)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(name, flags | getattr(os, "O_CLOEXEC", 0)), "rb") as file:
        # checked again: the path may have been replaced in between
        status = os.fstat(file.fileno())
        _expect_file(status.st_mode, name)
        yield _open(file, status.st_size, str(name))


@dataclass(frozen=True)
class OpenedCheckpoint:
    """An open checkpoint, whose arrays have not been read yet.

    entries: dtype and shape of each array by name, checked against the size of the
    file.
    description: the dict passed to `write`, with the key "format" added.
    """

    file: BinaryIO
    name: str
    entries: dict[str, Entry]
    description: dict[str, Any]
    _text: str
    _digest: str

    def arrays(
        self, convert: Callable[[str, np.ndarray], Any] | None = None
    ) -> dict[str, Any]:
        """Read all arrays, one at a time, and return them or convert(name, array).

        Raises
        ------
        CheckpointError
            If a byte has changed since the file was written.
        """
        arrays = {}
        total = _new_hash(self._text)
        for name, entry in sorted(self.entries.items()):
            array = self._empty(entry)
            self._read(entry.start, _raw(array))
            if entry.dtype.kind == "b" and _raw(array).max(initial=0) > 1:
                raise CheckpointError(
                    f"{self.name}: {name} holds bytes that are not booleans"
                )
            _add(total, name, array)
            arrays[name] = array if convert is None else convert(name, array)
        self._expect_digest(total.hexdigest())
        return arrays

    def verify(self) -> None:
        """Compare the digest of all bytes with the saved one; no array is kept.

        Raises
        ------
        CheckpointError
            If a byte has changed since the file was written.
        """
        total = _new_hash(self._text)
        chunk = np.empty(_CHUNK, np.uint8)
        for name, entry in sorted(self.entries.items()):
            total.update(_label(name, entry))
            for start in range(0, entry.nbytes, _CHUNK):
                part = chunk[: min(_CHUNK, entry.nbytes - start)]
                self._read(entry.start + start, part)
                total.update(part)
        self._expect_digest(total.hexdigest())

    def refuse(self, message: str) -> NoReturn:
        """Raise a CheckpointError with `message`, or one about a damaged file.

        A large file is not read to find out whether it is.
        """
        if sum(entry.nbytes for entry in self.entries.values()) <= _MAX_HASHED:
            self.verify()
        raise CheckpointError(f"{self.name} {message}")

    def _empty(self, entry: Entry) -> np.ndarray:
        try:
            return np.empty(entry.shape, entry.dtype)
        except (MemoryError, ValueError):
            message = (
                f"{self.name} needs {entry.nbytes:,} bytes, more than are available"
            )
            raise CheckpointError(message) from None

    def _read(self, start: int, raw: np.ndarray) -> None:
        self.file.seek(start)
        if self.file.readinto(raw) != raw.size:  # type: ignore[attr-defined]
            raise CheckpointError(f"{self.name} became shorter while it was read")

    def _expect_digest(self, digest: str) -> None:
        if digest != self._digest:
            raise CheckpointError(
                f"{self.name} is damaged: its digest does not fit its contents"
            )


def _expect_json(name: str, data: Any) -> None:
    """Raise TypeError for data that JSON would refuse or change, such as int keys."""
    if isinstance(data, dict):
        for key, value in data.items():
            if not isinstance(key, str):
                raise TypeError(
                    f"cannot save {name}: expected text as the key, got {key!r}"
                )
            _expect_json(f"{name}[{key!r}]", value)
    elif isinstance(data, list | tuple):
        for i, value in enumerate(data):
            _expect_json(f"{name}[{i}]", value)
    elif not isinstance(data, str | int | float | None):
        kind = type(data).__qualname__
        raise TypeError(f"cannot save {name}: expected JSON data, got a {kind}")


def digest(arrays: dict[str, np.ndarray], text: str = "") -> str:
    """Return the SHA-256 of `text` and each array's name, dtype, shape and bytes."""
    total = _new_hash(text)
    for name, array in sorted(arrays.items()):
        _add(total, name, np.asarray(array, order="C"))
    hexadecimal: str = total.hexdigest()
    return hexadecimal


def _new_hash(text: str) -> Any:
    from hashlib import sha256  # imported here because it loads OpenSSL

    return sha256(text.encode())


def _add(total: Any, name: str, array: np.ndarray) -> None:
    total.update(_label(name, array))
    total.update(_raw(array))


def _label(name: str, array: Any) -> bytes:
    return f"\n{name} {array.dtype.str} {array.shape}\n".encode()


def _raw(array: np.ndarray) -> np.ndarray:
    """Return the bytes of a contiguous array as a view."""
    return array.reshape(-1).view(np.uint8)


def _expect_file(mode: int, name: str) -> None:
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"expected a checkpoint, but {name} is {kind_of(mode)}")


def _write_to_object(file: Any, chunks: Iterable[bytes]) -> None:
    """Write chunks to a file object; truncate it to what it was if that fails."""
    if isinstance(file, TextIOBase):
        raise TypeError(
            f"expected a binary file, got {_name_of(file)}, which is open for text: "
            "open it in mode 'wb'"
        )
    start = _end_of(file)
    try:
        for chunk in chunks:
            _write_all(file, chunk)
        flush = getattr(file, "flush", None)
        if flush is not None:
            flush()
    except BaseException:
        if start is not None:
            with suppress(Exception):  # the first error is the one to report
                file.seek(start)
                file.truncate()
        raise


def _write_all(file: Any, chunk: bytes) -> None:
    """Write a chunk in as many calls as the file needs."""
    rest = memoryview(chunk)
    while rest:
        written = file.write(bytes(rest))
        if not isinstance(written, int):  # a file that does not count
            return
        if written <= 0:
            raise OSError(f"{_name_of(file)} wrote {written} of {len(rest)} bytes")
        rest = rest[written:]


def _end_of(file: Any) -> int | None:
    """Return the position of a file, or None if it has none.

    Raises
    ------
    ValueError
        If there are bytes after it, which would follow the checkpoint.
    """
    seekable = getattr(file, "seekable", None)
    if seekable is None or not seekable():
        return None
    start: int = file.tell()
    end = file.seek(0, SEEK_END)
    file.seek(start)
    expect(
        end <= start,
        "expected a file without bytes after its position, got {}, which has {} bytes "
        "after position {}: they would make the checkpoint unreadable. Call its "
        "truncate() first",
        *(_name_of(file), end - start, start),
    )
    return start


def _read_from_object(file: Any) -> tuple[bytes, str]:
    """Return the bytes of a file object from its position on, and its name."""
    name = _name_of(file)
    data = file.read()
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(
            f"expected a binary file, got {name}, whose read() returned {type(data)}: "
            "open it in mode 'rb'"
        )
    if not data:
        raise CheckpointError(
            f"{name} has no bytes after its position, so no checkpoint. After writing "
            "to it, go back to the begin of the checkpoint, as by file.seek(0)"
        )
    return bytes(data), name


def _name_of(file: Any) -> str:
    """Return the name of a file object for errors."""
    name = getattr(file, "name", None)
    return name if isinstance(name, str) else f"the {type(file).__name__}"


def _open(file: BinaryIO, size: int, name: str) -> OpenedCheckpoint:
    """Return the checkpoint in a file of `size` bytes; read and check its header."""
    length = _length(file, size, name)
    try:
        entries, metadata = parse(file.read(length), size)
        text = metadata.get("agnostic_nn")
        saved_digest = metadata.get("sha256", "")
        if text is None:
            message = (
                f"{name} is a safetensors file, but not a checkpoint of agnostic_nn"
            )
            raise CheckpointError(message)
        description = parsed_json("its description", text, size)
        # raises for lone surrogates, which JSON allows
        "".join((text, *entries)).encode()
    except CheckpointError:
        raise
    except (ValueError, MemoryError) as error:
        reason = str(error) or "out of memory"
        message = f"{name} is not a safetensors file, or is damaged: {reason}"
        raise CheckpointError(message) from None
    if not isinstance(description, dict):
        raise CheckpointError(
            f"{name} is damaged: its description is {short(description)}"
        )
    opened_file = OpenedCheckpoint(file, name, entries, description, text, saved_digest)
    version = description.get("format")
    if type(version) is not int or version != FORMAT:
        opened_file.refuse(
            f"has format {short(version)}; this version reads format {FORMAT}"
        )
    return opened_file


def _length(file: BinaryIO, size: int, name: str) -> int:
    """Return the length of the header; raise CheckpointError if it exceeds the file."""
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
        f"{name} is not a safetensors file, or is damaged: it has {size} bytes, and "
        f"its header would have {length if len(begin) >= 8 else 'a length of 8'}"
    )
