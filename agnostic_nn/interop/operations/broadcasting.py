"""Functions of two arrays that are broadcast, or of an array and a constant."""

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
from ...core.errors import expect, expect_flag, expect_integers
from ...core.fields import set_fields
from ...layers.base import Layer
from ...ops import narrowed, sum_over, widened

__all__ = [
    "Binary",
    "BroadcastAdd",
    "BroadcastDivide",
    "BroadcastMultiply",
    "BroadcastSubtract",
    "Maximum",
    "Minimum",
    "Power",
    "Remainder",
    "broadcast_shape",
    "is_real",
    "sum_to_shape",
]


def broadcast_shape(name: str, a: Shape, b: Shape) -> Shape:
    """Return the shape of a and b broadcast together; raise ValueError if they differ.

    name: of the operation, for the error.
    """
    rank = max(len(a), len(b))
    left = (1,) * (rank - len(a)) + tuple(a)
    right = (1,) * (rank - len(b)) + tuple(b)
    shape = []
    for n, m in zip(left, right, strict=True):
        fits = n == m or 1 in (n, m)
        expect(fits, "{} cannot broadcast {} and {}", name, tuple(a), tuple(b))
        shape.append(m if n == 1 else n)
    return tuple(shape)


def sum_to_shape(dy: Array, shape: Shape) -> Array:
    """Return Σ dy over the axes that `shape` was broadcast along, in that shape.

    It is the adjoint of broadcasting from `shape` to the shape of dy.
    """
    if tuple(dy.shape) == tuple(shape):
        return dy
    extra = dy.ndim - len(shape)
    axes = list(range(extra))
    for axis, n in enumerate(shape, extra):
        if n == 1 and dy.shape[axis] != 1:
            axes.append(axis)
    total = sum_over(dy, tuple(axes)) if axes else dy
    return namespace(dy).reshape(total, shape)


def is_real(x: Array) -> bool:
    """Return True if x has a real floating-point dtype, so that it has a gradient."""
    return bool(namespace(x).isdtype(x.dtype, "real floating"))


@dataclass(frozen=True)
class Binary(Layer):
    """y = f(a, b) with a and b broadcast: for a tuple x = (a, b), or x and a constant.

    Subclasses define f as `value` and its derivatives as `slopes`.

    a, b: (batch, ...) of the same number of axes; those after the batch are equal or 1.

    `constant`: the shape of an array that replaces b, without a batch, or None for a
    tuple x. It has at most the axes of an example, the last ones. `left`: whether the
    constant is a instead of b. `trainable`: whether it is a parameter, `constant`, or
    part of the state. It starts at 1. `integers`: whether x holds integers, which have
    no gradient.

    Gradient
    --------
    Where an element of a is used for several elements of y, their contributions add up:

        da = Σ dy ∂f/∂a        db = Σ dy ∂f/∂b

    summed over the axes along which a, or b, is broadcast.
    """

    constant: tuple[int, ...] | None = None
    _: KW_ONLY
    left: bool = False
    trainable: bool = False
    integers: bool = False

    def __post_init__(self) -> None:
        if self.constant is not None:
            shape = expect_integers("constant", self.constant, 0)
            set_fields(self, constant=shape)
        expect_flag("left", self.left)
        expect_flag("trainable", self.trainable)
        expect_flag("integers", self.integers)
        fits = self.constant is not None or not (self.left or self.trainable)
        expect(fits, "left and trainable describe a constant: pass its shape")
        fits = not (self.integers and self.trainable)
        expect(fits, "integers cannot be trained")

    @property
    def input_kinds(self) -> Any:  # type: ignore[override]
        return "integral" if self.integers else "real floating"

    def value(self, a: Array, b: Array) -> Array:
        """Return f(a, b)."""
        raise NotImplementedError

    def slopes(self, a: Array, b: Array, dy: Array) -> tuple[Array, Array]:
        """Return dy ∂f/∂a and dy ∂f/∂b, in the shape of dy."""
        raise NotImplementedError

    def init(self, key: Key, shape: Any, dtype: Any) -> tuple[Params, State, Any]:
        name = type(self).__name__
        if self.constant is None:
            out = _shape_of_two(name, shape)
            return {}, {}, out
        xp = namespace(key)
        dtype = xp.int32 if self.integers else dtype
        ones = xp.ones(self.constant, dtype=dtype, device=device(key))
        fits = len(self.constant) <= len(shape)
        message = "{} takes a constant without a batch axis, got {} for x (batch, *{})"
        expect(fits, message, name, self.constant, shape)
        out = broadcast_shape(name, shape, self.constant)
        params = {"constant": ones} if self.trainable else {}
        return params, {} if self.trainable else {"constant": ones}, out

    def forward(
        self, params: Params, state: State, x: Any, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        a, b = self._operands(params, state, x)
        y = self.value(widened(a), widened(b))
        return narrowed(y, a), state, (a, b)

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Any, Params]:
        a, b = cache
        if not is_real(a):
            return ((None, None) if self.constant is None else None), {}
        da, db = self.slopes(widened(a), widened(b), widened(dy))
        da = narrowed(sum_to_shape(da, a.shape), a)
        db = narrowed(sum_to_shape(db, b.shape), b)
        if self.constant is None:
            return (da, db), {}
        dx, dconstant = (db, da) if self.left else (da, db)
        return dx, {"constant": dconstant} if self.trainable else {}

    def _operands(self, params: Params, state: State, x: Any) -> tuple[Array, Array]:
        name = type(self).__name__
        if self.constant is None:
            a, b = x
            fits = a.ndim == b.ndim
            message = "{} takes arrays of the same number of axes, got {} and {}"
            expect(fits, message, name, a.shape, b.shape)
        else:
            constant = (params if self.trainable else state)["constant"]
            a, b = (constant, x) if self.left else (x, constant)
        message = "{} takes arrays of one dtype, got {} and {}"
        expect(a.dtype == b.dtype, message, name, a.dtype, b.dtype)
        return a, b


