"""The names of the precision settings, and a probe that measures the precision.

A setting may have no effect, so `probe` computes a product y = A B whose elements show
how many digits of the factors and of the sums are kept. `docs/precision.md` explains
the settings, determinism, and what the probe proves.
"""

from collections.abc import Callable
from typing import Any

from ..ops import convolve, convolve_input, convolve_weight
from .arrays import Array

__all__ = ["PRECISIONS", "probe", "reduced_formats"]

PRECISIONS = ("strict", "fast")

_Factors = tuple[Array, Array]  # A and B, in the form that an operation takes

_DIGITS = 23  # binary digits of float32 after the point
# A is (8 · 16, 16 · 16) and B (16 · 16, 128); convolutions take the tuples as images
_ROWS = (8, 16)
_INNER = (16, 16)
_COLUMNS = 128
_FIRST_SUM_ROW = 25  # rows 25 to 47 of A are 2ᵐ, 0, ..., 0, 1
_LARGE_ROW = 48  # this row of A holds 2⁴⁰
_CONVOLUTION = (2, 2), ((0, 0), (0, 0)), (1, 1), 1  # stride, padding, dilation, groups
# names of formats, by their binary digits after the point
_FACTOR_FORMATS = {7: "bfloat16", 10: "TensorFloat-32"}
_SUM_FORMATS = {7: "bfloat16", 10: "float16"}


def probe(backend: Any) -> dict[str, dict[str, str]]:
    """Measure the formats in which a backend multiplies float32 numbers.

    The keys of the result are the mode, "eager" or "compiled", and then the operation,
    such as "matmul" or "convolve_weight". The values are "float32", "TensorFloat-32",
    "bfloat16", "float16" or a number of "bits", with ", summed in ..." if sums have
    fewer digits.
    """
    operands = backend.asarray(_operands())
    with backend.applied():
        eager = backend.to_numpy(_products(*operands))
    compiled = backend.jit(_products)
    # a backend that replays writes its program at the second call, so measure the third
    for _ in range(2):
        compiled(*operands)
    modes = {"eager": eager, "compiled": backend.to_numpy(compiled(*operands))}
    return {
        mode: {operation: _format(y) for operation, y in _as_matrices(products).items()}
        for mode, products in modes.items()
    }


def reduced_formats(probed: dict[str, dict[str, str]]) -> str:
    """Describe what is less than float32 in a result of `probe`, or return "".

    An example is "bfloat16 (compiled: matmul)". "all" stands for all operations
    of a mode.
    """
    formats: dict[str, dict[str, list[str]]] = {}
    for mode, names in probed.items():
        for operation, name in names.items():
            if name != "float32":
                formats.setdefault(name, {}).setdefault(mode, []).append(operation)

    def described(modes: dict[str, list[str]]) -> str:
        parts = []
        for mode, operations in modes.items():
            is_all = len(operations) == len(probed[mode])
            parts.append(f"{mode}: {'all' if is_all else ', '.join(operations)}")
        return "; ".join(parts)

    texts = [f"{name} ({described(modes)})" for name, modes in formats.items()]
    return " and ".join(texts)


