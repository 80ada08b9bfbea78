"""Conformance: what of this library a given array library can carry, and how exactly.

Any library that speaks the Array API Standard will do: one with an adapter, or any namespace
without one. Each thing is computed there and by NumPy, in float32 and, where there is one, in
float64, and the largest difference from NumPy's float64 decides:

exact
    The same numbers as NumPy's in the same dtype.
within
    Off by no more than roundings are: 16 ε of the largest number of an array (of 1, if that is
    below), ε from 1 to the next number; in training 4 ε √(n · t), as `compare` says it.
wrong
    Off by more, or of another shape or dtype, or an argument was changed in place.
unsupported
    The library raised an error, which is shown in one line, hung, or ended the process.
skipped
    Not tried by itself, for the reason shown.
"""

import math
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from html import escape
from importlib import import_module
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import fill
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from . import blocks, layers, losses, optimizers, random, special
from .arrays import namespace
from .checking import _batched, _draw
from .compare.deviation import tolerance
from .loading import CannotLoad, load
from .registry import Backend, BackendUnavailable, _chosen_policy, _modules, backend
from .specimens import LAYERS, LOSSES, OPTIMIZERS
from .tables import folded, html_table, markdown_table, table
from .training import Trainer
from .trees import leaves, named_leaves, shape_map, tree_map

__all__ = [
    "ADAPTER",
    "NEEDS",
    "SECTIONS",
    "THROUGH",
    "Conformance",
    "Finding",
    "conformance",
    "guarded",
    "library",
]

SPAWN = get_context("spawn")  # a fork of a process with threads may hang by itself
SECONDS = 120.0  # that one thing may take, and a library to start
ROUNDINGS = 16.0  # tolerance of one computation, in ε of the dtype
VERDICTS = ("exact", "within", "wrong", "unsupported", "skipped")
ADAPTER = (
    *("asarray", "compiles", "describe", "devices", "double", "has_float64", "jit"),
    *("synchronize", "to_numpy", "version", "vjp", "xp"),
)
NEEDS = (  # of the Standard; a test holds that no more is used
    *("abs", "all", "any", "arange", "argmax", "argsort", "asarray", "astype", "bool"),
    *("broadcast_to", "clip", "concat", "cos", "exp", "expand_dims", "expm1", "finfo", "flip"),
    *("float32", "floor", "full", "full_like", "int32", "int8", "isdtype", "isfinite", "log"),
    *("log1p", "logaddexp", "logical_and", "logical_or", "matrix_transpose", "max", "maximum"),
    *("mean", "minimum", "ones", "ones_like", "permute_dims", "repeat", "reshape"),
    *("searchsorted", "sign", "sin", "sinh", "sqrt", "stack", "sum", "take", "take_along_axis"),
    *("tanh", "uint32", "uint8", "where", "zeros", "zeros_like"),
)


HEAD = """# Conformance: {backend} {version}

What of this library {backend} can carry, thing by thing, found by `agnostic-nn conformance`.

## What a backend must have

Arrays with `__array_namespace__`, or a library that array-api-compat wraps, or a class of arrays
that the adapter names by `agnostic_nn.arrays.register`; the dtypes bool, int32, uint32 and float32,
and float64 if there is one; the operators of the Standard, among them `@`, `&`, `^`, `<<` and `>>`
of uint32; indexing with integers, slices, `None` and `...`; and of the functions and names of the
Array API Standard these:

{needs}

Numbers made from nothing are asked for with `dtype=` and `device=`, and `device(x)` of
array-api-compat must tell where x is, or else the function that was registered. Sorts are asked for
with `stable=True`. Nothing is written into an array, nothing is indexed by a mask or by integers,
and no value decides a shape.

A library with all of that runs as it is, by the name of its namespace (`agnostic-nn conformance
mlx.core`). What it lacks, an adapter brings: one module with the names that
`agnostic_nn_backends` lists, which is found by its own name, or as an entry point of the group
`agnostic_nn.backends`. There is one of a hundred lines in `examples/mlx_backend`.

## How to read this

The columns are the largest difference from NumPy's float64, relative to the largest number of the
array that it is in, or to 1. `exact`: the same numbers as NumPy's in the same dtype, which has a
difference from float64 too. `within`: off by no more than 16 ε, ε being the distance from 1 to the
next number, or in training by 4 ε √n, after n roundings. `wrong`: off by more, or of another shape
or dtype. `unsupported`: the library's own error in one line, or that it gave no answer or ended the
process. `skipped`: not tried by itself, and why. Random words, checkpoints and what goes to a
device and back must be exact. Differences of random draws, training and checkpoints are from NumPy
in the same dtype.

## What was found

On {hardware}, {adapter}: {tried} things, of which **{said}**.
"""


