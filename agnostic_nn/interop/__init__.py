"""Bridges to other libraries: their models, weights, estimators and data.

Each function is imported when it is first used, with the libraries that it needs. If
one of these is not installed, the error names the extra of this package that has it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data import batches, columns
    from .jax_bridge import jax_function
    from .keras_bridge import keras_layer
    from .onnx_export import OnnxFile, export_onnx
    from .onnx_reader.from_onnx import from_onnx, onnx_operators
    from .pretrained import Pretrained
    from .torch_bridge import torch_module
    from .torch_import import from_torch, torch_state_dict
    from .weights import LoadedWeights, export_weights, load_weights, read_weights

__all__ = [
    "LoadedWeights",
    "OnnxFile",
    "Pretrained",
    "batches",
    "columns",
    "export_onnx",
    "export_weights",
    "from_onnx",
    "from_torch",
    "jax_function",
    "keras_layer",
    "load_weights",
    "onnx_operators",
    "read_weights",
    "torch_module",
    "torch_state_dict",
]

# the module of each public name
_MODULES = {
    "LoadedWeights": "weights",
    "OnnxFile": "onnx_export",
    "Pretrained": "pretrained",
    "batches": "data",
    "columns": "data",
    "export_onnx": "onnx_export",
    "export_weights": "weights",
    "from_onnx": "onnx_reader.from_onnx",
    "from_torch": "torch_import",
    "jax_function": "jax_bridge",
    "keras_layer": "keras_bridge",
    "load_weights": "weights",
    "onnx_operators": "onnx_reader.from_onnx",
    "read_weights": "weights",
    "torch_module": "torch_bridge",
    "torch_state_dict": "torch_import",
}
# the extra that installs a package
_EXTRAS = {
    "google": "onnx",
    "jax": "jax",
    "keras": "keras",
    "onnx": "onnx",
    "torch": "torch",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"{__name__}.{_MODULES[name]}")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "tensorflow":  # the default of Keras
            raise ImportError(
                f"interop.{name} cannot import Keras on TensorFlow, which is not "
                "installed: set the environment variable KERAS_BACKEND to torch or jax"
            ) from error
        if package not in _EXTRAS:
            raise
        raise ImportError(
            f"interop.{name} needs the package {package}, which is not installed: "
            f"pip install 'agnostic-nn[{_EXTRAS[package]}]'"
        ) from error
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