def _matrices() -> _Factors:
    """Return A and B in float64.

    Row k of A holds v(k) once, and column k of B holds v(k) everywhere, where v(k) has
    every other binary digit set down to the k-th. All other columns of B are 1.
    """
    import numpy as np

    left = np.zeros((_ROWS[0] * _ROWS[1], _INNER[0] * _INNER[1]))
    right = np.ones((left.shape[1], _COLUMNS))
    for k in range(_DIGITS + 1):
        number = 1.0 + sum(2.0**-digit for digit in range(k, 0, -2))
        left[k, 11 * k % left.shape[1]] = number
        right[:, k] = number
    for m in range(1, _DIGITS + 1):
        left[_FIRST_SUM_ROW + m - 1, 0] = 2.0**m
        left[_FIRST_SUM_ROW + m - 1, -1] = 1.0
    left[_LARGE_ROW, left.shape[1] // 2] = 2.0**40
    return left, right


def _operands() -> tuple[_Factors, ...]:
    """Return the arguments of `_products`: A and B as matrices, images and windows."""
    import numpy as np

    left, right = (matrix.astype(np.float32) for matrix in _matrices())

    def image(rows: Array, space: tuple[int, int]) -> Array:
        """Spread the rows over an image with a border and zeros between the pixels."""
        pixels = np.zeros((1, *(2 * n + 1 for n in space), rows.shape[-1]), np.float32)
        pixels[0, 1::2, 1::2] = rows.reshape(*space, -1)
        return pixels

    def window(matrix: Array) -> Array:
        """Put the matrix into the centre of a 3 × 3 window that is 0 elsewhere."""
        weight = np.zeros((3, 3, *matrix.shape), np.float32)
        weight[1, 1] = matrix
        return weight

    return (
        (left, right),
        (np.stack([left, left]), np.stack([right, right])),
        (image(left, _ROWS), window(right)),
        (left.reshape(1, *_ROWS, -1), window(right.T)),
        (image(left.T, _INNER), right.reshape(1, *_INNER, -1)),
    )


def _products(
    matrices: _Factors,
    stacks: _Factors,
    for_convolve: _Factors,
    for_input: _Factors,
    for_weight: _Factors,
) -> dict[str, Array]:
    """Compute A B with each operation of the library that multiplies matrices."""
    lengths = tuple(2 * n + 1 for n in _ROWS)
    return {
        "matmul": matrices[0] @ matrices[1],
        "matmul of stacks": stacks[0] @ stacks[1],
        "convolve": convolve(for_convolve[0], for_convolve[1], *_CONVOLUTION),
        "convolve_input": convolve_input(
            for_input[0], for_input[1], lengths, *_CONVOLUTION
        ),
        "convolve_weight": convolve_weight(
            for_weight[0], for_weight[1], (3, 3), *_CONVOLUTION
        ),
    }


def _as_matrices(products: dict[str, Array]) -> dict[str, Array]:
    """Extract the matrix A B from each result of `_products`, on the host."""
    extract: dict[str, Callable[[Array], Array]] = {
        "matmul": lambda y: y,
        "matmul of stacks": lambda y: y[1],
        "convolve": lambda y: y,
        "convolve_input": lambda y: y[0, 1::2, 1::2],
        "convolve_weight": lambda y: y[1, 1],
    }
    matrices = {name: extract[name](y) for name, y in products.items()}
    return {name: y.reshape(-1, _COLUMNS) for name, y in matrices.items()}


def _format(y: Array) -> str:
    """Return the name of the format in which y = A B was computed."""
    import numpy as np

    left, right = _matrices()
    exact = left @ right
    is_exact = y == exact
    if np.all(is_exact | (exact != exact.astype(np.float32))):
        return "float32"
    # the last column of y is v(i) · 1, and its first row 1 · v(j)
    left_digits = _last_of_run(is_exact[: _DIGITS + 1, -1])
    right_digits = _last_of_run(is_exact[0, : _DIGITS + 1])
    digits = min(left_digits, right_digits)
    sums = is_exact[_FIRST_SUM_ROW : _FIRST_SUM_ROW + _DIGITS, -1]
    sum_digits = _last_of_run([True, *sums])
    has_range = bool(is_exact[_LARGE_ROW, -1])
    name = _FACTOR_FORMATS.get(digits, f"{digits} bits")
    if digits == _DIGITS:
        # each factor is exact, but not their products: float32 was split
        name = "float32 in parts"
    elif digits == 10 and not has_range:
        name = "float16"
    if sum_digits in _SUM_FORMATS or (has_range and sum_digits < _DIGITS):
        name += f", summed in {_SUM_FORMATS.get(sum_digits, f'{sum_digits} bits')}"
    return name


def _last_of_run(flags: list[bool] | Array) -> int:
    """Return the index of the last flag of the run of true flags at the start."""
    return next((k for k, flag in enumerate(flags) if not flag), len(flags)) - 1
