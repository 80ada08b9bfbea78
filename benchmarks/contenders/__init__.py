"""Contenders: the libraries that can train a workload, one file each.

Each file defines

    NAMES                    the contenders, such as ("pytorch", "pytorch-compile")
    make(name, workload)     -> Contender, or raises Unavailable with the reason
    versions()               -> {"torch": "2.13.0"}

and imports its library inside `make`, since each contender runs in its own process.
"""

from collections.abc import Iterator
from importlib import import_module
from types import ModuleType

__all__ = ["FILES", "Contender", "Unavailable", "file_of", "names"]

FILES = (
    "ours",
    "by_hand",
    "products",
    "scikit_learn",
    "thinc",
    "pytorch",
    "equinox",
    "flax",
    "keras",
)


class Unavailable(Exception):
    """Raised if a contender cannot run here or cannot do a workload."""


class Contender:
    """One library at one workload, with data and parameters on its device.

    `step` may return before its work is done; `wait` returns after it is done.
    host_arrays: whether all its arrays are NumPy arrays, which `tracemalloc` counts.
    """

    host_arrays = False

    def step(self, i: int) -> None:
        """Train on batch i mod 8."""
        raise NotImplementedError

    def wait(self) -> None:
        """Wait until all work is done."""

    def loss(self) -> float:
        """Return the loss of the last step, before its update. Not timed."""
        raise NotImplementedError

    def epoch(self) -> None:
        """Train on 100 shuffled batches of 32 by `fit`. Only for `tiny`."""
        raise Unavailable("no function that trains an epoch")

    def predict(self) -> None:
        """Predict one row and wait for the result. Only for `tiny`."""
        raise Unavailable("no function that predicts")


def files() -> Iterator[ModuleType]:
    """Yield the contender files that exist."""
    for file in FILES:
        try:
            yield import_module(f"{__name__}.{file}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{file}":
                raise


def names() -> list[str]:
    """Return the names of all contenders, including those that cannot run here."""
    return [name for file in files() for name in file.NAMES]


def file_of(name: str) -> ModuleType:
    """Return the file of the contender called `name`.

    Raises
    ------
    Unavailable
        If there is no such contender.
    """
    for file in files():
        if name in file.NAMES:
            return file
    raise Unavailable(f"no contender is called {name!r}")
