"""Weights of other libraries: files and objects, read as arrays with names.

A `Source` has the arrays under the names of its library, without knowing the model that
they are for. Arrays of safetensors files are memory maps, so nothing is read before it
is used. Files are data: nothing in them is executed.
"""

import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..core.files import expect_path
from ..training.safetensors_format import LONGEST, parse, parsed_json
from .conventions import KERAS, ONNX, PYTORCH, Convention, Form
from .extras import import_extra

__all__ = [
    "Source",
    "is_keras",
    "is_module",
    "is_onnx",
    "keras_names",
    "open_source",
    "snake_case",
    "wide",
]


@dataclass(frozen=True)
class Source:
    """Arrays of another library.

    label: what an error calls it. convention: how its layers store their arrays.
    arrays: {name: array}; those of bfloat16 are of uint16, and `bfloat16` has their
    names. kinds: {prefix of a module: its class or operator}, where they are known.
    ordered: whether the arrays are in the order in which the modules were defined.
    origins: {name: name in the file}, where they differ.
    channels_first: whether images are (batch, channels, rows, columns) there.
    """

    label: str
    convention: Convention
    arrays: Mapping[str, Any]
    kinds: Mapping[str, str] = field(default_factory=dict)
    ordered: bool = True
    bfloat16: frozenset[str] = frozenset()
    origins: Mapping[str, str] = field(default_factory=dict)
    channels_first: bool = True

    def array(self, name: str) -> np.ndarray:
        """Return an array, in float32 if it is of bfloat16."""
        array = np.asarray(self.arrays[name])
        return wide(array) if name in self.bfloat16 else array

    def dtype_of(self, name: str) -> str:
        """Return the name of the dtype of an array."""
        if name in self.bfloat16:
            return "bfloat16"
        return str(self.arrays[name].dtype)


def wide(bits: np.ndarray) -> np.ndarray:
    """Return float32 numbers from the bits of bfloat16, which are their upper half."""
    shifted = bits.astype(np.uint32) << np.uint32(16)
    return shifted.view(np.float32)


