"""The safetensors format: writes headers, and reads them without trusting sizes.

A file is the length of a header (8 bytes, little-endian), the header (JSON), and the
bytes of all arrays without gaps. The header gives the dtype, shape and offsets of each
array. This follows https://github.com/huggingface/safetensors, with the limits below.
"""

import json
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = [
    "LONGEST",
    "Entry",
    "entry_of",
    "header",
    "parse",
    "parsed_json",
    "plain",
    "short",
]

# The parsed header, and the parsed description in it, may each take _PARSED_BYTES plus
# half of the size of the file. A small file with a huge header is thereby rejected.
_PARSED_BYTES = 2**23
LONGEST = 2**24  # bytes of a header
_MAX_ARRAYS = 2**14

_WORDS = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "C64": "<c8", "BOOL": "|b1",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1",
}  # fmt: skip
_DTYPES = {code: np.dtype(word) for code, word in _WORDS.items()}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_FOREIGN = {
    "BF16": "bfloat16",
    "F8_E4M3": "float8",
    "F8_E5M2": "float8",
    "F8_E8M0": "float8",
}
_MAX_AXES = 32
_MAX_BYTES = 2**62


@dataclass(frozen=True)
class Entry:
    """An array in a file: dtype, shape, number of bytes, and offset of the first.

    code: the name of the dtype in the format, if it was read from a file.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    nbytes: int
    start: int = 0
    code: str = field(default="", compare=False)


def entry_of(name: str, array: Any) -> Entry:
    """Return the entry of `array`, whose saved dtype is little-endian.

    Raises
    ------
    TypeError
        If the format does not have its dtype.
    """
    dtype = array.dtype.newbyteorder("<")
    if dtype not in _CODES:
        allowed = ", ".join(dtype.name for dtype in _CODES)
        raise TypeError(
            f"cannot save {name} of dtype {array.dtype}: expected one of {allowed}"
        )
    return Entry(dtype, tuple(array.shape), array.size * dtype.itemsize)


def plain(array: np.ndarray, entry: Entry) -> np.ndarray:
    """Return `array` contiguous and in the dtype of `entry`; copy it only if needed.

    safetensors 0.8.0 would write wrong bytes for other arrays.
    """
    return np.asarray(array, entry.dtype, order="C")


def header(
    entries: dict[str, Entry], metadata: dict[str, str]
) -> tuple[bytes, list[str]]:
    """Return the first bytes of a file, and the names of its arrays in their order.

    The first bytes are the length of the header and the header. Wide dtypes come first
    and the header is padded with spaces, so that each array is aligned.
    """
    order = sorted(entries, key=lambda name: (-entries[name].dtype.itemsize, name))
    fields: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name in order:
        entry = entries[name]
        fields[name] = {
            "dtype": _CODES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.nbytes],
        }
        offset += entry.nbytes
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order


def parse(
    data: bytes, size: int, *, words: Collection[str] = ()
) -> tuple[dict[str, Entry], dict[str, str]]:
    """Return the arrays and the metadata in the header of a file of `size` bytes.

    words: codes of dtypes of 16 bits that NumPy does not have, such as "BF16", whose
    arrays are returned as uint16. Others are refused.

    Raises
    ------
    ValueError
        If it is not a header, does not agree with
        the size of the file, or is too large.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"its header is not text: {error.reason}") from None
    fields = parsed_json("its header", text, size)
    if not isinstance(fields, dict):
        raise ValueError("its header is not a dict of arrays")
    if len(fields) > _MAX_ARRAYS:
        raise ValueError(
            f"it has {len(fields):,} arrays, expected at most {_MAX_ARRAYS:,}"
        )
    metadata = fields.pop("__metadata__", {})
    is_dict = isinstance(metadata, dict)
    if not is_dict or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not a dict of texts")
    begin = 8 + len(data)
    dtypes = _DTYPES | dict.fromkeys(words, np.dtype("<u2"))
    entries = {
        name: _entry(name, field, begin, dtypes) for name, field in fields.items()
    }
    _expect_no_gaps(entries, begin, size)
    return entries, metadata


