"""Kernels: several elementwise calls compiled into one loop in machine code.

Separate calls each read and write whole arrays. A kernel makes all calls for one
element after the other, so intermediate results stay in registers. LLVM compiles it, in
about 20 ms, if llvmlite is installed (`pip install "agnostic-nn[llvm]"`).

A kernel gives the same bits as the calls. It contains only operations with one correct
result: sums, products, quotients and square roots of floats, for which IEEE 754 (2019,
section 5.4.1) prescribes the rounding; comparisons and selections; and integers modulo
2^n. LLVM does not reorder them, nor fuse a product with a sum, without fast-math flags.

Set the environment variable AGNOSTIC_NN_KERNELS to 0 to do without kernels.
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

MIN_ELEMENTS_PER_THREAD = 2**20  # with fewer, another thread costs more than it saves

_TYPES = {"bool": "i1", "float32": "float", "float64": "double"} | {
    f"{sign}int{n}": f"i{n}" for sign in ("", "u") for n in (8, 16, 32, 64)
}
_MAXIMUM = (  # NaN if either operand is
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
    "maximum": tuple(line.replace("{more}", "ogt") for line in _MAXIMUM),
    "minimum": tuple(line.replace("{more}", "olt") for line in _MAXIMUM),
}
_POWER_OF_TWO = (  # 2ⁿ, from the bits of n + 1.5 · 2²³
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
    """An operand of a call.

    kind: "number" for a Python number, "array" or "scalar" for an argument of the
        kernel, "call" for the result of an earlier call.
    place: the number itself, or the index of the array, scalar or call.
    """

    kind: str
    place: Any
    dtype: str = ""


@dataclass(frozen=True)
class Call:
    """operation(*operands), with a result of `dtype`.

    out: the index of the array to which the result is written, or None if only later
        calls use it.
    """

    operation: str
    operands: tuple[Operand, ...]
    dtype: str
    out: int | None = None


@dataclass(frozen=True)
class Array:
    """An array argument, for results of shape (rows, width).

    broadcast: "whole" for an array of that shape, "row" for one row that all rows
        share, "column" for one element a row.
    """

    dtype: str
    broadcast: str


@cache
def available() -> bool:
    """Return whether llvmlite is installed and kernels are not turned off."""
    if os.environ.get("AGNOSTIC_NN_KERNELS") == "0":
        return False
    try:
        from llvmlite import binding
    except (ImportError, OSError):
        return False
    return bool(binding.llvm_version_info >= (17,))


def dtype_name(dtype: Any) -> str:
    """Return the name of a dtype of any library, or "" if kernels do not support it."""
    name = str(dtype).rpartition(".")[2]
    return name if name in _TYPES else ""


def is_exact(call: Call) -> bool:
    """Return whether a kernel gives the same bits as the call."""
    return bool(_instructions(call))


def _instructions(call: Call) -> tuple[str, ...]:
    """Return the LLVM instructions of a call, or () if a kernel cannot make it.

    {a}, {b} and {c} stand for the operands, and {0}, {1}, ... for the results of the
    instructions.
    """
    dtypes = [operand.dtype for operand in call.operands if operand.kind != "number"]
    if not (dtypes and call.dtype and all(dtypes)):
        return ()
    name = call.operation
    dtype = call.dtype
    if name == "cast":
        return _cast(dtypes[0], dtype)
    if name == "choose":
        is_valid = call.operands[0].dtype == "bool" and set(dtypes[1:]) <= {dtype}
        return ("select i1 {a}, {t} {b}, {t} {c}",) if is_valid else ()
    source, *other_dtypes = set(dtypes)
    if other_dtypes:  # each library promotes dtypes by other rules
        return ()
    numbers = [operand.place for operand in call.operands if operand.kind == "number"]
    if not all(_is_representable(number, source) for number in numbers):
        return ()
    name, _, as_numbers = name.partition(" as ")
    if name in _ORDER or name in _EQUAL:
        comparison = _compare(name, source)
        if as_numbers and dtype == source:
            to_number = [line.replace("{a}", "{0}") for line in _cast("bool", dtype)]
            return (*comparison, *to_number)
        return comparison if dtype == "bool" else ()
    if source != dtype:
        return ()
    if name == "two to":
        return _POWER_OF_TWO if dtype == "float32" else ()
    if name.endswith("shift"):
        # only shifts by less than the width are defined
        *_, by = call.operands
        if by.kind != "number" or not 0 <= by.place < _bits(dtype):
            return ()
    if dtype == "bool":
        return _BITS.get(name, ())
    return (_FLOATS if dtype.startswith("float") else _INTEGERS).get(name, ())


def _compare(name: str, dtype: str) -> tuple[str]:
    is_float = dtype.startswith("float")
    if name in _EQUAL:
        of_floats, of_integers = _EQUAL[name]
        return (f"{of_floats if is_float else of_integers} {{of}} {{a}}, {{b}}",)
    kind = dtype.rstrip("0123456789")
    instruction = {"float": "fcmp o", "int": "icmp s"}.get(kind, "icmp u")
    return (f"{instruction}{_ORDER[name]} {{of}} {{a}}, {{b}}",)


def _cast(source: str, dtype: str) -> tuple[str, ...]:
    old = _TYPES[source]
    new = _TYPES[dtype]
    if dtype == "bool":
        return (_compare("not_equal", source)[0].replace("{b}", _number(0, source)),)
    if source.startswith("float"):
        if not dtype.startswith("float"):
            return ()  # the result of a value out of range is undefined
        instruction = "fpext" if dtype == "float64" else "fptrunc"
    elif dtype.startswith("float"):
        instruction = "sitofp" if source.startswith("int") else "uitofp"
    else:
        extend = "sext" if source.startswith("int") else "zext"
        instruction = extend if _bits(dtype) > _bits(source) else "trunc"
    return (f"{instruction if old != new else 'bitcast'} {old} {{a}} to {new}",)


def _bits(dtype: str) -> int:
    return 1 if dtype == "bool" else int(dtype.lstrip("uintfloa"))


def _is_representable(number: Any, dtype: str) -> bool:
    """Return whether the Array API allows a Python number with arrays of a dtype."""
    if dtype == "bool":
        return type(number) is bool
    if dtype.startswith("float"):
        return type(number) in (int, float)
    lowest = 0 if dtype[0] == "u" else -(2 ** (_bits(dtype) - 1))
    return type(number) is int and lowest <= number < lowest + 2 ** _bits(dtype)


def _number(number: Any, dtype: str) -> str:
    """Return a number as an LLVM literal: a float by the bits of the nearest double."""
    if not dtype.startswith("float"):
        return str(int(number)) if dtype != "bool" else str(number).lower()
    nearest = ctypes.c_float(number).value if dtype == "float32" else float(number)
    return f"0x{struct.pack('>d', nearest).hex().upper()}"


def _in_memory(dtype: str) -> str:
    return "i8" if dtype == "bool" else _TYPES[dtype]


def _assembly(
    arrays: tuple[Array, ...], scalars: tuple[str, ...], calls: tuple[Call, ...]
) -> str:
    """Return the kernel as LLVM assembly: a loop over rows around a loop over columns.

    Names: %p{k} is the address of array k, %q{k} that of its current element and %a{k}
    the element. %s{k} is scalar k, and %r{n} the result of call n. %i is the row, %j
    the column and %k the index of the element.
    """
    parameters = [
        "i64 %rows",
        "i64 %width",
        *(f"ptr noalias %p{k}" for k in range(len(arrays))),
    ]
    once: list[str] = []  # instructions before the loops
    for k, dtype in enumerate(scalars):
        llvm_type = _TYPES[dtype]
        if dtype.startswith("float"):
            parameters.append(f"{llvm_type} %s{k}")
        else:  # ctypes passes integers as int64
            convert = "bitcast" if llvm_type == "i64" else "trunc"
            parameters.append(f"i64 %w{k}")
            once.append(f"%s{k} = {convert} i64 %w{k} to {llvm_type}")
    by_row = ["%start = mul i64 %i, %width"]
    by_element = ["%k = add i64 %start, %j"]
    operands = [operand for call in calls for operand in call.operands]
    read = {operand.place for operand in operands if operand.kind == "array"}
    for k, array in enumerate(arrays):
        code = by_row if array.broadcast == "column" else by_element
        index = {"whole": "%k", "row": "%j", "column": "%i"}[array.broadcast]
        llvm_type = _in_memory(array.dtype)
        code.append(f"%q{k} = getelementptr {llvm_type}, ptr %p{k}, i64 {index}")
        if k in read and array.dtype == "bool":
            code += [f"%b{k} = load i8, ptr %q{k}", f"%a{k} = icmp ne i8 %b{k}, 0"]
        elif k in read:
            code.append(f"%a{k} = load {llvm_type}, ptr %q{k}")
    for n, call in enumerate(calls):
        by_element += _call_assembly(n, call)
        if call.out is not None and call.dtype == "bool":
            by_element += [
                f"%o{n} = zext i1 %r{n} to i8",
                f"store i8 %o{n}, ptr %q{call.out}",
            ]
        elif call.out is not None:
            by_element.append(f"store {_TYPES[call.dtype]} %r{n}, ptr %q{call.out}")
    lines = "\n  ".join
    return f"""\