def open_source(source: Any) -> Source:
    """Return the arrays of a file, a folder, or an object of another library.

    Raises
    ------
    TypeError
        If it is none of those that `load_weights` lists.
    ValueError
        If a file is damaged, or its format is not known.
    OSError
        If a file cannot be read.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, str | os.PathLike):
        return _open_path(Path(expect_path("source", source)))
    if isinstance(source, Mapping):
        return _from_mapping(source)
    for has, convert in _OBJECTS:
        if has(source):
            return convert(source)
    raise TypeError(
        "expected a path, a state dict, a dict of arrays, a module of PyTorch, a model "
        f"of Keras or of ONNX as source, got {type(source).__name__}"
    )


# --- files ----------------------------------------------------------------------------


def _open_path(path: Path) -> Source:
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    name = path.name.lower()
    for ending, read in _FORMATS.items():
        if name.endswith(ending):
            return read(path)
    raise ValueError(
        f"cannot tell the format of {path}: expected a file that ends in one of "
        f"{', '.join(_FORMATS)}, or a folder of safetensors files"
    )


def _open_folder(path: Path) -> Source:
    indices = sorted(path.glob("*.safetensors.index.json"))
    files = sorted(path.glob("*.safetensors"))
    if len(indices) == 1:
        return _open_index(indices[0])
    if len(files) == 1 and not indices:
        return _open_safetensors(files[0])
    names = [file.name for file in (*indices, *files)]
    raise ValueError(
        f"expected one safetensors file or one index.json in {path}, found "
        f"{names or 'none'}: pass the path of a file"
    )


def _open_index(path: Path) -> Source:
    """Read several safetensors files whose arrays an index.json lists."""
    text = path.read_text(encoding="utf-8")
    index = parsed_json("it", text, len(text))
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict):
        raise ValueError(f"{path} has no weight_map: it is not an index of weights")
    files = dict.fromkeys(places.values())
    for file in files:
        if not isinstance(file, str) or Path(file).name != file:
            raise ValueError(f"{path} names {file!r}, which is not a file next to it")
    parts = {file: _open_safetensors(path.parent / file) for file in files}
    missing = [n for n, file in places.items() if n not in parts[file].arrays]
    if missing:
        raise ValueError(f"{path} lists {missing[0]!r}, which its file does not have")
    return Source(
        str(path),
        PYTORCH,
        {name: parts[file].arrays[name] for name, file in places.items()},
        ordered=False,
        bfloat16=frozenset().union(*(part.bfloat16 for part in parts.values())),
    )


def _open_safetensors(path: Path) -> Source:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        fits = size >= 8 and length <= min(LONGEST, size - 8)
        header = file.read(length) if fits else b""
    try:
        if not fits:
            raise ValueError("it ends before its header does")
        entries, metadata = parse(header, size, words=("BF16",))
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged, or not a safetensors file: {error}"
        ) from None
    if any("agnostic_nn" in key for key in metadata):
        raise ValueError(
            f"{path} is a checkpoint of this library: read it by Trainer.load"
        )
    data = np.memmap(path, np.uint8, "r")
    arrays = {}
    for name, entry in entries.items():
        raw = data[entry.start : entry.start + entry.nbytes]
        arrays[name] = raw.view(entry.dtype).reshape(entry.shape)
    narrow = frozenset(name for name, entry in entries.items() if entry.code == "BF16")
    # the format sorts its arrays
    return Source(str(path), PYTORCH, arrays, ordered=False, bfloat16=narrow)


def _open_torch(path: Path) -> Source:
    torch = import_extra("torch", extra="torch", purpose=f"reading {path.name}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} is damaged, or holds other objects than tensors ({error}): save "
            "torch_module.state_dict() instead"
        ) from None
    if not isinstance(content, Mapping):
        raise ValueError(
            f"expected a state dict in {path}, got {type(content).__name__}"
        )
    return replace(_from_mapping(content), label=str(path))


def _open_keras(path: Path) -> Source:
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
            weights = archive.read("model.weights.h5")
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is damaged, or not a file of Keras 3: {error}"
        ) from None
    order = list(_layer_names(config))
    return _read_h5(io.BytesIO(weights), str(path), order)


def _layer_names(config: Any) -> Iterator[str]:
    """Yield the names of the layers of a Keras model, in its order."""
    inner = config.get("config") if isinstance(config, dict) else None
    if not isinstance(inner, dict):
        return
    for layer in inner.get("layers", ()):
        if isinstance(layer, dict) and isinstance(layer.get("config"), dict):
            yield str(layer["config"].get("name", layer.get("name")))
            yield from _layer_names(layer)


def _open_h5(path: Path) -> Source:
    return _read_h5(path, str(path), [])


def _read_h5(file: Any, label: str, order: list[str]) -> Source:
    """Read the weights of Keras 3. Variables have numbers, not names.

    order: the names of the layers in the order of the model, if it is known.
    """
    h5py = import_extra("h5py", extra="keras", purpose=f"reading {label}")
    arrays: dict[str, np.ndarray] = {}
    kinds: dict[str, str] = {}
    try:
        with h5py.File(file, "r") as root:
            if "model_weights" in root or "layer_names" in root.attrs:
                raise ValueError(
                    f"{label} is of Keras 2: load it in Keras, and save it as .keras"
                )
            _collect_h5(root, "", arrays, kinds)
    except OSError as error:
        raise ValueError(f"{label} is damaged, or not an HDF5 file: {error}") from None
    places = {name: i for i, name in enumerate(order)}

    def place(name: str) -> int:
        parts = name.split("/")
        numbers = [places[part] for part in parts if part in places]
        return max(numbers, default=len(places))

    names = sorted(arrays, key=place) if order else list(arrays)
    return Source(
        label,
        _NUMBERED,
        {name: arrays[name] for name in names},
        kinds,
        ordered=bool(order),
        channels_first=False,
    )


# attributes of a Keras layer that are not in the names of its variables
_H5_NAMES = {
    "query_dense": "query",
    "key_dense": "key",
    "value_dense": "value",
    "output_dense": "attention_output",
    "cell": "",
    "layers": "",
}


def _collect_h5(
    group: Any, prefix: str, arrays: dict[str, np.ndarray], kinds: dict[str, str]
) -> None:
    """Add the arrays under a group to `arrays`, and the kinds of layers to `kinds`."""
    is_list = group.name.split("/")[-1] == "layers"
    for name in sorted(group, key=_natural):
        inner = group[name]
        if name == "vars":
            for number in sorted(inner, key=_natural):
                arrays[_joined(prefix, number)] = inner[number][()]
            continue
        if name in ("_dropout_layer", "seed_generator") or not hasattr(inner, "keys"):
            continue
        label = _H5_NAMES.get(name, name)
        if is_list:
            # the name that the layer has in Python
            label = (
                str(inner["vars"].attrs.get("name", name)) if "vars" in inner else name
            )
            kinds[_joined(prefix, label)] = re.sub(r"_\d+$", "", name)
        _collect_h5(inner, _joined(prefix, label), arrays, kinds)


def _joined(prefix: str, name: str) -> str:
    return "/".join(filter(None, (prefix, name)))


def _natural(name: str) -> list[Any]:
    """Sort 10 after 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _numbered(form: Form) -> Form:
    """Return a form of Keras in which variables have numbers instead of names."""
    counts: dict[str, int] = {}
    numbers = {}
    for name in form.names:
        parent = name.rpartition("/")[0]
        numbers[name] = _joined(parent, str(counts.setdefault(parent, 0)))
        counts[parent] += 1
    rules = tuple(
        replace(rule, theirs=tuple(numbers[name] for name in rule.theirs))
        for rule in form.rules
    )
    return replace(form, rules=rules)


