"""Adapters that tests make from NumPy's."""

from types import ModuleType
from typing import Any

from agnostic_nn_backends import Adapter, FullAdapter

__all__ = ["members"]

NAMES = [
    n
    for protocol in (Adapter, FullAdapter)
    for n in vars(protocol)
    if not n.startswith("_")
]


def members(adapter: ModuleType, **changed: Any) -> dict[str, Any]:
    """Return the members of an adapter by name, some of them replaced."""
    return {
        name: getattr(adapter, name) for name in NAMES if hasattr(adapter, name)
    } | changed
