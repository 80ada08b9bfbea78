"""Measure the errors of activations and their slopes, in units in the last place.

    python tests/accuracy.py            print the page that docs/accuracy.md should be
    python tests/accuracy.py --write    write it to docs/accuracy.md

The exit status is 1 if an error exceeds its limit.

Each activation is compared with its value and slope in extended precision, on all
float16 numbers and on about two million float32 numbers, on every installed backend.
"""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

import agnostic_nn as nn
from agnostic_nn.core.files import write_text

PAGE = Path(__file__).parent.parent / "docs" / "accuracy.md"
LIMIT = 4.0
BACKENDS = ("numpy", "torch:cpu", "jax", "array_api_strict:device1")
SCALE, ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717

# --- truth, in extended precision -----------------------------------------------------

_wide = np.longdouble
_erfc = np.frompyfunc(math.erfc, 1, 1)


def _sigma(x):
    decay = np.exp(-np.abs(x))
    return np.where(x < 0, decay, 1) / (1 + decay)


def _tanh_of_softplus(x):
    n = np.exp(-np.abs(x))
    return np.where(
        x < 0, n * (n + 2) / (n * (n + 2) + 2), (1 + 2 * n) / (1 + 2 * n + 2 * n * n)
    )


def _mish_slope(x):
    a = np.minimum(np.abs(x), 2000)
    d = np.exp(-a)
    below = (
        d * (4 * (1 - a) + d * (6 - 4 * a) + 4 * d**2 + d**3) / (2 + 2 * d + d * d) ** 2
    )
    above = (1 + 4 * d + (4 * a + 6) * d**2 + 4 * (a + 1) * d**3) / (
        1 + 2 * d + 2 * d * d
    ) ** 2
    return np.where(x < 0, below, above)


def _silu_slope(x):
    a = np.minimum(np.abs(x), 20000)
    d = np.exp(-a)
    below = d * (1 + d - a) / (1 + d) ** 2
    return np.where(x < 0, below, 1 - below)


def _normal(x):
    """Return Φ(x). math.erfc is float64, which is enough away from a root."""
    x = np.clip(x, -60, 60)
    # erfc(z + e) is erfc(z) - 2/√π exp(-z²) e: z in float64, e what it leaves of x/√2
    z = (-x * np.sqrt(_wide(0.5))).astype(np.float64)
    rest = -x * np.sqrt(_wide(0.5)) - z
    z_wide = z.astype(_wide)
    return (
        _erfc(z).astype(_wide) - 2 / np.sqrt(_PI) * np.exp(-z_wide * z_wide) * rest
    ) / 2


def _gelu_slope(x):
    """Return Φ + x φ; near its root x₀ = -0.7517… as the integral of φ (2 - x²)."""
    x = np.clip(x, -60, 60)
    density = np.exp(-x * x / 2) / np.sqrt(2 * _PI)
    root = _wide("-0.7517915246935644574579049467795")
    nodes, weights = np.polynomial.legendre.leggauss(12)
    span = np.clip(x - root, -0.25, 0.25)
    total = np.zeros_like(x)
    for node, weight in zip(nodes, weights, strict=True):
        t = root + span * (1 + _wide(node)) / 2
        total += weight / 2 * (2 - t * t) * np.exp(-t * t / 2) / np.sqrt(2 * _PI)
    return np.where(np.abs(x - root) < 0.25, span * total, _normal(x) + x * density)


_PI = _wide("3.14159265358979323846264338327950288")
_K1 = 2 * np.sqrt(2 / _PI)
_K3 = _K1 * _wide("0.044715")


def _curve(x):
    x = np.clip(x, -100, 100)
    return _sigma(x * (_K1 + _K3 * x * x))


def _curve_slope(x):
    a = np.minimum(np.abs(x), 30)
    d = np.exp(-a * (_K1 + _K3 * a * a))
    below = d * (1 + d - a * (_K1 + 3 * _K3 * a * a)) / (1 + d) ** 2
    return np.where(x < 0, below, 1 - below)


def _even(x):
    """Return exp(-|x|) / (1 + exp(-|x|))²."""
    d = np.exp(-np.abs(x))
    return d / (1 + d) ** 2


def _elu(alpha, scale=1):
    return (
        lambda x: scale * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))),
        lambda x: scale * np.where(x > 0, 1, alpha * np.exp(np.minimum(x, 0))),
    )