@dataclass(frozen=True)
class Finding:
    """What became of one thing: errors are relative to the largest number of an array."""

    section: str
    name: str
    verdict: str
    float32: float | None = None
    float64: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Conformance:
    """All findings about one library. `str` makes tables."""

    backend: str
    version: str
    hardware: str
    adapter: str
    findings: tuple[Finding, ...]

    @property
    def totals(self) -> dict[str, int]:
        """How many findings have each verdict."""
        counted = Counter(one.verdict for one in self.findings)
        return {verdict: counted[verdict] for verdict in VERDICTS}

    @property
    def conforms(self) -> bool:
        """Whether nothing is wrong or unsupported."""
        return not (self.totals["wrong"] or self.totals["unsupported"])

    @property
    def said(self) -> str:
        """The totals in words."""
        return ", ".join(f"{count} {verdict}" for verdict, count in self.totals.items())

    def __str__(self) -> str:
        parts = [table(columns, rows, title) for title, columns, rows in self._tables()]
        head = f"{self.backend} {self.version} ({self.hardware}), {self.adapter}"
        return "\n\n".join([head, *parts, f"{len(self.findings)} tried: {self.said}"])

    def _repr_html_(self) -> str:
        head = f"{self.backend} {self.version} ({self.hardware}), {self.adapter}: "
        told = [f"<p>{escape(head)}<strong>{len(self.findings)} tried: {self.said}</strong></p>"]
        for title, columns, rows in self._tables():
            found = html_table(columns, rows, title, inline=True)
            told.append(folded(f"{title}: {len(rows)}", found, len(rows)))
        return "".join(told)

    def to_markdown(self) -> str:
        """The same as a page in Markdown, which says first what a backend must have."""
        words = ", ".join(f"`{name}`" for name in NEEDS)
        said = asdict(self) | {"said": self.said, "tried": len(self.findings)}
        parts = [HEAD.format(needs=fill(words, 100), **said).rstrip()]
        for title, columns, rows in self._tables():
            parts += [f"### {title[0].upper()}{title[1:]}", markdown_table(columns, rows)]
        return "\n\n".join(parts) + "\n"

    def to_json(self) -> dict[str, Any]:
        """The same as data for JSON, where an error that is no finite number is null."""
        found = asdict(self) | {"totals": self.totals, "needs": list(NEEDS)}
        for one in found["findings"]:
            for dtype in ("float32", "float64"):
                if one[dtype] is not None and not math.isfinite(one[dtype]):
                    one[dtype] = None
        return found

    def _tables(self) -> Iterator[tuple[str, list[str], list[list[Any]]]]:
        columns = ["", "verdict", "float32", "float64", "why"]
        for section in dict.fromkeys(one.section for one in self.findings):
            rows = [
                [one.name, one.verdict, _shown(one.float32), _shown(one.float64), one.reason]
                for one in self.findings
                if one.section == section
            ]
            yield section, columns, rows


def _shown(error):
    return "" if error is None else f"{error:.1e}" if error else "0"


# --- how a library is found -------------------------------------------------------------


def library(name: str, *, bare: bool = False) -> Backend:
    """The library called `name`, with its adapter if it has one.

    A backend, with a device if need be; or a module that is an adapter, or a namespace; or
    module:object, a namespace. bare: do without the adapter.

    Raises
    ------
    BackendUnavailable
        If there is no such thing, or it cannot run.
    """
    if not bare and name.partition(":")[0] in _modules():
        return backend(name)
    try:
        found = load(name)
    except CannotLoad as error:
        known = ", ".join(_modules())
        raise BackendUnavailable(f"{name} is no backend ({known}): {error}") from error
    whole = not bare and all(hasattr(found, each) for each in ADAPTER)
    adapter = found if whole else _adapted(name, found)
    try:
        device_name, device = next(iter(adapter.devices().items()))
    except Exception as error:
        raise BackendUnavailable(f"{name} finds no device: {_line(error)}") from error
    return Backend(name, device_name, device, adapter, *_chosen_policy(None, None))


