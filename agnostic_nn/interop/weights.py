"""Weights in and out: load those of another library into a trainer, and write them.

The arrays are read (`weight_files`), their modules matched with layers (`matching`),
converted (`conventions`), permuted where images were flattened (`flattening`), and set
at once. Before that nothing is changed, so after an error the trainer is as it was.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.backend import backend as backend_of
from ..core.files import expect_path, replacing
from ..core.random import key as key_of
from ..display.tables import table
from ..layers import Layer
from ..training.safetensors_format import entry_of, header, plain
from ..training.trainer import Trainer
from .conventions import PYTORCH, as_dtype
from .extras import import_extra
from .flattening import feature_orders
from .matching import Match, Names, matches_of, pairs_of, remaining_names
from .units import Unit, mapped_arrays, name_in, units_of
from .weight_files import (
    Source,
    is_keras,
    is_module,
    is_onnx,
    keras_names,
    open_source,
)

__all__ = ["LoadedWeights", "export_weights", "load_weights", "read_weights"]

# {name of an array of ours: [(axis, permutation)]}
_Permutations = dict[str, list[tuple[int, np.ndarray]]]


@dataclass(frozen=True)
class LoadedWeights:
    """The assignment that `load_weights` made; `str()` is a table.

    rows: (path of a layer, its class, prefix in the source, form there, number of
    parameters). unfilled: paths of arrays of the model that were not loaded. leftover:
    names of arrays of the source that were not used. permuted: paths of layers whose
    features are in another order there, because an image was flattened.
    """

    rows: tuple[tuple[str, str, str, str, int], ...]
    unfilled: tuple[str, ...] = ()
    leftover: tuple[str, ...] = ()
    permuted: tuple[str, ...] = ()

    def __str__(self) -> str:
        columns = ["layer", "class", "source", "form there", "parameters"]
        text = [table(columns, [list(row) for row in self.rows])]
        for label, names in (
            ("permuted, as an image was flattened", self.permuted),
            ("not loaded", self.unfilled),
            ("not used", self.leftover),
        ):
            if names:
                text.append(f"{label}: {', '.join(names)}")
        return "\n".join(text)


def load_weights(
    trainer: Trainer,
    source: Any,
    mapping: Names | None = None,
    *,
    strict: bool = True,
    ignore: Iterable[str] = (),
    permute: bool | None = None,
    keep_moments: bool = False,
) -> LoadedWeights:
    """Load weights of PyTorch, Keras, ONNX or Hugging Face; return the assignment.

    source
        - PyTorch: a state dict, a module, or a file .pt, .pth or .bin, which is read
          with weights_only=True;
        - Hugging Face: a file .safetensors, the index.json of several, or a folder with
          one of these;
        - Keras 3: a model, or a file .keras or .weights.h5;
        - ONNX: a model, or a file .onnx;
        - a dict of arrays by name, with the names of PyTorch or, if all have a "/", the
          paths of Keras variables.
    mapping
        None, to match by structure: layers and modules in order, by type and shapes. If
        the order does not fit or is not known, as in .safetensors and .weights.h5,
        modules that can be one layer only are matched, and modules whose names differ
        in numbers are in that order. Anything else is refused.
        A dict {path of ours: prefix of theirs}, such as {"0": "conv1"}, in which * is
        one part of a name: {"encoder.*": "bert.encoder.layer.*"}. Paths are those of
        layers, blocks, parts of them ("encoder.0.attention.query") or single arrays
        ("0.weight", which is not converted).
        Or a function of a path that returns a prefix, or None for layers that are
        loaded part by part, or not at all.
    strict
        Whether arrays of the model that are not loaded, and arrays of the source that
        are not used, are errors. Without a mapping, strict=False matches the layers
        from the first one on, as long as they fit.
    ignore
        Patterns of names of the source that are not needed, such as ["pooler.*"].
    permute
        PyTorch and ONNX have the channels of images first, so flattened features are in
        another order there. None permutes the weights after a `Flatten` of an image,
        and before a `Reshape` to one, and refuses unclear cases. True permutes
        signals and sequences too, False nothing. Weights of Keras are not permuted.
    keep_moments
        Whether the optimizer keeps its moments. By default they begin again, as in
        `Trainer.start_from`.

    Numbers are converted to the dtype of the trainer. The trainer must have weights:
    give it a `shape`. It may be on any backend.

    Raises
    ------
    ValueError
        If a file is damaged, the mapping or the structures do not fit, or an array is
        missing, left over or of another shape. The message names both sides.
    TypeError
        If `source` is something else, or an array does not hold real numbers.
    RuntimeError
        If the trainer has no weights yet.
    """
    carry = trainer._arrays.to_numpy((trainer.params, trainer.state))
    loaded, params, state = _converted(
        trainer.model,
        trainer._current.settled().shape,
        carry,
        open_source(source),
        mapping,
        _Options(strict, tuple(_patterns(ignore)), permute),
    )
    moments = trainer.moments if keep_moments else None
    trainer.start_from(params, state, moments=moments)
    return loaded


def read_weights(
    model: Layer,
    shape: Any,
    source: Any,
    mapping: Names | None = None,
    *,
    dtype: str = "float32",
    strict: bool = True,
    ignore: Iterable[str] = (),
    permute: bool | None = None,
) -> tuple[Any, Any]:
    """Return (params, state) of a model with weights of another library, in NumPy.

    For use without a trainer. shape: that of one example. The other arguments, and the
    errors, are those of `load_weights`.
    """
    xp = backend_of("numpy").xp
    params, state, _ = model.init(key_of(0, xp=xp), shape, getattr(xp, dtype))
    options = _Options(strict, tuple(_patterns(ignore)), permute)
    source = open_source(source)
    _, *trees = _converted(model, shape, (params, state), source, mapping, options)
    return trees[0], trees[1]


@dataclass(frozen=True)
class _Options:
    strict: bool
    ignore: tuple[str, ...]
    permute: bool | None


def _patterns(ignore: Iterable[str]) -> list[str]:
    if isinstance(ignore, str):
        raise TypeError(f"expected a list of patterns as ignore, got {ignore!r}")
    return list(ignore)


def _converted(
    model: Layer,
    shape: Any,
    trees: tuple[Any, Any],
    source: Source,
    mapping: Names | None,
    options: _Options,
) -> tuple[LoadedWeights, Any, Any]:
    """Return the assignment and the new params and state."""
    units = units_of(model, *trees)
    matches = matches_of(
        units, source, mapping, strict=options.strict, ignore=options.ignore
    )
    loaded = _report(units, matches, source, options)
    permutations, permuted = _permutations(model, shape, source, options)
    new: dict[str, np.ndarray] = {}
    for match in matches:
        new |= _read(match, source, permutations)
    if not new:
        raise ValueError(f"nothing of {source.label} was loaded: the mapping is empty")
    old = {n: a for unit in units for n, a in _named(unit)}
    typed = {name: _typed(name, array, old[name]) for name, array in new.items()}
    params, state = mapped_arrays(
        model, *trees, lambda name, array: typed.get(name, array)
    )
    used = {match.unit.path for match in matches}
    permuted = [path for path in permuted if any(_covers(u, path) for u in used)]
    return (
        LoadedWeights(loaded.rows, loaded.unfilled, loaded.leftover, tuple(permuted)),
        params,
        state,
    )


def _covers(path: str, inner: str) -> bool:
    return path in ("", inner) or inner.startswith(f"{path}.")


def _named(unit: Unit) -> list[tuple[str, Any]]:
    return [(unit.names[leaf], array) for leaf, array in unit.leaves.items()]


def _report(
    units: Sequence[Unit],
    matches: Sequence[Match],
    source: Source,
    options: _Options,
) -> LoadedWeights:
    """Return the assignment.

    Raises
    ------
    ValueError
        If it is not complete and should be.
    """
    filled = {match.unit.names[leaf] for match in matches for leaf in match.form.leaves}
    unfilled = [
        f"{name.partition('.')[2]} {tuple(array.shape)}"
        for unit in units
        for name, array in _named(unit)
        if name not in filled
    ]
    used = {name for match in matches for name in match.names}
    leftover = remaining_names(source, used, options.ignore)
    if options.strict and (unfilled or leftover):
        raise ValueError(_incomplete(unfilled, leftover, source))
    rows = [
        (
            match.unit.path,
            type(match.unit.layer).__name__,
            match.prefix,
            match.form.name,
            sum(int(match.unit.leaves[leaf].size) for leaf in match.form.leaves),
        )
        for match in matches
    ]
    return LoadedWeights(tuple(rows), tuple(unfilled), tuple(leftover))


def _incomplete(unfilled: list[str], leftover: list[str], source: Source) -> str:
    lines = ["not everything was matched:"]
    if unfilled:
        lines.append(
            f"{source.label} gives nothing for {_few(unfilled)} of the model: add "
            "them to the mapping, leave out a bias of the layer, or pass strict=False"
        )
    if leftover:
        shapes = [f"{name} {tuple(source.arrays[name].shape)}" for name in leftover]
        lines.append(
            f"nothing in the model takes {_few(shapes)} of {source.label}: name them "
            "in `ignore` (patterns), or pass strict=False"
        )
    return "\n".join(lines)


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return ", ".join(names[:12]) + more


def _read(
    match: Match, source: Source, permutations: _Permutations
) -> dict[str, np.ndarray]:
    """Return {name of ours: array} of one match, in our order of features."""
    arrays: dict[str, np.ndarray] = {}
    for relative in match.form.names:
        name = match.name(relative)
        if name in source.arrays:
            arrays[relative] = source.array(name)
    for rule in match.form.rules:
        if rule.ours:
            _expect_real(match, rule.theirs, arrays, source)
    new = {}
    for leaf, array in match.form.read(arrays).items():
        name = match.unit.names[leaf]
        if not match.is_array:
            for axis, order in permutations.get(name, ()):
                array = np.take(array, order, axis=axis)
        new[name] = array
    return new


def _expect_real(
    match: Match, names: Sequence[str], arrays: Mapping[str, np.ndarray], source: Source
) -> None:
    """Raise TypeError if an array of the source has no real numbers, but counts."""
    for relative in names:
        array = arrays[relative]
        if array.dtype.kind != "f" and array.ndim > 0:
            name = match.name(relative)
            raise TypeError(
                f"expected real floating numbers for {match.unit}, but {name} of "
                f"{source.label} is {source.dtype_of(name)}: convert integers "
                "(quantized weights) to float32 with their scales first"
            )


def _typed(name: str, array: np.ndarray, old: Any) -> np.ndarray:
    """Return an array in the dtype of the array that it replaces."""
    path = name.partition(".")[2]
    shape = tuple(old.shape)
    if tuple(array.shape) != shape:
        raise ValueError(f"expected {path} of shape {shape}, got {array.shape}")
    try:
        return np.ascontiguousarray(as_dtype(array, old.dtype)).reshape(shape)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _permutations(
    model: Layer, shape: Any, source: Source, options: _Options
) -> tuple[_Permutations, list[str]]:
    """Return the permutations of arrays of ours, and the paths of their layers."""
    if not source.channels_first or options.permute is False:
        return {}, []
    permutations: _Permutations = {}
    orders = feature_orders(model, shape, options.permute)
    for path, axes in orders.items():
        for which, order in axes.items():
            axis = 0 if which == "in" else -1
            leaves = ["params.weight"]
            if which == "out":
                leaves += ["params.bias", "params.scale", "params.slope"]
                leaves += ["state.mean", "state.variance"]
            for leaf in leaves:
                entry = permutations.setdefault(name_in(path, leaf), [])
                entry.append((axis, order))
    return permutations, list(orders)


# --- export ---------------------------------------------------------------------------


def export_weights(
    trainer: Trainer,
    target: Any = None,
    mapping: Names | None = None,
    *,
    like: Any = None,
    strict: bool = True,
    ignore: Iterable[str] = (),
    permute: bool | None = None,
) -> dict[str, np.ndarray]:
    """Write the weights of a trainer for another library; return {name: array}.

    target
        - a module of PyTorch or a model of Keras or ONNX, whose weights are replaced;
        - a file .pt or .pth, a state dict of PyTorch, or .safetensors with its names;
        - a file .onnx, a copy of the model `like` with other weights;
        - None, which only returns the arrays.
        For a file .keras or .weights.h5, pass the Keras model, and save it afterwards.
    mapping
        Prefixes for paths of layers, as in `load_weights`. Without `like` and without a
        mapping, the names are those of PyTorch under our paths, as in "0.weight".
    like
        Where the names and shapes come from, anything that `load_weights` takes; by
        default `target`, unless that is a file. It is matched as in `load_weights`, by
        `mapping` or by structure.
    strict, ignore, permute
        As in `load_weights`. Arrays of `like` that nothing in the model takes stay as
        they are there.

    Arrays have the dtype of the trainer's parameters, or that of the arrays that they
    replace. Where one bias of ours stands for two, the second is zero.

    Raises
    ------
    ValueError
        If the mapping or the structures do not fit, or the other library cannot store
        the weights. Nothing is written then.
    TypeError
        If `target` is something else.
    """
    write = _writer(target, like)
    trees = trainer._arrays.to_numpy((trainer.params, trainer.state))
    units = units_of(trainer.model, *trees)
    options = _Options(strict, tuple(_patterns(ignore)), permute)
    is_path = target is None or isinstance(target, str | os.PathLike)
    reference = target if like is None and not is_path else like
    if reference is None:
        source = Source("the model", PYTORCH, {})
        matches = _default_matches(units, mapping)
    else:
        source = open_source(reference)
        matches = matches_of(
            units, source, mapping, strict=strict, ignore=options.ignore
        )
        _report(units, matches, source, options)
    shape = trainer._current.settled().shape
    permutations, _ = _permutations(trainer.model, shape, source, options)
    arrays: dict[str, np.ndarray] = {name: source.array(name) for name in source.arrays}
    for match in matches:
        arrays |= _written(match, source, permutations)
    named = {source.origins.get(name, name): array for name, array in arrays.items()}
    write(named)
    return named


def _default_matches(units: list[Unit], mapping: Names | None) -> list[Match]:
    """Return a match of each unit with a module of PyTorch under its path or a name."""
    named = {} if mapping is None else dict(_prefixes(units, mapping))

    def matches(unit: Unit) -> list[Match]:
        has_named_part = any(part.path in named for part in unit.walk())
        is_whole = PYTORCH.has(unit.layer) and not has_named_part
        if unit.path in named or is_whole or not unit.parts:
            form = PYTORCH.forms(unit.layer)[0]
            prefix = named.get(unit.path, unit.path)
            return [Match(unit, prefix, form, PYTORCH.separator)]
        return [match for part in unit.parts for match in matches(part)]

    return [match for unit in units for match in matches(unit)]


def _prefixes(units: list[Unit], mapping: Names) -> list[tuple[str, str]]:
    pairs = pairs_of(units, mapping)
    arrays = [unit.path for unit, _ in pairs if unit.is_array]
    if arrays:
        raise ValueError(f"{arrays[0]} is an array: map its layer, or pass like=")
    return [(unit.path, prefix) for unit, prefix in pairs]


def _written(
    match: Match, source: Source, permutations: _Permutations
) -> dict[str, np.ndarray]:
    """Return {name of theirs: array} of one match."""
    leaves = {}
    for leaf in match.form.leaves:
        name = match.unit.names[leaf]
        array = np.asarray(match.unit.leaves[leaf])
        for axis, order in permutations.get(name, ()):
            array = np.take(array, np.argsort(order), axis=axis)
        leaves[leaf] = array
    written = {}
    for relative, array in match.form.write(leaves).items():
        name = match.name(relative)
        if name in source.arrays and array.dtype.kind == "f":
            dtype = source.array(name).dtype
            try:
                array = as_dtype(array, dtype) if dtype.kind == "f" else array
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        rules = [rule for rule in match.form.rules if relative in rule.theirs]
        is_ours = any(rule.ours for rule in rules)
        if is_ours or name not in source.arrays:
            written[name] = np.ascontiguousarray(array).reshape(array.shape)
    return written


def _writer(target: Any, like: Any) -> Callable[[dict[str, np.ndarray]], None]:
    """Return the function that writes arrays to a target.

    Raises
    ------
    TypeError or ValueError
        If nothing can be written to it.
    """
    if target is None:
        return lambda arrays: None
    if isinstance(target, str | os.PathLike):
        path = Path(expect_path("target", target))
        for ending, make in _WRITERS.items():
            if path.name.lower().endswith(ending):
                return make(path, like)
        raise ValueError(
            f"cannot write {path}: expected a file that ends in one of "
            f"{', '.join(_WRITERS)}. For Keras, pass the model as target and call its "
            "save_weights or save afterwards"
        )
    for has, make_object in _TARGETS:
        if has(target):
            writer: Callable[[dict[str, Any]], None] = make_object(target)
            return writer
    raise TypeError(
        "expected a path, a module of PyTorch or a model of Keras or ONNX as target, "
        f"got {type(target).__name__}"
    )


def _safetensors_writer(path: Path, like: Any) -> Callable[[dict[str, Any]], None]:
    def write(arrays: dict[str, np.ndarray]) -> None:
        entries = {name: entry_of(name, array) for name, array in arrays.items()}
        first, order = header(entries, {"format": "pt"})
        with replacing(path) as file:
            file.write(first)
            for name in order:
                file.write(plain(arrays[name], entries[name]).tobytes())

    return write


def _torch_writer(path: Path, like: Any) -> Callable[[dict[str, Any]], None]:
    torch = import_extra("torch", extra="torch", purpose=f"writing {path.name}")

    def write(arrays: dict[str, np.ndarray]) -> None:
        tensors = {
            name: torch.as_tensor(array.copy()) for name, array in arrays.items()
        }
        with replacing(path) as file:
            torch.save(tensors, file)

    return write


def _onnx_writer(path: Path, like: Any) -> Callable[[dict[str, Any]], None]:
    onnx = import_extra("onnx", extra="onnx", purpose=f"writing {path.name}")
    if like is None:
        raise ValueError(
            f"{path} needs a model to copy: pass like=, an ONNX model or its file"
        )
    is_path = isinstance(like, str | os.PathLike)
    copy = onnx.load(str(like)) if is_path else type(like)()
    if not is_path:
        copy.CopyFrom(like)

    def write(arrays: dict[str, np.ndarray]) -> None:
        _fill_onnx(copy, arrays)
        with replacing(path) as file:
            file.write(copy.SerializeToString())

    return write


_WRITERS: dict[str, Callable[[Path, Any], Callable[[dict[str, Any]], None]]] = {
    ".safetensors": _safetensors_writer,
    ".pt": _torch_writer,
    ".pth": _torch_writer,
    ".onnx": _onnx_writer,
}


def _fill_onnx(model: Any, arrays: dict[str, np.ndarray]) -> None:
    numpy_helper = import_extra("onnx.numpy_helper", extra="onnx", purpose="ONNX")
    for tensor in model.graph.initializer:
        if tensor.name in arrays:
            tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))


def _module_writer(module: Any) -> Callable[[dict[str, Any]], None]:
    torch = import_extra("torch", extra="torch", purpose="export_weights")

    def write(arrays: dict[str, np.ndarray]) -> None:
        tensors = {
            name: torch.as_tensor(array.copy()) for name, array in arrays.items()
        }
        module.load_state_dict(tensors)

    return write


def _keras_writer(model: Any) -> Callable[[dict[str, Any]], None]:
    def write(arrays: dict[str, np.ndarray]) -> None:
        for variable in model.weights:
            name = keras_names(variable.path)
            if name in arrays:
                variable.assign(arrays[name])

    return write


def _onnx_model_writer(model: Any) -> Callable[[dict[str, Any]], None]:
    return lambda arrays: _fill_onnx(model, arrays)


_TARGETS: tuple[tuple[Callable[[Any], bool], Callable[[Any], Any]], ...] = (
    # a layer of Keras on PyTorch is a module as well
    (is_keras, _keras_writer),
    (is_module, _module_writer),
    (is_onnx, _onnx_model_writer),
)
