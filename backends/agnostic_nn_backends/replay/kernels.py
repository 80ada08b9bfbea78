"""Kernels: elementwise calls that follow one another, as one loop in machine code.

What a plan would make call by call, each going through whole arrays, a kernel makes number by
number: what passes between the calls stays in registers. LLVM compiles it, in about 20 ms, if
llvmlite is installed (`pip install "agnostic-nn[llvm]"`).

Only what has one right result is put into a kernel: sums, products, quotients and square
roots of floats, which IEEE 754 (2019, section 5.4.1) rounds in one way; comparisons, choices,
and integers modulo 2^n. LLVM keeps them as they are written, and fuses no product with a sum
unless it is told to. So a kernel gives the bits that the calls give.

The environment variable AGNOSTIC_NN_KERNELS at 0 leaves them out.
"""

import ctypes
import os
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from queue import Empty, SimpleQueue
from typing import Any

__all__ = [
    "Array",
    "Call",
    "Operand",
    "ParallelCall",
    "available",
    "dtype_name",
    "is_exact",
    "kernel",
    "run_parallel",
]

MIN_ELEMENTS_PER_THREAD = 2**20  # numbers that are worth a thread

_TYPES = {"bool": "i1", "float32": "float", "float64": "double"} | {
    f"{sign}int{n}": f"i{n}" for sign in ("", "u") for n in (8, 16, 32, 64)
}
_LARGER = (  # NaN if either is
    "fcmp {more} {t} {a}, {b}",
    "fcmp uno {t} {a}, {a}",
    "or i1 {0}, {1}",
    "select i1 {2}, {t} {a}, {t} {b}",
)
_FLOATS = {
    "add": ("fadd {t} {a}, {b}",),
    "subtract": ("fsub {t} {a}, {b}",),
    "multiply": ("fmul {t} {a}, {b}",),
    "divide": ("fdiv {t} {a}, {b}",),
    "negative": ("fneg {t} {a}",),
    "square": ("fmul {t} {a}, {a}",),
    "reciprocal": ("fdiv {t} 1.0, {a}",),
    "sqrt": ("call {t} @llvm.sqrt.f{bits}({t} {a})",),
    "absolute": ("call {t} @llvm.fabs.f{bits}({t} {a})",),
    "floor": ("call {t} @llvm.floor.f{bits}({t} {a})",),
    "maximum": tuple(line.replace("{more}", "ogt") for line in _LARGER),
    "minimum": tuple(line.replace("{more}", "olt") for line in _LARGER),
}
_TWO_TO = (  # 2ⁿ, from the bits of n + 1.5 · 2²³
    "bitcast {t} {a} to i32",
    "shl i32 {0}, 23",
    "add i32 {1}, 1065353216",
    "bitcast i32 {2} to {t}",
)
_BITS = {
    "and": ("and {t} {a}, {b}",),
    "or": ("or {t} {a}, {b}",),
    "xor": ("xor {t} {a}, {b}",),
    "invert": ("xor {t} {a}, -1",),
}
_INTEGERS = _BITS | {
    "add": ("add {t} {a}, {b}",),
    "subtract": ("sub {t} {a}, {b}",),
    "multiply": ("mul {t} {a}, {b}",),
    "negative": ("sub {t} 0, {a}",),
    "square": ("mul {t} {a}, {a}",),
    "maximum": ("icmp {sign}gt {t} {a}, {b}", "select i1 {0}, {t} {a}, {t} {b}"),
    "minimum": ("icmp {sign}lt {t} {a}, {b}", "select i1 {0}, {t} {a}, {t} {b}"),
    "left shift": ("shl {t} {a}, {b}",),
    "right shift": ("{right} {t} {a}, {b}",),
}
_ORDER = {"less": "lt", "less_equal": "le", "greater": "gt", "greater_equal": "ge"}
_EQUAL = {"equal": ("fcmp oeq", "icmp eq"), "not_equal": ("fcmp une", "icmp ne")}


