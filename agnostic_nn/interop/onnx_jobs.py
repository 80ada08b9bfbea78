"""Describe what an ONNX file is to compute, and record it.

A job has a function of weights and inputs, which runs on NumPy and on recorded arrays.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..core.arrays import namespace
from ..core.backend import backend as choose
from ..core.errors import described, expect
from ..core.trees import leaves, tree_map
from ..diagnostics.observe import observing, value_of
from ..layers import Layer
from ..layers.base import kinds
from ..losses.base import takes_keyword
from ..training.inputs import as_integer
from ..training.precision_policy import PrecisionPolicy
from ..training.steps import make_step
from ..training.trainer import Trainer
from .onnx_graph import (
    Graph,
    Lengths,
    NotSymbolic,
    Symbol,
    assembled,
    is_symbolic,
    with_symbols,
)
from .onnx_recorder import NotRecorded, Recorder, argument, flat

__all__ = ["Job", "flat_trees", "prediction_job", "training_job"]

_Array = np.ndarray[Any, Any]

# lengths at which a graph is recorded; both have the same number of binary digits, so
# that a loop that halves a length takes equally many turns
_BASE, _OTHER = 11, 13
_GRADIENTS = "'sum', 'vjp', or the number of an output"


@dataclass
class Job:
    """The computation that an ONNX file is to contain.

    compute(model, carry, inputs) returns trees by name. carry: the weights by their
    path. inputs(lengths): trees by name, to record and to check with. nested(carry):
    the trees of a flat carry.
    """

    kind: str
    model: Layer
    carry: dict[str, _Array]
    nested: Callable[[dict[str, Any]], dict[str, Any]]
    compute: Callable[[Layer, dict[str, Any], dict[str, Any]], dict[str, Any]]
    inputs: Callable[[Lengths], dict[str, Any]]
    symbols: list[Symbol] = field(default_factory=list)
    fixed: Lengths = field(default_factory=dict)
    optimizer: Any = None

    @property
    def is_training(self) -> bool:
        return self.kind == "training step"

    def run(self, inputs: dict[str, Any], carry: dict[str, Any]) -> dict[str, Any]:
        """Return the outputs by name, computed with NumPy."""
        with np.errstate(all="ignore"):
            return flat_trees(self.compute(self.model, self.nested(carry), inputs))

    def graph(self) -> tuple[Graph, Recorder]:
        """Return the graph, and how it was recorded."""
        base = self.fixed | {symbol.name: _BASE for symbol in self.symbols}
        lengths = [base] + [base | {s.name: _OTHER} for s in self.symbols]
        if not self.symbols:
            recorder, graph = self._recorded(base, frozenset())
            return graph, recorder
        try:
            recorded = [self._recorded(these, frozenset()) for these in lengths]
            opened = _to_open([recorder for recorder, _ in recorded], lengths)
            if opened:
                recorded = [self._recorded(these, opened) for these in lengths]
            replaced = [recorder.replaced for recorder, _ in recorded]
            graphs = [graph for _, graph in recorded]
            graph = with_symbols(graphs, lengths, self.symbols, replaced)
        except NotSymbolic as error:
            raise ValueError(self._refusal(str(error), recorded[0][0])) from None
        return graph, recorded[0][0]

    def _refusal(self, reason: str, recorder: Recorder) -> str:
        names = [symbol.name for symbol in self.symbols]
        free = [name for name in names if name != "batch"]
        remedy = "pass batch=N to export for N examples"
        if free:
            remedy = (
                f"pass a shape with numbers instead of {' and '.join(free)}, or batch=N"
            )
        return (
            f"the model cannot be exported with free lengths ({', '.join(names)}): "
            f"{reason}; {remedy}"
        )

    def _recorded(
        self, lengths: Lengths, opened: frozenset[int]
    ) -> tuple[Recorder, Graph]:
        recorder = Recorder(opened, phases=self.is_training)
        inputs = self.inputs(lengths)
        arguments = tree_map(argument, inputs)
        carry = {name: argument(array) for name, array in self.carry.items()}
        try:
            with observing(recorder):
                outputs = self.compute(
                    recorder.observed(self.model),
                    self.nested({k: recorder.wrap(v) for k, v in carry.items()}),
                    tree_map(recorder.wrap, arguments),
                )
        except NotRecorded as error:
            raise ValueError(f"cannot export {error}") from error
        results = {k: value_of(v) for k, v in flat_trees(outputs).items()}
        by_name = carry | flat_trees(arguments)
        model = recorder.build(by_name, results)
        unused = by_name if self.is_training else flat_trees(arguments)
        return recorder, assembled(model, list(results), unused)


def flat_trees(trees: dict[str, Any]) -> dict[str, Any]:
    """Return the arrays of trees by name and path."""
    arrays: dict[str, Any] = {}
    for name, tree in trees.items():
        arrays |= flat(tree, name)
    return arrays


def _to_open(
    recorders: Sequence[Recorder], lengths: Sequence[Lengths]
) -> frozenset[int]:
    """Return the numbers of calls whose constant results differ, but have a formula.

    If the graphs have different numbers of calls, there are none: what differs is found
    when the graphs are compared.
    """
    base, *others = recorders
    if any(other.calls != base.calls for other in others):
        return frozenset()
    opened = []
    for number, constant in base.constants.items():
        same = [other.constants.get(number) for other in others]
        if any(each is None or each.name != constant.name for each in same):
            continue
        values = [constant.value, *(each.value for each in same if each is not None)]
        differs = any(value.shape != values[0].shape for value in values)
        if differs and is_symbolic(values, lengths):
            opened.append(number)
    return frozenset(opened)


def prediction_job(
    trainer: Trainer, shape: Any, batch: int | None, gradient: Any, example: Any
) -> Job:
    """Return the job of a prediction, with a gradient if there is one to compute.

    The arguments are those of `export_onnx`, which has their errors.
    """
    policy = PrecisionPolicy(trainer.dtype, trainer.precision)
    shape = trainer.shape if shape is None else shape
    if shape is None:
        raise ValueError(
            "no weights yet: give Trainer a shape, or fit it to data, before exporting"
        )
    carry = _host_carry(trainer, policy)[:2]
    model = policy.model(trainer.model)
    fixed: Lengths = {}
    symbols: list[Symbol] = []
    named = dict(_named_shapes(shape, "x"))
    if batch is None:
        symbols.append(Symbol("batch", next(iter(named)), 0))
    else:
        fixed["batch"] = as_integer("batch", batch)
    symbol_names = {symbol.name for symbol in symbols}
    for name, entries in named.items():
        for axis, entry in enumerate(entries, 1):
            if not isinstance(entry, int):
                label = entry or f"{name}_{axis}"
                if label not in symbol_names:
                    symbols.append(Symbol(label, name, axis))
                symbol_names.add(label)
    dtype = policy.host_dtype
    drawn = _Examples(model, shape, dtype, example)

    def inputs(lengths: Lengths) -> dict[str, Any]:
        trees = {"x": drawn.batch(lengths)}
        if gradient == "vjp":
            arrays = _nested(carry, ("params", "state"))
            with np.errstate(all="ignore"):
                y = model.predict(arrays["params"], arrays["state"], trees["x"])
            generator = np.random.default_rng(1)
            trees["dy"] = tree_map(
                lambda leaf: generator.standard_normal(leaf.shape).astype(leaf.dtype), y
            )
        return trees

    return Job(
        "prediction" if gradient is None else f"prediction and gradient ({gradient})",
        model,
        flat_trees(dict(zip(("params", "state"), carry, strict=True))),
        _renested(carry, ("params", "state")),
        _predict if gradient is None else _with_gradient(gradient),
        inputs,
        symbols,
        fixed,
    )


def _nested(carry: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    return dict(zip(names, carry, strict=True))


def _renested(
    carry: Sequence[Any], names: Sequence[str]
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return the function from the arrays of the carry by path to its trees."""

    def nested(arrays: dict[str, Any]) -> dict[str, Any]:
        def tree(like: Any, prefix: str) -> Any:
            if isinstance(like, dict):
                return {k: tree(v, f"{prefix}.{k}") for k, v in like.items()}
            if isinstance(like, tuple):
                return tuple(tree(v, f"{prefix}.{i}") for i, v in enumerate(like))
            return arrays[prefix]

        return {name: tree(part, name) for name, part in zip(names, carry, strict=True)}

    return nested