def _adapted(name, given):
    """An adapter for a namespace that has none: the Standard's own words, and nothing native."""
    try:
        xp = namespace(given.asarray([0.0]))
    except Exception as error:
        reason = f"arrays of {name} do not speak the Array API Standard: {_line(error)}"
        raise BackendUnavailable(reason) from error

    def asarray(data, device):
        # without a dtype some would make float32 of float64; one that is missing is the error
        return xp.asarray(np.array(data, order="C"), dtype=getattr(xp, data.dtype.name))

    def to_numpy(array):
        try:
            return np.asarray(array)
        except (TypeError, ValueError, RuntimeError):
            return np.from_dlpack(array)

    def has_float64(device):
        try:
            return xp.asarray([0.0], dtype=xp.float64).dtype == xp.float64
        except Exception:  # each library has its own way to refuse
            return False

    version = getattr(given, "__version__", "") or getattr(
        import_module(name.partition(":")[0].partition(".")[0]), "__version__", "?"
    )
    return SimpleNamespace(
        xp=xp,
        version=version,
        devices=lambda: {"default": None},
        describe=lambda device: "its default device",
        has_float64=has_float64,
        double=nullcontext,
        asarray=asarray,
        to_numpy=to_numpy,
        jit=lambda function, device, donate=(): function,
        compiles=False,
        synchronize=to_numpy,
        vjp=None,
    )


# --- how it is judged -------------------------------------------------------------------


class _Trial(NamedTuple):
    """Something to try: `compute(backend, dtype)` makes a tree of arrays on the host.

    allowed: ε -> the tolerance. wide: whether NumPy's float64 is the reference, and not NumPy's
    own numbers in the same dtype: random draws of another dtype are other numbers.
    """

    name: str
    compute: Callable[[Backend, str], Any] | str
    allowed: Callable[[float], float] = lambda epsilon: ROUNDINGS * epsilon
    wide: bool = True


def conformance(
    chosen: Backend | str, *, only: str = "", told: Callable[[str], None] = lambda name: None
) -> Conformance:
    """Try everything on the library `chosen`; `told` is given the name of what is under way.

    only: the one section, or the one thing, to try.

    Raises
    ------
    BackendUnavailable
        If there is no such library, or it cannot run.
    """
    chosen = library(chosen) if isinstance(chosen, str) else chosen
    findings = []
    for section, trial in _trials(only):
        told(trial.name)
        findings.append(_judged(section, trial, chosen))
    return replace(_begun(chosen), findings=tuple(findings))


def guarded(
    name: str,
    *,
    bare: bool = False,
    only: str = "",
    seconds: float = SECONDS,
    told: Callable[[str], None] = lambda name: None,
) -> Conformance:
    """The same of `library(name, bare=bare)`, in a process of its own, which may hang or crash.

    What takes longer than `seconds`, or ends the process, is unsupported; the rest is tried by
    another process.
    """
    wanted = [(section, trial.name) for section, trial in _trials(only)]
    findings: list[Finding] = []
    begun: Conformance | None = None
    while begun is None or len(findings) < len(wanted):
        ours, theirs = SPAWN.Pipe(duplex=False)
        asked = theirs, name, bare, only, len(findings)
        worker = SPAWN.Process(target=_work, args=asked, daemon=True)
        worker.start()
        theirs.close()
        try:
            begun = _answer(ours, worker, max(seconds, SECONDS))
            while len(findings) < len(wanted):
                told(wanted[len(findings)][1])
                findings.append(_answer(ours, worker, seconds))
        except _Silent as error:
            if begun is None:
                raise BackendUnavailable(f"{name} does not start: {error}") from error
            findings.append(Finding(*wanted[len(findings)], "unsupported", reason=str(error)))
        finally:
            worker.kill()
            worker.join()
    return replace(begun, findings=tuple(findings))


def _trials(only):
    """Section and trial of all that is asked for, in order."""
    for section, trials in SECTIONS.items():
        for trial in trials():
            if only in ("", section, trial.name):
                yield section, trial


def _begun(chosen):
    """All but the findings."""
    adapter = getattr(chosen.adapter, "__name__", None)
    adapter = f"through the adapter {adapter}" if adapter else "without an adapter"
    return Conformance(str(chosen), chosen.version, chosen.hardware, adapter, ())


