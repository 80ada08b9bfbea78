"""The contract of layers and blocks: `init`, `forward` and `backward`."""

from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields
from functools import wraps
from typing import Any, ClassVar, NoReturn

from ..core.arrays import (
    Array,
    Cache,
    Key,
    Memory,
    Params,
    RowMask,
    Shape,
    State,
    first_true,
    namespace,
    non_finite_count,
)
from ..core.errors import described, expect
from ..core.trees import leaves, named_leaves, tree_map
from ..ops import all_finite, scan

__all__ = ["Layer", "is_shape", "kinds", "not_a_layer", "outline"]

# `init` of a layer
_Init = Callable[[Any, Key, Shape, Any], tuple[Params, State, Shape]]


def kinds(input_kinds: Any, x: Any) -> Any:
    """Return the expected dtype kind of each leaf of `x`, nested like x.

    Raises
    ------
    ValueError
        If x is a dict with a name that is not in `input_kinds`.
    """
    if isinstance(x, dict) and isinstance(input_kinds, dict):
        unknown = sorted(x.keys() - input_kinds.keys())
        fits = not unknown
        expect(fits, "expected inputs among {}, got {}", sorted(input_kinds), unknown)
        return {name: kinds(input_kinds[name], leaf) for name, leaf in x.items()}
    if isinstance(x, dict):
        return {name: kinds(input_kinds, leaf) for name, leaf in x.items()}
    if isinstance(input_kinds, dict):
        input_kinds = input_kinds["x"]  # x without names is the input called "x"
    if isinstance(x, tuple):
        return tuple(kinds(input_kinds, leaf) for leaf in x)
    return input_kinds


