"""Import optional libraries, with an error that names the extra to install."""

from importlib import import_module
from types import ModuleType

__all__ = ["import_extra"]


def import_extra(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Return a module of an optional library.

    purpose: what needs the library, as the beginning of the message: "from_onnx".

    Raises
    ------
    ImportError
        If the library is not installed. The message names the extra that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{purpose} needs the package {module.partition('.')[0]}, which cannot be "
            f"imported ({error}): pip install 'agnostic-nn[{extra}]'"
        ) from error