def _inside(low, high, value=1):
    return lambda x: np.where((x > low) & (x < high), _wide(value), 0)


def _hard_swish_slope(x):
    return np.where(x <= -3, 0, np.where(x >= 3, 1, (2 * np.clip(x, -3, 3) + 3) / 6))


def _shrunk(x):
    """Return x - tanh x, near 0 by the series of tanh."""
    z = x * x
    series = -1382 / _wide(155925)
    for term in (62 / _wide(2835), -17 / _wide(315), 2 / _wide(15), -1 / _wide(3)):
        series = term + z * series
    near = np.abs(x) < 0.02
    return np.where(near, -x * z * series, x - np.tanh(x))


# activation: (f, f', points where it changes)
TRUTH: dict[nn.Elementwise, tuple[Callable, Callable, tuple[float, ...]]] = {
    nn.ReLU(): (lambda x: np.maximum(x, 0), lambda x: np.where(x > 0, 1, 0), ()),
    nn.ReLU6(): (lambda x: np.clip(x, 0, 6), _inside(0, 6), (6.0,)),
    nn.LeakyReLU(): (
        lambda x: np.where(x > 0, x, x * _wide(0.01)),
        lambda x: np.where(x > 0, 1, _wide(0.01)),
        (),
    ),
    nn.Threshold(0.5): (
        lambda x: np.where(x > 0.5, x, 0),
        lambda x: np.where(x > 0.5, 1, 0),
        (0.5,),
    ),
    nn.HardTanh(): (lambda x: np.clip(x, -1, 1), _inside(-1, 1), (1.0,)),
    nn.HardSigmoid(): (
        lambda x: (np.clip(x, -3, 3) + 3) / 6,
        _inside(-3, 3, 1 / _wide(6)),
        (3.0,),
    ),
    nn.HardSwish(): (
        lambda x: x * ((np.clip(x, -3, 3) + 3) / 6),
        _hard_swish_slope,
        (1.5, 3.0),
    ),
    nn.HardShrink(): (
        lambda x: np.where(np.abs(x) > 0.5, x, 0),
        lambda x: np.where(np.abs(x) > 0.5, 1, 0),
        (0.5,),
    ),
    nn.SoftShrink(): (
        lambda x: x - np.clip(x, -0.5, 0.5),
        lambda x: np.where(np.abs(x) > 0.5, 1, 0),
        (0.5,),
    ),
    nn.TanhShrink(): (_shrunk, lambda x: np.tanh(x) ** 2, (1.0,)),
    nn.ELU(): (*_elu(1), ()),
    nn.SELU(): (*_elu(_wide(ALPHA), _wide(SCALE)), ()),
    nn.CELU(): (*_elu(1), ()),
    nn.Sigmoid(): (_sigma, _even, ()),
    nn.LogSigmoid(): (
        lambda x: np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x))),
        lambda x: _sigma(-x),
        (),
    ),
    nn.Tanh(): (np.tanh, lambda x: 4 * _even(2 * x), ()),
    nn.Softplus(): (
        lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
        _sigma,
        (),
    ),
    nn.Softsign(): (lambda x: x / (1 + np.abs(x)), lambda x: (1 + np.abs(x)) ** -2, ()),
    nn.SiLU(): (
        lambda x: np.maximum(x, -20000) * _sigma(x),
        _silu_slope,
        (1.2784645, 104.0),
    ),
    nn.Mish(): (
        lambda x: np.maximum(x, -20000) * _tanh_of_softplus(x),
        _mish_slope,
        (1.1924312, 104.0),
    ),
    nn.GELU(): (
        lambda x: np.maximum(x, -60) * _normal(x),
        _gelu_slope,
        (0.7517915, 14.0),
    ),
    nn.GELU(approximate=True): (
        lambda x: np.maximum(x, -100) * _curve(x),
        _curve_slope,
        (0.75246143, 10.0),
    ),
}


# --- where to look, and how far off ---------------------------------------------------


def half() -> np.ndarray:
    """Return all finite float16 numbers."""
    x = np.arange(2**16, dtype=np.uint16).view(np.float16)
    return x[np.isfinite(x)]


