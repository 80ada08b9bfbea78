"""Arrays of the libraries of users: moved to the host and back, and indexed."""

from typing import Any

import numpy as np

from ..core.arrays import Array, device, namespace
from ..core.backend import backend_of
from ..core.trees import tree_map

__all__ = ["like", "place_of", "rows_of", "to_host"]


def to_host(values: Any) -> Any:
    """Return an array of another library as NumPy's, and anything else unchanged."""
    try:
        xp = namespace(values)
    except TypeError:  # lists, DataFrames
        return values
    if xp is namespace(np.empty(0)):
        return values
    return backend_of(values).to_numpy(values)


def like(X: Any, values: Array) -> Array:
    """Return numbers as an array of the library and device of X; text stays NumPy's."""
    if isinstance(X, np.ndarray) or not isinstance(values, np.ndarray):
        return values
    if values.dtype.kind not in "biuf":
        return values
    return namespace(X).asarray(values, device=device(X))


def rows_of(data: Any, rows: np.ndarray) -> Any:
    """Return some rows of each array in a tree; None stays None."""
    if data is None:
        return None

    def of_array(array: Array) -> Array:
        xp = namespace(array)
        return xp.take(array, xp.asarray(rows, device=device(array)), axis=0)

    return tree_map(of_array, data)


def place_of(X: Array) -> tuple[str, str]:
    """Return the names of the library and of the device of X."""
    return namespace(X).__name__, str(device(X))