def _work(answers, name, bare, only, start):
    """Answer with what the library is, and each finding from the one numbered `start` on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # to stop is for the process that asks
    try:
        chosen = library(name, bare=bare)
    except BackendUnavailable as error:
        answers.send(error)
        return
    answers.send(_begun(chosen))
    for section, trial in islice(_trials(only), start, None):
        answers.send(_judged(section, trial, chosen))


class _Silent(Exception):
    """No answer comes any more; the message says why."""


def _answer(answers, worker, seconds):
    if not answers.poll(seconds):
        raise _Silent(f"no answer within {seconds:g} seconds")
    try:
        answer = answers.recv()
    except EOFError:
        worker.join()
        code = worker.exitcode
        ended = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"
        raise _Silent(f"the process ended {ended}") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _judged(section, trial, chosen):
    """The finding about a trial."""
    find = partial(Finding, section, trial.name)
    if isinstance(trial.compute, str):
        return find("skipped", reason=trial.compute)
    host, exact, reason = backend("numpy"), True, ""
    errors: dict[str, float] = {}
    for dtype in ("float32", "float64") if _has_double(chosen) else ("float32",):
        where = "float64: " if dtype == "float64" else ""
        near = trial.compute(host, dtype)
        wide = trial.compute(host, "float64") if trial.wide else near
        try:
            with chosen.double() if dtype == "float64" else nullcontext():
                found = trial.compute(chosen, dtype)
        except _Wrong as error:
            return find("wrong", **errors, reason=f"{where}{error}")
        except Exception as error:  # each library has its own way to refuse
            return find("unsupported", **errors, reason=f"{where}{_line(error)}")
        fault = _unlike(found, near)
        if fault:
            return find("wrong", **errors, reason=f"{where}{fault}")
        errors[dtype], worst = _error(found, wide)
        exact = exact and _same(found, near)
        if not errors[dtype] <= trial.allowed(float(np.finfo(dtype).eps)):
            reason = reason or f"{where}{worst}"
    return find("wrong" if reason else "exact" if exact else "within", **errors, reason=reason)


class _Wrong(Exception):
    """What no number shows; the message says it."""


def _has_double(one):
    if one.adapter.double is None:
        return False
    with one.double():
        return one.has_float64


def _line(error):
    """An error in one line."""
    said = " ".join(str(error).split())
    said = said if len(said) <= 160 else f"{said[:157]}..."
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _unlike(found, near):
    """What is missing, left over, or of another shape or dtype than NumPy's."""
    found, near = dict(named_leaves(found)), dict(named_leaves(near))
    for name in sorted(found.keys() ^ near.keys()):
        return f"{name} {'is missing' if name in near else 'should not be there'}"
    for name, leaf in near.items():
        if (found[name].shape, found[name].dtype) != (leaf.shape, leaf.dtype):
            there = f"{found[name].dtype} {found[name].shape}"
            return f"{name} is {there}, expected {leaf.dtype} {leaf.shape}"
    return None


def _same(found, near):
    pairs = zip(leaves(found), leaves(near), strict=True)
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs)


def _error(found, reference):
    """The largest error of all leaves, and the number that it is in, in words."""
    worst = 0.0, ""
    for (name, a), b in zip(named_leaves(found), leaves(reference), strict=True):
        errors = _errors(a, b)
        if np.max(errors, initial=0.0) > worst[0]:
            at = np.unravel_index(np.argmax(errors), errors.shape)
            place = f"{name}[{', '.join(map(str, at))}]" if at else name
            worst = float(errors[at]), f"{place} is {a[at]:.9g}, expected {b[at]:.9g}"
    return worst


def _errors(a, b):
    """Relative to the largest number of b, or to 1; whole numbers and NaN fit or do not."""
    same = (a == b) | ((a != a) & (b != b))
    if a.dtype.kind != "f":
        return np.where(same, 0.0, math.inf)
    scale = np.max(abs(b), initial=1.0, where=np.isfinite(b))
    with np.errstate(invalid="ignore"):
        errors = abs(a.astype(np.float64) - b) / scale
    return np.where(same, 0.0, np.where(np.isnan(errors), math.inf, errors))


# --- what is tried ----------------------------------------------------------------------


