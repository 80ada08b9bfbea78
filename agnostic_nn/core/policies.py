"""Policies: how exactly a backend multiplies, whether it does the same again, and the proof.

Both are chosen with the backend, `nn.backend(name, precision=..., deterministic=...)`, or by
AGNOSTIC_NN_PRECISION and AGNOSTIC_NN_DETERMINISTIC, and hold for all that it runs: what its
`jit` made, and what is called in `with backend.applied():`. PyTorch and CuPy have but one
setting for a whole process. There it is set for as long as a call takes and then put back:
other threads, if they call the library in the meantime, find it set.

Precision
---------
"strict" multiplies and adds up float32 numbers as float32, "fast" may multiply them as
TensorFloat-32 where the hardware has that. They set

    JAX        jax.default_matmul_precision = "highest", or "tensorfloat32"
    PyTorch    torch.backends.{cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv,
               mkldnn.rnn}.fp32_precision = "ieee", or "tf32" (before PyTorch 2.9: "highest",
               or "high", for torch.set_float32_matmul_precision, and cudnn.allow_tf32)
    CuPy       the compute type of float32 products: COMPUTE_TYPE_DEFAULT, or COMPUTE_TYPE_TF32,
               which is what CUPY_TF32=1 is for (of two matrices: CuPy 14 multiplies stacks of
               them, and so windows, in float32 all the same)
    others     nothing: they multiply as the BLAS does that they were built with

Settings have been seen to do nothing, so `Backend.probe` looks. It takes a product y = A B of
float32 matrices every number of which says one thing:

- What of a factor is kept. Let v(k) = 1 + 2⁻ᵏ + 2²⁻ᵏ + 2⁴⁻ᵏ + ..., every other binary digit down
  to the k-th, the last; v(0) = 1. A format of t digits after the point has v(k) if and only if
  k ≤ t: TensorFloat-32 and float16 for k ≤ 10, bfloat16 for k ≤ 7, float32 for k ≤ 23. However
  it rounds, another v(k) comes out as another number. Row i of A is v(i) at one place and 0
  elsewhere, column j of B is v(j) everywhere, or 1: y is v(i) · 1, 1 · v(j), or v(i) v(j). (1 +
  2⁻ᵏ alone would not do: it is the sum of two numbers of bfloat16, and so passes where float32
  is taken apart into two of them.) Where v(i) v(j) is no float32, nothing is asked.
- What of a sum is kept. A row of A is 2ᵐ at its first place and 1 at its last: y = 2ᵐ + 1, which
  a sum of t digits has if and only if m ≤ t. Both factors are in every format, up to m = 15.
- How far it reaches. A row of A is 2⁴⁰ at one place, and that is y, but not in float16.

The same A B is asked of `matmul`, one by one and in stacks, and of the three convolutions, with
windows of 3 × 3 places that are 0 around the middle, and stride 2: there no library takes a
short cut (Winograd's, or through Fourier transforms) which would round float32 otherwise. It
is asked eagerly and from within `jit`. Which way a library goes depends on shapes as well: a
probe that finds less than float32 proves that; one that finds float32 proves it for these.

Determinism
-----------
With `deterministic=True` the same calls on the same device, with the same versions of all
libraries and the same number of threads, give the same bits in every run. Another number of
threads is another order of sums, and so is another device: nothing is promised between them.
Without it that holds on CPUs all the same; on GPUs, additions in memory ("atomics") come in
the order in which threads happen to get there, and libraries try out which algorithm is the
fastest today. What is replaced there or refused:

                      CuPy                  PyTorch on CUDA          JAX on GPUs
    scatter_add, the  sorted, then added    by another algorithm of  by another algorithm of
    gradient of       in a tree             PyTorch's, sorted (1)    XLA's, sorted (2)
    Embedding
    convolve, both    matrix products       algorithms of cuDNN      algorithms of cuDNN that
    its gradients                           that repeat (1)          repeat (2)
    largest_input     sums in order         sums in order; of three  sums in order
                                            axes by another one (1)
    matrix products   as cuBLAS promises,   as cuBLAS promises with  no trying out of
                      in one stream         a workspace, or refused  algorithms (2)
    unslide, sums,    sums in order         sums in order            sums in order
    all others

(1) is torch.use_deterministic_algorithms(True), with cudnn.deterministic and without
cudnn.benchmark; it also refuses what a user's own layers may call, such as cumsum, where
PyTorch has nothing deterministic. cuBLAS keeps its promise only if CUBLAS_WORKSPACE_CONFIG is
:4096:8 or :16:8 from the start: without that `nn.backend` refuses. (2) is XLA's and set for a
process: without --xla_gpu_deterministic_ops=true in XLA_FLAGS from the start, `nn.backend`
refuses. It also refuses PyTorch on Apple's GPUs, of which nothing is promised, and dpnp, unless
MKL_CBWR is set to a branch and STRICT, such as AVX2,STRICT: oneMKL multiplies on threads of
TBB, and promises nothing else of them. NumPy and array-api-strict, PyTorch and JAX on CPUs have
nothing to replace.
"""

from typing import Any

from ..ops import convolve, convolve_input, convolve_weight

__all__ = ["PRECISIONS", "less", "probe"]

PRECISIONS = ("strict", "fast")

