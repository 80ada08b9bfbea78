"""The safetensors layout, read so that no claim of a file costs memory before it is checked.

A file is the length of a header (8 bytes, little-endian), the header (JSON), and the bytes of all
arrays without gaps. The header gives each array's dtype, shape and place. This follows
https://github.com/huggingface/safetensors, with limits: see below.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["LONGEST", "Entry", "entry_of", "header", "parse", "parsed_json", "plain", "short"]

# A header and the text inside it may each take so much memory once parsed, and half of the file's
# size in addition: the arrays of a small model take little, whatever its header says.
_LIMIT = 2**23
LONGEST = 2**24  # bytes of a header
_MOST = 2**14  # arrays

_WORDS = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "C64": "<c8", "BOOL": "|b1",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1",
}  # fmt: skip
_DTYPES = {code: np.dtype(word) for code, word in _WORDS.items()}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_FOREIGN = {"BF16": "bfloat16", "F8_E4M3": "float8", "F8_E5M2": "float8", "F8_E8M0": "float8"}
_MOST_AXES = 32
_MOST_BYTES = 2**62


@dataclass(frozen=True)
class Entry:
    """An array in a file: its dtype and shape, how many bytes it has, and where they start."""

    dtype: np.dtype
    shape: tuple[int, ...]
    nbytes: int
    start: int = 0


def entry_of(name: str, array: Any) -> Entry:
    """Return dtype and shape of `array` as they are saved: little-endian.

    Raises
    ------
    TypeError
        If the format has no such dtype.
    """
    dtype = array.dtype.newbyteorder("<")
    if dtype not in _CODES:
        known = ", ".join(each.name for each in _CODES)
        raise TypeError(f"cannot save {name} of dtype {array.dtype}: expected one of {known}")
    return Entry(dtype, tuple(array.shape), array.size * dtype.itemsize)


def plain(array: np.ndarray, entry: Entry) -> np.ndarray:
    """Return `array` contiguous and in the dtype of `entry`, without a copy if it is both.

    safetensors 0.8.0 would write wrong bytes of others.
    """
    return np.asarray(array, entry.dtype, order="C")


def header(entries: dict[str, Entry], metadata: dict[str, str]) -> tuple[bytes, list[str]]:
    """Return the length and the header of a file, and the names of its arrays in its order.

    Wide dtypes come first, so that each array is aligned, and the header ends with spaces for the
    same reason.
    """
    order = sorted(entries, key=lambda name: (-entries[name].dtype.itemsize, name))
    described: dict[str, Any] = {"__metadata__": metadata}
    place = 0
    for name in order:
        entry = entries[name]
        described[name] = {
            "dtype": _CODES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [place, place + entry.nbytes],
        }
        place += entry.nbytes
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order


def parse(data: bytes, size: int) -> tuple[dict[str, Entry], dict[str, str]]:
    """Return what `data`, the header of a file of `size` bytes, says: its arrays and its metadata.

    Raises
    ------
    ValueError
        If it is not a header, claims other bytes than the file has, or is too large.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"its header is not text: {error.reason}") from None
    found = parsed_json("its header", text, size)
    if not isinstance(found, dict):
        raise ValueError("its header is not a dict of arrays")
    if len(found) > _MOST:
        raise ValueError(f"it has {len(found):,} arrays, expected at most {_MOST:,}")
    metadata = found.pop("__metadata__", {})
    fits = isinstance(metadata, dict)
    if not fits or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not a dict of texts")
    begin = 8 + len(data)
    entries = {name: _entry(name, said, begin) for name, said in found.items()}
    _expect_no_gaps(entries, begin, size)
    return entries, metadata


def parsed_json(name: str, text: str, size: int) -> Any:
    """Return the value that `text` describes, in a file of `size` bytes.

    Raises
    ------
    ValueError
        If it is not JSON, uses a name twice, is nested too deeply, or would take too much memory.
    """
    allowed = _LIMIT + size // 2
    takes = _memory(text)
    if takes > allowed:
        raise ValueError(f"{name} would take about {takes:,} bytes, expected at most {allowed:,}")
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from None


def _memory(text: str) -> int:
    """About how many bytes the value of a JSON text takes, and at least a third of it.

    Texts within it take one byte a character, or four if one of them is beyond Latin-1. A number
    or a short text takes up to 60 bytes, an empty list 70 and a dict of one 190.
    """
    wide = not text.isascii() or "\\u" in text
    characters = (5 if wide else 2) * len(text)
    return characters + 150 * text.count("{") + 80 * text.count("[") + 60 * text.count(",")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{short(name)} stands there twice")
        found[name] = value
    return found


def _entry(name: str, said: Any, begin: int) -> Entry:
    """The array called `name`, whose bytes are counted from `begin`."""
    if not isinstance(said, dict) or said.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"it does not give dtype, shape and place of {short(name)}")
    code, shape, place = said["dtype"], said["shape"], said["data_offsets"]
    dtype = _DTYPES.get(code) if isinstance(code, str) else None
    if dtype is None:
        known = _FOREIGN.get(code) if isinstance(code, str) else None
        kind = f"{known} ({code})" if known else short(code)
        raise ValueError(f"{short(name)} is of dtype {kind}, which NumPy does not have")
    if not _are_lengths(shape) or len(shape) > _MOST_AXES:
        raise ValueError(f"{short(name)} has the shape {short(shape)}")
    if not _are_lengths(place) or len(place) != 2:
        raise ValueError(f"{short(name)} has the place {short(place)}")
    size = math.prod(shape)
    if not size and math.prod([n or 1 for n in shape]) > _MOST_BYTES // 8:  # refused by NumPy
        raise ValueError(f"{short(name)} has the shape {short(shape)}, which is too large")
    start, end = place
    if end - start != size * dtype.itemsize:
        raise ValueError(
            f"{short(name)} has {end - start} bytes, expected {size * dtype.itemsize} for "
            f"{dtype.name} of shape {short(shape)}"
        )
    return Entry(dtype, tuple(shape), end - start, begin + start)


def _are_lengths(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < _MOST_BYTES for n in value)


def _expect_no_gaps(entries: dict[str, Entry], begin: int, size: int) -> None:
    end = begin
    places = sorted((entry.start, entry.nbytes, name) for name, entry in entries.items())
    for start, length, name in places:
        if start != end:
            kind = "a gap" if start > end else "an overlap"
            raise ValueError(f"there is {kind} before {short(name)}")
        end += length
    if end != size:
        raise ValueError(f"its arrays take {end - begin} bytes, but {size - begin} follow")


def short(value: Any) -> str:
    """Return how `value` prints, shortened: it may come from anybody."""
    if isinstance(value, str | list):
        value = value[:80]
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