def _with_numbers(forms: Callable[[Any], list[Form]]) -> Callable[[Any], list[Form]]:
    return lambda layer: [_numbered(form) for form in forms(layer)]


_NUMBERED = Convention(
    "Keras", "/", {kind: _with_numbers(forms) for kind, forms in KERAS.table.items()}
)


def _open_onnx(path: Path) -> Source:
    onnx = import_extra("onnx", extra="onnx", purpose=f"reading {path.name}")
    try:
        model = onnx.load(str(path))
    except Exception as error:
        raise ValueError(f"{path} is damaged, or not an ONNX model: {error}") from None
    return replace(_from_onnx(model), label=str(path))


_FORMATS: dict[str, Callable[[Path], Source]] = {
    ".safetensors": _open_safetensors,
    ".safetensors.index.json": _open_index,
    ".pt": _open_torch,
    ".pth": _open_torch,
    ".bin": _open_torch,
    ".keras": _open_keras,
    ".weights.h5": _open_h5,
    ".onnx": _open_onnx,
}


# --- objects --------------------------------------------------------------------------


def _from_mapping(tensors: Mapping[str, Any]) -> Source:
    nested = [name for name, value in tensors.items() if isinstance(value, Mapping)]
    if nested:
        raise ValueError(
            f"expected arrays by name, but {nested[0]!r} is a dict: if it is the state "
            f"dict of a checkpoint, pass source[{nested[0]!r}]"
        )
    arrays = {}
    for name, value in tensors.items():
        if not isinstance(name, str) or not hasattr(value, "shape"):
            raise TypeError(
                f"expected arrays by name, but {name!r} is {type(value).__name__}"
            )
        arrays[name] = _on_host(value)
    are_variables = bool(arrays) and all("/" in name for name in arrays)
    if are_variables:
        named = {keras_names(name): array for name, array in arrays.items()}
        return Source("the dict", KERAS, named, channels_first=False)
    return Source("the state dict", PYTORCH, arrays)


def _on_host(value: Any) -> np.ndarray:
    """Return a NumPy array of a tensor of any library, in float32 if of bfloat16."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if "bfloat16" in str(value.dtype):
            value = value.float()
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def keras_names(path: str) -> str:
    """Return the path of a Keras variable without the names of cells and directions."""
    first, *rest = path.split("/")
    inner = []
    for part in rest:
        if part.startswith(("forward_", "backward_")):
            inner.append(part.partition("_")[0] + "_layer")
        elif not part.endswith("_cell"):
            inner.append(part)
    return "/".join((first, *inner))


def _from_module(module: Any) -> Source:
    return replace(_from_mapping(module.state_dict()), label=type(module).__name__)


def _from_keras(model: Any) -> Source:
    arrays = {keras_names(v.path): _on_host(v.value) for v in model.weights}
    arrays = {
        n: a for n, a in arrays.items() if not n.endswith("/seed_generator_state")
    }
    kinds = {
        layer.name: snake_case(type(layer).__name__)
        for layer in getattr(model, "layers", ())
    }
    label = f"the Keras model {model.name!r}"
    return Source(label, KERAS, arrays, kinds, channels_first=False)


def snake_case(name: str) -> str:
    """Return the name of a class as Keras writes it in files, such as "conv2d"."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