def single(places: tuple[float, ...] = (), size: int = 2**21) -> np.ndarray:
    """About `size` finite float32 numbers of both signs.

    A quarter of all exponents, a quarter evenly from 0 to 20, a quarter evenly in their
    logarithms from 1e-4 to 20, and a quarter close to the `places`.
    """
    part = size // 8
    bits = np.linspace(0, np.float32(np.finfo(np.float32).max).view(np.int32), part)
    parts = [
        bits.astype(np.int32).view(np.float32),
        np.linspace(0, 20, part, dtype=np.float32),
    ]
    parts.append(np.geomspace(1e-4, 20, part, dtype=np.float32))
    for place in places:
        middle = int(np.float32(place).view(np.int32))
        near = part // len(places)
        narrow = np.arange(near // 2) - near // 4
        wide = np.linspace(-(2**21), 2**21, near // 2)
        for offsets in (narrow, wide):
            parts.append((middle + offsets).astype(np.int32).view(np.float32))
    positive = np.unique(np.concatenate(parts))
    return np.concatenate([-positive[::-1], positive])


def ulp_error(
    result: np.ndarray, truth: np.ndarray, x: np.ndarray, flushes: bool
) -> np.ndarray:
    """Return |result - truth| in units in the last place of the truth.

    If the backend `flushes` subnormal float32 numbers to 0, results below 16 times the
    smallest normal number, and results for a subnormal x, have the error 0.
    """
    rounded = truth.astype(result.dtype)
    largest = np.finfo(result.dtype).max
    with np.errstate(invalid="ignore"):
        unit = np.spacing(np.minimum(np.abs(rounded), largest)).astype(np.longdouble)
        units = np.abs(result.astype(np.longdouble) - truth) / unit
    overflow = np.where(result == rounded, 0, np.inf)
    units = np.where(np.isfinite(rounded), units, overflow)
    units = np.where(np.isnan(result), np.inf, units)
    if flushes:
        tiny = 16 * np.finfo(np.float32).tiny
        units = np.where((np.abs(truth) < tiny) & (np.abs(result) < tiny), 0, units)
        units = np.where(np.abs(x.astype(np.float64)) < tiny / 16, 0, units)
    return units


def flushes(backend: nn.Backend) -> bool:
    """Return whether the backend flushes subnormal float32 numbers to 0."""
    tiny = np.full(4, 2.0**-126, np.float32)
    return not backend.to_numpy(
        backend.jit(lambda x: 0.5 * x)(backend.asarray(tiny))
    ).all()


def measure(backend: nn.Backend, layers: list, x: list[np.ndarray]) -> list:
    """Return for each layer the largest errors of f and f' and their x, in ulp."""

    ones = [np.ones_like(part) for part in x]

    def run(x, ones):
        actual = []
        for layer, part, dy in zip(layers, x, ones, strict=True):
            y, _, cache = layer.forward({}, {}, part)
            actual.append((y, layer.backward({}, cache, dy)[0]))
        return tuple(actual)

    with np.errstate(all="ignore"):
        actual = backend.to_numpy(
            backend.jit(run)(*backend.asarray((tuple(x), tuple(ones))))
        )
    flush, worst = flushes(backend), []
    for layer, part, results in zip(layers, x, actual, strict=True):
        f, slope, _ = TRUTH[layer]
        errors = []
        with np.errstate(all="ignore"):
            for function, result in zip((f, slope), results, strict=True):
                assert result.dtype == part.dtype, (
                    f"{layer} returns {result.dtype} for {part.dtype}"
                )
                units = ulp_error(result, function(part.astype(_wide)), part, flush)
                index = int(np.argmax(units))
                errors.append((float(units[index]), float(part[index])))
        worst.append(tuple(errors))
    return worst


def exp_error(backend: nn.Backend) -> float:
    """Return the error of the library's float32 exp, in units in the last place."""
    x = np.linspace(-80, 0, 2**18, dtype=np.float32)
    with np.errstate(all="ignore"):
        result = backend.to_numpy(backend.jit(backend.xp.exp)(backend.asarray(x)))
    return float(ulp_error(result, np.exp(x.astype(_wide)), x, flushes(backend)).max())


# --- the page -------------------------------------------------------------------------

HEAD = """\
# Accuracy of activations

This page lists the largest rounding error of every activation f and of its derivative
f', on each backend, in float16 and float32. It shows whether a formula loses digits,
for example through cancellation, before those errors reach a training.

## How to repeat it

```console
nox -s ulp                # measure, and fail above a limit
nox -s ulp -- --write     # also update this page
```

The limits are {limit:g} units in float32 and 0.51 in float16, where 0.5 is correct
rounding.

## Results

Each cell is "error of f / error of f'", in units in the last place (ulp) of the exact
result: the distance between two neighbouring floating-point numbers at that size.
Measured with {versions}.
"""

NOTES = """
- **Inputs.** float16: all 63,488 finite numbers. float32: about two million numbers of
  both signs. A quarter covers all exponents, a quarter is evenly spaced from 0 to 20, a
  quarter logarithmically from 1e-4 to 20, and a quarter lies around points where a
  function changes.
- **Exact results** are computed in extended precision. x is taken as exact, and dy is
  1.
- `CELU` and `ELU` with another α add the rounding of x/α and of the product with α.
- float64 is not listed. There, derivatives lose digits next to their zeros.
- `array_api_strict` has no float16. XLA flushes subnormal float32 numbers to 0, so they
  are not checked on `jax`.

## What to conclude

Every activation and derivative is within {limit:g} ulp in float32, and correctly
rounded in float16, which is computed in float32. Differences between backends are those
of their elementary functions. The last row shows the error of each library's own
float32 `exp`. NumPy's depends on the processor, and can be 2.5 ulp, where those of
PyTorch and XLA are within 1. GELU, SiLU and Mish therefore do not use NumPy's, but an
`exp` of this library that is within 1.

## Overflow of squared gradients

Adam, AdamW, NAdam, RAdam, LAMB, RMSprop, Adagrad and Adadelta keep means or sums of g²
in the dtype of the parameters. g² overflows to infinity in float32 where |g| > 1.8e19,
and in float64 where |g| > 1.3e154. That mean then stays infinite, and its parameter no
longer moves, except by weight decay. Other parameters are not affected. PyTorch does
the same. With Adafactor, parameters become NaN.

`Trainer` refuses infinite gradients, but not finite ones whose square overflows. Put
`ClipByGlobalNorm` or `ClipByValue` around the optimizer to limit gradients; norms are
computed so that no square overflows. SGD, Lion, Muon and Adamax keep no squares.
"""


def page() -> tuple[str, list[str]]:
    """Return the page, and a line for each error above its limit."""
    backends, rows, bad = [], {}, []
    for name in BACKENDS:
        try:
            backends.append(nn.backend(name))
        except nn.BackendUnavailable as error:
            print(error)
    layers = list(TRUTH)
    for backend in backends:
        print(f"{backend} ...", flush=True)
        for dtype, most in (("float16", 0.51), ("float32", LIMIT)):
            if not hasattr(backend.xp, dtype):
                continue
            for layer in layers:
                x = half() if dtype == "float16" else single(TRUTH[layer][2])
                ((f, at), (slope, slope_at)) = measure(backend, [layer], [x])[0]
                rows[layer, backend.name, dtype] = f"{f:.2f} / {slope:.2f}"
                for what, error, place in (("f", f, at), ("f'", slope, slope_at)):
                    if error > most:
                        bad.append(
                            f"{layer} {what} on {backend}, {dtype}: {error:.2f} at "
                            f"{place}"
                        )
        rows["exp", backend.name, "float32"] = f"{exp_error(backend):.2f}"
    columns = [(b.name, dtype) for b in backends for dtype in ("float16", "float32")]
    columns = [column for column in columns if (layers[0], *column) in rows]
    lines = [
        "| f / f' | " + " | ".join(f"{name}, {dtype}" for name, dtype in columns) + " |"
    ]
    lines.append("| --- |" + " --- |" * len(columns))
    for layer in (*layers, "exp"):
        cells = [rows.get((layer, *column), "") for column in columns]
        label = "`exp` of the library" if layer == "exp" else str(layer)
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    versions = ", ".join(f"{b.name} {b.version}" for b in backends)
    head = HEAD.format(limit=LIMIT, versions=versions)
    return head + "\n" + "\n".join(lines) + "\n" + NOTES.format(limit=LIMIT), bad


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description="Measure how accurate activations are."
    )
    parser.add_argument("--write", action="store_true", help="write docs/accuracy.md")
    is_to_write = parser.parse_args(arguments).write
    text, bad = page()
    if is_to_write:
        write_text(PAGE, text)
    else:
        print(text)
    for line in bad:
        print(line, file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