def _host_carry(trainer: Trainer, policy: PrecisionPolicy) -> tuple[Any, Any, Any]:
    """Return params, state and moments as NumPy arrays, in the dtypes of a step."""
    carry = (trainer.params, trainer.state, trainer.moments)
    on_host = policy.arrays(trainer.backend).to_numpy(carry)
    params, state, moments = policy.arrays(choose("numpy")).asarray(on_host)
    return params, state, moments


def _predict(
    model: Layer, carry: dict[str, Any], inputs: dict[str, Any]
) -> dict[str, Any]:
    return {"y": model.predict(carry["params"], carry["state"], inputs["x"])}


def _with_gradient(gradient: Any) -> Callable[..., dict[str, Any]]:
    """Return the function that computes y and dx, for an argument of `export_onnx`."""
    is_column = isinstance(gradient, int) and not isinstance(gradient, bool)
    if not (is_column or gradient in ("sum", "vjp")):
        raise ValueError(f"expected gradient to be {_GRADIENTS}, got {gradient!r}")

    def compute(
        model: Layer, carry: dict[str, Any], inputs: dict[str, Any]
    ) -> dict[str, Any]:
        params = carry["params"]
        y, _, cache = model.forward(params, carry["state"], inputs["x"])
        dy = inputs.get("dy")
        if dy is None:
            dy = tree_map(lambda leaf: _selection(leaf, gradient), y)
        dx, _ = model.backward(params, cache, dy)
        if not [leaf for leaf in leaves(dx) if leaf is not None]:
            raise ValueError("the model has no gradient with respect to its input")
        return {"y": y, "dx": dx}

    return compute


