"""Numbers: an array as a reader sees it. A small one in full, of a large one what matters."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

__all__ = ["Facts", "facts", "is_small", "share", "shown", "thinned", "tiles", "written"]

SIDE = 8  # rows and columns of what is shown in full


@dataclass(frozen=True)
class Facts:
    """What matters about an array; shares are of all its numbers, NaN is in no other figure."""

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
        """Whether it holds neither NaN nor infinity."""
        return not self.nan and not self.infinite

    def __str__(self) -> str:
        said = [
            f"norm {self.norm:.4g}", f"mean {self.mean:.4g}",
            f"from {self.smallest:.4g} to {self.largest:.4g}", f"{share(self.zeros)} zeros",
        ]  # fmt: skip
        said += [f"{self.nan} NaN"] * bool(self.nan)
        said += [f"{self.infinite} infinite"] * bool(self.infinite)
        return ", ".join(said)


def facts(array: np.ndarray) -> Facts:
    """What matters about an array, computed in float64."""
    wide = np.asarray(array, np.float64)
    known = wide[~np.isnan(wide)]
    if not known.size:
        nan = math.nan
        return Facts(wide.shape, nan, nan, nan, nan, 0.0, wide.size, 0)
    with np.errstate(all="ignore"):
        return Facts(
            wide.shape,
            float(np.linalg.norm(known.ravel())),
            float(known.mean()),
            float(known.min()),
            float(known.max()),
            float(np.mean(wide == 0)),
            int(np.isnan(wide).sum()),
            int(np.isinf(wide).sum()),
        )


def share(part: float) -> str:
    """A share in per cent, which says 0 and 100 only if it is none and all."""
    if 0.0 < part < 0.001:
        return "<0.1 %"
    if 0.999 < part < 1.0:
        return ">99.9 %"
    return f"{100 * part:.3g} %"


def is_small(array: np.ndarray) -> bool:
    """Whether an array is shown in full: no more than 8 rows, whatever axes they are of."""
    width = array.shape[-1] if array.ndim else 1
    return width <= SIDE and array.size <= SIDE * width


def written(number: float, dtype: np.dtype) -> str:
    """A number with as many digits as it has, and no more than 8."""
    if dtype.kind == "b":
        return str(bool(number))
    if dtype.kind != "f":
        return str(int(number))
    digits = 8 if dtype.itemsize > 4 else 6
    text = f"{float(number):.{digits}g}"
    return "0" if text == "-0" else text


def shown(array: np.ndarray) -> str:
    """A small array as rows of text, its columns under one another."""
    if array.ndim == 0:
        return written(array.item(), array.dtype)
    rows = array.reshape(-1, array.shape[-1]) if array.size else array.reshape(0, 0)
    cells = [[written(number, array.dtype) for number in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "[" + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + "]"
        for row in cells
    ]
    return "\n".join(lines) if lines else "[]"


def tiles(
    array: np.ndarray, weight: bool = False, most: int = 8
) -> Iterator[tuple[str, np.ndarray]]:
    """A large array as matrices, and which part of it each is; no more than `most` of them.

    Of a weight of a convolution, (*window, channels, width), those are windows; of what comes
    in channels, (batch, *space, channels), the channels of the first example.
    """
    if array.ndim <= 2:
        yield "", array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1)
    elif array.ndim == 3:
        for i in range(min(most, array.shape[0])):
            yield f"[{i}]", array[i]
    elif weight:
        *window, channels, width = array.shape
        for i in range(min(most, channels * width)):
            place = divmod(i, width)
            yield f"[…, {place[0]}, {place[1]}]", array[(..., *place)].reshape(-1, window[-1])
    else:
        for i in range(min(most, array.shape[-1])):
            yield f"[0, …, {i}]", array[0, ..., i].reshape(-1, array.shape[-2])


def thinned(matrix: np.ndarray, most: int = 96) -> tuple[np.ndarray, tuple[int, int]]:
    """A matrix of at most so many rows and columns, and how many became one of each.

    What stands for a part is the number in it that is furthest from 0.
    """
    rows, columns = (-(-length // most) or 1 for length in matrix.shape)
    if (rows, columns) == (1, 1):
        return matrix, (1, 1)
    height, width = -(-matrix.shape[0] // rows), -(-matrix.shape[1] // columns)
    padded = np.zeros((height * rows, width * columns), matrix.dtype)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    blocks = padded.reshape(height, rows, width, columns).transpose(0, 2, 1, 3)
    parts = blocks.reshape(height, width, rows * columns)
    furthest = np.argmax(np.where(np.isnan(parts), np.inf, np.abs(parts)), axis=-1)
    return np.take_along_axis(parts, furthest[..., None], axis=-1)[..., 0], (rows, columns)
