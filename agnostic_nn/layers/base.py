"""The layer contract: every layer, and every block of layers, has these three methods."""

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
)
from ..core.errors import described, expect
from ..core.trees import leaves, named_leaves
from ..ops import all_finite

__all__ = ["Layer", "is_shape", "kinds", "not_a_layer", "outline"]


def kinds(input_kinds: Any, x: Any) -> Any:
    """What `input_kinds` says of each leaf of `x`, nested like x.

    Raises
    ------
    ValueError
        If x is a dict with a name that is not taken.
    """
    if isinstance(x, dict) and isinstance(input_kinds, dict):
        unknown = sorted(x.keys() - input_kinds.keys())
        expect(not unknown, "expected inputs among {}, got {}", sorted(input_kinds), unknown)
        return {name: kinds(input_kinds[name], leaf) for name, leaf in x.items()}
    if isinstance(x, dict):
        return {name: kinds(input_kinds, leaf) for name, leaf in x.items()}
    input_kinds = input_kinds["x"] if isinstance(input_kinds, dict) else input_kinds
    return tuple(kinds(input_kinds, leaf) for leaf in x) if isinstance(x, tuple) else input_kinds


@dataclass(frozen=True)
class Layer:
    """A frozen dataclass of hyper-parameters with three pure methods.

    A layer owns no arrays. Whatever it needs comes in through the arguments and
    whatever it makes goes out through the return value. So it prints, compares, hashes
    and pickles; a subclass with hyper-parameters of its own is decorated like this one.

    Where one array is not enough, x is a tree: a dict of arrays by name (an array alone is
    then the one called "x"), or a tuple. Its shape is nested alike, a shape being a tuple of
    integers, and so are y and dy. dx is nested like x, with None for what has no gradient.
    """

    is_layer: ClassVar[bool] = True
    # whether x is one array, never a tree of them
    one_array: ClassVar[bool] = False
    # the Standard's word for the kind of dtype of x; by name where x may be a dict
    input_kinds: ClassVar[str | dict[str, str]] = "real floating"
    # whether y at a position depends on x there alone, the batch and the last axis left aside
    per_position: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "init" in vars(cls):
            cls.init = _checked(vars(cls)["init"])  # type: ignore[method-assign]

    def __call__(self, *arguments: Any, **options: Any) -> NoReturn:
        """Raise TypeError: a layer has no parameters of its own to be called with."""
        name = type(self).__name__
        raise TypeError(
            f"{name} is not called, as a layer owns no parameters: train it with nn.Trainer, whose "
            "`predict` maps x to y, or use its `init(key, shape, dtype)` and "
            "`forward(params, state, x)`"
        )

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        """Make `params` and `state` for inputs of `shape` (batch axis left out).

        Returns them with the shape of the outputs. Both are made by the library of
        `key`. Raises ValueError if the layer cannot take inputs of that shape.
        """
        return {}, {}, shape

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        """Map `x` to `y`; also return the next state and what `backward` will need."""
        raise NotImplementedError

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        """Map dL/dy to dL/dx; also return dL/dparams, nested like `params`."""
        raise NotImplementedError

    def predict(self, params: Params, state: State, x: Array) -> Array:
        """The y of `forward` in the mode for prediction; a block keeps nothing on the way."""
        return self.forward(params, state, x)[0]

    def backward_params(self, params: Params, cache: Cache, dy: Array) -> Params:
        """The dL/dparams of `backward` alone, for a model's first layer: nobody asks for its dx."""
        return self.backward(params, cache, dy)[1]

    def begin(self, params: Params, state: State, x: Array, length: int) -> Memory:
        """What a layer remembers before the first of at most `length` steps in time.

        x: one step's input, (batch, 1, ...), of which only the batch and the device count,
        and in a dict of inputs those that are there at every step.

        Raises
        ------
        TypeError
            If y at one time depends on x at a later time, or this layer keeps no memory.
        """
        if not self.per_position:
            raise TypeError(f"{self} cannot go step by step: it looks at more than one position")
        return ()

    def advance(
        self, params: Params, state: State, memory: Memory, x: Array
    ) -> tuple[Array, Memory]:
        """One step in time, as in prediction: y for x (batch, 1, ...), given all steps before it.

        What `forward` puts out there for all steps so far at once. Shapes and dtypes of
        memory stay, so `jit` compiles one step and no more; steps past the length that
        `begin` was given are undefined, since `jit` hides their number.
        """
        return self.forward(params, state, x)[0], memory

    def check(self, x: Array) -> None:
        """Refuse data on the host whose values this layer cannot take; shapes are not its concern.

        Called before data go to a backend, since `jit` hides values and libraries
        differ in what they do with bad ones.

        Raises
        ------
        TypeError
            If the dtype of a leaf of x is not of the kind that this layer takes.
        ValueError
            If x holds a value or a name that this layer cannot take.
        """
        wanted = leaves(kinds(self.input_kinds, x))
        for (name, leaf), kind in zip(named_leaves(x, "x"), wanted, strict=True):
            xp = namespace(leaf)
            if not xp.isdtype(leaf.dtype, kind):
                said = "" if name == "x" else f" as {name}"
                wrong = f"{type(self).__name__} takes {kind} numbers{said}, got {leaf.dtype}"
                raise TypeError(wrong)
            if kind == "real floating" and not all_finite(leaf):
                bad = first_true(~xp.isfinite(leaf)) or ()
                raise ValueError(f"expected finite numbers, but {name}{list(bad)} is {leaf[bad]}")

    def _repr_html_(self) -> str:
        """For a notebook: the layers inside, one a line, or this one as it prints."""
        from html import escape

        from ..display.tables import html_table

        rows = list(_lines(self))
        if len(rows) == 1:
            return f"<code>{escape(repr(self))}</code>"
        return html_table(["", "layer"], rows, inline=True)