def _exactly(epsilon):
    return 0.0


def _names():
    def compute(one, dtype):
        missing = [name for name in NEEDS if not hasattr(one.xp, name)]
        if missing:
            raise AttributeError(f"the namespace lacks {', '.join(missing)}")
        return {}

    yield _Trial(f"{len(NEEDS)} names", compute, _exactly)


def _arrays():
    for name in ("bool", "int32", "uint32", "float32", "float64"):

        def compute(one, dtype, name=name):
            if name == "float64" and dtype == "float32":
                if not _has_double(one):
                    raise BackendUnavailable(f"{one} has no float64")
                return {}
            given = np.asarray([[0, 1, 2], [100, 3, 7]]).astype(name)
            array = one.asarray(given)
            given[...] = 0
            return one.to_numpy(array)

        yield _Trial(f"{name}, there and back", compute, _exactly, wide=False)


def _random():
    draws = {
        "words": lambda xp, key, dtype: random.words(key, 257),
        "split": lambda xp, key, dtype: random.split(key, 3),
        "fold": lambda xp, key, dtype: random.fold(key, 5),
        "bernoulli": lambda xp, key, dtype: random.bernoulli(key, 0.3, (5, 7)),
        "uniform": lambda xp, key, dtype: random.uniform(key, (5, 7), getattr(xp, dtype)),
        "normal": lambda xp, key, dtype: random.normal(key, (5, 7), getattr(xp, dtype)),
        "permutation": lambda xp, key, dtype: random.permutation(key, 129),
    }
    for name, draw in draws.items():

        def compute(one, dtype, draw=draw):
            key = random.key(2**40 + 7, xp=one.xp, device=one.device)
            found = one.to_numpy(one.jit(lambda key: draw(one.xp, key, dtype))(key))
            # a library may hold words and places in wider integers
            return found.astype(np.int64) if found.dtype.kind in "iu" else found

        # in float64 other numbers are drawn, of more bits
        allowed = _Trial._field_defaults["allowed"] if name == "normal" else _exactly
        yield _Trial(name, compute, allowed, wide=False)


def _on(one, function, arrays):
    """function(arrays) by a backend, on the host; its arguments must stay as they are."""
    there = one.asarray(arrays)
    found = one.to_numpy(one.jit(function)(there))
    for (name, given), now in zip(named_leaves(arrays), leaves(there), strict=True):
        if not _same(given, one.to_numpy(now)):
            raise _Wrong(f"{name}, an argument, was changed in place")
    return found


def _cast(tree, dtype):
    return tree_map(lambda leaf: leaf.astype(dtype) if leaf.dtype.kind == "f" else leaf, tree)


def _special():
    generator = np.random.default_rng(0)
    numbers = np.asarray([-1e4, -7.0, -0.5, -0.0, 0.0, 1e-30, 0.5, 7.0, 1e4])
    arrays = {
        "numbers": numbers,
        "x": generator.standard_normal((5, 4, 3)),
        "ties": generator.integers(0, 3, (2, 4, 4, 3)).astype(float),
        "broken": np.asarray([0.0, math.nan, math.inf]),
        "rows": np.asarray([0, 2, 2, 1, 0], np.int32),
        "holds": np.asarray([True, False]),
    }
    arrays = _cast(_cast(arrays, "float32"), "float64")

    def loop(a, reverse):
        def step(carry, x):
            carry = 0.5 * carry + x
            return carry, {"y": carry * x}

        return special.scan(step, a["x"][0, ...], a["x"], reverse=reverse)

    def pooled(a):
        y, _, cache = layers.MaxPool2D(2).forward({}, {}, a["ties"], train=True)
        return {"y": y, "dx": layers.MaxPool2D(2).backward({}, cache, y)[0]}

    functions = {
        "above_zero": lambda a: special.above_zero(a["numbers"], a["numbers"]),
        "all_finite": lambda a: (special.all_finite(a["x"]), special.all_finite(a["broken"])),
        "barrier": lambda a: special.barrier({"x": a["x"], "numbers": a["numbers"]}),
        "crop": lambda a: special.crop(a["x"], ((1, 2),)),
        "erf": lambda a: special.erf(a["numbers"]),
        "largest": pooled,
        "log_softmax": lambda a: special.log_softmax(100.0 * a["x"]),
        "pad": lambda a: special.pad(a["x"], ((2, -1),), 0.5),
        "scan": lambda a: (loop(a, reverse=False), loop(a, reverse=True)),
        "scatter_add": lambda a: special.scatter_add(a["x"][:, 0, :], a["rows"], 4),
        "select": lambda a: tuple(
            special.select(a["holds"][i], lambda: a["numbers"] + 1.0, a["numbers"]) for i in (0, 1)
        ),
        "sigmoid": lambda a: special.sigmoid(a["numbers"]),
        "softplus": lambda a: special.softplus(a["numbers"]),
        "sum_rows": lambda a: special.sum_rows(a["x"]),
        "surround": lambda a: special.surround(a["x"], ((1, 2),), 0.5),
    }
    for name in special.__all__:
        if name not in functions:
            yield _Trial(name, f"tried through {THROUGH[name]}")
            continue

        def compute(one, dtype, function=functions[name]):
            return _on(one, function, _cast(arrays, dtype))

        yield _Trial(name, compute)


