"""Groups: elementwise calls that follow one another on large arrays of one shape, as code.

They are made as one kernel if a kernel can make them all; or else block by block, so that
what passes between them stays in the cache, with kernels for those in a row that can be.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from . import kernels
from .codegen import called, renamed, said
from .kernels import Array, Call, Operand
from .trace import Node

__all__ = ["Group", "part"]


def part(array: Any, shape: tuple) -> str:
    """How an array that is met row by row is laid out as a matrix; nothing if it cannot be."""
    if array.shape == shape:
        return f"-1, {shape[-1]}"
    if math.prod(array.shape) == shape[-1] == array.shape[-1]:
        return f"{shape[-1]}"
    return "-1, 1" if array.shape == (*shape[:-1], 1) else ""


class Group:
    """The elementwise calls `nodes` of a plan.

    calls: those that a kernel can make, by number; arrays and scalars stand as they are met.
    runs: what is made together: such calls in a row, or else one call.
    names: of parts of results that only others of the group read, but not their own kernel alone.
    """

    def __init__(self, plan: Any, nodes: list[Node]) -> None:
        self.plan, self.library, self.nodes = plan, plan.library, nodes
        self.shape = nodes[0].value.shape
        self.rows, self.width = math.prod(self.shape[:-1]), self.shape[-1]
        self.inside = {node.number for node in nodes}
        self.calls = {node.number: call for node in nodes if (call := exact(node, plan.library))}
        if self._shows_otherwise_what_is_written():
            self.calls = {}
        self.runs: list[list[Node]] = []
        for node in nodes:
            if self.runs and {node.number, self.runs[-1][-1].number} <= self.calls.keys():
                self.runs[-1].append(node)
            else:
                self.runs.append([node])
        self.names = self._named()

    def _shows_otherwise_what_is_written(self) -> bool:
        """Whether something reads memory in another order, or in part, that is written to here."""
        memory, roots = self.plan.memory, self.plan.roots
        written = {memory(n) for n in self.inside - self.plan.inner}
        read = {p for n in self.inside for p in self.plan.parents[n]} - self.inside
        others = {memory(root) for p in read if memory(p) not in written for root in roots[p]}
        return not written.isdisjoint(others)

    def _named(self) -> dict[int, str]:
        """Names of memory for a block of each result that passes from one run to another."""
        parents, dtype = self.plan.parents, {}
        made = {node.number: k for k, run in enumerate(self.runs) for node in run}
        last = {p: k for k, run in enumerate(self.runs) for one in run for p in parents[one.number]}
        names: dict[int, str] = {}
        free: list[str] = []
        for k, run in enumerate(self.runs):
            read = {p for node in run for p in parents[node.number]}
            done = [names[p] for p in read if p in names and last[p] == k]
            early = len(run) == 1 and run[0].function is self.library.unsafe_in_place
            free += [] if early else done
            for node in run:
                n = node.number
                if n in self.plan.inner and last[n] > made[n]:
                    fits = [name for name in free if dtype[name] == node.value.dtype]
                    names[n] = fits[-1] if fits else f"x{n}"
                    if fits:
                        free.remove(names[n])
                    dtype[names[n]] = node.value.dtype
            free += done if early else []
        self.dtypes = dtype
        return names

    # --- the code -----------------------------------------------------------------------

    def lines(self, env: dict[str, Any], where: Callable[[int], list[str] | None]) -> list[str]:
        """The code; where(n): the lines that say where node n lies, if it lies there for good."""
        if len(self.runs) == 1:
            before: list[str] = []
            call = self._kernel(self.runs[0], env, where, before)
            return [*before, call]
        step = max(1, self.plan.block // self.width)
        count = -(-self.rows // step)
        rest = self.rows - (count - 1) * step
        for name, dtype in self.dtypes.items():
            env[name] = self.library.empty((step, self.width), dtype)
            env[f"l{name}"] = [env[name]] * (count - 1) + [env[name][:rest]]
        parts = {}  # for each name in a step, that of the list of what it stands for in turn
        before, steps = [], []
        for run in self.runs:
            if len(run) > 1:
                parts |= {"start": f"range(0, {self.rows}, {step})"}
                parts |= {"count": f"[{step}] * {count - 1} + [{rest}]"}
                steps.append(self._kernel(run, env, where, before, "start", "count"))
                continue
            (node,) = run
            shown = {}
            for n in (node.number, *self.plan.parents[node.number]):
                if n in self.names:
                    shown[n], parts[f"b{n}"] = f"b{n}", f"l{self.names[n]}"
                elif n in self.inside or self.plan.is_wide(self.plan.nodes[n].value):
                    shown[n], parts[f"b{n}"] = f"b{n}", f"l{n}_{self.nodes[0].number}"
                    line = f"{parts[f'b{n}']} = {self._cut(n, step, count)}"
                    _add(line, where(n), before)
            code = called(node, self.library, env, shown.pop(node.number))
            steps.append(renamed(code, shown))
        lists = ", ".join(parts.values())
        return [
            *before,
            f"for {', '.join(parts)}, in zip({lists}):",
            *(f"    {step}" for step in steps),
        ]

    def _cut(self, n: int, step: int, count: int) -> str:
        """The code for all parts of an array, `step` rows of it at a time."""
        how = part(self.plan.nodes[n].value, self.shape)
        flat = f"e{n}.reshape({how})"
        return f"[{flat}] * {count}" if how == f"{self.width}" else f"split({flat}, {step})"

    def _kernel(
        self,
        run: list[Node],
        env: dict[str, Any],
        where: Callable[[int], list[str] | None],
        before: list[str],
        start: str = "",
        count: str = "",
    ) -> str:
        """The call of a kernel for a run; from row `start` on, `count` of them, or for all rows."""
        turns = {node.number: k for k, node in enumerate(run)}
        out = [n for n in turns if n in self.names or n not in self.plan.inner]
        met = [one for n in turns for one in self.calls[n].operands]
        read = [one.place for one in met if one.kind == "array" and one.place not in turns]
        memory: dict[Any, int] = {}  # where something lies, and the first node met there
        for n in (*read, *out):
            memory.setdefault(self.names.get(n, self.plan.memory(n)), n)
        places = {home: k for k, home in enumerate(memory)}
        scalars = list({id(one.place): one for one in met if one.kind == "scalar"}.values())

        def placed(one: Operand) -> Operand:
            if one.kind == "scalar":
                return replace(one, place=[id(s.place) for s in scalars].index(id(one.place)))
            if one.kind == "array" and one.place in turns:
                return Operand("call", turns[one.place], one.dtype)
            if one.kind == "array":
                return replace(
                    one, place=places[self.names.get(one.place, self.plan.memory(one.place))]
                )
            return one

        calls = []
        for n in turns:
            call = self.calls[n]
            written = places[self.names.get(n, self.plan.memory(n))] if n in out else None
            calls.append(replace(call, operands=tuple(map(placed, call.operands)), out=written))
        arrays = [self._met(n) for n in memory.values()]
        name = f"k{run[0].number}"
        env[name] = kernels.kernel(tuple(arrays), tuple(s.dtype for s in scalars), tuple(calls))
        for n in memory.values():
            if n not in self.names:
                _add(f"a{n} = address(e{n})", where(n), before)
        values = [self._by_value(s.place, env) for s in scalars]
        flat = all(array.broadcast == "whole" for array in arrays)

        def given(start: str, rows: str) -> str:
            places = []
            for n, array in zip(memory.values(), arrays, strict=True):
                step = self.plan.nodes[n].value.itemsize
                step *= {"whole": self.width, "column": 1, "row": 0}[array.broadcast]
                if n in self.names:
                    places.append(f"{self.library.address(env[self.names[n]])}")
                else:
                    places.append(f"a{n} + {start} * {step}" if start != "0" and step else f"a{n}")
            size = f"1, {rows} * {self.width}" if flat else f"{rows}, {self.width}"
            return ", ".join([size, *places, *values])

        if count:
            return f"{name}({given(start, count)})"
        some = -(-self.rows // self._threads())
        starts = range(0, self.rows, some)
        if len(starts) == 1:
            return f"{name}({given('0', str(self.rows))})"
        each = (f"({given(str(k), str(min(some, self.rows - k)))})" for k in starts)
        return f"run_parallel({name}, {', '.join(each)})"

    def _threads(self) -> int:
        """How many there are, of those that have enough to do."""
        return max(
            1,
            min(
                self.library.num_threads(),
                self.rows * self.width // kernels.MIN_ELEMENTS_PER_THREAD,
            ),
        )

    def _met(self, n: int) -> Array:
        value = self.plan.nodes[n].value
        how = {f"{self.width}": "row", "-1, 1": "column"}.get(part(value, self.shape), "whole")
        return Array(kernels.dtype_name(value.dtype), how)

    def _by_value(self, scalar: Any, env: dict[str, Any]) -> str:
        if isinstance(scalar, Node) and not scalar.constant:
            return f"e{scalar.number}.item()"
        return said((scalar.value if isinstance(scalar, Node) else scalar).item(), env)


def exact(node: Node, library: Any) -> Call | None:
    """A call as a kernel makes it, if one can; arrays and scalars stand in it as they are met."""
    operation = library.operations.get(node.function)
    if operation is None or not kernels.available():
        return None
    given = node.args[:1] if operation == "cast" else node.args
    operands = tuple([_operand(one, library) for one in given])
    if None in operands:
        return None
    call = Call(operation, operands, kernels.dtype_name(node.value.dtype))
    return call if kernels.is_exact(call) else None


def _operand(argument: Any, library: Any) -> Operand | None:
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


def _add(line: str, lines: list[str] | None, otherwise: list[str]) -> None:
    lines = otherwise if lines is None else lines
    if line not in lines:
        lines.append(line)