@dataclass(frozen=True)
class Operand:
    """What a call is given: a number, or number `place` of the "call"s, "array"s or "scalar"s."""

    kind: str
    place: Any
    dtype: str = ""


@dataclass(frozen=True)
class Call:
    """operation(*operands) in `dtype`; written to array number `out` if it is not None."""

    operation: str
    operands: tuple[Operand, ...]
    dtype: str
    out: int | None = None


@dataclass(frozen=True)
class Array:
    """How rows meet an array: "whole", as a "row" that all share, or a number each, a "column"."""

    dtype: str
    broadcast: str


@cache
def available() -> bool:
    """Whether kernels can be made here."""
    if os.environ.get("AGNOSTIC_NN_KERNELS") == "0":
        return False
    try:
        from llvmlite import binding
    except (ImportError, OSError):
        return False
    return binding.llvm_version_info >= (17,)


def dtype_name(dtype: Any) -> str:
    """The name of a dtype of any library if a kernel can compute with it, or nothing."""
    name = str(dtype).rpartition(".")[2]
    return name if name in _TYPES else ""


def is_exact(call: Call) -> bool:
    """Whether a kernel can make a call, to the last bit."""
    return bool(_instructions(call))


def _instructions(call: Call) -> tuple[str, ...]:
    """LLVM's instructions for a call: {a}, {b}, {c} are given, {0} is what the first gives."""
    given = [one.dtype for one in call.operands if one.kind != "number"]
    if not (given and call.dtype and all(given)):
        return ()
    name, dtype = call.operation, call.dtype
    if name == "cast":
        return _cast(given[0], dtype)
    if name == "choose":
        fits = call.operands[0].dtype == "bool" and set(given[1:]) <= {dtype}
        return ("select i1 {a}, {t} {b}, {t} {c}",) if fits else ()
    source, *others = set(given)
    numbers = [one.place for one in call.operands if one.kind == "number"]
    if others or not all(_is_in(number, source) for number in numbers):
        return ()
    name, *as_numbers = name.split(" as ")
    if name in _ORDER or name in _EQUAL:
        compared = _compared(name, source)
        if as_numbers and dtype == source:
            return (*compared, *(line.replace("{a}", "{0}") for line in _cast("bool", dtype)))
        return compared if dtype == "bool" else ()
    if source != dtype:
        return ()
    if name == "two to":
        return _TWO_TO if dtype == "float32" else ()
    if name.endswith("shift"):
        *_, by = call.operands
        if by.kind != "number" or not 0 <= by.place < _bits(dtype):
            return ()
    if dtype == "bool":
        return _BITS.get(name, ())
    return (_FLOATS if dtype.startswith("float") else _INTEGERS).get(name, ())


def _compared(name: str, dtype: str) -> tuple[str]:
    real = dtype.startswith("float")
    if name in _EQUAL:
        return (f"{_EQUAL[name][0 if real else 1]} {{of}} {{a}}, {{b}}",)
    how = "fcmp o" if real else "icmp s" if dtype.startswith("int") else "icmp u"
    return (f"{how}{_ORDER[name]} {{of}} {{a}}, {{b}}",)


def _cast(source: str, dtype: str) -> tuple[str, ...]:
    old, new = _TYPES[source], _TYPES[dtype]
    if dtype == "bool":
        return (_compared("not_equal", source)[0].replace("{b}", _number(0, source)),)
    if source.startswith("float"):
        if not dtype.startswith("float"):
            return ()  # what is out of range is nobody's promise
        word = "fpext" if dtype == "float64" else "fptrunc"
    elif dtype.startswith("float"):
        word = "sitofp" if source.startswith("int") else "uitofp"
    else:
        wider = "sext" if source.startswith("int") else "zext"
        word = wider if _bits(dtype) > _bits(source) else "trunc"
    return (f"{word if old != new else 'bitcast'} {old} {{a}} to {new}",)


def _bits(dtype: str) -> int:
    return 1 if dtype == "bool" else int(dtype.lstrip("uintfloa"))


