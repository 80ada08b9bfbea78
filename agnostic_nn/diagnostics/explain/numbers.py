"""Prepare arrays for display: small ones in full, large ones as statistics."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

__all__ = [
    "ArrayStats",
    "array_stats",
    "downsampled",
    "format_number",
    "format_rows",
    "format_share",
    "is_small",
    "tiles",
]

MAX_SIDE = 8  # rows and columns of an array that is shown in full


@dataclass(frozen=True)
class ArrayStats:
    """Statistics of an array.

    NaN are left out of norm, mean, smallest and largest. `zeros` is a share of all
    entries; `nan` and `infinite` are counts.
    """

    shape: tuple[int, ...]
    norm: float
    mean: float
    smallest: float
    largest: float
    zeros: float
    nan: int
    infinite: int

    @property
    def is_finite(self) -> bool:
        """True if the array has neither NaN nor infinity."""
        return not self.nan and not self.infinite

    def __str__(self) -> str:
        parts = [
            f"norm {self.norm:.4g}",
            f"mean {self.mean:.4g}",
            f"from {self.smallest:.4g} to {self.largest:.4g}",
            f"{format_share(self.zeros)} zeros",
        ]
        parts += [f"{self.nan} NaN"] * bool(self.nan)
        parts += [f"{self.infinite} infinite"] * bool(self.infinite)
        return ", ".join(parts)


def array_stats(array: np.ndarray) -> ArrayStats:
    """Compute the statistics of an array in float64."""
    wide = np.asarray(array, np.float64)
    numbers = wide[~np.isnan(wide)]
    if not numbers.size:
        nan = math.nan
        return ArrayStats(wide.shape, nan, nan, nan, nan, 0.0, wide.size, 0)
    with np.errstate(all="ignore"):
        return ArrayStats(
            wide.shape,
            float(np.linalg.norm(numbers.ravel())),
            float(numbers.mean()),
            float(numbers.min()),
            float(numbers.max()),
            float(np.mean(wide == 0)),
            int(np.isnan(wide).sum()),
            int(np.isinf(wide).sum()),
        )


def format_share(part: float) -> str:
    """Format a share in per cent; only exactly 0 and 1 become "0 %" and "100 %"."""
    if 0.0 < part < 0.001:
        return "<0.1 %"
    if 0.999 < part < 1.0:
        return ">99.9 %"
    return f"{100 * part:.3g} %"


def is_small(array: np.ndarray) -> bool:
    """Return whether an array is shown in full: at most 8 columns and 8 rows.

    The last axis has the columns; all other axes together have the rows.
    """
    width = array.shape[-1] if array.ndim else 1
    return width <= MAX_SIDE and array.size <= MAX_SIDE * width


def format_number(number: float, dtype: np.dtype) -> str:
    """Format a number with up to 8 significant digits, 6 for float32 and shorter."""
    if dtype.kind == "b":
        return str(bool(number))
    if dtype.kind != "f":
        return str(int(number))
    digits = 8 if dtype.itemsize > 4 else 6
    text = f"{float(number):.{digits}g}"
    return "0" if text == "-0" else text


def format_rows(array: np.ndarray) -> str:
    """Format a small array as rows of text with aligned columns."""
    if array.ndim == 0:
        return format_number(array.item(), array.dtype)
    rows = array.reshape(-1, array.shape[-1]) if array.size else array.reshape(0, 0)
    cells = [[format_number(number, array.dtype) for number in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "["
        + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        + "]"
        for row in cells
    ]
    return "\n".join(lines) if lines else "[]"


def tiles(
    array: np.ndarray, weight: bool = False, max_tiles: int = 8
) -> Iterator[tuple[str, np.ndarray]]:
    """Split a large array into at most `max_tiles` matrices; yield each with its index.

    The weight of a convolution, (*window, channels, width), is split into its windows.
    An array with channels, (batch, *space, channels), gives the channels of its first
    example.
    """
    if array.ndim <= 2:
        yield (
            "",
            array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1),
        )
    elif array.ndim == 3:
        for i in range(min(max_tiles, array.shape[0])):
            yield f"[{i}]", array[i]
    elif weight:
        *window, channels, width = array.shape
        for i in range(min(max_tiles, channels * width)):
            channel, column = divmod(i, width)
            matrix = array[..., channel, column].reshape(-1, window[-1])
            yield f"[…, {channel}, {column}]", matrix
    else:
        for i in range(min(max_tiles, array.shape[-1])):
            yield f"[0, …, {i}]", array[0, ..., i].reshape(-1, array.shape[-2])


def downsampled(
    matrix: np.ndarray, max_side: int = 96
) -> tuple[np.ndarray, tuple[int, int]]:
    """Reduce a matrix to `max_side` rows and columns; also return the block size.

    Each block of entries is represented by the one furthest from 0, or by NaN if it has
    one, so that outliers stay visible.
    """
    # rounded up
    rows, columns = (-(-length // max_side) or 1 for length in matrix.shape)
    if (rows, columns) == (1, 1):
        return matrix, (1, 1)
    height = -(-matrix.shape[0] // rows)
    width = -(-matrix.shape[1] // columns)
    padded = np.zeros((height * rows, width * columns), matrix.dtype)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    blocks = padded.reshape(height, rows, width, columns).transpose(0, 2, 1, 3)
    entries = blocks.reshape(height, width, rows * columns)
    furthest = np.argmax(np.where(np.isnan(entries), np.inf, np.abs(entries)), axis=-1)
    small = np.take_along_axis(entries, furthest[..., None], axis=-1)[..., 0]
    return small, (rows, columns)