_DIGITS = 23  # of float32, after the point
_ROWS, _INNER, _COLUMNS = (8, 16), (16, 16), 128  # the first two as places of an image
_SUMS, _FAR = 25, 48  # the rows of A where sums begin, and where 2⁴⁰ is
_SPANS = (2, 2), ((0, 0), (0, 0)), (1, 1), 1  # stride, padding, dilation, groups
_FORMATS = {7: "bfloat16", 10: "TensorFloat-32"}
_SUMS_IN = {7: "bfloat16", 10: "float16"}


def probe(backend: Any) -> dict[str, dict[str, str]]:
    """The formats in which a backend multiplies float32 numbers, as they show in A B above.

    By how, "eager" or "compiled", and by what, such as "matmul" or "convolve_weight":
    "float32", "TensorFloat-32", "bfloat16", "float16", so many "bits", or one of these with
    ", summed in ...".
    """
    given = backend.asarray(_given())
    with backend.applied():
        eager = backend.to_numpy(_products(*given))
    compiled = backend.jit(_products)
    for _ in range(2):  # a replay is written at the second call
        compiled(*given)
    found = {"eager": eager, "compiled": backend.to_numpy(compiled(*given))}
    return {
        how: {what: _format(y) for what, y in _as_matrices(products).items()}
        for how, products in found.items()
    }


def less(found: dict[str, dict[str, str]]) -> str:
    """What of a probe is less than float32, such as "bfloat16 (compiled: matmul)"; "" if nothing.

    "all": of the products taken that way.
    """
    formats: dict[str, dict[str, list[str]]] = {}
    for how, names in found.items():
        for what, name in names.items():
            if name != "float32":
                formats.setdefault(name, {}).setdefault(how, []).append(what)

    def where(ways):
        parts = (
            f"{how}: {'all' if len(names) == len(found[how]) else ', '.join(names)}"
            for how, names in ways.items()
        )
        return "; ".join(parts)

    return " and ".join(f"{name} ({where(ways)})" for name, ways in formats.items())


def _matrices():
    """A and B, in float64."""
    import numpy as np

    left = np.zeros((_ROWS[0] * _ROWS[1], _INNER[0] * _INNER[1]))
    right = np.ones((left.shape[1], _COLUMNS))
    for k in range(_DIGITS + 1):
        number = 1.0 + sum(2.0**-digit for digit in range(k, 0, -2))
        left[k, 11 * k % left.shape[1]] = number
        right[:, k] = number
    for m in range(1, _DIGITS + 1):
        left[_SUMS + m - 1, 0], left[_SUMS + m - 1, -1] = 2.0**m, 1.0
    left[_FAR, left.shape[1] // 2] = 2.0**40
    return left, right


def _given():
    """What `_products` takes: A and B as matrices, images and windows."""
    import numpy as np

    left, right = (one.astype(np.float32) for one in _matrices())

    def image(rows, places):
        wide = np.zeros((1, *(2 * n + 1 for n in places), rows.shape[-1]), np.float32)
        wide[0, 1::2, 1::2] = rows.reshape(*places, -1)
        return wide

    def window(matrix):
        wide = np.zeros((3, 3, *matrix.shape), np.float32)
        wide[1, 1] = matrix
        return wide

    return (
        (left, right),
        (np.stack([left, left]), np.stack([right, right])),
        (image(left, _ROWS), window(right)),
        (left.reshape(1, *_ROWS, -1), window(right.T)),
        (image(left.T, _INNER), right.reshape(1, *_INNER, -1)),
    )


def _products(matrices, stacks, seen, spread, correlated):
    """A B, by each of the ways there are."""
    lengths = tuple(2 * n + 1 for n in _ROWS)
    return {
        "matmul": matrices[0] @ matrices[1],
        "matmul of stacks": stacks[0] @ stacks[1],
        "convolve": convolve(seen[0], seen[1], *_SPANS),
        "convolve_input": convolve_input(spread[0], spread[1], lengths, *_SPANS),
        "convolve_weight": convolve_weight(correlated[0], correlated[1], (3, 3), *_SPANS),
    }


def _as_matrices(products):
    """What `_products` returned, on the host, with A B of each alone."""
    places = {
        "matmul of stacks": lambda y: y[1],
        "convolve_input": lambda y: y[0, 1::2, 1::2],
        "convolve_weight": lambda y: y[1, 1],
    }
    return {
        what: places.get(what, lambda y: y)(y).reshape(-1, _COLUMNS) for what, y in products.items()
    }


def _format(y):
    """The name of the format that y = A B tells of."""
    import numpy as np

    left, right = _matrices()
    exact = left @ right
    same = y == exact
    if np.all(same | (exact != exact.astype(np.float32))):
        return "float32"
    kept = min(_unbroken(same[: _DIGITS + 1, -1]), _unbroken(same[0, : _DIGITS + 1]))
    summed = _unbroken([True, *same[_SUMS : _SUMS + _DIGITS, -1]])
    reaches = bool(same[_FAR, -1])
    name = _FORMATS.get(kept, f"{kept} bits")
    if kept == _DIGITS:
        name = "float32 in parts"
    elif kept == 10 and not reaches:
        name = "float16"
    if summed in _SUMS_IN or (reaches and summed < _DIGITS):
        name += f", summed in {_SUMS_IN.get(summed, f'{summed} bits')}"
    return name


def _unbroken(flags):
    """The number of the last one that holds together with all before it, from 0 on."""
    return next((k for k, flag in enumerate(flags) if not flag), len(flags)) - 1