define void @kernel({", ".join(parameters)}) {{
entry:
  {lines([*once, "br label %row"])}
row:
  %i = phi i64 [0, %entry], [%next.i, %end.row]
  {lines([*by_row, "br label %number"])}
number:
  %j = phi i64 [0, %row], [%next.j, %number]
  {lines(by_element)}
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


def _call_assembly(n: int, call: Call) -> list[str]:
    """Return the instructions of call number n, of which the last assigns %r{n}."""
    dtypes = [operand.dtype for operand in call.operands if operand.kind != "number"]
    source = dtypes[0]
    # "choose" has a mask as its first operand
    number_dtype = call.dtype if call.operation == "choose" else source
    operands = [
        f"%{_LETTERS[operand.kind]}{operand.place}"
        if operand.dtype
        else _number(operand.place, number_dtype)
        for operand in call.operands
    ]
    fields: dict[str, Any] = dict(zip("abc", operands, strict=False))
    fields |= {"t": _TYPES[call.dtype], "of": _TYPES[source], "bits": _bits(call.dtype)}
    if call.dtype.startswith("u"):
        fields |= {"sign": "u", "right": "lshr"}
    else:
        fields |= {"sign": "s", "right": "ashr"}
    instructions = _instructions(call)
    results = [*(f"%r{n}.{i}" for i in range(len(instructions) - 1)), f"%r{n}"]
    return [
        f"{result} = {line.format(*results, **fields)}"
        for result, line in zip(results, instructions, strict=True)
    ]


_LETTERS = {"call": "r", "array": "a", "scalar": "s"}


def _machine() -> Any:
    """Return LLVM's description of this processor."""
    from llvmlite import binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
    )


def kernel(
    arrays: tuple[Array, ...], scalars: tuple[str, ...], calls: tuple[Call, ...]
) -> Callable[..., None]:
    """Return a compiled function of (rows, width, *addresses, *scalars) for `calls`.

    rows and width are at least 1. An array that is written to must not overlap another
    one.
    """
    # cached by its assembly, since calls with 0.0 and with -0.0 compare equal
    return _compile(_assembly(arrays, scalars, calls), len(arrays), scalars)


@cache
def _compile(code: str, arrays: int, scalars: tuple[str, ...]) -> Callable[..., None]:
    from llvmlite import binding as llvm

    machine = _machine()
    module = llvm.parse_assembly(code)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = True
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    engine = llvm.create_mcjit_compiler(module, machine)
    floats: dict[str, Any] = {"float32": ctypes.c_float, "float64": ctypes.c_double}
    scalar_types = [floats.get(dtype, ctypes.c_int64) for dtype in scalars]
    sizes = (ctypes.c_int64, ctypes.c_int64)
    pointers = [ctypes.c_void_p] * arrays
    signature = ctypes.CFUNCTYPE(None, *sizes, *pointers, *scalar_types)
    function: Any = signature(engine.get_function_address("kernel"))
    function.engine = engine  # it owns the machine code
    compiled: Callable[..., None] = function
    return compiled


def run_parallel(kernel: Callable[..., Any], *shares: tuple[Any, ...]) -> None:
    """Call kernel(*share) for each of `shares`, in this thread and others."""
    call = ParallelCall(kernel, *shares)
    try:
        call()
    finally:  # after an error no thread may begin another share, or still be writing
        call.shares.clear()
        call.wait()


class ParallelCall:
    """The calls kernel(*share), made by several threads.

    Calling the object again after an error makes the calls that are still missing.

    shares: the shares by number; each thread takes its share out, so that none is
        computed twice.
    begun, ended: the numbers of the shares that threads have begun and ended.
    wakeups: gets None when a share has ended.
    """

    def __init__(self, kernel: Callable[..., Any], *shares: tuple[Any, ...]) -> None:
        self.kernel = kernel
        self.shares = dict(enumerate(shares))
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.errors: list[BaseException] = []
        self.wakeups: SimpleQueue[None] = SimpleQueue()

    def __call__(self) -> None:
        numbers = [*self.shares]
        self.errors.clear()
        for number in numbers[1:]:
            _threads().submit(self._run_share, number)
        for number in numbers:
            self._run_share(number)
        self.wait()
        if self.errors:
            raise self.errors[0]

    def wait(self) -> None:
        """Wait until no thread computes a share."""
        while len(self.ended) < len(self.begun):
            with suppress(Empty):
                self.wakeups.get(timeout=0.01)

    def _run_share(self, number: int) -> None:
        """Compute a share, unless another thread has taken it."""
        share = None
        try:
            self.begun.append(number)
            share = self.shares.pop(number, None)
            if share is not None:
                self.kernel(*share)
        except BaseException as error:
            if share is not None:
                self.shares[number] = share
            self.errors.append(error)
        finally:
            self.ended.append(number)
            self.wakeups.put(None)


@cache
def _threads() -> ThreadPoolExecutor:
    if hasattr(os, "register_at_fork"):  # a forked process has none of the threads
        os.register_at_fork(after_in_child=_threads.cache_clear)
    return ThreadPoolExecutor(thread_name_prefix="agnostic_nn")