# the inputs of operators that may be initializers, by number
_INPUTS: dict[str, dict[int, str]] = {
    "Gemm": {1: "B", 2: "C"},
    "MatMul": {1: "B"},
    "Conv": {1: "W", 2: "B"},
    "ConvTranspose": {1: "W", 2: "B"},
    "BatchNormalization": {1: "scale", 2: "B", 3: "input_mean", 4: "input_var"},
    "LayerNormalization": {1: "Scale", 2: "B"},
    "RMSNormalization": {1: "scale"},
    "InstanceNormalization": {1: "scale", 2: "B"},
    "GroupNormalization": {1: "scale", 2: "bias"},
    "Gather": {0: "data"},
    "PRelu": {1: "slope"},
    "RNN": {1: "W", 2: "R", 3: "B"},
    "LSTM": {1: "W", 2: "R", 3: "B"},
    "GRU": {1: "W", 2: "R", 3: "B"},
}


def _from_onnx(model: Any) -> Source:
    """Return the initializers that operators with weights read, by operator.

    A name is that of the operator, or of what its initializers' names have in common,
    and that of the operator's input, as in "fc.B".
    """
    numpy_helper = import_extra("onnx.numpy_helper", extra="onnx", purpose="ONNX")
    stored = {t.name: t for t in model.graph.initializer}
    addends = _addends(model.graph, stored)
    arrays: dict[str, np.ndarray] = {}
    kinds: dict[str, str] = {}
    origins: dict[str, str] = {}
    for i, node in enumerate(model.graph.node):
        inputs = {
            role: node.input[n]
            for n, role in _INPUTS.get(node.op_type, {}).items()
            if n < len(node.input) and node.input[n] in stored
        }
        if node.op_type == "MatMul" and inputs and node.output[0] in addends:
            inputs["C"] = addends[node.output[0]]
        if not inputs:
            continue
        label = _label(node, list(inputs.values()), i)
        while label in kinds:
            label += "'"
        is_turned = any(a.name == "transB" and a.i for a in node.attribute)
        kinds[label] = f"{node.op_type}(transB=1)" if is_turned else node.op_type
        for role, name in inputs.items():
            array = _on_host(numpy_helper.to_array(stored[name]))
            if array.dtype.kind != "i" or node.op_type != "Gather":
                arrays[f"{label}.{role}"] = array
                origins[f"{label}.{role}"] = name
    return Source("the ONNX model", ONNX, arrays, kinds, origins=origins)


def _addends(graph: Any, stored: Mapping[str, Any]) -> dict[str, str]:
    """Return {output of an operator: initializer that an Add adds to it}."""
    addends = {}
    for node in graph.node:
        if node.op_type == "Add":
            for bias, other in (node.input, reversed(node.input)):
                if bias in stored and len(stored[bias].dims) == 1:
                    addends[other] = bias
    return addends


def _label(node: Any, names: list[str], number: int) -> str:
    """Return what an operator is called, "fc" for "fc.weight" and "fc.bias"."""
    heads = {name.rpartition(".")[0] for name in names}
    head = heads.pop() if len(heads) == 1 else ""
    return head or node.name or f"{node.op_type}_{number}"


def is_module(value: Any) -> bool:
    """Return whether a value is a module of PyTorch, judged by its attributes."""
    return callable(getattr(value, "state_dict", None)) and hasattr(value, "modules")


def is_keras(value: Any) -> bool:
    """Return whether a value is a model of Keras, judged by its attributes."""
    return hasattr(value, "weights") and hasattr(value, "get_config")


def is_onnx(value: Any) -> bool:
    """Return whether a value is an ONNX model, judged by its attributes."""
    return hasattr(value, "graph") and hasattr(value, "opset_import")


_OBJECTS: tuple[tuple[Callable[[Any], bool], Callable[[Any], Source]], ...] = (
    # a layer of Keras on PyTorch is a module as well
    (is_keras, _from_keras),
    (is_module, _from_module),
    (is_onnx, _from_onnx),
)