def _selection(y: Any, gradient: Any) -> Any:
    """Return 1 for the numbers of y that are added up, and 0 for others."""
    xp = namespace(y)
    ones = xp.ones_like(y)
    if gradient == "sum":
        return ones
    width = y.shape[-1] if y.ndim else 0
    expect(
        0 <= gradient < width,
        "expected gradient to be {} below {}, the width of y, got {}",
        *("the number of an output", width, gradient),
    )
    return ones * xp.astype(xp.arange(width) == gradient, y.dtype)


def training_job(trainer: Trainer, example: Any, batch: int | None) -> Job:
    """Return the job of a training step, with the batch size of `example`.

    The arguments are those of `export_onnx`, which has their errors.
    """
    is_batch = isinstance(example, tuple | list) and len(example) in (2, 3)
    if not is_batch:
        raise TypeError(
            "expected example=(x, target) or (x, target, weights) with training=True, "
            f"a batch of the size to export, got {described(example)}"
        )
    policy = PrecisionPolicy(trainer.dtype, trainer.precision)
    dtype = policy.host_dtype
    names = ("x", "target", "weights")
    data = {k: _as_data(v, dtype) for k, v in zip(names, example, strict=False)}
    count = len(leaves(data["x"])[0])
    sizes = {name: len(leaf) for name, leaf in flat_trees(data).items()}
    expect(len(set(sizes.values())) == 1, "expected one batch size, got {}", sizes)
    expect(
        batch in (None, count),
        "expected batch=None or {}, the size of the example, got {}",
        *(count, batch),
    )
    trainer.model.check(data["x"])
    carry = _host_carry(trainer, policy)
    optimizer = policy.optimizer(trainer.optimizer)
    if takes_keyword(trainer.loss, "step"):
        data["step"] = np.asarray(trainer.steps, dtype)
    context = trainer.context
    if callable(context):
        context = context()
    if context is not None:
        data["context"] = trainer.backend.to_numpy(context)

    def compute(
        model: Layer, carry: dict[str, Any], inputs: dict[str, Any]
    ) -> dict[str, Any]:
        step = make_step(
            model, trainer.loss, optimizer, keep_finite=trainer.keep_finite
        )
        following, value, finite = step(
            (carry["params"], carry["state"], carry["moments"]),
            inputs["x"],
            inputs["target"],
            weights=inputs.get("weights"),
            t=inputs.get("step"),
            context=inputs.get("context"),
        )
        parts = _nested(following, ("params", "state", "moments"))
        return {"next": parts, "loss": value, "finite": finite}

    parts = ("params", "state", "moments")
    return Job(
        "training step",
        policy.model(trainer.model),
        flat_trees(_nested(carry, parts)),
        _renested(carry, parts),
        compute,
        lambda _: data,
        fixed={"batch": count},
        optimizer=optimizer,
    )