def _shape_of_two(name: str, shape: Any) -> Shape:
    fits = isinstance(shape, tuple) and len(shape) == 2
    fits = fits and all(isinstance(part, tuple) for part in shape)
    expect(fits, "{} takes a tuple of two arrays, got one of shape {}", name, shape)
    a, b = shape
    message = "{} takes arrays of the same number of axes, got {} and {}"
    expect(len(a) == len(b), message, name, a, b)
    return broadcast_shape(name, a, b)


class BroadcastAdd(Binary):
    """y = a + b, broadcast as in `Binary`.

    Gradient
    --------
    ∂y/∂a = ∂y/∂b = 1, so da = Σ dy and db = Σ dy over the axes that were broadcast.
    """

    def value(self, a: Array, b: Array) -> Array:
        return a + b

    def slopes(self, a: Array, b: Array, dy: Array) -> tuple[Array, Array]:
        return dy, dy


class BroadcastSubtract(Binary):
    """y = a - b, broadcast as in `Binary`.

    Gradient
    --------
    ∂y/∂a = 1 and ∂y/∂b = -1, so da = Σ dy and db = -Σ dy.
    """

    def value(self, a: Array, b: Array) -> Array:
        return a - b

    def slopes(self, a: Array, b: Array, dy: Array) -> tuple[Array, Array]:
        return dy, -dy


class BroadcastMultiply(Binary):
    """y = a · b, broadcast as in `Binary`.

    Gradient
    --------
    ∂y/∂a = b and ∂y/∂b = a, so da = Σ dy · b and db = Σ dy · a.
    """

    def value(self, a: Array, b: Array) -> Array:
        return a * b

    def slopes(self, a: Array, b: Array, dy: Array) -> tuple[Array, Array]:
        return dy * b, dy * a


class BroadcastDivide(Binary):
    """y = a / b, broadcast as in `Binary`; of integers, the quotient towards 0.

    Gradient
    --------
    ∂y/∂a = 1 / b and ∂y/∂b = -a / b², so da = Σ dy / b and db = -Σ (dy / b) · (a / b).
    """

    def value(self, a: Array, b: Array) -> Array:
        if is_real(a):
            return a / b
        xp = namespace(a)
        quotient = xp.abs(a) // xp.abs(b)
        return xp.where((a < 0) == (b < 0), quotient, -quotient)

    def slopes(self, a: Array, b: Array, dy: Array) -> tuple[Array, Array]:
        da = dy / b
        return da, -da * (a / b)


class Remainder(Binary):
    """y = a - b ⌊a / b⌋, broadcast as in `Binary`; it has the sign of b.

    Gradient
    --------
    Between the jumps ⌊a / b⌋ does not change: ∂y/∂a = 1 and ∂y/∂b = -⌊a / b⌋.
    """

    def value(self, a: Array, b: Array) -> Array:
        return a % b

    def slopes(self, a: Array, b: Array, dy: Array) -> tuple[Array, Array]:
        return dy, -dy * namespace(a).floor(a / b)


class Power(Binary):
    """y = aᵇ, broadcast as in `Binary`. a may be negative where b is an integer.

    Gradient
    --------
        ∂y/∂a = b aᵇ⁻¹, which is 0 where b = 0        ∂y/∂b = aᵇ log a

    The latter is used for a > 0. For a ≤ 0 it is 0: y is not defined between integers.
    """

    def value(self, a: Array, b: Array) -> Array:
        return a**b

    def slopes(self, a: Array, b: Array, dy: Array) -> tuple[Array, Array]:
        xp = namespace(a)
        is_flat = b == 0
        da = xp.where(is_flat, 0.0, b * a ** xp.where(is_flat, 0.0, b - 1.0))
        is_positive = a > 0
        log = xp.log(xp.where(is_positive, a, 1.0))
        return dy * da, dy * xp.where(is_positive, a**b * log, 0.0)


class Maximum(Binary):
    """y = max(a, b), broadcast as in `Binary`.

    Gradient
    --------
    dy goes to the larger of both, and half of it to each where they are equal.
    """

    def value(self, a: Array, b: Array) -> Array:
        return namespace(a).maximum(a, b)

    def slopes(self, a: Array, b: Array, dy: Array) -> tuple[Array, Array]:
        return _to_chosen(a > b, a == b, dy)


class Minimum(Binary):
    """y = min(a, b), broadcast as in `Binary`.

    Gradient
    --------
    dy goes to the smaller of both, and half of it to each where they are equal.
    """

    def value(self, a: Array, b: Array) -> Array:
        return namespace(a).minimum(a, b)

    def slopes(self, a: Array, b: Array, dy: Array) -> tuple[Array, Array]:
        return _to_chosen(a < b, a == b, dy)


def _to_chosen(first: Array, both: Array, dy: Array) -> tuple[Array, Array]:
    """Return dy where `first` is true and where it is not, halved where `both` is."""
    xp = namespace(dy)
    half = xp.where(both, 0.5 * dy, 0.0)
    da = xp.where(first, dy, half)
    return da, xp.where(first | both, half, dy)
