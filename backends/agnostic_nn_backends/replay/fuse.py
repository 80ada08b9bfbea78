"""Fusion: the code of a group of elementwise calls on large arrays of one shape.

If kernels can compute all calls of a group, the group becomes one kernel. Otherwise it
becomes a loop over blocks of rows, small enough that intermediate results stay in the
cache. In that loop, runs of consecutive calls that kernels can compute are kernels, and
each other call is a call of the library.

For example, exp(x * 2 - y) * y + 1 for arrays of 100 rows and 64 columns consists of
nodes 2 to 6. In blocks of 8 rows and without an exp for kernels, its code is

    for start, count, b4, b3, in zip(range(0, 100, 8), [8] * 12 + [4], lx3, lx3):
        k2(1, count * 64, a0 + start * 256, a1 + start * 256, 94255560992672)
        f4(b3, b4)
        k5(1, count * 64, 94255560992672, a1 + start * 256, a6 + start * 256)

The kernel k2 computes nodes 2 and 3, f4 is `numpy.exp`, and k5 computes nodes 5 and 6.
x and y are at the addresses a0 and a1, and the result is at a6, in rows of 256 bytes.
The number is the address of the memory for one block of node 3, which node 4
overwrites; b3 and b4 are this memory as an array, shorter for the last block. `emit`
explains the names.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from . import kernels
from .codegen import call_code, rename
from .kernels import Array, Call, Operand
from .trace import Library, Node

if TYPE_CHECKING:
    from .plan import Plan

__all__ = ["Group", "kernel_call", "matrix_shape"]


def matrix_shape(array: Any, shape: tuple[Any, ...]) -> str:
    """Return how an operand is reshaped if results of `shape` are seen as a matrix.

    The last axis becomes the columns, all others the rows. Returns the arguments of
    `reshape` as code: "-1, width" for an operand of that shape, "width" for one row
    that all rows share, "-1, 1" for one element a row, and "" for any other operand.
    """
    if array.shape == shape:
        return f"-1, {shape[-1]}"
    if math.prod(array.shape) == shape[-1] == array.shape[-1]:
        return f"{shape[-1]}"
    return "-1, 1" if array.shape == (*shape[:-1], 1) else ""


class Group:
    """A group of elementwise calls, the nodes `nodes` of a plan.

    members: their numbers.
    calls: for each node that a kernel can compute, the `kernels.Call`. Its operands are
        nodes and arguments; `_kernel` replaces them by indices.
    runs: the nodes that are computed together: consecutive ones of `calls`, or a single
        other node.
    scratch: for each intermediate result that passes from one run to another, the name
        of the memory of one block of it.
    scratch_dtypes: the dtypes of these memories by name.
    """

    def __init__(self, plan: "Plan", nodes: list[Node]) -> None:
        self.plan = plan
        self.library = plan.library
        self.block_size = plan.library.block_size()
        self.nodes = nodes
        self.parents = plan.graph.parents
        self.inner = plan.allocation.inner
        self.shape: tuple[int, ...] = nodes[0].value.shape
        self.rows = math.prod(self.shape[:-1])
        self.width = self.shape[-1]
        self.members = {node.number for node in nodes}
        self.calls: dict[int, Call] = {}
        if not self._reads_written_memory_differently():
            for node in nodes:
                call = kernel_call(node, plan.library)
                if call is not None:
                    self.calls[node.number] = call
        self.runs: list[list[Node]] = []
        is_last_in_kernel = False
        for node in nodes:
            is_in_kernel = node.number in self.calls
            if is_in_kernel and is_last_in_kernel:
                self.runs[-1].append(node)
            else:
                self.runs.append([node])
            is_last_in_kernel = is_in_kernel
        self.scratch_dtypes: dict[str, Any] = {}
        self.scratch = self._assign_scratch()

    def _reads_written_memory_differently(self) -> bool:
        """Return whether the group reads memory that it writes with another layout.

        Kernels assume that arrays are either the same or do not overlap.
        """
        location = self.plan.location
        written = {location(n) for n in self.members - self.inner}
        read = {p for n in self.members for p in self.parents[n]} - self.members
        other_memory = {
            location(root)
            for p in read
            if location(p) not in written
            for root in self.plan.aliases.roots[p]
        }
        return not written.isdisjoint(other_memory)

    def _assign_scratch(self) -> dict[int, str]:
        """Assign memory for blocks of the inner results that later runs read.

        Results that are not needed at the same time share a name, if their dtypes are
        equal.
        """
        run_of = {node.number: k for k, run in enumerate(self.runs) for node in run}
        last_run = {
            parent: k
            for k, run in enumerate(self.runs)
            for node in run
            for parent in self.parents[node.number]
        }
        names: dict[int, str] = {}
        dtypes = self.scratch_dtypes
        free: list[str] = []
        for k, run in enumerate(self.runs):
            read = {parent for node in run for parent in self.parents[node.number]}
            done = [names[p] for p in read if p in names and last_run[p] == k]
            function = run[0].function
            is_unsafe = len(run) == 1 and function is self.library.unsafe_in_place
            if not is_unsafe:  # the results of this run may overwrite its operands
                free += done
            for node in run:
                n = node.number
                if n not in self.inner or last_run[n] == run_of[n]:
                    continue
                dtype = node.value.dtype
                fitting = [name for name in free if dtypes[name] == dtype]
                if fitting:
                    names[n] = fitting[-1]
                    free.remove(names[n])
                else:
                    names[n] = f"x{n}"
                    dtypes[names[n]] = dtype
            if is_unsafe:
                free += done
        return names

    def lines(
        self, env: dict[str, Any], binding_lines: Callable[[int], list[str] | None]
    ) -> list[str]:
        """Return the code of the group.

        binding_lines(n): the lines that bind the memory of node n, to which code that
            depends only on its place is added; None if its array is another one at each
            call.
        """
        if len(self.runs) == 1:
            before: list[str] = []
            call = self._kernel(self.runs[0], env, binding_lines, before)
            return [*before, call]
        step = max(1, self.block_size // self.width)  # rows in a block
        count = -(-self.rows // step)  # blocks
        rest = self.rows - (count - 1) * step  # rows in the last block
        for name, dtype in self.scratch_dtypes.items():
            env[name] = self.library.empty((step, self.width), dtype)
            env[f"l{name}"] = [env[name]] * (count - 1) + [env[name][:rest]]
        # loop variable -> expression of the list of its values, one a block
        blocks: dict[str, str] = {}
        before = []
        body = []
        for run in self.runs:
            if len(run) > 1:
                blocks["start"] = f"range(0, {self.rows}, {step})"
                blocks["count"] = f"[{step}] * {count - 1} + [{rest}]"
                call = self._kernel(run, env, binding_lines, before, "start", "count")
                body.append(call)
                continue
            (node,) = run
            block_names = {}
            for n in (node.number, *self.parents[node.number]):
                name = f"b{n}"
                if n in self.scratch:
                    block_names[n] = name
                    blocks[name] = f"l{self.scratch[n]}"
                elif n in self.members or self._is_wide(n):
                    block_names[n] = name
                    blocks[name] = f"l{n}_{self.nodes[0].number}"
                    line = f"{blocks[name]} = {self._split_code(n, step, count)}"
                    _add_once(line, binding_lines(n), before)
            out = block_names.pop(node.number)
            body.append(rename(call_code(node, self.library, env, out), block_names))
        variables = ", ".join(blocks)
        return [
            *before,
            f"for {variables}, in zip({', '.join(blocks.values())}):",
            *(f"    {line}" for line in body),
        ]

    def _is_wide(self, n: int) -> bool:
        return self.plan.graph.is_wide(self.plan.graph.nodes[n].value)

    def _split_code(self, n: int, step: int, count: int) -> str:
        """Return the expression of the list of blocks of an array, `step` rows each."""
        shape = matrix_shape(self.plan.graph.nodes[n].value, self.shape)
        matrix = f"e{n}.reshape({shape})"
        if shape == f"{self.width}":  # each block reads the same row
            return f"[{matrix}] * {count}"
        return f"split({matrix}, {step})"

    def _kernel(
        self,
        run: list[Node],
        env: dict[str, Any],
        binding_lines: Callable[[int], list[str] | None],
        before: list[str],
        start: str = "",
        count: str = "",
    ) -> str:
        """Compile a kernel for a run; return its call for all rows or for one block.

        start, count: names of the first row and the number of rows of a block.
        before: gets the lines that have to come before the call.
        """
        kernel = self._compile(run, env)
        for n in kernel.nodes:
            if n not in self.scratch:
                _add_once(f"a{n} = address(e{n})", binding_lines(n), before)
        if count:
            return f"{kernel.name}({self._arguments(kernel, env, start, count)})"
        rows_each = -(-self.rows // self._num_threads())
        shares = []
        for first in range(0, self.rows, rows_each):
            rows = min(rows_each, self.rows - first)
            shares.append(self._arguments(kernel, env, str(first), str(rows)))
        if len(shares) == 1:
            return f"{kernel.name}({shares[0]})"
        return f"run_parallel({kernel.name}, ({'), ('.join(shares)}))"

    def _compile(self, run: list[Node], env: dict[str, Any]) -> "_Kernel":
        """Compile a kernel for a run and put it into `env`.

        The calls of a kernel refer to other calls, to arrays and to scalars by their
        indices among the calls, arrays and scalars of the kernel.
        """
        position = {node.number: k for k, node in enumerate(run)}
        written = [n for n in position if n in self.scratch or n not in self.inner]
        operands = [operand for n in position for operand in self.calls[n].operands]
        read = [
            operand.place
            for operand in operands
            if operand.kind == "array" and operand.place not in position
        ]
        # One argument for each memory, since a kernel's arrays must not overlap: the
        # first node in it stands for the others.
        nodes_by_memory: dict[Any, int] = {}
        for n in (*read, *written):
            nodes_by_memory.setdefault(self._memory(n), n)
        nodes = list(nodes_by_memory.values())
        array_index = {memory: k for k, memory in enumerate(nodes_by_memory)}
        scalar_by_id = {
            id(operand.place): operand
            for operand in operands
            if operand.kind == "scalar" and _constant(operand.place) is None
        }
        scalars = list(scalar_by_id.values())
        scalar_index = {key: k for k, key in enumerate(scalar_by_id)}

        def with_index(operand: Operand) -> Operand:
            place = operand.place
            if operand.kind == "scalar":
                constant = _constant(place)
                if constant is not None:  # ctypes takes 0.1 µs for each argument
                    return Operand("number", constant)
                return replace(operand, place=scalar_index[id(place)])
            if operand.kind == "array" and place in position:
                return Operand("call", position[place], operand.dtype)
            if operand.kind == "array":
                return replace(operand, place=array_index[self._memory(place)])
            return operand

        calls = []
        for n in position:
            call = self.calls[n]
            indexed = tuple(map(with_index, call.operands))
            out = array_index[self._memory(n)] if n in written else None
            calls.append(replace(call, operands=indexed, out=out))
        arrays = [self._describe(n) for n in nodes]
        scalar_dtypes = tuple(scalar.dtype for scalar in scalars)
        name = f"k{run[0].number}"
        env[name] = kernels.kernel(tuple(arrays), scalar_dtypes, tuple(calls))
        scalar_codes = [f"e{scalar.place.number}.item()" for scalar in scalars]
        return _Kernel(name, nodes, arrays, scalar_codes)

    def _arguments(
        self, kernel: "_Kernel", env: dict[str, Any], start: str, rows: str
    ) -> str:
        """Return the code of the arguments for `rows` rows from row `start` on."""
        addresses = []
        for n, array in zip(kernel.nodes, kernel.arrays, strict=True):
            item_bytes = self.plan.graph.nodes[n].value.itemsize
            row_size = {"whole": self.width, "column": 1, "row": 0}[array.broadcast]
            row_bytes = item_bytes * row_size
            if n in self.scratch:
                addresses.append(f"{self.library.address(env[self.scratch[n]])}")
            elif start != "0" and row_bytes:
                addresses.append(f"a{n} + {start} * {row_bytes}")
            else:
                addresses.append(f"a{n}")
        # one long row is faster than many short ones
        is_flat = all(array.broadcast == "whole" for array in kernel.arrays)
        size = f"1, {rows} * {self.width}" if is_flat else f"{rows}, {self.width}"
        return ", ".join([size, *addresses, *kernel.scalars])

    def _memory(self, n: int) -> Any:
        """Return a key that is equal for nodes of the group in the same memory."""
        return self.scratch.get(n, self.plan.location(n))

    def _num_threads(self) -> int:
        """Return the number of threads, such that each has enough elements."""
        most: int = self.rows * self.width // kernels.MIN_ELEMENTS_PER_THREAD
        return max(1, min(self.library.num_threads(), most))

    def _describe(self, n: int) -> Array:
        """Return the dtype and the broadcasting of the array of a node."""
        value = self.plan.graph.nodes[n].value
        shape = matrix_shape(value, self.shape)
        broadcast = {f"{self.width}": "row", "-1, 1": "column"}.get(shape, "whole")
        return Array(kernels.dtype_name(value.dtype), broadcast)


@dataclass(frozen=True)
class _Kernel:
    """A compiled kernel and what it is called with.

    name: its name in `env`.
    nodes, arrays: its array arguments, as node numbers and as `kernels` describes them.
    scalars: the expressions of its scalar arguments.
    """

    name: str
    nodes: list[int]
    arrays: list[Array]
    scalars: list[str]


def kernel_call(node: Node, library: Library) -> Call | None:
    """Return a node as a call of a kernel, or None if no kernel gives the same bits.

    The operands refer to arrays by the numbers of their nodes, and to scalars by the
    arguments themselves.
    """
    operation = library.operations.get(node.function)
    if operation is None or not kernels.available():
        return None
    args = node.args[:1] if operation == "cast" else node.args
    operands = []
    for arg in args:
        operand = _operand(arg, library)
        if operand is None:
            return None
        operands.append(operand)
    call = Call(operation, tuple(operands), kernels.dtype_name(node.value.dtype))
    return call if kernels.is_exact(call) else None


def _operand(argument: Any, library: Library) -> Operand | None:
    if isinstance(argument, bool | int | float):
        return Operand("number", argument)
    value = argument.value if isinstance(argument, Node) else argument
    if not isinstance(value, library.value_types):
        return None
    if value.ndim == 0:
        return Operand("scalar", argument, kernels.dtype_name(value.dtype))
    if not isinstance(argument, Node):
        return None
    return Operand("array", argument.number, kernels.dtype_name(value.dtype))


def _constant(scalar: Any) -> Any:
    """Return a 0-d array as a Python number, or None if its value may change."""
    if isinstance(scalar, Node) and not scalar.is_constant:
        return None
    return (scalar.value if isinstance(scalar, Node) else scalar).item()


def _add_once(line: str, lines: list[str] | None, otherwise: list[str]) -> None:
    """Add a line to `lines`, or to `otherwise` if that is None, unless it is there."""
    target = otherwise if lines is None else lines
    if line not in target:
        target.append(line)