def _is_in(number: Any, dtype: str) -> bool:
    """Whether a number of Python becomes one of such a dtype, as the Standard has it."""
    if dtype == "bool":
        return type(number) is bool
    if dtype.startswith("float"):
        return type(number) in (int, float)
    lowest = 0 if dtype[0] == "u" else -(2 ** (_bits(dtype) - 1))
    return type(number) is int and lowest <= number < lowest + 2 ** _bits(dtype)


def _number(number: Any, dtype: str) -> str:
    """A number as LLVM writes it: floats by the bits of the nearest double."""
    if not dtype.startswith("float"):
        return str(int(number)) if dtype != "bool" else str(number).lower()
    nearest = ctypes.c_float(number).value if dtype == "float32" else float(number)
    return f"0x{struct.pack('>d', nearest).hex().upper()}"


def _in_memory(dtype: str) -> str:
    return "i8" if dtype == "bool" else _TYPES[dtype]


def _written(arrays: tuple[Array, ...], scalars: tuple[str, ...], calls: tuple[Call, ...]) -> str:
    """The kernel in LLVM's language: row by row, and number by number within it.

    %p0 is the address of array 0, %q0 that of its number at hand, %a0 that number; %s0 is a
    scalar, and %r0 what comes of call 0.
    """
    read = {one.place for call in calls for one in call.operands if one.kind == "array"}
    takes = ["i64 %rows", "i64 %width", *(f"ptr noalias %p{k}" for k in range(len(arrays)))]
    before: list[str] = []
    by_row = ["%start = mul i64 %i, %width"]
    inside = ["%k = add i64 %start, %j"]
    for k, dtype in enumerate(scalars):
        t = _TYPES[dtype]
        if dtype.startswith("float"):
            takes.append(f"{t} %s{k}")
        else:
            takes.append(f"i64 %w{k}")
            before.append(f"%s{k} = {'bitcast' if t == 'i64' else 'trunc'} i64 %w{k} to {t}")
    for k, array in enumerate(arrays):
        lines = by_row if array.broadcast == "column" else inside
        place = {"whole": "%k", "row": "%j", "column": "%i"}[array.broadcast]
        t = _in_memory(array.dtype)
        lines.append(f"%q{k} = getelementptr {t}, ptr %p{k}, i64 {place}")
        if k in read and array.dtype == "bool":
            lines += [f"%b{k} = load i8, ptr %q{k}", f"%a{k} = icmp ne i8 %b{k}, 0"]
        elif k in read:
            lines.append(f"%a{k} = load {t}, ptr %q{k}")
    for n, call in enumerate(calls):
        inside += _call(n, call)
        if call.out is not None and call.dtype == "bool":
            inside += [f"%o{n} = zext i1 %r{n} to i8", f"store i8 %o{n}, ptr %q{call.out}"]
        elif call.out is not None:
            inside.append(f"store {_TYPES[call.dtype]} %r{n}, ptr %q{call.out}")
    lines = "\n  ".join
    return f"""\
define void @kernel({", ".join(takes)}) {{
entry:
  {lines([*before, "br label %row"])}
row:
  %i = phi i64 [0, %entry], [%next.i, %end.row]
  {lines([*by_row, "br label %number"])}
number:
  %j = phi i64 [0, %row], [%next.j, %number]
  {lines(inside)}
  %next.j = add nuw nsw i64 %j, 1
  %more.j = icmp ult i64 %next.j, %width
  br i1 %more.j, label %number, label %end.row
end.row:
  %next.i = add nuw nsw i64 %i, 1
  %more.i = icmp ult i64 %next.i, %rows
  br i1 %more.i, label %row, label %end
end:
  ret void
}}
declare float @llvm.sqrt.f32(float)
declare float @llvm.fabs.f32(float)
declare double @llvm.sqrt.f64(double)
declare double @llvm.fabs.f64(double)
declare float @llvm.floor.f32(float)
declare double @llvm.floor.f64(double)
"""