def _as_data(data: Any, dtype: str) -> Any:
    """Return a tree of NumPy arrays in the dtypes that a trainer passes to a step."""
    if isinstance(data, dict):
        return {name: _as_data(part, dtype) for name, part in data.items()}
    if isinstance(data, tuple):
        return tuple(_as_data(part, dtype) for part in data)
    array = np.asarray(data)
    if array.dtype.kind == "f":
        return array.astype(dtype)
    if array.dtype.kind in "iu" and array.dtype.itemsize > 1:
        return array.astype(np.int32)
    return array


def _named_shapes(shape: Any, prefix: str) -> Any:
    """Yield the path and the shape of each array of a tree of shapes."""
    if isinstance(shape, dict):
        for name in sorted(shape):
            yield from _named_shapes(shape[name], f"{prefix}.{name}")
    elif any(isinstance(entry, tuple | dict | list) for entry in shape):
        for i, entry in enumerate(shape):
            yield from _named_shapes(entry, f"{prefix}.{i}")
    else:
        yield prefix, tuple(shape)


class _Examples:
    """Draws batches of x that a model takes, or takes them from a given batch."""

    def __init__(self, model: Layer, shape: Any, dtype: str, example: Any) -> None:
        self._model = model
        self._shape = shape
        self._dtype = dtype
        self._example = None if example is None else _as_data(example, dtype)

    def batch(self, lengths: Lengths) -> Any:
        """Return an x of the lengths."""
        if self._example is not None:
            return tree_map(
                lambda leaf: _repeated(leaf, lengths["batch"]), self._example
            )
        blank = self._blank(self._shape, "x", lengths)
        model_kinds = kinds(self._model.input_kinds, blank)
        problem: Exception | None = None
        for limit in (100, 10, 2, 1):
            generator = np.random.default_rng(0)
            x = tree_map(
                lambda leaf, kind: self._draw(leaf.shape, kind, generator, limit),  # noqa: B023
                blank,
                model_kinds,
            )
            try:
                self._model.check(x)
            except (TypeError, ValueError) as error:
                problem = error
                continue
            return x
        raise ValueError(
            f"the model does not take inputs drawn at random ({problem}): pass "
            "example=x, a batch that it takes"
        )

    def _blank(self, shape: Any, prefix: str, lengths: Lengths) -> Any:
        if isinstance(shape, dict):
            return {
                name: self._blank(part, f"{prefix}.{name}", lengths)
                for name, part in shape.items()
            }
        if any(isinstance(entry, tuple | dict | list) for entry in shape):
            return tuple(
                self._blank(part, f"{prefix}.{i}", lengths)
                for i, part in enumerate(shape)
            )
        sizes = [
            entry if isinstance(entry, int) else lengths[entry or f"{prefix}_{axis}"]
            for axis, entry in enumerate(shape, 1)
        ]
        return np.zeros((lengths["batch"], *sizes), np.int8)

    def _draw(
        self, shape: tuple[int, ...], kind: str, generator: Any, limit: int
    ) -> _Array:
        if kind == "bool":
            mask: _Array = generator.random(shape) < 0.7
            mask[:, :1] = True
            return mask
        if kind == "integral":
            return np.asarray(generator.integers(0, limit, shape), np.int32)
        return np.asarray(generator.standard_normal(shape), self._dtype)


def _repeated(leaf: _Array, count: int) -> _Array:
    """Return an array with its rows repeated, or cut, to `count`."""
    return np.resize(leaf, (count, *leaf.shape[1:]))