def parsed_json(name: str, text: str, size: int) -> Any:
    """Return the value of the JSON `text` in a file of `size` bytes.

    Raises
    ------
    ValueError
        If it is not JSON, has a key twice, is nested
        too deeply, or would take too much memory.
    """
    allowed = _PARSED_BYTES + size // 2
    needed = _memory(text)
    if needed > allowed:
        raise ValueError(
            f"{name} would take about {needed:,} bytes, expected at most {allowed:,}"
        )
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from None


def _memory(text: str) -> int:
    """Estimate the bytes of memory of a parsed JSON text.

    The true number is at most 3 times that. A string takes one byte per character, or
    four if one of them is outside Latin-1. A number or a short string takes up to 60
    bytes, an empty list 70 and a dict of one entry 190.
    """
    wide = not text.isascii() or "\\u" in text
    characters = (5 if wide else 2) * len(text)
    dicts = text.count("{")
    lists = text.count("[")
    return characters + 150 * dicts + 80 * lists + 60 * text.count(",")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"it has the key {short(name)} twice")
        result[name] = value
    return result


def _entry(name: str, field: Any, begin: int, dtypes: dict[str, np.dtype]) -> Entry:
    """Return the entry of the array `name`, whose offsets are relative to `begin`."""
    if not isinstance(field, dict) or field.keys() != {
        "dtype",
        "shape",
        "data_offsets",
    }:
        raise ValueError(f"it does not give dtype, shape and offsets of {short(name)}")
    code = field["dtype"]
    shape = field["shape"]
    offsets = field["data_offsets"]
    dtype = dtypes.get(code) if isinstance(code, str) else None
    if dtype is None:
        dtype_name = _FOREIGN.get(code) if isinstance(code, str) else None
        kind = f"{dtype_name} ({code})" if dtype_name else short(code)
        raise ValueError(f"{short(name)} is of dtype {kind}, which NumPy does not have")
    if not _are_lengths(shape) or len(shape) > _MAX_AXES:
        raise ValueError(f"{short(name)} has the shape {short(shape)}")
    if not _are_lengths(offsets) or len(offsets) != 2:
        raise ValueError(f"{short(name)} has the offsets {short(offsets)}")
    size = math.prod(shape)
    # NumPy refuses an empty array if the product of its other lengths is too large.
    if not size and math.prod([n or 1 for n in shape]) > _MAX_BYTES // 8:
        raise ValueError(
            f"{short(name)} has the shape {short(shape)}, which is too large"
        )
    start, end = offsets
    if end - start != size * dtype.itemsize:
        raise ValueError(
            f"{short(name)} has {end - start} bytes, expected {size * dtype.itemsize} "
            f"for {dtype.name} of shape {short(shape)}"
        )
    return Entry(dtype, tuple(shape), end - start, begin + start, code)


def _are_lengths(value: Any) -> bool:
    return isinstance(value, list) and all(
        type(n) is int and 0 <= n < _MAX_BYTES for n in value
    )


def _expect_no_gaps(entries: dict[str, Entry], begin: int, size: int) -> None:
    end = begin
    places = sorted(
        (entry.start, entry.nbytes, name) for name, entry in entries.items()
    )
    for start, length, name in places:
        if start != end:
            kind = "a gap" if start > end else "an overlap"
            raise ValueError(f"there is {kind} before {short(name)}")
        end += length
    if end != size:
        raise ValueError(
            f"its arrays take {end - begin} bytes, but {size - begin} follow"
        )


def short(value: Any) -> str:
    """Return `value` as ASCII text of at most 80 characters, for an error message.

    It may come from an untrusted file.
    """
    if isinstance(value, str | list):
        value = value[:80]
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
