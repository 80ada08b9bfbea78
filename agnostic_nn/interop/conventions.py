"""Conversions between our arrays and those of PyTorch, Keras and ONNX, per layer.

A `Convention` is a table: for each of our layers the forms in which another library
stores it, and for each form the rules that convert the arrays. All functions take and
return NumPy arrays. Names of their arrays are relative to the module, as in
"in_proj_weight"; paths of ours begin with "params" or "state", as in
"params.query.weight".

    params, state = PYTORCH.to_ours(Dense(3), {"weight": w, "bias": b})
    tensors = PYTORCH.to_theirs(Dense(3), params, state)

Both directions move numbers and do not round them, with three exceptions. Two biases
that a cell adds are one array here: the sum is read, and zeros are written as the
second. Running statistics that another library stores under another form are computed.
An array that a layer here always has, and that the other library may leave out, such as
the bias of an LSTM, is read as zeros, and refused on the way back unless it is zero.

Dtypes do not change; `as_dtype` converts them.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ..blocks import TransformerBlock
from ..core.trees import named_leaves
from ..layers import (
    GRU,
    LSTM,
    RNN,
    BatchNorm,
    Bilinear,
    Conv1D,
    Conv2D,
    Conv3D,
    ConvTranspose1D,
    ConvTranspose2D,
    ConvTranspose3D,
    Dense,
    Embedding,
    EmbeddingBag,
    GroupNorm,
    InstanceNorm,
    Layer,
    LayerNorm,
    MultiHeadAttention,
    PositionEmbedding,
    PReLU,
    RMSNorm,
    SwiGLU,
    Unembedding,
)

__all__ = [
    "KERAS",
    "ONNX",
    "PYTORCH",
    "Convention",
    "Form",
    "Rule",
    "as_dtype",
    "leaves_of",
]

_Arrays = Sequence[np.ndarray]


@dataclass(frozen=True)
class Rule:
    """The conversion of some arrays of theirs to some of ours, and the reverse.

    ours: paths such as "params.weight". theirs: names such as "weight_ih_l0".
    read(*theirs) returns ours, and write(*ours) theirs, each as a sequence. how: a few
    words for tables. optional: whether theirs may be missing; they are then ignored.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    how: str
    read: Callable[..., _Arrays]
    write: Callable[..., _Arrays]
    optional: bool = False