def _checked(init: Callable) -> Callable:
    """`init` of a layer, which refuses arguments of the wrong kind first."""

    @wraps(init)
    def checked(self: Layer, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        _expect_start(self, key, shape, dtype)
        return init(self, key, shape, dtype)

    return checked


def _expect_start(layer: Layer, key: Any, shape: Any, dtype: Any) -> None:
    """Raise unless these are a key, a shape or tree of shapes, and a dtype."""
    name = type(layer).__name__
    if isinstance(key, int) or tuple(getattr(key, "shape", ())) != (2,):
        seed = key if isinstance(key, int) else 0
        raise TypeError(
            f"{name}.init takes a key, such as random.key({seed}, xp=xp) with xp the namespace of "
            f"the arrays to make, got {described(key)}"
        )
    if not is_shape(shape):
        example = "the shape of one example, a tuple of integers such as (3,)"
        raise TypeError(f"{name}.init takes {example}, or a tree of them, got {described(shape)}")
    alone = isinstance(shape, tuple) and not any(isinstance(entry, tuple) for entry in shape)
    expect(
        alone or not layer.one_array, "{} takes one array, got several of shapes {}", name, shape
    )
    if dtype is None or isinstance(dtype, str) or dtype in (bool, int, float):
        raise TypeError(f"{name}.init takes a dtype, such as xp.float32, got {dtype!r}")


def is_shape(shape: Any) -> bool:
    """Whether this is a tuple of lengths, or a tree of such tuples."""
    if isinstance(shape, dict):
        return all(map(is_shape, shape.values()))
    if not isinstance(shape, tuple):
        return False
    if any(isinstance(entry, tuple | dict) for entry in shape):
        return all(map(is_shape, shape))
    return all(hasattr(entry, "__index__") and entry >= 0 for entry in shape)


def not_a_layer(thing: Any) -> str:
    """What was given in place of a layer, and what to write instead."""
    if isinstance(thing, type) and issubclass(thing, Layer):
        return f"the class {thing.__name__}: write {thing.__name__}(...)"
    if isinstance(thing, list | tuple):
        return f"{described(thing)}: pass layers one by one, as in Sequential(*layers)"
    return described(thing)


def _lines(layer: Layer, path: str = "", depth: int = 0) -> Iterator[list[str]]:
    """A layer and those inside it: each with its path, and set in as far as it is within."""
    inside: list[tuple[str, Layer]] = []

    def look(name: str, one: Layer) -> Layer:
        inside.append((name, one))
        return one

    if hasattr(layer, "map_layers"):
        layer.map_layers(look)
    # no-break spaces: HTML would leave others out
    yield [path, "\u00a0\u00a0" * depth + outline(layer, whole=not inside)]
    for name, one in inside:
        yield from _lines(one, ".".join(filter(None, (path, name))), depth + 1)


def outline(layer: Layer, *, whole: bool = True) -> str:
    """A layer in a line, such as "Dense(width=4)", without what is default.

    Unless `whole`, also without the layers inside it.
    """
    name, settings = type(layer).__name__, [f for f in fields(layer) if f.init]
    given = {f.name: getattr(layer, f.name) for f in settings}
    needed = [f.name for f in settings if f.default is f.default_factory is MISSING]
    seen = [f.name for f in fields(layer) if f.repr]
    said = ", ".join(f"{key}={getattr(layer, key)!r}" for key in seen)
    if repr(layer) != f"{type(layer).__qualname__}({said})":  # it has its own way
        return repr(layer) if whole else name
    try:  # a layer may make something else of a default, such as (1, 1) of 1
        plain = type(layer)(**{key: given[key] for key in needed})
    except (TypeError, ValueError):
        return repr(layer)
    shown = []
    for key in seen:
        value = getattr(layer, key)
        if key not in needed and value == getattr(plain, key):
            continue
        if isinstance(value, Layer):
            shown += [f"{key}={outline(value)}"] if whole else []
        else:
            shown.append(f"{key}={value!r}")
    return f"{name}({', '.join(shown)})" if shown or whole else name
