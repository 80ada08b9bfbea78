"""from_torch: make a model of this library from a module of PyTorch.

`torch.export` traces the module to a graph of ATen operators. `_Reader` goes through
them in order and calls, for each, the handler of that name in `torch_operators`, which
adds layers to a `GraphBuilder`. Operators of constants alone are computed by PyTorch.
"""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.export import Dim, export
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from ..core.errors import expect
from ..core.trees import leaves
from ..layers.base import Layer
from .building import BATCH, BatchLength, GraphBuilder, Length, Value
from .conventions import PYTORCH
from .pretrained import Pretrained
from .torch_operators import HANDLERS, FinalStates, NotConvertible, Operator

__all__ = ["from_torch", "torch_state_dict"]


def from_torch(module: torch.nn.Module, example: Any) -> Pretrained:
    """Return a model with the layers and the weights of a module of PyTorch.

        model = interop.from_torch(module, images[:2])
        trainer = nn.Trainer(model, nn.softmax_cross_entropy, nn.SGD(0.1))

    module: is traced by `torch.export`, so what it computes must not depend on values.
    It is not changed. It is traced in training mode, with its dropout and the batch
    statistics of BatchNorm, which `predict` does not use. If the module itself is in
    training mode, submodules in eval mode stay so: their BatchNorm is frozen.
    example: its input as a tensor or an array, a tuple of positional inputs, or a dict
    of keyword inputs. The first axis of each is the batch, of any size; other lengths
    are those of the model.

    An LSTM or GRU of PyTorch adds two biases, of which this library has the sum: a step
    of an optimizer changes the sum by the gradient once, not twice.

    Names of nodes are paths of submodules, such as "layer1_0_conv1". Inputs and outputs
    are nested and laid out as in PyTorch, with channels first. The model takes a single
    array for a module with one input, otherwise a dict by the names of the parameters
    of its `forward`. `model.names` lists the parameters, and `torch_state_dict` returns
    trained ones to the module.

    Raises
    ------
    TypeError
        If `module` is not a module, or `example` holds something else than tensors.
    ValueError
        If the module cannot be traced for any batch size, or has operators that cannot
        be converted: the message names all of them.
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(module).__name__}")
    arguments, keywords = _arguments(example)
    with _training_mode(module):
        program = _exported(module, arguments, keywords)
    return _Reader(module, program).model()


def torch_state_dict(model: Pretrained, params: Any, state: Any) -> dict[str, Any]:
    """Return {name: tensor} for `load_state_dict` of the module that was imported.

        module.load_state_dict(
            interop.torch_state_dict(model, trainer.params, trainer.state), strict=False
        )

    params, state: those of `model`, as arrays of any library on the CPU. Entries that a
    training does not change, such as masks, are left out, hence `strict=False`.
    """
    graph: Any = model.layer
    layers = {name: entry[0] for name, entry in graph.nodes}
    by_node: dict[str, dict[str, str]] = {}
    for path, name in model.names:
        node, _, inner = path.partition(".")
        by_node.setdefault(node, {})[inner] = name
    tensors = {}
    for node, names in by_node.items():
        tensors.update(_node_tensors(layers[node], params[node], state[node], names))
    return tensors


def _node_tensors(
    layer: Layer, params: Any, state: Any, names: Mapping[str, str]
) -> dict[str, Any]:
    """Return the tensors of one node by their names in the state_dict.

    names: {name of PyTorch, relative to the layer: name in the state_dict}.
    """
    if PYTORCH.has(layer):
        arrays: Any = PYTORCH.to_theirs(layer, _on_host(params), _on_host(state))
    else:
        arrays = _on_host(params)
    return {
        name: torch.from_numpy(np.array(arrays[inner]))
        for inner, name in names.items()
        if inner in arrays
    }


def _on_host(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _on_host(branch) for name, branch in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_on_host(branch) for branch in tree)
    return np.asarray(tree)


# --- tracing --------------------------------------------------------------------------


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments, as tensors of at least two examples."""
    if isinstance(example, Mapping):
        keywords = {name: _tensor(name, value) for name, value in example.items()}
        return (), keywords
    entries = example if isinstance(example, tuple | list) else (example,)
    return tuple(_tensor(f"example {i}", each) for i, each in enumerate(entries)), {}