@dataclass(frozen=True)
class Form:
    """One way in which another library stores a layer.

    name: what their users call it, such as "Linear". kinds: the classes or operators
    that have this form, for sources that name them; empty for any.
    """

    name: str
    rules: tuple[Rule, ...]
    kinds: tuple[str, ...] = ()

    @property
    def required(self) -> list[str]:
        """Names of the arrays that this form needs."""
        return [name for r in self.rules if not r.optional for name in r.theirs]

    @property
    def names(self) -> list[str]:
        """Names of all arrays that this form reads or ignores."""
        return [name for rule in self.rules for name in rule.theirs]

    @property
    def leaves(self) -> list[str]:
        """Paths of our arrays that this form fills."""
        return [path for rule in self.rules for path in rule.ours]

    def read(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return {path of ours: array} from {name of theirs: array}."""
        leaves: dict[str, np.ndarray] = {}
        for rule in self.rules:
            if rule.optional and not set(rule.theirs) <= tensors.keys():
                continue
            arrays = rule.read(*(tensors[name] for name in rule.theirs))
            leaves |= zip(rule.ours, arrays, strict=True)
        return leaves

    def write(self, leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return {name of theirs: array} from {path of ours: array}."""
        tensors: dict[str, np.ndarray] = {}
        for rule in self.rules:
            arrays = rule.write(*(leaves[path] for path in rule.ours))
            tensors |= zip(rule.theirs, arrays, strict=True)
        return tensors

    def shapes(self, leaves: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of their arrays for ours, {path: an object with a shape}.

        Raises
        ------
        ValueError
            If arrays of these shapes cannot have this form.
        """
        # views of one zero, which take no memory
        zeros = {
            path: np.broadcast_to(np.zeros((), np.int8), leaf.shape)
            for path, leaf in leaves.items()
        }
        return {name: tuple(a.shape) for name, a in self.write(zeros).items()}


@dataclass(frozen=True)
class Convention:
    """The forms in which one library stores layers.

    library: its name. separator: what joins the parts of a name there. table: {class of
    ours: function of a layer that returns its forms, the usual one first}.
    """

    library: str
    separator: str
    table: Mapping[type[Layer], Callable[[Any], list[Form]]]

    def has(self, layer: Layer) -> bool:
        """Return whether the table has the class of this layer or a base of it."""
        return any(kind in self.table for kind in type(layer).__mro__)

    def forms(self, layer: Layer) -> list[Form]:
        """Return the forms in which this library stores a layer, the usual one first.

        Raises
        ------
        TypeError
            If the table does not have the class of this layer.
        ValueError
            If the library has no layer with the options of this one.
        """
        for kind in type(layer).__mro__:
            if kind in self.table:
                return self.table[kind](layer)
        layers = ", ".join(sorted(kind.__name__ for kind in self.table))
        raise TypeError(
            f"there is no convention of {self.library} for {type(layer).__name__}, "
            f"only for {layers}: convert its arrays by hand, and pass them to "
            "Trainer.start_from"
        )

    def forms_for(
        self, layer: Layer, names: Collection[str], kind: str | None = None
    ) -> list[Form]:
        """Return the forms of a layer whose arrays have these names.

        Forms that need fewer of the names are left out. kind: the class or operator of
        the arrays, if it is known.

        Raises
        ------
        ValueError
            If the arrays of no form are all there.
        """
        forms = self.forms(layer)
        if kind is not None:
            forms = [f for f in forms if not f.kinds or kind in f.kinds] or forms
        present = [f for f in forms if set(f.required) <= set(names)]
        if not present:
            missing = [name for name in forms[0].required if name not in names]
            raise ValueError(
                f"{self.library} stores {layer} as {' and '.join(forms[0].required)}, "
                f"but there are {' and '.join(names) or 'no arrays'}: "
                f"{' and '.join(missing)} missing"
            )
        most = max(len(form.required) for form in present)
        return [form for form in present if len(form.required) == most]

    def to_ours(
        self,
        layer: Layer,
        tensors: Mapping[str, Any],
        *,
        form: Form | None = None,
    ) -> tuple[Any, Any]:
        """Return (params, state) of a layer from arrays with the names of the library.

        tensors: {name: array}. Others than those of the layer are ignored. The state
        has only what the library stores, not the key of a dropout.

        Raises
        ------
        TypeError
            If the table does not have this layer.
        ValueError
            If an array is missing.
        """
        arrays = {name: np.asarray(array) for name, array in tensors.items()}
        forms = self.forms_for(layer, arrays) if form is None else [form]
        leaves = _first_that_fits(forms, lambda each: each.read(arrays))
        return _nested(leaves, "params"), _nested(leaves, "state")

    def to_theirs(
        self, layer: Layer, params: Any, state: Any, *, form: Form | None = None
    ) -> dict[str, np.ndarray]:
        """Return the arrays of a layer with the names of the library.

        form: one of `forms(layer)`, by default the first that can hold the arrays.

        Raises
        ------
        TypeError
            If the table does not have this layer.
        ValueError
            If the library cannot store these parameters.
        """
        leaves = leaves_of(params, state)
        forms = [form] if form is not None else self.forms(layer)
        # without the forms that hold other leaves, such as no running statistics
        forms = [f for f in forms if set(f.leaves) <= leaves.keys()] or forms[:1]
        return _first_that_fits(forms, lambda each: each.write(leaves))


def _first_that_fits(
    forms: list[Form], convert: Callable[[Form], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Return the arrays of the first form that has their shapes and values.

    Raises
    ------
    ValueError
        If there is none: the error of the first form.
    """
    for form in forms:
        with suppress(ValueError):
            return convert(form)
    return convert(forms[0])


def leaves_of(params: Any, state: Any) -> dict[str, Any]:
    """Return {path: leaf} of both trees, with "params." or "state." in front."""
    trees = {"params": params, "state": state}
    return {
        f"{name}.{path}": leaf
        for name, tree in trees.items()
        for path, leaf in named_leaves(tree)
    }


def as_dtype(array: Any, dtype: Any) -> np.ndarray:
    """Return a NumPy array of real numbers converted to a floating dtype.

    array: of float16, float32, float64 or bfloat16 (of ml_dtypes, or a tensor of
    PyTorch that has been made wider).

    Raises
    ------
    TypeError
        If it holds integers, booleans or complex numbers, as quantized weights do.
    ValueError
        If a finite number becomes infinite.
    """
    array = np.asarray(array)
    # dtypes of ml_dtypes are of kind "V" or "f"
    is_real = array.dtype.kind == "f" or array.dtype.name.startswith("bfloat")
    if not is_real:
        raise TypeError(
            f"expected real floating numbers, got {array.dtype}: convert integers "
            "(quantized weights) to float32 with their scales first"
        )
    with np.errstate(over="ignore"):
        converted: np.ndarray = array.astype(dtype, copy=False)
    if np.isinf(converted).sum() > np.isinf(array.astype(np.float64)).sum():
        largest = np.max(np.abs(array.astype(np.float64)))
        raise ValueError(
            f"its largest number is {largest:g}, which {np.dtype(dtype).name} cannot "
            "hold: use a wider dtype for the trainer"
        )
    return converted


def _nested(leaves: Mapping[str, Any], root: str) -> Any:
    """Return the tree of the leaves under `root`; numbers in paths make tuples."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        first, *inner, last = path.split(".")
        if first != root:
            continue
        branch = tree
        for name in inner:
            branch = branch.setdefault(name, {})
        branch[last] = leaf
    return _with_tuples(tree)


def _with_tuples(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    branches = {name: _with_tuples(branch) for name, branch in tree.items()}
    if branches and all(name.isdigit() for name in branches):
        # positions without leaves, as that of an activation, are empty dicts
        last = max(int(name) for name in branches)
        return tuple(branches.get(str(i), {}) for i in range(last + 1))
    return branches


# --- rules ----------------------------------------------------------------------------


def _one(
    ours: str,
    theirs: str,
    how: str,
    read: Callable[[np.ndarray], np.ndarray],
    write: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Rule:
    """Return the rule of one array; `write` is `read` by default, its own inverse."""
    back = read if write is None else write
    return Rule((ours,), (theirs,), how, lambda a: (read(a),), lambda a: (back(a),))


def _unchanged(array: np.ndarray) -> np.ndarray:
    return array


def _same(ours: str, theirs: str) -> Rule:
    return _one(ours, theirs, "the same", _unchanged)


def _transposed(ours: str, theirs: str) -> Rule:
    def turned(array: np.ndarray) -> np.ndarray:
        if array.ndim != 2:
            raise ValueError(f"expected a matrix, got an array of shape {array.shape}")
        return np.transpose(array)

    return _one(ours, theirs, "transposed", turned)


def _channels_moved(ours: str, theirs: str) -> Rule:
    """(*window, in, out) here, (out, in, *window) there."""

    def read(array: np.ndarray) -> np.ndarray:
        axes = (*range(2, array.ndim), 1, 0)
        return np.transpose(array, axes)

    def write(array: np.ndarray) -> np.ndarray:
        rank = array.ndim - 2
        return np.transpose(array, (rank + 1, rank, *range(rank)))

    return _one(ours, theirs, "the last two axes, exchanged, come first", read, write)


def _ignored(name: str, value: np.generic) -> Rule:
    """Return the rule of an array that has no counterpart here; `value` is written."""
    how = f"not read; {value} is written"
    rule = Rule((), (name,), how, lambda a: (), lambda: (np.asarray(value),))
    return replace(rule, optional=True)


def _inside(
    form: Form, ours: str, theirs: str, rename: Callable[[str], str] = str
) -> tuple[Rule, ...]:
    """Return the rules of a layer inside another one, at the path and the prefix."""

    def path(leaf: str) -> str:
        root, _, rest = leaf.partition(".")
        return f"{root}.{ours}.{rest}"

    return tuple(
        replace(
            rule,
            ours=tuple(path(leaf) for leaf in rule.ours),
            theirs=tuple(theirs + rename(name) for name in rule.theirs),
        )
        for rule in form.rules
    )


def _without_first_axis(array: np.ndarray) -> np.ndarray:
    if array.shape[:1] != (1,) or array.ndim < 2:
        raise ValueError(f"expected a first axis of length 1, got {array.shape}")
    return array.reshape(array.shape[1:])


def _thirds(array: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split the first axis in three."""
    if array.shape[0] % 3:
        raise ValueError(
            f"query, key and value should share {array.shape[0]} rows equally"
        )
    first, second, third = np.split(array, 3)
    return first, second, third


def _joined(*arrays: np.ndarray) -> tuple[np.ndarray]:
    """Join the parts of query, key and value along the first axis."""
    rows = {array.shape[0] for array in arrays}
    if len({array.shape[1:] for array in arrays}) > 1 or len(rows) > 1:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise ValueError(f"query, key and value of shapes {shapes} are not one array")
    return (np.concatenate(arrays),)


def _expect_zero(name: str, array: np.ndarray, remedy: str) -> None:
    if np.any(array):
        raise ValueError(f"{name} is not zero, but is left out there: {remedy}")


# --- layers that are stored alike -----------------------------------------------------


def _affine(
    layer: Any, scale: str, bias: str, *, read: Callable[[str, str], Rule] = _same
) -> tuple[Rule, ...]:
    """Return the rules of the scale and the bias that a norm has."""
    names = {"scale": scale, "bias": bias}
    return tuple(
        read(f"params.{ours}", theirs)
        for ours, theirs in names.items()
        if getattr(layer, ours)
    )


def _biased(layer: Any, weight: Rule, bias: str) -> tuple[Rule, ...]:
    """Return the rule of the weight and, if the layer has one, of the bias."""
    return (weight, _same("params.bias", bias)) if layer.bias else (weight,)


def _table_of(rule: Rule, *kinds: str) -> list[Form]:
    return [Form(" or ".join(kinds), (rule,), kinds)]


# --- PyTorch --------------------------------------------------------------------------


def _torch_dense(layer: Any) -> list[Form]:
    weight = _transposed("params.weight", "weight")
    forms = [Form("Linear", _biased(layer, weight, "bias"))]
    # a convolution with a window of 1 is a Dense over channels
    for rank in (1, 2):
        weight = _window_of_one(rank)
        forms.append(Form(f"Conv{rank}d(1)", _biased(layer, weight, "bias")))
    return forms


def _gpt2_dense(layer: Any) -> Form:
    """Return the form of Hugging Face's Conv1D, whose weight is (fan_in, width).

    It is not a form of every Dense: a square weight does not show which it is.
    """
    return Form("Conv1D", _biased(layer, _same("params.weight", "weight"), "bias"))


def _window_of_one(rank: int) -> Rule:
    ones = (1,) * rank

    def read(array: np.ndarray) -> np.ndarray:
        if array.shape[2:] != ones:
            raise ValueError(f"expected a window of 1, got {array.shape[2:]}")
        return np.transpose(array.reshape(array.shape[:2]))

    def write(array: np.ndarray) -> np.ndarray:
        return np.transpose(array).reshape(*array.shape[::-1], *ones)

    return _one(
        "params.weight", "weight", "transposed, without its window", read, write
    )


def _torch_bilinear(layer: Any) -> list[Form]:
    def read(array: np.ndarray) -> np.ndarray:
        return np.transpose(array, (1, 2, 0))

    def write(array: np.ndarray) -> np.ndarray:
        return np.transpose(array, (2, 0, 1))

    weight = _one("params.weight", "weight", "the last axis comes first", read, write)
    return [Form("Bilinear", _biased(layer, weight, "bias"))]


def _torch_conv(layer: Any) -> list[Form]:
    weight = _channels_moved("params.weight", "weight")
    kind = type(layer).__name__.replace("D", "d")
    return [Form(kind, _biased(layer, weight, "bias"))]


def _torch_norm(layer: Any) -> list[Form]:
    return [Form(type(layer).__name__, _affine(layer, "weight", "bias"))]


def _torch_batch_norm(layer: Any) -> list[Form]:
    return [
        Form("BatchNorm", (*_affine(layer, "weight", "bias"), *_torch_running(layer)))
    ]


def _torch_instance_norm(layer: Any) -> list[Form]:
    running = _torch_running(layer) if layer.running else ()
    return [Form("InstanceNorm", (*_affine(layer, "weight", "bias"), *running))]


def _torch_running(layer: Any) -> tuple[Rule, ...]:
    """Return the rules of running statistics, unbiased in both libraries."""
    name = "num_batches_tracked"
    count = _ignored(name, np.int64(0))
    if layer.momentum is None:
        # a count of batches that is a floating number here
        count = _one(
            "state.count",
            name,
            "as a floating number",
            lambda a: np.asarray(a, np.float64),
            lambda a: np.asarray(a, np.int64),
        )
    return (
        _same("state.mean", "running_mean"),
        _same("state.variance", "running_var"),
        count,
    )


def _torch_prelu(layer: Any) -> list[Form]:
    return _table_of(_same("params.slope", "weight"), "PReLU")


def _torch_embedding(layer: Any) -> list[Form]:
    name = "EmbeddingBag" if isinstance(layer, EmbeddingBag) else "Embedding"
    forms = [Form(name, (_same("params.weight", "weight"),))]
    # a table may be a bare Parameter, which has no name inside its module
    forms.append(Form("Parameter", (_same("params.weight", ""),)))
    if isinstance(layer, PositionEmbedding):
        added = _one(
            "params.weight",
            "",
            "without its first axis, of length 1",
            _without_first_axis,
            lambda a: a[None],
        )
        forms.append(Form("Parameter(1, length, width)", (added,)))
    return forms


def _torch_recurrent(layer: Any) -> list[Form]:
    if getattr(layer, "reset", "after") != "after":
        raise ValueError(
            "PyTorch has no GRU that resets before the product: use "
            "GRU(..., reset='after')"
        )
    both: list[Rule] = []
    without: list[Rule] = []
    for i in range(layer.depth):
        for n, direction in enumerate(layer._directions):
            end = f"l{i}" + "_reverse" * n
            ours = f"params.{i}.{direction}"
            rest = [_transposed(f"{ours}.recurrent", f"weight_hh_{end}")]
            if getattr(layer, "projection", None) is not None:
                rest.append(_transposed(f"{ours}.projection", f"weight_hr_{end}"))
            both += [_transposed(f"{ours}.weight", f"weight_ih_{end}"), *rest]
            both.append(_torch_biases(layer, ours, end))
            without += [_torch_without_bias(layer, ours, end), *rest]
    name = type(layer).__name__
    return [Form(name, tuple(both)), Form(f"{name}(bias=False)", tuple(without))]


def _torch_biases(layer: Any, ours: str, end: str) -> Rule:
    theirs = (f"bias_ih_{end}", f"bias_hh_{end}")
    if isinstance(layer, GRU):
        paths = (f"{ours}.bias", f"{ours}.recurrent_bias")
        how = "added, except the part of n in the second, which is recurrent_bias"
        return Rule(paths, theirs, how, _sum_but_last_third, _zeros_but_last_third)

    def read(first: np.ndarray, second: np.ndarray) -> _Arrays:
        return (first + second,)

    def write(bias: np.ndarray) -> _Arrays:
        return bias, np.zeros(bias.shape, bias.dtype)

    how = "added; on the way back the second is zero"
    return Rule((f"{ours}.bias",), theirs, how, read, write)


def _sum_but_last_third(first: np.ndarray, second: np.ndarray) -> _Arrays:
    """Return the sum of two biases of a GRU, and the part that r multiplies."""
    end = 2 * (first.shape[0] // 3)
    return np.concatenate([first[:end] + second[:end], first[end:]]), second[end:]


def _zeros_but_last_third(bias: np.ndarray, recurrent_bias: np.ndarray) -> _Arrays:
    zeros = np.zeros(2 * recurrent_bias.shape[0], bias.dtype)
    return bias, np.concatenate([zeros, recurrent_bias])


def _torch_without_bias(layer: Any, ours: str, end: str) -> Rule:
    """Return the rule of the first weight, which also stands for biases of zero."""
    parts = [("bias", 1)]
    if isinstance(layer, GRU):
        parts.append(("recurrent_bias", 3))

    def read(weight: np.ndarray) -> _Arrays:
        rows = weight.shape[0]
        zeros = [np.zeros(rows // divisor, weight.dtype) for _, divisor in parts]
        return (np.transpose(weight), *zeros)

    def write(weight: np.ndarray, *biases: np.ndarray) -> _Arrays:
        for (name, _), bias in zip(parts, biases, strict=True):
            _expect_zero(name, bias, "use a module with bias=True")
        return (np.transpose(weight),)

    paths = (f"{ours}.weight", *(f"{ours}.{name}" for name, _ in parts))
    how = "transposed; the missing bias is zero"
    return Rule(paths, (f"weight_ih_{end}",), how, read, write)


# names of query, key, value and output in modules that keep four Linear layers
_FOUR = {
    "four Linear layers": ("query", "key", "value", "output"),
    "BERT": ("self.query", "self.key", "self.value", "output.dense"),
    "ViT": (
        "attention.query",
        "attention.key",
        "attention.value",
        "output.dense",
    ),
    "Llama": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "CLIP or BART": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "DistilBERT": ("q_lin", "k_lin", "v_lin", "out_lin"),
    "T5": ("q", "k", "v", "o"),
    "diffusers": ("to_q", "to_k", "to_v", "to_out.0"),
}
_PROJECTIONS = ("query", "key", "value")


def _torch_attention(layer: Any) -> list[Form]:
    if layer.relative is not None:
        raise ValueError(
            "PyTorch has no attention with `relative`: load query, key, value and "
            "output one by one, by a mapping of these paths"
        )
    dense = _torch_dense(layer)[0]
    learned = _torch_learned(layer)
    forms = [
        Form(
            "MultiheadAttention",
            _packed(layer, "in_proj_weight", "in_proj_bias", "out_proj.") + learned,
        ),
        Form("MultiheadAttention(kdim=, vdim=)", _separate(layer) + learned),
    ]
    if layer.learned_key:
        return forms
    for name, prefixes in _FOUR.items():
        rules: tuple[Rule, ...] = ()
        for part, prefix in zip((*_PROJECTIONS, "output"), prefixes, strict=True):
            rules += _inside(dense, part, f"{prefix}.")
        forms.append(Form(f"attention of {name}", rules))
    names = ("c_attn.weight", "c_attn.bias", "c_proj.")
    gpt2 = _packed(layer, *names, transpose=False)
    forms.append(Form("attention of GPT-2", gpt2))
    forms.append(Form("attention of nanoGPT", _packed(layer, *names)))
    timm = _packed(layer, "qkv.weight", "qkv.bias", "proj.")
    return [*forms, Form("attention of timm", timm)]


def _packed(
    layer: Any, weight: str, bias: str, output: str, *, transpose: bool = True
) -> tuple[Rule, ...]:
    """Return the rules of attention with Q, K and V in one array."""

    def read(array: np.ndarray) -> _Arrays:
        rows = _thirds(array if transpose else np.transpose(array))
        if rows[0].shape[0] != rows[0].shape[-1]:
            # the transposed array of another form would be split into wrong parts
            raise ValueError(f"expected three square matrices, got {array.shape}")
        return [np.transpose(part) for part in rows]

    def write(*arrays: np.ndarray) -> _Arrays:
        (rows,) = _joined(*(np.transpose(array) for array in arrays))
        return (rows if transpose else np.transpose(rows),)

    how = "thirds, transposed" if transpose else "thirds"
    paths = tuple(f"params.{name}.weight" for name in _PROJECTIONS)
    rules = [Rule(paths, (weight,), how, read, write)]
    if layer.bias:
        rules.append(_packed_bias(bias))
    dense = _torch_dense(layer)[0] if transpose else _gpt2_dense(layer)
    return (*rules, *_inside(dense, "output", output))


def _packed_bias(name: str) -> Rule:
    paths = tuple(f"params.{part}.bias" for part in _PROJECTIONS)
    return Rule(paths, (name,), "thirds", _thirds, _joined)


def _separate(layer: Any) -> tuple[Rule, ...]:
    rules = [
        _transposed(f"params.{name}.weight", f"{name[0]}_proj_weight")
        for name in _PROJECTIONS
    ]
    if layer.bias:
        rules.append(_packed_bias("in_proj_bias"))
    return (*rules, *_inside(_torch_dense(layer)[0], "output", "out_proj."))


def _torch_learned(layer: Any) -> tuple[Rule, ...]:
    """Return the rules of one more key and its value (add_bias_kv)."""
    if not layer.learned_key:
        return ()
    return tuple(
        _one(
            f"params.learned.{name}",
            f"bias_{name}",
            "without its first axis, of length 1",
            _without_first_axis,
            lambda a: a[None],
        )
        for name in ("k", "v")
    )


# names of the layers of a transformer block, relative to the block: (attention, norm of
# attention, cross attention, its norm, first and second Linear, norm)
_BLOCKS = {
    "TransformerEncoderLayer": {
        "attention": "self_attn",
        "attention_norm": "norm1",
        "feed.0": "linear1",
        "feed.2": "linear2",
        "feed_norm": "norm2",
    },
    "TransformerDecoderLayer": {
        "attention": "self_attn",
        "attention_norm": "norm1",
        "cross": "multihead_attn",
        "cross_norm": "norm2",
        "feed.0": "linear1",
        "feed.2": "linear2",
        "feed_norm": "norm3",
    },
    "block of BERT": {
        "attention": "attention",
        "attention_norm": "attention.output.LayerNorm",
        "feed.0": "intermediate.dense",
        "feed.2": "output.dense",
        "feed_norm": "output.LayerNorm",
    },
    "block of DistilBERT": {
        "attention": "attention",
        "attention_norm": "sa_layer_norm",
        "feed.0": "ffn.lin1",
        "feed.2": "ffn.lin2",
        "feed_norm": "output_layer_norm",
    },
    "block of ViT": {
        "attention": "attention",
        "attention_norm": "layernorm_before",
        "feed.0": "intermediate.dense",
        "feed.2": "output.dense",
        "feed_norm": "layernorm_after",
    },
    "block of timm": {
        "attention": "attn",
        "attention_norm": "norm1",
        "feed.0": "mlp.fc1",
        "feed.2": "mlp.fc2",
        "feed_norm": "norm2",
    },
    "block of CLIP": {
        "attention": "self_attn",
        "attention_norm": "layer_norm1",
        "feed.0": "mlp.fc1",
        "feed.2": "mlp.fc2",
        "feed_norm": "layer_norm2",
    },
    "block of GPT-2": {
        "attention": "attn",
        "attention_norm": "ln_1",
        "feed.0": "mlp.c_fc",
        "feed.2": "mlp.c_proj",
        "feed_norm": "ln_2",
    },
    "block of nanoGPT": {
        "attention": "attn",
        "attention_norm": "ln_1",
        "feed.0": "mlp.c_fc",
        "feed.2": "mlp.c_proj",
        "feed_norm": "ln_2",
    },
    "block of Llama": {
        "attention": "self_attn",
        "attention_norm": "input_layernorm",
        "feed_norm": "post_attention_layernorm",
    },
}
# the form of attention in these blocks; the others are PyTorch's own
_ATTENTION_IN = {
    "block of BERT": ("attention of BERT",),
    "block of DistilBERT": ("attention of DistilBERT",),
    "block of ViT": ("attention of ViT",),
    "block of timm": ("attention of timm",),
    "block of CLIP": ("attention of CLIP or BART",),
    "block of GPT-2": ("attention of GPT-2",),
    "block of nanoGPT": ("attention of nanoGPT",),
    "block of Llama": ("attention of Llama",),
}


def _torch_block(layer: Any) -> list[Form]:
    forms = []
    for name, parts in _BLOCKS.items():
        if ("cross" in parts) == (layer.cross is not None):
            rules = _block_rules(layer, name, parts)
            if rules is not None:
                forms.append(Form(name, rules))
    return forms


def _block_rules(
    layer: Any, name: str, parts: dict[str, str]
) -> tuple[Rule, ...] | None:
    """Return the rules of a block, or None if it cannot be one of that name."""
    rules: tuple[Rule, ...] = ()
    dense = _torch_dense(Dense(1))[0]
    if name == "block of GPT-2":
        dense = _gpt2_dense(Dense(1))
    attention_forms = _ATTENTION_IN.get(name, ("MultiheadAttention",))
    for part, prefix in parts.items():
        if part in ("attention", "cross"):
            forms = _torch_attention(getattr(layer, part))
            matches = [form for form in forms if form.name in attention_forms]
            if not matches:
                return None
            rules += _inside(matches[0], part, f"{prefix}.")
        elif part.endswith("_norm"):
            rules += _inside(_torch_norm(layer.norm)[0], part, f"{prefix}.")
        else:
            rules += _inside(dense, part, f"{prefix}.")
    if name == "block of Llama":
        if not isinstance(layer.activation, SwiGLU):
            return None
        rules += _gated_feed("mlp.")
    return rules


def _gated_feed(prefix: str) -> tuple[Rule, ...]:
    """Return the rules of Llama's three matrices; biases are zero there."""

    def read(gate: np.ndarray, up: np.ndarray) -> _Arrays:
        weight = np.transpose(np.concatenate([up, gate]))
        return weight, np.zeros(weight.shape[1], weight.dtype)

    def write(weight: np.ndarray, bias: np.ndarray) -> _Arrays:
        _expect_zero("feed.0.bias", bias, "write a form with a bias")
        up, gate = np.split(np.transpose(weight), 2)
        return gate, up

    def read_down(down: np.ndarray) -> _Arrays:
        return np.transpose(down), np.zeros(down.shape[0], down.dtype)

    def write_down(weight: np.ndarray, bias: np.ndarray) -> _Arrays:
        _expect_zero("feed.2.bias", bias, "write a form with a bias")
        return (np.transpose(weight),)

    first = ("params.feed.0.weight", "params.feed.0.bias")
    second = ("params.feed.2.weight", "params.feed.2.bias")
    both = (f"{prefix}gate_proj.weight", f"{prefix}up_proj.weight")
    how = "up, then gate, transposed; biases are zero"
    return (
        Rule(first, both, how, read, write),
        Rule(
            second,
            (f"{prefix}down_proj.weight",),
            "transposed; the bias is zero",
            read_down,
            write_down,
        ),
    )


PYTORCH = Convention(
    "PyTorch",
    ".",
    {
        Dense: _torch_dense,
        Bilinear: _torch_bilinear,
        **dict.fromkeys((Conv1D, Conv2D, Conv3D), _torch_conv),
        **dict.fromkeys(
            (ConvTranspose1D, ConvTranspose2D, ConvTranspose3D), _torch_conv
        ),
        BatchNorm: _torch_batch_norm,
        InstanceNorm: _torch_instance_norm,
        **dict.fromkeys((LayerNorm, GroupNorm, RMSNorm), _torch_norm),
        **dict.fromkeys((Embedding, Unembedding, PositionEmbedding), _torch_embedding),
        PReLU: _torch_prelu,
        **dict.fromkeys((RNN, LSTM, GRU), _torch_recurrent),
        MultiHeadAttention: _torch_attention,
        TransformerBlock: _torch_block,
    },
)


# --- Keras ----------------------------------------------------------------------------


def _keras_dense(layer: Any) -> list[Form]:
    rules = _biased(layer, _same("params.weight", "kernel"), "bias")
    return [Form("Dense", rules, ("Dense", "EinsumDense"))]


def _keras_conv(layer: Any) -> list[Form]:
    name = type(layer).__name__

    def read(array: np.ndarray) -> np.ndarray:
        if array.shape[-1] != layer.width:
            raise ValueError(
                f"expected a kernel with {layer.width} filters, got {array.shape}"
            )
        return array

    weight = _one("params.weight", "kernel", "the same", read, _unchanged)
    forms = [Form(name, _biased(layer, weight, "bias"), (name,))]
    if layer.groups > 1:
        kind = f"Depthwise{name}"
        rules = _biased(layer, _depthwise(layer.groups), "bias")
        forms.append(Form(kind, rules, (kind,)))
    return forms


def _depthwise(groups: int) -> Rule:
    """(*window, 1, channels · multiplier) here, (*window, channels, multiplier)."""

    def read(array: np.ndarray) -> np.ndarray:
        return array.reshape(*array.shape[:-2], 1, -1)

    def write(array: np.ndarray) -> np.ndarray:
        if array.shape[-2] != 1:
            raise ValueError(
                f"a convolution with {groups} groups of {array.shape[-2]} channels is "
                "not depthwise"
            )
        return array.reshape(*array.shape[:-2], groups, array.shape[-1] // groups)

    how = "the last two axes are joined, after an axis of length 1"
    return _one("params.weight", "kernel", how, read, write)


def _keras_conv_transpose(layer: Any) -> list[Form]:
    if layer.groups > 1:
        raise ValueError(
            f"transposed convolutions of Keras have no groups, got {layer.groups}"
        )
    name = type(layer).__name__.replace("Transpose1D", "1DTranspose")
    name = name.replace("Transpose2D", "2DTranspose").replace(
        "Transpose3D", "3DTranspose"
    )
    rules = _biased(layer, _same("params.weight", "kernel"), "bias")
    return [Form(name, rules, (name,))]


def _keras_batch_norm(layer: Any) -> list[Form]:
    running = (
        _same("state.mean", "moving_mean"),
        _same("state.variance", "moving_variance"),
    )
    name = "BatchNormalization"
    return [Form(name, (*_affine(layer, "gamma", "beta"), *running), (name,))]


def _keras_norm(name: str) -> Callable[[Any], list[Form]]:
    def forms(layer: Any) -> list[Form]:
        return [Form(name, _affine(layer, "gamma", "beta"), (name,))]

    return forms


def _keras_rms_norm(layer: Any) -> list[Form]:
    names = {"RMSNormalization": "scale", "LayerNormalization": "gamma"}
    return [
        Form(kind, _affine(layer, name, ""), (kind,)) for kind, name in names.items()
    ]


def _keras_prelu(layer: Any) -> list[Form]:
    return [
        Form("PReLU", (_slopes("alpha", before),), ("PReLU",)) for before in range(4)
    ]


def _slopes(name: str, before: int, after: int = 0) -> Rule:
    """Return the rule of a vector that has axes of length 1 before and after it."""

    def read(array: np.ndarray) -> np.ndarray:
        if max(array.shape, default=1) != array.size:
            raise ValueError(
                f"{name} of shape {array.shape} has slopes for each position: PReLU "
                "has one for each channel"
            )
        return array.reshape(-1)

    def write(array: np.ndarray) -> np.ndarray:
        return array.reshape((1,) * before + array.shape + (1,) * after)

    return _one("params.slope", name, "without axes of length 1", read, write)


def _keras_recurrent(layer: Any) -> list[Form]:
    _expect_one_level(layer)
    if getattr(layer, "projection", None) is not None:
        raise ValueError("an LSTM of Keras has no projection")
    prefixes = {"forward": "", "reverse": ""}
    if layer.bidirectional:
        prefixes = {"forward": "forward_layer/", "reverse": "backward_layer/"}
    order = (1, 0, 2) if isinstance(layer, GRU) else None
    both: list[Rule] = []
    without: list[Rule] = []
    for direction in layer._directions:
        ours = f"params.0.{direction}"
        prefix = prefixes[direction]
        recurrent = _gates(f"{ours}.recurrent", f"{prefix}recurrent_kernel", order)
        both += [_gates(f"{ours}.weight", f"{prefix}kernel", order), recurrent]
        both.append(_keras_bias(layer, ours, f"{prefix}bias", order))
        without += [_kernel_without_bias(layer, ours, prefix, order), recurrent]
    name = "SimpleRNN" if isinstance(layer, RNN) else type(layer).__name__
    kinds = ("Bidirectional",) if layer.bidirectional else (name,)
    return [
        Form(name, tuple(both), kinds),
        Form(f"{name}(use_bias=False)", tuple(without), kinds),
    ]


def _expect_one_level(layer: Any) -> None:
    if layer.depth > 1:
        raise ValueError(
            f"{layer} has {layer.depth} layers, which are as many layers there: "
            "convert each by a layer of depth 1"
        )


def _reordered(
    array: np.ndarray, order: tuple[int, ...] | None, axis: int = -1
) -> np.ndarray:
    """Return the parts of an axis in another order."""
    if order is None:
        return array
    parts = np.split(array, len(order), axis=axis)
    return np.concatenate([parts[i] for i in order], axis=axis)


def _gates(ours: str, theirs: str, order: tuple[int, ...] | None) -> Rule:
    """Return the rule of columns of gates whose order is its own inverse."""
    if order is None:
        return _same(ours, theirs)
    how = "gates in the order z, r, h there and r, u, n here"
    return _one(ours, theirs, how, partial(_reordered, order=order))


def _keras_bias(
    layer: Any, ours: str, theirs: str, order: tuple[int, ...] | None
) -> Rule:
    if not isinstance(layer, GRU) or layer.reset != "after":
        return _gates(f"{ours}.bias", theirs, order)

    def read(array: np.ndarray) -> _Arrays:
        if array.ndim != 2:
            raise ValueError(
                f"a bias of shape {array.shape} is that of reset_after=False: use "
                "GRU(..., reset='before')"
            )
        return _sum_but_last_third(*_reordered(array, order))

    def write(bias: np.ndarray, recurrent_bias: np.ndarray) -> _Arrays:
        both = np.stack(_zeros_but_last_third(bias, recurrent_bias))
        return (_reordered(both, order),)

    paths = (f"{ours}.bias", f"{ours}.recurrent_bias")
    how = "two rows, added except the part of n in the second; gates z, r, h there"
    return Rule(paths, (theirs,), how, read, write)


def _kernel_without_bias(
    layer: Any, ours: str, prefix: str, order: tuple[int, ...] | None
) -> Rule:
    """Return the rule of a kernel, which also stands for biases of zero."""
    parts = [("bias", 1)]
    if isinstance(layer, GRU) and layer.reset == "after":
        parts.append(("recurrent_bias", 3))

    def read(kernel: np.ndarray) -> _Arrays:
        columns = kernel.shape[-1]
        zeros = [np.zeros(columns // divisor, kernel.dtype) for _, divisor in parts]
        return (_reordered(kernel, order), *zeros)

    def write(kernel: np.ndarray, *biases: np.ndarray) -> _Arrays:
        for (name, _), bias in zip(parts, biases, strict=True):
            _expect_zero(name, bias, "use a layer with use_bias=True")
        return (_reordered(kernel, order),)

    paths = (f"{ours}.weight", *(f"{ours}.{name}" for name, _ in parts))
    how = "the same; the missing bias is zero"
    return Rule(paths, (f"{prefix}kernel",), how, read, write)


def _keras_attention(layer: Any) -> list[Form]:
    if layer.relative is not None or layer.learned_key:
        raise ValueError("attention of Keras has neither `relative` nor `learned_key`")
    heads = {
        "query": layer.heads,
        "key": layer.key_heads or layer.heads,
        "value": layer.key_heads or layer.heads,
    }
    rules: list[Rule] = []
    for name, count in heads.items():
        rules.append(
            _split_axis(f"params.{name}.weight", f"{name}/kernel", count, axis=1)
        )
        if layer.bias:
            rules.append(
                _split_axis(f"params.{name}.bias", f"{name}/bias", count, axis=0)
            )
    output = "attention_output"
    rules.append(
        _split_axis("params.output.weight", f"{output}/kernel", layer.heads, axis=0)
    )
    if layer.bias:
        rules.append(_same("params.output.bias", f"{output}/bias"))
    names = ("MultiHeadAttention", "GroupedQueryAttention")
    return [Form(names[layer.key_heads is not None], tuple(rules), names)]


def _split_axis(ours: str, theirs: str, heads: int, axis: int) -> Rule:
    """Return the rule of an axis that is split in heads there."""

    def read(array: np.ndarray) -> np.ndarray:
        shape = array.shape
        joined = (shape[axis] * shape[axis + 1],)
        return array.reshape(shape[:axis] + joined + shape[axis + 2 :])

    def write(array: np.ndarray) -> np.ndarray:
        shape = array.shape
        parts = (heads, shape[axis] // heads)
        return array.reshape(shape[:axis] + parts + shape[axis + 1 :])

    return _one(
        ours, theirs, "the axes of heads and of their width, joined", read, write
    )


def _keras_embedding(layer: Any) -> list[Form]:
    return _table_of(_same("params.weight", "embeddings"), "Embedding")


KERAS = Convention(
    "Keras",
    "/",
    {
        Dense: _keras_dense,
        **dict.fromkeys((Conv1D, Conv2D, Conv3D), _keras_conv),
        **dict.fromkeys(
            (ConvTranspose1D, ConvTranspose2D, ConvTranspose3D), _keras_conv_transpose
        ),
        BatchNorm: _keras_batch_norm,
        LayerNorm: _keras_norm("LayerNormalization"),
        **dict.fromkeys((GroupNorm, InstanceNorm), _keras_norm("GroupNormalization")),
        RMSNorm: _keras_rms_norm,
        **dict.fromkeys((Embedding, Unembedding, PositionEmbedding), _keras_embedding),
        PReLU: _keras_prelu,
        **dict.fromkeys((RNN, LSTM, GRU), _keras_recurrent),
        MultiHeadAttention: _keras_attention,
    },
)


# --- ONNX -----------------------------------------------------------------------------
# Names are those of the inputs of the operators.


def _onnx_dense(layer: Any) -> list[Form]:
    plain = _biased(layer, _same("params.weight", "B"), "C")
    turned = _biased(layer, _transposed("params.weight", "B"), "C")
    return [
        Form("Gemm(transB=1)", turned, ("Gemm(transB=1)",)),
        Form("Gemm or MatMul and Add", plain, ("Gemm", "MatMul")),
    ]


def _onnx_conv(kind: str) -> Callable[[Any], list[Form]]:
    def forms(layer: Any) -> list[Form]:
        weight = _channels_moved("params.weight", "W")
        return [Form(kind, _biased(layer, weight, "B"), (kind,))]

    return forms


def _onnx_batch_norm(layer: Any) -> list[Form]:
    running = (
        _same("state.mean", "input_mean"),
        _same("state.variance", "input_var"),
    )
    kind = "BatchNormalization"
    return [Form(kind, (*_affine(layer, "scale", "B"), *running), (kind,))]


def _onnx_norm(kind: str, scale: str, bias: str) -> Callable[[Any], list[Form]]:
    def forms(layer: Any) -> list[Form]:
        return [Form(kind, _affine(layer, scale, bias), (kind,))]

    return forms


def _onnx_embedding(layer: Any) -> list[Form]:
    return _table_of(_same("params.weight", "data"), "Gather")


def _onnx_prelu(layer: Any) -> list[Form]:
    # broadcast to (batch, channels, *space), so the channels have axes after them
    return [
        Form("PRelu", (_slopes("slope", 0, after),), ("PRelu",)) for after in range(4)
    ]


# the gates of ONNX: for each of ours in turn, the place there; and the reverse
_ONNX_GATES = {
    RNN: ((0,), (0,)),
    LSTM: ((0, 2, 3, 1), (0, 3, 1, 2)),
    GRU: ((1, 0, 2), (1, 0, 2)),
}


def _onnx_recurrent(layer: Any) -> list[Form]:
    _expect_one_level(layer)
    if getattr(layer, "projection", None) is not None:
        raise ValueError("an LSTM of ONNX has no projection")
    kind = type(layer).__name__
    ways = [f"params.0.{direction}" for direction in layer._directions]
    orders = _ONNX_GATES[next(k for k in type(layer).__mro__ if k in _ONNX_GATES)]

    def matrices(ours: str, theirs: str) -> Rule:
        def read(array: np.ndarray) -> _Arrays:
            return [np.transpose(_reordered(a, orders[0], 0)) for a in array]

        def write(*arrays: np.ndarray) -> _Arrays:
            rows = [_reordered(np.transpose(a), orders[1], 0) for a in arrays]
            return (np.stack(rows),)

        paths = tuple(f"{way}.{ours}" for way in ways)
        how = "one row for each direction, transposed; gates in another order"
        return Rule(paths, (theirs,), how, read, write)

    rules = (matrices("weight", "W"), matrices("recurrent", "R"))
    biases = _onnx_biases(layer, ways, orders)
    zeros = _onnx_without_bias(layer, ways, rules[0])
    return [
        Form(kind, (*rules, biases), (kind,)),
        Form(f"{kind} without B", (zeros, rules[1]), (kind,)),
    ]


def _onnx_biases(
    layer: Any, ways: list[str], orders: tuple[tuple[int, ...], tuple[int, ...]]
) -> Rule:
    has_two = isinstance(layer, GRU) and layer.reset == "after"
    names = ("bias", "recurrent_bias") if has_two else ("bias",)

    def read(array: np.ndarray) -> _Arrays:
        leaves: list[np.ndarray] = []
        for row in array:
            first, second = (_reordered(a, orders[0]) for a in np.split(row, 2))
            leaves += (
                _sum_but_last_third(first, second) if has_two else [first + second]
            )
        return leaves

    def write(*arrays: np.ndarray) -> _Arrays:
        rows = []
        for start in range(0, len(arrays), len(names)):
            bias = arrays[start]
            pair: _Arrays = (bias, np.zeros(bias.shape, bias.dtype))
            if has_two:
                pair = _zeros_but_last_third(bias, arrays[start + 1])
            rows.append(np.concatenate([_reordered(a, orders[1]) for a in pair]))
        return (np.stack(rows),)

    paths = tuple(f"{way}.{name}" for way in ways for name in names)
    how = "the second half is added to the first"
    how += ", except its part of n" if has_two else "; on the way back it is zero"
    return Rule(paths, ("B",), how, read, write)


def _onnx_without_bias(layer: Any, ways: list[str], weights: Rule) -> Rule:
    """Return the rule of W, which also stands for biases of zero."""
    parts = [("bias", 1)]
    if isinstance(layer, GRU) and layer.reset == "after":
        parts.append(("recurrent_bias", 3))

    def read(array: np.ndarray) -> _Arrays:
        columns = array.shape[1]
        zeros = [np.zeros(columns // divisor, array.dtype) for _, divisor in parts]
        return [*weights.read(array), *(zeros * len(ways))]

    def write(*arrays: np.ndarray) -> _Arrays:
        for bias in arrays[len(ways) :]:
            _expect_zero("bias", bias, "add the input B to the operator")
        return weights.write(*arrays[: len(ways)])

    biases = tuple(f"{way}.{name}" for way in ways for name, _ in parts)
    how = f"{weights.how}; the missing bias is zero"
    return Rule((*weights.ours, *biases), weights.theirs, how, read, write)


ONNX = Convention(
    "ONNX",
    ".",
    {
        Dense: _onnx_dense,
        **dict.fromkeys((Conv1D, Conv2D, Conv3D), _onnx_conv("Conv")),
        **dict.fromkeys(
            (ConvTranspose1D, ConvTranspose2D, ConvTranspose3D),
            _onnx_conv("ConvTranspose"),
        ),
        BatchNorm: _onnx_batch_norm,
        LayerNorm: _onnx_norm("LayerNormalization", "Scale", "B"),
        RMSNorm: _onnx_norm("RMSNormalization", "scale", ""),
        InstanceNorm: _onnx_norm("InstanceNormalization", "scale", "B"),
        GroupNorm: _onnx_norm("GroupNormalization", "scale", "bias"),
        **dict.fromkeys((Embedding, Unembedding, PositionEmbedding), _onnx_embedding),
        PReLU: _onnx_prelu,
        **dict.fromkeys((RNN, LSTM, GRU), _onnx_recurrent),
    },
)