THROUGH = {
    "along": "pooling",
    "attend": "MultiHeadAttention",
    "attend_backward": "MultiHeadAttention",
    "barrier_as": "barrier",
    "convolve": "Conv2D",
    "convolve_input": "Conv2D",
    "convolve_weight": "Conv2D",
    "largest_input": "largest",
    "lstm": "LSTM",
    "lstm_backward": "LSTM",
    "normalize": "GroupNorm",
    "normalize_backward": "GroupNorm",
    "normalize_rows": "LayerNorm",
    "normalize_rows_backward": "LayerNorm",
    "scan_as": "scan",
    "scan_into": "scan",
    "slide": "pooling",
    "unslide": "pooling",
}


def _of(specimens):
    for one in specimens:
        yield _Trial(one.name, partial(_layer, one, 4))


def _layer(specimen, size, one, dtype):
    """Forward and backward, training and predicting, of up to four examples."""
    layer = specimen.layer

    def everything(a):
        found = {}
        for mode in ("train", "predict"):
            train = mode == "train"
            y, state, cache = layer.forward(a["params"], a["state"], a["x"], train=train)
            dx, grads = layer.backward(a["params"], cache, a["dy"])
            dx = {name: leaf for name, leaf in named_leaves(dx, "dx") if leaf is not None}
            found[mode] = {"y": y, "state": state, "grads": grads, **dx}
        return found

    arrays = _given(specimen)
    few = tree_map(lambda leaf: leaf[:size], {name: arrays[name] for name in ("x", "dy")})
    return _on(one, everything, _cast(arrays | few, dtype))


@cache
def _given(specimen):
    """All that a layer is called with, in float32, where no bias is 0."""
    layer, generator, host = specimen.layer, np.random.default_rng(0), backend("numpy").xp
    draw = specimen.draw or partial(_draw, layer)
    params, state, out = layer.init(random.key(0, xp=host), specimen.shape, host.float32)
    x = draw(generator, _batched(specimen.shape, 4))
    dy = shape_map(lambda shape: np.asarray(generator.standard_normal(shape)), _batched(out, 4))
    params = tree_map(lambda leaf: leaf + generator.uniform(-0.25, 0.25, leaf.shape), params)
    return _cast({"params": params, "state": state, "x": _narrow(x), "dy": dy}, "float32")


def _narrow(tree):
    """Whole numbers in int32."""
    return tree_map(lambda leaf: leaf.astype("int32") if leaf.dtype.kind in "iu" else leaf, tree)


def _batches():
    """What is left of the few layers that differ most, where there are no or few examples."""
    some = ("Conv2D", "Dense", "Embedding", "GRU", "MaxPool2D", "MultiHeadAttention")
    for one in LAYERS:
        if one.name in some:
            for size in (0, 1):
                yield _Trial(f"{one.name}, a batch of {size}", partial(_layer, one, size))


def _optimizers(steps=5):
    generator = np.random.default_rng(0)

    def drawn():
        layer = {"weight": generator.standard_normal((5, 3)), "bias": generator.standard_normal(3)}
        tree = ({"weight": generator.standard_normal((3, 2, 2, 4))}, layer)
        return tree_map(lambda leaf: leaf.astype("float32"), tree)

    start, grads = drawn(), [drawn() for _ in range(steps)]
    for optimizer in OPTIMIZERS:

        def compute(one, dtype, optimizer=optimizer):
            params = _cast(start, dtype)
            moments = one.asarray(optimizer.init(params))
            params, update = one.asarray(params), one.jit(optimizer.update)
            for grad in grads:
                params, moments = update(params, one.asarray(_cast(grad, dtype)), moments)
            return one.to_numpy({"params": params, "moments": moments})

        yield _Trial(type(optimizer).__name__, compute)


