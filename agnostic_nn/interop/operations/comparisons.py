"""Comparisons, logic, conversions of dtypes, and selection by a condition."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

from ...core.arrays import (
    Array,
    Cache,
    Key,
    Params,
    RowMask,
    Shape,
    State,
    device,
    namespace,
)
from ...core.errors import (
    expect,
    expect_choice,
    expect_count,
    expect_flag,
    expect_integer,
    expect_integers,
)
from ...core.fields import set_fields
from ...layers.base import Layer
from ...layers.shapes import expect_inner_axis
from ...ops import narrowed, widened
from .broadcasting import broadcast_shape, is_real, sum_to_shape

__all__ = [
    "COMPARISONS",
    "ArgMax",
    "Comparison",
    "IsSpecial",
    "LogicalNot",
    "OneHot",
    "ToBoolean",
    "ToInteger",
    "ToReal",
    "Where",
]

COMPARISONS = (
    *("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"),
    *("logical_and", "logical_or", "logical_xor"),
)
KINDS = ("real floating", "integral", "bool")


@dataclass(frozen=True)
class Comparison(Layer):
    """y = a ∘ b, booleans, for a tuple x = (a, b), or for x and a constant.

    a, b: (batch, ...) of the same number of axes, broadcast along those of length 1.

    `operator`: "equal", "not_equal", "less", "less_equal", "greater", "greater_equal",
    or, of booleans, "logical_and", "logical_or" and "logical_xor". `constant`: the
    shape of an array that replaces b, without a batch. It is state and starts at 0.
    `left`: whether it is a instead of b. `kind`: that of a and b, "real floating",
    "integral" or "bool".

    Gradient
    --------
    Booleans have no gradient, so dx is None.
    """

    operator: str
    constant: tuple[int, ...] | None = None
    _: KW_ONLY
    left: bool = False
    kind: str = "real floating"

    def __post_init__(self) -> None:
        expect_choice("operator", self.operator, COMPARISONS)
        if self.constant is not None:
            shape = expect_integers("constant", self.constant, 0)
            set_fields(self, constant=shape)
        expect_flag("left", self.left)
        expect_choice("kind", self.kind, KINDS)

    @property
    def input_kinds(self) -> Any:  # type: ignore[override]
        return self.kind

    def init(self, key: Key, shape: Any, dtype: Any) -> tuple[Params, State, Any]:
        if self.constant is None:
            fits = isinstance(shape, tuple) and len(shape) == 2
            expect(fits, "Comparison takes a tuple of two arrays, got {}", shape)
            return {}, {}, broadcast_shape(self.operator, *shape)
        xp = namespace(key)
        dtype = {"integral": xp.int32, "bool": xp.bool}.get(self.kind, dtype)
        constant = xp.zeros(self.constant, dtype=dtype, device=device(key))
        out = broadcast_shape(self.operator, shape, self.constant)
        return {}, {"constant": constant}, out

    def forward(
        self, params: Params, state: State, x: Any, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        if self.constant is None:
            a, b = x
        else:
            constant = state["constant"]
            a, b = (constant, x) if self.left else (x, constant)
        y = getattr(namespace(a, b), self.operator)(a, b)
        return y, state, ()

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Any, Params]:
        return ((None, None) if self.constant is None else None), {}


class LogicalNot(Layer):
    """y = not x, of booleans.

    Gradient
    --------
    Booleans have no gradient, so dx is None.
    """

    one_array = True
    per_position = True
    input_kinds = "bool"

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        return namespace(x).logical_not(x), state, ()

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[None, Params]:
        return None, {}


@dataclass(frozen=True)
class IsSpecial(Layer):
    """y = whether x is NaN, or infinite.

    `find`: "nan" or "infinite". `positive`, `negative`: which infinities count.

    Gradient
    --------
    Booleans have no gradient, so dx is None.
    """

    one_array = True
    per_position = True

    find: str
    _: KW_ONLY
    positive: bool = True
    negative: bool = True

    def __post_init__(self) -> None:
        expect_choice("find", self.find, ("nan", "infinite"))
        expect_flag("positive", self.positive)
        expect_flag("negative", self.negative)

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        xp = namespace(x)
        if self.find == "nan":
            return xp.isnan(x), state, ()
        y = xp.isinf(x)
        if not self.positive:
            y = y & (x < 0)
        if not self.negative:
            y = y & (x > 0)
        return y, state, ()

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[None, Params]:
        return None, {}


@dataclass(frozen=True)
class _Conversion(Layer):
    """Base of conversions: `kind` is that of x."""

    one_array = True
    per_position = True

    kind: str = "integral"

    def __post_init__(self) -> None:
        expect_choice("kind", self.kind, KINDS)

    @property
    def input_kinds(self) -> Any:  # type: ignore[override]
        return self.kind

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[None, Params]:
        return None, {}


class ToReal(_Conversion):
    """y = x in the dtype of the model, for integers or booleans of the kind `kind`.

    State: `like`, an array () of that dtype.

    Gradient
    --------
    Integers and booleans have no gradient, so dx is None.
    """

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        like = namespace(key).zeros((), dtype=dtype, device=device(key))
        return {}, {"like": like}, shape

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        return namespace(x).astype(x, state["like"].dtype), state, ()


class ToInteger(_Conversion):
    """y = x in int32, rounded towards 0, for x of the kind `kind`.

    Gradient
    --------
    Integers have no gradient, so dx is None.
    """

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        return namespace(x).astype(x, namespace(x).int32), state, ()


class ToBoolean(_Conversion):
    """y = whether x ≠ 0, for x of the kind `kind`.

    Gradient
    --------
    Booleans have no gradient, so dx is None.
    """

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        return namespace(x).astype(x, namespace(x).bool), state, ()


@dataclass(frozen=True)
class OneHot(Layer):
    """y[..., j] = 1 where j = x, else 0, for integers x; in the dtype of the model.

    `depth`: the length of the new last axis. State: `like`, an array () of that dtype.

    Gradient
    --------
    Integers have no gradient, so dx is None.
    """

    one_array = True
    input_kinds = "integral"

    depth: int

    def __post_init__(self) -> None:
        expect_count("depth", self.depth)

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        like = namespace(key).zeros((), dtype=dtype, device=device(key))
        return {}, {"like": like}, (*shape, self.depth)

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        xp = namespace(x)
        numbers = xp.arange(self.depth, dtype=x.dtype, device=device(x))
        y = x[..., None] == numbers
        return xp.astype(y, state["like"].dtype), state, ()

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[None, Params]:
        return None, {}


@dataclass(frozen=True)
class ArgMax(Layer):
    """y = the first position of the largest element along `axis`, in int32.

    `keepdims`: whether y keeps the axis with length 1. `smallest`: that of the smallest
    element instead.

    Gradient
    --------
    Integers have no gradient, so dx is None.
    """

    one_array = True

    axis: int
    _: KW_ONLY
    keepdims: bool = False
    smallest: bool = False

    def __post_init__(self) -> None:
        expect_integer("axis", self.axis, 1)
        expect_flag("keepdims", self.keepdims)
        expect_flag("smallest", self.smallest)

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        expect_inner_axis(self.axis, shape)
        length = (1,) if self.keepdims else ()
        return {}, {}, (*shape[: self.axis - 1], *length, *shape[self.axis :])

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        xp = namespace(x)
        find = xp.argmin if self.smallest else xp.argmax
        y = find(x, axis=self.axis, keepdims=self.keepdims)
        return xp.astype(y, xp.int32), state, ()

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[None, Params]:
        return None, {}


@dataclass(frozen=True)
class Where(Layer):
    """y = a where the condition is true, else b, broadcast along axes of length 1.

    It takes a dict of those of "condition" (booleans), "a" and "b" that are not
    constant, (batch, ...) of the same number of axes.

    `condition`, `a`, `b`: the shape of a constant, without a batch, or None for an
    input. Constants are state: the condition starts as true, numbers start at 1.

    Gradient
    --------
    Each element of y is one of a or of b, so

        da = Σ dy where the condition is true        db = Σ dy where it is not

    summed over the axes that are broadcast. dy is selected and not multiplied by 0 or
    1, so a constant of -∞, as in attention masks, makes no NaN.
    """

    _: KW_ONLY
    condition: tuple[int, ...] | None = None
    a: tuple[int, ...] | None = None
    b: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("condition", "a", "b"):
            shape = getattr(self, name)
            if shape is not None:
                set_fields(self, **{name: expect_integers(name, shape, 0)})
        expect(len(self._inputs()) > 0, "Where needs an input: not all are constants")

    @property
    def input_kinds(self) -> Any:  # type: ignore[override]
        kinds = {"condition": "bool", "a": "real floating", "b": "real floating"}
        return {name: kinds[name] for name in self._inputs()}

    def init(self, key: Key, shape: Any, dtype: Any) -> tuple[Params, State, Shape]:
        names = self._inputs()
        fits = isinstance(shape, dict) and sorted(shape) == sorted(names)
        expect(fits, "Where takes {}, got {}", sorted(names), shape)
        xp = namespace(key)
        state = {}
        shapes = dict(shape)
        for name in ("condition", "a", "b"):
            if name not in names:
                shapes[name] = getattr(self, name)
                kind = xp.bool if name == "condition" else dtype
                place = device(key)
                state[name] = xp.ones(shapes[name], dtype=kind, device=place)
        out = broadcast_shape("Where", shapes["a"], shapes["b"])
        return {}, state, broadcast_shape("Where", out, shapes["condition"])

    def forward(
        self, params: Params, state: State, x: Any, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        values = {**state, **x}
        condition = values["condition"]
        a = values["a"]
        b = values["b"]
        y = namespace(condition, a, b).where(condition, a, b)
        return y, state, (condition, a, b)

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Any, Params]:
        xp = namespace(dy)
        condition, a, b = cache
        dx: dict[str, Any] = {"condition": None, "a": None, "b": None}
        if is_real(a):
            wide = widened(dy)
            da = xp.where(condition, wide, 0.0)
            db = xp.where(condition, 0.0, wide)
            dx["a"] = narrowed(sum_to_shape(da, a.shape), a)
            dx["b"] = narrowed(sum_to_shape(db, b.shape), b)
        return {name: dx[name] for name in self._inputs()}, {}

    def _inputs(self) -> list[str]:
        """Return the names of the inputs, which are not constants."""
        names = ("condition", "a", "b")
        return [name for name in names if getattr(self, name) is None]