def _tensor(name: str, value: Any) -> torch.Tensor:
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.array(value))
    if not isinstance(value, torch.Tensor):
        raise TypeError(
            f"expected {name} as a tensor or an array, got {type(value).__name__}"
        )
    expect(value.ndim > 0, "expected {} with a batch axis, got ()", name)
    expect(value.shape[0] > 0, "expected {} with at least one example", name)
    # torch.export takes a length of 1 for a constant
    rows = value if value.shape[0] > 1 else torch.cat([value, value])
    return rows.detach()


@contextmanager
def _training_mode(module: torch.nn.Module) -> Iterator[None]:
    """Put a module in training mode, unless it is, and restore its modes."""
    modes = [(each, each.training) for each in module.modules()]
    if not module.training:
        module.train()
    try:
        yield
    finally:
        for each, mode in modes:
            each.training = mode


def _exported(
    module: torch.nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> Any:
    """Return the exported program with a batch of any size."""
    free = {0: Dim.AUTO}
    shapes: Any = tuple(dict(free) for _ in arguments)
    if keywords:
        shapes = {name: dict(free) for name in keywords}
    try:
        with warnings.catch_warnings():
            # the weights of recurrent layers, which are parameters already
            warnings.filterwarnings("ignore", message="The tensor attributes? self")
            return export(
                module, arguments, keywords or None, dynamic_shapes=shapes, strict=False
            )
    except Exception as error:
        text = str(error).strip().splitlines()
        raise ValueError(
            f"torch.export cannot trace {type(module).__name__}: "
            f"{text[0] if text else type(error).__name__}; the full error is above. "
            "What the module computes must not depend on the values of its inputs"
        ) from error


def _length(value: Any) -> Length:
    """Return a length of a traced tensor, an integer or a multiple of the batch."""
    if isinstance(value, int):
        return value
    expression = value.node.expr
    if expression.is_Integer:
        return int(expression)
    factor, rest = expression.as_coeff_Mul()
    if not rest.is_Symbol or not factor.is_Integer:
        raise NotConvertible(f"a length is {expression}, not a multiple of the batch")
    return BatchLength(int(factor))


def _kind(dtype: torch.dtype) -> str:
    if dtype == torch.bool:
        return "bool"
    if dtype.is_complex:
        raise NotConvertible(f"{dtype} is not supported")
    return "real floating" if dtype.is_floating_point else "integral"


def _array(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor as a NumPy array; bfloat16, which it lacks, as float32."""
    tensor = tensor.detach().cpu()
    tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    array: np.ndarray = tensor.numpy()
    return array


# --- reading --------------------------------------------------------------------------


_NO_LAYER = "there is no layer for it"


def _has_handler(name: str) -> bool:
    return name in HANDLERS or name.rstrip("_") in HANDLERS


class _Unknown:
    """The result of an operator that was not converted."""


_FACTORIES = ("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full")
# operators whose result shares memory with their first argument
_VIEWS = {
    *("alias", "as_strided", "expand", "flatten", "narrow", "permute", "reshape"),
    *("select", "slice", "squeeze", "t", "transpose", "unsqueeze", "view", "unflatten"),
}


class _Reader:
    """Converts one exported program."""

    def __init__(self, module: torch.nn.Module, program: Any) -> None:
        self.module = module
        self.program = program
        self.builder = GraphBuilder()
        self.values: dict[Any, Any] = {}  # of nodes of the exported graph
        self.complaints: list[str] = []
        self.buffers: dict[Any, str] = {}  # names of the buffers, by node
        self.uses: dict[str, int] = {}  # the number of operators that read a parameter

    def model(self) -> Pretrained:
        """Return the model; raise ValueError that names all that is not converted."""
        self._read_inputs()
        for node in self.program.graph.nodes:
            if node.op == "call_function":
                self._read_node(node)
            elif node.op == "output":
                outputs = [self.values.get(each, each) for each in node.args[0]]
        if self.complaints:
            count = len(self.complaints)
            listed = "\n".join(f"  {complaint}" for complaint in self.complaints)
            raise ValueError(
                f"{type(self.module).__name__} has {count} "
                f"operator{'s' if count > 1 else ''} that cannot be converted:\n"
                f"{listed}\nReplace them in the module, or convert the part around them"
            )
        return self.builder.build(self._outputs(outputs))

    def _read_inputs(self) -> None:
        """Make values of the parameters, buffers, constants and inputs."""
        nodes = {n.name: n for n in self.program.graph.nodes if n.op == "placeholder"}
        parameters = dict(self.module.named_parameters(remove_duplicate=False))
        # of several names of one parameter the first, as its optimizers see it
        first = {id(tensor): name for name, tensor in self.module.named_parameters()}
        for spec in self.program.graph_signature.input_specs:
            node = nodes[spec.arg.name]
            if spec.kind == InputKind.USER_INPUT:
                self.values[node] = self._input(node)
            elif spec.kind == InputKind.PARAMETER:
                tensor = parameters[spec.target]
                name = first[id(tensor)] if tensor.requires_grad else None
                array = _array(tensor)
                if name is None:
                    self.values[node] = self.builder.constant(array)
                else:
                    self.values[node] = self.builder.parameter(name, array)
                    self.uses[name] = len(node.users)
            elif spec.kind in (InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
                tensors = {**self.program.constants, **self.program.state_dict}
                array = _array(tensors[spec.target])
                self.values[node] = self.builder.constant(array, spec.target)
                self.buffers[node] = spec.target
            else:
                self._complain(node, f"an input of kind {spec.kind.name}")

    def _input(self, node: Any) -> Any:
        tensor = node.meta.get("val")
        if not isinstance(tensor, torch.Tensor):
            return tensor
        shape = tuple(_length(n) for n in tensor.shape)
        if shape[0] != BATCH:
            raise ValueError(
                f"the module works only for a batch of {shape[0]}, that of the example "
                f"of {node.name}: replace fixed lengths by x.shape[0] or -1"
            )
        return self.builder.input(node.name, shape, _kind(tensor.dtype))

    def _read_node(self, node: Any) -> None:
        if not self._is_needed(node):
            return
        try:
            arguments = pytree.tree_map(self._resolved, (node.args, node.kwargs))
        except NotConvertible as error:
            self._complain(node, str(error))
            self.values[node] = _Unknown()
            return
        flat, _ = pytree.tree_flatten(arguments)
        if any(isinstance(value, _Unknown) for value in flat):
            self._complain_if_unknown(node)
            self.values[node] = _Unknown()
            return
        try:
            self.values[node] = self._converted(node, *arguments)
        except (NotConvertible, ValueError, TypeError) as error:
            self._complain(node, str(error))
            self.values[node] = _Unknown()

    def _complain_if_unknown(self, node: Any) -> None:
        """Name an operator without a handler, of which the arguments are not known."""
        name = _name_of(node)
        has_result = isinstance(node.meta.get("val"), torch.Tensor | tuple | list)
        if has_result and name != "getitem" and not _has_handler(name):
            self._complain(node, _NO_LAYER)

    def _is_needed(self, node: Any) -> bool:
        """Return whether an operator has a result that is used, or an effect."""
        return bool(node.users) or _name_of(node).endswith("_")

    def _resolved(self, argument: Any) -> Any:
        if isinstance(argument, torch.fx.Node):
            return self.values[argument]
        return argument

    def _converted(self, node: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Return the value, or values, of an operator."""
        result = node.meta.get("val")
        name = _name_of(node)
        if name == "getitem":
            return args[0][args[1]]
        if not isinstance(result, torch.Tensor | tuple | list):
            return None if result is None else self._scalar(result)
        in_place = name.endswith("_") and not name.startswith("_")
        if in_place and node.args[0] in self.buffers:
            return self._buffer_update(node)
        name = name.rstrip("_") if in_place else name
        value = self._constant_result(node, name, args, kwargs)
        if value is None:
            value = self._handled(node, name, args, kwargs)
        if in_place:
            self._expect_no_alias(node)
            self.values[node.args[0]] = value
        return value

    def _scalar(self, result: Any) -> Any:
        is_symbolic = isinstance(result, torch.SymInt)
        return _length(result) if is_symbolic else result

    def _handled(self, node: Any, name: str, args: Any, kwargs: Any) -> Any:
        handler = HANDLERS.get(name)
        if handler is None:
            raise NotConvertible(_NO_LAYER)
        operator = Operator(
            builder=self.builder,
            name=self._node_name(node, name),
            arguments=_bound(node, args, kwargs),
            shapes=_shapes(node.meta["val"]),
            kind=_kinds(node.meta["val"]),
            uses=self.uses,
            results_read=_results_read(node),
            siblings=_siblings(node, name),
            epsilon=_epsilon(node.meta["val"]),
        )
        vars(operator.arguments).update(_joined(name, operator.arguments))
        return handler(operator)

    def _constant_result(self, node: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Return the result of an operator of constants alone, or None."""
        flat, spec = pytree.tree_flatten((args, kwargs))
        values = [value for value in flat if isinstance(value, Value)]
        if any(not value.is_constant for value in values):
            return None
        if any(isinstance(each, FinalStates) for each in flat):
            return None
        has_batch = any(isinstance(each, BatchLength) for each in flat)
        if has_batch and name not in _FACTORIES:
            return None
        if name in ("detach", "dropout") and not values:
            return None
        tensors = [
            torch.from_numpy(np.array(each.array)) if isinstance(each, Value) else each
            for each in flat
        ]
        # one for the batch, along which the result is broadcast
        tensors = [1 if isinstance(each, BatchLength) else each for each in tensors]
        args, kwargs = pytree.tree_unflatten(tensors, spec)
        kwargs = {k: v for k, v in kwargs.items() if k not in ("device", "pin_memory")}
        result = node.target(*args, **kwargs)
        if isinstance(result, torch.Tensor):
            return self.builder.constant(_array(result))
        return tuple(self.builder.constant(_array(each)) for each in result)

    def _buffer_update(self, node: Any) -> Any:
        """Return the buffer; raise unless nothing depends on its new value."""
        name = self.buffers[node.args[0]]
        if not name.endswith("num_batches_tracked"):
            raise NotConvertible(f"it changes the buffer {name}")
        return self.values[node.args[0]]

    def _expect_no_alias(self, node: Any) -> None:
        """Raise if an operator in place changes a tensor that others see too."""
        changed = node.args[0]
        views = [user for user in changed.users if _name_of(user) in _VIEWS]
        base = changed
        while base.op == "call_function" and _name_of(base) in _VIEWS:
            base = base.args[0]
            views += [user for user in base.users if user is not changed]
        views = [view for view in views if view is not node]
        later = [view for view in views if _comes_after(view, node)]
        used_later = any(_comes_after(user, node) for v in views for user in v.users)
        if (base is not changed and later) or used_later:
            raise NotConvertible("it changes, in place, a tensor that others see too")

    def _node_name(self, node: Any, operator: str) -> str:
        """Return the path of the module that an operator belongs to."""
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path = re.sub(r"@\d+$", "", stack[-1][0]) if stack else ""
        if not path:
            return str(node.name)
        try:
            module = self.module.get_submodule(path)
        except AttributeError:
            return f"{path}.{operator}"
        is_leaf = not any(True for _ in module.children())
        is_layer = _package(type(module)) == _package(torch.nn.Linear)
        return path if is_leaf and is_layer else f"{path}.{operator}"

    def _complain(self, node: Any, reason: str) -> None:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path = stack[-1][0] if stack and stack[-1][0] else "the module"
        target = str(node.target)
        line = _source_line(node.meta.get("stack_trace"))
        where = f"{path}, {line}" if line else path
        self.complaints.append(f"{where}: {target}: {reason}")

    def _outputs(self, values: Sequence[Any]) -> Any:
        """Return the outputs nested as the module returns them, without None."""
        spec = self.program.call_spec.out_spec
        tree = pytree.tree_unflatten(list(values), spec)
        tree = _plain(tree)
        for value in leaves(tree):
            if not isinstance(value, Value):
                raise ValueError(f"expected tensors as outputs, got {value!r}")
        entries = tree.values() if isinstance(tree, dict) else tree
        is_flat = isinstance(tree, Value) or all(isinstance(e, Value) for e in entries)
        message = (
            "expected a tuple or a dict of tensors from {}, but its outputs are nested"
        )
        expect(is_flat, message, type(self.module).__name__)
        return tree


def _package(kind: type) -> str:
    return kind.__module__.rpartition(".")[0]


def _plain(tree: Any) -> Any:
    """Return nested outputs as dicts and tuples; entries that are None are left out."""
    if isinstance(tree, Mapping):
        return {str(k): _plain(v) for k, v in tree.items() if v is not None}
    if isinstance(tree, tuple | list):
        entries = tuple(_plain(each) for each in tree if each is not None)
        return entries[0] if len(entries) == 1 else entries
    return tree


def _name_of(node: Any) -> str:
    """Return the name of an operator without its overload, such as "add_"."""
    if node.op != "call_function":
        return str(node.op)
    target = node.target
    packet = getattr(target, "overloadpacket", None)
    return str(packet.__name__ if packet is not None else target.__name__)


def _bound(node: Any, args: Any, kwargs: Any) -> SimpleNamespace:
    """Return the arguments of an operator by the names of its schema."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        raise NotConvertible(_NO_LAYER)
    named = {}
    for i, argument in enumerate(schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        named[argument.name] = args[i] if i < len(args) else default
        named[argument.name] = kwargs.get(argument.name, named[argument.name])
    return SimpleNamespace(**named)


def _joined(name: str, arguments: SimpleNamespace) -> dict[str, Any]:
    """Return arguments that are final states of an RNN as one value each.

    `select` reads the state of a single layer.
    """
    is_one = name == "select" and arguments.dim == 0
    return {
        key: value.joined()
        for key, value in vars(arguments).items()
        if isinstance(value, FinalStates) and not is_one
    }


def _results_read(node: Any) -> frozenset[int]:
    """Return the positions of the results of an operator that others read."""
    readers = [user for user in node.users if _name_of(user) == "getitem"]
    return frozenset(int(user.args[1]) for user in readers if user.users)


def _siblings(node: Any, name: str) -> int:
    """Return how many entries of its first argument `select` reads along its axis."""
    if name != "select":
        return 0
    others = [user for user in node.args[0].users if _name_of(user) == name]
    return len({user.args[2] for user in others if user.args[1] == node.args[1]})


def _epsilon(result: Any) -> float:
    """Return the epsilon of the dtype of a result, or 0 for other results."""
    is_real = isinstance(result, torch.Tensor) and result.dtype.is_floating_point
    return float(torch.finfo(result.dtype).eps) if is_real else 0.0


def _shapes(result: Any) -> Any:
    if isinstance(result, tuple | list):
        return tuple(_shapes(each) for each in result)
    return tuple(_length(n) for n in result.shape)


def _kinds(result: Any) -> Any:
    if isinstance(result, tuple | list):
        return tuple(_kinds(each) for each in result)
    return _kind(result.dtype)


def _comes_after(node: Any, other: Any) -> bool:
    """Return whether `node` is later than `other` in the graph."""
    return bool(other < node)


def _source_line(trace: str | None) -> str:
    """Return "file.py:12" for the last frame of a stack trace, or ""."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', trace or "")
    library = str(Path(torch.__file__).parent)
    frames = [frame for frame in frames if library not in frame[0]] or frames
    return f"{Path(frames[-1][0]).name}:{frames[-1][1]}" if frames else ""