class _Task(NamedTuple):
    """A short training."""

    model: Any
    loss: Any
    optimizer: Any
    x: np.ndarray
    target: np.ndarray

    def trainer(self, one, dtype):
        asked = self.model, self.loss, self.optimizer
        return Trainer(*asked, backend=one, dtype=dtype, seed=3, shape=self.x.shape[1:])

    def fit(self, trainer, epochs=2):
        """The losses of so many epochs of three batches, the last of them short."""
        data = _cast(self.x, trainer.dtype), self.target
        return trainer.fit(*data, epochs=epochs, batch_size=16, verbose=0)


def _tasks():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 40)
    images = generator.standard_normal((40, 6, 6, 2))
    words = generator.integers(0, 7, (40, 5))
    slow = optimizers.SGD(0.05, momentum=0.9)
    return {
        "Dense, BatchNorm, Dropout": _Task(
            blocks.Sequential(
                *(layers.Dense(8), layers.BatchNorm(), layers.GELU(), layers.Dropout(0.2)),
                layers.Dense(3),
            ),
            *(losses.softmax_cross_entropy, slow, images[:, 0, 0, :], labels),
        ),
        "Conv2D, MaxPool2D": _Task(
            blocks.Sequential(
                *(layers.Conv2D(4, 3), layers.ReLU(), layers.MaxPool2D(), layers.Flatten()),
                layers.Dense(3),
            ),
            *(losses.softmax_cross_entropy, slow, images, labels),
        ),
        "Embedding, attention, LSTM": _Task(
            blocks.Sequential(
                layers.Embedding(7, 4),
                blocks.Residual(layers.MultiHeadAttention(2, causal=True)),
                *(layers.LSTM(4), layers.Flatten(), layers.Dense(3)),
            ),
            *(losses.softmax_cross_entropy, slow, words, labels),
        ),
    }


def _training():
    for name, task in _tasks().items():

        def compute(one, dtype, task=task):
            trainer = task.trainer(one, dtype)
            history = task.fit(trainer)
            y = trainer.predict(_cast(task.x, dtype))
            loss = np.asarray(history["loss"])
            return {"loss": loss, "params": one.to_numpy(trainer.params), "y": y}

        yield _Trial(name, compute, partial(_of_steps, task, 6), wide=False)


def _of_steps(task, steps, epsilon):
    """Forward sums over rows of weights, backward over columns, and a gradient over a batch."""
    params = task.trainer(backend("numpy"), "float64").params
    return tolerance(epsilon, steps * (16 + sum(sum(leaf.shape) for leaf in leaves(params))))


def _checkpoints():
    task = next(iter(_tasks().values()))

    def moved(one, dtype, back):
        first, second = (one, backend("numpy")) if back else (backend("numpy"), one)
        trainer = task.trainer(first, dtype)
        task.fit(trainer, epochs=1)
        with TemporaryDirectory() as folder:
            path = Path(folder, "checkpoint")
            trainer.save(path)
            again = Trainer.load(path, second)
        saved, read = first.to_numpy(trainer.params), second.to_numpy(again.params)
        if not _same(saved, read):
            raise _Wrong("what was loaded is not what was saved")
        task.fit(again, epochs=1)
        return {"params": second.to_numpy(again.params)}

    allowed = partial(_of_steps, task, 6)
    for name, back in {"from NumPy, trained on": False, "to NumPy, trained on": True}.items():
        yield _Trial(name, partial(moved, back=back), allowed, wide=False)


SECTIONS: dict[str, Callable[[], Iterator[_Trial]]] = {
    "names of the Standard": _names,
    "arrays": _arrays,
    "random words": _random,
    "special functions": _special,
    "layers": partial(_of, LAYERS),
    "losses": partial(_of, LOSSES),
    "batches of 0 and 1": _batches,
    "optimizers": _optimizers,
    "training": _training,
    "checkpoints": _checkpoints,
}