@dataclass(frozen=True)
class Layer:
    """A frozen dataclass of hyper-parameters with three pure methods.

    A layer holds no arrays: parameters, state and inputs are arguments, and all
    results are return values. A layer can therefore be printed, compared, hashed and
    pickled. A subclass that adds hyper-parameters needs the decorator
    `@dataclass(frozen=True)` as well.

    A layer with several inputs takes a tree of arrays as x: a dict of arrays by name (a
    single array then is the input called "x") or a tuple. The shape passed to `init`
    has the nesting of x, with a tuple of integers for each array. y and dy may be trees
    too. dx is nested like x, with None for inputs that have no gradient.
    """

    is_layer: ClassVar[bool] = True
    # True if x is a single array, never a tree
    one_array: ClassVar[bool] = False
    # the kind of dtype of x, as `isdtype` of the Array API Standard names it; a dict by
    # input name for layers that take a dict. "numeric" takes integers of 8 bits as they
    # are, others as int32, and real numbers
    input_kinds: ClassVar[str | dict[str, str]] = "real floating"
    # True if y at a position is a function of x at that position alone, the same
    # function at all positions, as in `Dense`. Positions are indexed by the axes
    # between the batch and the last
    per_position: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # wrapped here so that custom layers get the same checks of key, shape and dtype
        if "init" in vars(cls):
            init = _checked(vars(cls)["init"])
            cls.init = init  # type: ignore[method-assign, assignment]

    def __call__(self, *arguments: Any, **options: Any) -> NoReturn:
        """Raise TypeError: a layer holds no parameters, so it cannot be called."""
        name = type(self).__name__
        raise TypeError(
            f"{name} cannot be called, as a layer holds no parameters: train it with "
            "nn.Trainer, whose `predict` maps x to y, or use its `init(key, shape, "
            "dtype)` and `forward(params, state, x)`"
        )

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        """Create `params` and `state` for inputs of `shape`, without the batch axis.

        Return (params, state, shape of y). The arrays belong to the library and device
        of `key`.

        Raises
        ------
        ValueError
            If the layer cannot take inputs of that shape.
        TypeError
            If key, shape or dtype is something else.
        """
        return {}, {}, shape

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        """Compute y; return (y, next state, cache), where the cache is for `backward`.

        train: True or a `RowMask` in training, False in prediction. A mask counts as
        true; only layers that combine rows of a batch need to look at it.
        """
        raise NotImplementedError

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        """Return (dL/dx, dL/dparams); the latter is nested like `params`."""
        raise NotImplementedError

    def predict(self, params: Params, state: State, x: Array) -> Array:
        """Return the y of `forward` with train=False.

        Blocks override this, so that the layers inside keep no caches.
        """
        return self.forward(params, state, x)[0]

    def backward_params(self, params: Params, cache: Cache, dy: Array) -> Params:
        """Return only dL/dparams, for a model's first layer, whose dx is not needed."""
        return self.backward(params, cache, dy)[1]

    def begin(self, params: Params, state: State, x: Array, length: int) -> Memory:
        """Return the memory before the first of at most `length` steps of decoding.

        x: the input of one step, (batch, 1, ...). Only its batch size and device are
        used, and of a dict also the inputs that stay the same at every step.

        Raises
        ------
        TypeError
            If y at one time depends on x at a later time, or the layer does not
            implement decoding.
        """
        if not self.per_position:
            reason = "y at one position depends on x at others"
            raise TypeError(f"{self} cannot go step by step: {reason}")
        return ()

    def advance(
        self, params: Params, state: State, memory: Memory, x: Array
    ) -> tuple[Array, Memory]:
        """Decode one step, x (batch, 1, ...), from the memory; return (y, next memory).

        y equals what `forward` with train=False computes at that position from all
        steps so far. Shapes and dtypes of the memory never change, so `jit` compiles a
        single step.

        Raises
        ------
        ValueError
            If the memory is full: it holds the `length` steps passed to `begin`. A
            compiler such as that of JAX does not know the number of steps. There all
            numbers of y are NaN instead.
        """
        return self.forward(params, state, x)[0], memory

    def prefill(
        self, params: Params, state: State, memory: Memory, x: Array
    ) -> tuple[Array, Memory]:
        """Decode several steps, x (batch, time, ...), at once; return (y, next memory).

        y and the memory equal, up to rounding, those of `advance`, step by step. The
        memory may be new or have steps already. Attention and recurrent layers compute
        all steps in one pass; a layer that does not override this method calls
        `advance` in a loop.

        Raises
        ------
        ValueError
            As `advance`.
        TypeError
            If x is not a single array, and the layer does not override this method.
        """
        if self.per_position:
            return self.predict(params, state, x), memory
        if isinstance(x, dict | tuple):
            raise TypeError(
                f"{type(self).__name__} has several inputs, and which of them have "
                "steps is not known: call `advance` for each step, or define `prefill`"
            )
        xp = namespace(x)

        def step(memory: Memory, x: Array) -> tuple[Memory, Array]:
            y, memory = self.advance(params, state, memory, x[:, None, ...])
            return memory, tree_map(lambda leaf: leaf[:, 0, ...], y)

        memory, ys = scan(step, memory, _axes_swapped(x, xp))
        return tree_map(lambda leaf: _axes_swapped(leaf, xp), ys), memory

    def check(self, x: Array) -> None:
        """Validate the dtypes and values of x, which is on the host.

        Called before data are copied to a backend: under `jit` values cannot be
        inspected, and libraries differ in what they do with invalid ones. Shapes are
        not checked.

        Raises
        ------
        TypeError
            If the dtype of a leaf of x is not of the kind that this layer takes.
        ValueError
            If x holds a value or a name that this layer cannot take.
        """
        expected_kinds = leaves(kinds(self.input_kinds, x))
        leaves_and_kinds = zip(named_leaves(x, "x"), expected_kinds, strict=True)
        for (name, leaf), kind in leaves_and_kinds:
            xp = namespace(leaf)
            if not xp.isdtype(leaf.dtype, kind):
                owner = type(self).__name__
                role = "" if name == "x" else f" as {name}"
                message = f"{owner} takes {kind} numbers{role}, got {leaf.dtype}"
                if kind == "real floating" and xp.isdtype(leaf.dtype, "integral"):
                    message += (
                        ": convert them, for example by nn.Rescale(1 / 255) as the "
                        "first layer, or before training"
                    )
                raise TypeError(message)
            is_real = xp.isdtype(leaf.dtype, "real floating")
            if is_real and not all_finite(leaf):
                index = first_true(~xp.isfinite(leaf)) or ()
                raise ValueError(
                    f"expected finite numbers, but {name}{list(index)} is "
                    f"{leaf[index]}; {non_finite_count(leaf)}. Remove or replace them; "
                    "nn.explain on such rows shows their effect"
                )

    def _inner_layers(self) -> "list[tuple[str, Layer]]":
        """Return (path, layer) for each layer inside; only a `Block` has any."""
        return []

    def _described(self) -> "Layer":
        """Return the layer that a checkpoint describes, without initial weights."""
        return self

    def _repr_html_(self) -> str:
        """Return HTML for a notebook: a table of the layers inside, or the repr."""
        from html import escape

        from ..display.tables import html_table

        rows = list(_lines(self))
        if len(rows) == 1:
            return f"<code>{escape(repr(self))}</code>"
        return html_table(["", "layer"], rows, inline=True)


