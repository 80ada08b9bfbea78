"""Contenders: everything that can train a workload, a file for each library.

Such a file has

    NAMES                    what it offers, such as ("pytorch", "pytorch-compile")
    make(name, workload)     -> Contender, or raises Unavailable with the reason
    versions()               -> {"torch": "2.13.0"}

and imports its library inside `make`, since each contender runs in a process of its own.
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
    """This contender cannot run here, or cannot do this workload; the message says why."""


class Contender:
    """One library at one workload, its data and parameters made and on its device.

    `step` may return before its work is done, `wait` returns after all of it is.
    host_arrays: whether all its arrays are NumPy's, so that `tracemalloc` sees them.
    """

    host_arrays = False

    def step(self, i: int) -> None:
        """Train on batch i mod 8."""
        raise NotImplementedError

    def wait(self) -> None:
        """Return when everything begun is done."""

    def loss(self) -> float:
        """The loss of the last step, before its update. Never asked for while timing."""
        raise NotImplementedError

    def epoch(self) -> None:
        """`tiny` only: 100 shuffled batches of 32 through the library's `fit`, from NumPy data."""
        raise Unavailable("no loop of its own over epochs")

    def predict(self) -> None:
        """`tiny` only: y of one row, done when it returns."""
        raise Unavailable("no prediction of its own")


def files() -> Iterator[ModuleType]:
    """Those of the files above that are here."""
    for file in FILES:
        try:
            yield import_module(f"{__name__}.{file}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{file}":
                raise


def names() -> list[str]:
    """All contenders, whether they can run here or not."""
    return [name for file in files() for name in file.NAMES]


def file_of(name: str) -> ModuleType:
    """The file that offers the contender called `name`.

    Raises
    ------
    Unavailable
        If none does.
    """
    for file in files():
        if name in file.NAMES:
            return file
    raise Unavailable(f"no contender is called {name!r}")