def _call(n: int, call: Call) -> list[str]:
    """Call number n: its steps, and %r{n}."""
    source = next(one.dtype for one in call.operands if one.kind != "number")
    numbers = call.dtype if call.operation == "choose" else source
    names = [
        f"%{_LETTERS[one.kind]}{one.place}" if one.dtype else _number(one.place, numbers)
        for one in call.operands
    ]
    given = dict(zip("abc", names, strict=False))
    given |= {"t": _TYPES[call.dtype], "of": _TYPES[source], "bits": _bits(call.dtype)}
    signed = not call.dtype.startswith("u")
    given |= {"sign": "s", "right": "ashr"} if signed else {"sign": "u", "right": "lshr"}
    instructions = _instructions(call)
    results = [*(f"%r{n}.{i}" for i in range(len(instructions) - 1)), f"%r{n}"]
    return [
        f"{result} = {line.format(*results, **given)}"
        for result, line in zip(results, instructions, strict=True)
    ]


_LETTERS = {"call": "r", "array": "a", "scalar": "s"}


def _machine() -> Any:
    """What LLVM has to know of this processor."""
    from llvmlite import binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )


def kernel(
    arrays: tuple[Array, ...], scalars: tuple[str, ...], calls: tuple[Call, ...]
) -> Callable[..., None]:
    """f(rows, width, *addresses, *scalars), both at least 1, which makes `calls`.

    No array may share memory with another, if either is written to.
    """
    # known by its code: calls with 0.0 and with -0.0 are equal
    return _compiled(_written(arrays, scalars, calls), len(arrays), scalars)


@cache
def _compiled(code: str, arrays: int, scalars: tuple[str, ...]) -> Callable[..., None]:
    from llvmlite import binding as llvm

    machine = _machine()
    module = llvm.parse_assembly(code)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = True
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    engine = llvm.create_mcjit_compiler(module, machine)
    passed = [
        {"float32": ctypes.c_float, "float64": ctypes.c_double}.get(one, ctypes.c_int64)
        for one in scalars
    ]
    sizes = (ctypes.c_int64, ctypes.c_int64)
    kind = ctypes.CFUNCTYPE(None, *sizes, *([ctypes.c_void_p] * arrays), *passed)
    function = kind(engine.get_function_address("kernel"))
    function.engine = engine  # which holds the code
    return function


def run_parallel(kernel: Callable, *parts: tuple) -> None:
    """Call kernel(*part) for each of `parts`, on this thread and on others."""
    shared = ParallelCall(kernel, *parts)
    try:
        shared()
    finally:  # after an error no thread begins with what is left, or writes on
        shared.parts.clear()
        shared.wait()


class ParallelCall:
    """The calls of a kernel that threads share; after an error they can be called again.

    Then it makes those that were not made. Each thread takes its parts out of `parts`, so that
    none is made twice; `begun` and `ended` count them.
    """

    def __init__(self, kernel: Callable, *parts: tuple) -> None:
        self.kernel, self.parts = kernel, dict(enumerate(parts))
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.errors: list[BaseException] = []
        self.news: SimpleQueue = SimpleQueue()

    def __call__(self) -> None:
        numbers = [*self.parts]
        self.errors.clear()
        for number in numbers[1:]:
            _threads().submit(self._make, number)
        for number in numbers:
            self._make(number)
        self.wait()
        if self.errors:
            raise self.errors[0]

    def wait(self) -> None:
        """Wait until no thread is at it."""
        while len(self.ended) < len(self.begun):
            with suppress(Empty):
                self.news.get(timeout=0.01)

    def _make(self, number: int) -> None:
        part = None
        try:
            self.begun.append(number)
            part = self.parts.pop(number, None)
            if part is not None:
                self.kernel(*part)
        except BaseException as error:
            if part is not None:
                self.parts[number] = part
            self.errors.append(error)
        finally:
            self.ended.append(number)
            self.news.put(None)


@cache
def _threads() -> ThreadPoolExecutor:
    if hasattr(os, "register_at_fork"):  # a fork has none of them
        os.register_at_fork(after_in_child=_threads.cache_clear)
    return ThreadPoolExecutor(thread_name_prefix="agnostic_nn")