def _axes_swapped(x: Array, xp: Any) -> Array:
    """Return x with its first two axes exchanged."""
    return xp.permute_dims(x, (1, 0, *range(2, x.ndim)))


def _checked(init: _Init) -> _Init:
    """Wrap a layer's `init` so that it validates key, shape and dtype first."""

    @wraps(init)
    def checked(
        self: Layer, key: Key, shape: Shape, dtype: Any
    ) -> tuple[Params, State, Shape]:
        _expect_init_arguments(self, key, shape, dtype)
        return init(self, key, shape, dtype)

    return checked


def _expect_init_arguments(layer: Layer, key: Any, shape: Any, dtype: Any) -> None:
    """Raise unless the arguments are a key, a shape or tree of shapes, and a dtype."""
    name = type(layer).__name__
    if isinstance(key, int) or tuple(getattr(key, "shape", ())) != (2,):
        seed = key if isinstance(key, int) else 0
        raise TypeError(
            f"{name}.init takes a key, such as random.key({seed}, xp=xp) with xp the "
            f"namespace of the arrays to make, got {described(key)}"
        )
    if not is_shape(shape):
        example = "the shape of one example, a tuple of integers such as (3,)"
        raise TypeError(
            f"{name}.init takes {example}, or a tree of them, got {described(shape)}"
        )
    is_tuple = isinstance(shape, tuple)
    is_single = is_tuple and not any(isinstance(entry, tuple) for entry in shape)
    fits = is_single or not layer.one_array
    expect(fits, "{} takes one array, got several of shapes {}", name, shape)
    # `is`, because np.dtype("float64") == float
    is_python = any(dtype is kind for kind in (bool, int, float))
    if dtype is None or isinstance(dtype, str) or is_python:
        raise TypeError(f"{name}.init takes a dtype, such as xp.float32, got {dtype!r}")


def is_shape(shape: Any) -> bool:
    """Return True for a tuple of lengths or a tree of such tuples."""
    if isinstance(shape, dict):
        return all(map(is_shape, shape.values()))
    if not isinstance(shape, tuple):
        return False
    if any(isinstance(entry, tuple | dict) for entry in shape):
        return all(map(is_shape, shape))
    return all(hasattr(entry, "__index__") and entry >= 0 for entry in shape)


def not_a_layer(value: Any) -> str:
    """Describe a value that is not a layer, with a remedy for common mistakes."""
    if isinstance(value, type) and issubclass(value, Layer):
        return f"the class {value.__name__}: write {value.__name__}(...)"
    if isinstance(value, list | tuple):
        return f"{described(value)}: pass layers one by one, as in Sequential(*layers)"
    return described(value)


def _lines(layer: Layer, path: str = "", depth: int = 0) -> Iterator[list[str]]:
    """Yield [path, outline] of a layer and all layers inside it, indented by depth."""
    children = layer._inner_layers()
    # no-break spaces, as HTML collapses ordinary ones
    yield [path, "\u00a0\u00a0" * depth + outline(layer, whole=not children)]
    for name, child in children:
        yield from _lines(child, ".".join(filter(None, (path, name))), depth + 1)


def outline(layer: Layer, *, whole: bool = True) -> str:
    """Return a layer as one line without default settings, such as "Dense(width=4)".

    With whole=False the layers inside it are left out as well.
    """
    name = type(layer).__name__
    settings = [f for f in fields(layer) if f.init]
    arguments = {f.name: getattr(layer, f.name) for f in settings}
    required = [f.name for f in settings if f.default is f.default_factory is MISSING]
    printed = [f.name for f in fields(layer) if f.repr]
    generated = ", ".join(f"{key}={getattr(layer, key)!r}" for key in printed)
    if repr(layer) != f"{type(layer).__qualname__}({generated})":  # a custom __repr__
        return repr(layer) if whole else name
    # Defaults come from an instance, not from the fields, as __post_init__ may convert
    # them: the default 1 of a stride becomes (1, 1).
    try:
        defaults = type(layer)(**{key: arguments[key] for key in required})
    except (TypeError, ValueError):
        return repr(layer)
    options = []
    for key in printed:
        value = getattr(layer, key)
        if key not in required and value == getattr(defaults, key):
            continue
        if not isinstance(value, Layer):
            options.append(f"{key}={value!r}")
        elif whole:
            options.append(f"{key}={outline(value)}")
    return f"{name}({', '.join(options)})" if options or whole else name
