"""Plan: which calls of a tape to make, where each result lies, and the code that makes them.

Memory has an owner: an argument, a constant, or the node of a call that made an array. Views
own none; their roots are the owners whose memory they show. An owner's memory is free for
others once no later call reads it, by whatever view.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from . import kernels
from .codegen import called, delayed, function
from .fuse import Group, exact, part
from .trace import Node, Trace, leaves

__all__ = ["Plan"]

MIN_KERNEL_SIZE = 2**7  # numbers that are worth a kernel
MIN_RELEASE_BYTES = 2**12  # bytes that are not worth being let go of
_END = 2**62


@dataclass(eq=False)
class _Item:
    """A call to make, or several elementwise ones to make block by block."""

    nodes: list[Node]


class Plan:
    """How to compute the nodes `wanted`, and for each pair (old, new) put new where old lies."""

    def __init__(self, tape: Trace, inputs: list[Node], wanted: list[Node], pairs: list) -> None:
        self.library, self.nodes, self.inputs = tape.library, tape.nodes, inputs
        self.block = self.library.block_size()
        self.places = {node.number: i for i, node in enumerate(inputs)}
        self.wanted, self.pairs = wanted, pairs
        self.parents = [[one.number for one in node.parents] for node in tape.nodes]
        self.constants = {node.number for node in tape.nodes if node.constant}
        self.guard: tuple[int, int] | None = self._guard(tape.guards)
        self._find_roots(self._needed())
        self._set_apart()
        self._line_up()
        self._find_lives()
        self._find_homes()

    # --- what there is to do ------------------------------------------------------------

    def _guard(self, guards: dict[int, int]) -> tuple[int, int] | None:
        """Where to stop if nothing is to change; pairs are then those of what would become.

        That is so if the result is one `select` between new arguments and the old.
        """
        found, pairs = set(), []
        for old, new in self.pairs:
            if new is old:
                pairs.append((old, new))
                continue
            if new.number not in guards or new.args[2] is not old:
                return None
            found.add((new.args[0].number, guards[new.number]))
            pairs.append((old, new.args[1]))
        if len(found) != 1:
            return None
        (guard,) = found
        if any(node.number >= guard[1] for node in self.wanted):
            return None
        before, self.pairs = self.pairs, pairs
        if any(p in guards for n in self._needed([guard[0]]) for p in self.parents[n]):
            self.pairs = before
            return None
        return guard

    def _needed(self, more: Any = ()) -> list[int]:
        """The numbers of the calls that something wanted depends on, in order."""
        guard = () if getattr(self, "guard", None) is None else self.guard[:1]
        queue = [node.number for node in (*self.wanted, *(new for _, new in self.pairs))]
        queue += [*guard, *more]
        seen: set[int] = set()
        while queue:
            number = queue.pop()
            if number not in seen:
                seen.add(number)
                queue += self.parents[number]
        return sorted(n for n in seen if n not in self.constants and n not in self.places)

    def _find_roots(self, order: list[int]) -> None:
        self.order = order
        self.roots = {n: frozenset((n,)) for n in (*self.constants, *self.places)}
        self.views: set[int] = set()  # that can be made once, as their parent's memory stays
        self.kept: set[int] = set()  # owners of memory that the program has: no call asks for it
        unpaired = {node.number for node in self.wanted}
        for n in order:
            node, value = self.nodes[n], self.nodes[n].value
            shown = [one.number for one in node.shown]
            own = [] if isinstance(value, self.library.array_type) and shown else [n]
            self.roots[n] = frozenset(own).union(*(self.roots[p] for p in shown))
            if own and self._takes_out(node) and n not in unpaired:
                self.kept.add(n)
            steady = all(p in self.constants for p in self.parents[n] if p not in shown)
            if len(shown) == 1 and not own and steady and self._is_bound(shown[0]):
                self.views.add(n)

    def _is_bound(self, n: int) -> bool:
        """Whether the array of a node stays where it is from call to call."""
        return n in self.constants or n in self.places or n in self.kept or n in self.views

    def _set_apart(self) -> None:
        """Find the calls that come last: those that write to donated memory, and all after them.

        They are made as a whole, so each has to be a call of a C function into memory that the
        program has. What becomes of an argument is not written where that lies if it, or a
        call that reads it, is none; it is copied there at the end.
        """
        after: dict[int, list[int]] = {}  # the calls that read a node, or a view of it
        for n in self.order:
            for p in self.parents[n]:
                after.setdefault(p, []).append(n)
        wanted = {node.number for node in self.wanted}
        wanted |= set() if self.guard is None else {self.guard[0]}
        self.over: set[int] = set()  # to be written where an argument lies
        self.late: set[int] = set()
        for old, new in self.pairs:
            n = new.number
            if new is old or n in self.places or not (n in self.kept and self._is_elementwise(new)):
                continue
            found, queue = set(self.late), [n]
            while queue:
                if (n := queue.pop()) not in found:
                    found.add(n)
                    queue += after.get(n, ())
            if all(self._can_be_late(n) for n in found - self.late) and not found & wanted:
                self.over.add(new.number)
                self.late = found
        # what only late calls read stays with them in one group
        for n in reversed(self.order):
            if n in self.late or n in wanted or n not in after or not set(after[n]) <= self.late:
                continue
            if n in self.kept and self._can_be_late(n) and self._is_blockwise(self.nodes[n]):
                self.late.add(n)

    def _can_be_late(self, n: int) -> bool:
        if n in self.views:
            return True
        return n in self.kept and self.library.is_atomic(self.nodes[n].function)

    def _line_up(self) -> None:
        """Sort calls into items; small ones may go before a group that they have no part in."""
        self.items: list[_Item] = []
        self.stop: int | None = None  # before which item to look whether to go on
        self.commit: int | None = None  # the first item of those that are late
        group: list[Node] = []

        def flush() -> None:
            if group:
                self.items.append(_Item(list(group)))
                group.clear()

        self.order.sort(key=self.late.__contains__)  # which is stable
        for n in self.order:
            node = self.nodes[n]
            is_first = self.commit is None and n in self.late
            if is_first:
                flush()
                self.commit = len(self.items)
            if self.guard is not None and self.stop is None and (is_first or n >= self.guard[1]):
                flush()
                self.stop = len(self.items)
            if n in self.views:
                continue
            inside = {one.number for one in group}
            met = [p for p in self.parents[n] if self.roots[p] & inside]
            if n in self.kept and self._is_blockwise(node):
                fits = not group or group[0].value.shape == node.value.shape
                if not fits or any(p not in inside for p in met):
                    flush()
                group.append(node)
                continue
            if met or self.is_wide(node.value) or not self._is_elementwise(node):
                flush()
            self.items.append(_Item([node]))
        flush()
        if self.guard is not None and self.stop is None:
            self.stop = len(self.items)
        if self.commit is None:
            self.commit = len(self.items)

    def _is_blockwise(self, node: Node) -> bool:
        """Whether a call goes number by number through large arrays of one shape.

        A vector along the last axis, or numbers along all others, may be among them.
        """
        value = node.value
        if not self._is_elementwise(node) or node.kwargs:
            return False
        if math.prod(value.shape) <= (MIN_KERNEL_SIZE if exact(node, self.library) else self.block):
            return False
        given = [one.value if isinstance(one, Node) else one for one in leaves(node.args)]
        wide = (value, *(one for one in given if self.is_wide(one)))
        in_order = self.library.is_contiguous
        return all(part(one, value.shape) and in_order(one) for one in wide)

    def is_wide(self, value: Any) -> bool:
        if isinstance(value, self.library.array_type):
            return value.ndim > 0
        return isinstance(value, tuple | list | dict)

    def _is_elementwise(self, node: Node) -> bool:
        return self.library.is_elementwise(node.function)

    def _takes_out(self, node: Node) -> bool:
        """Whether a call can be made into an array that is there already."""
        value = node.value
        if (
            not isinstance(value, self.library.array_type)
            or value.ndim == 0
            or "out" in node.kwargs
        ):
            return False
        possible = self._is_elementwise(node) or self.library.accepts_out(node.function)
        return possible and self.library.is_dense(value)

    def _are_alike(self, one: Node, other: Node) -> bool:
        layouts = [
            self.library.layout(node.value)
            if isinstance(node.value, self.library.value_types)
            else None
            for node in (one, other)
        ]
        return layouts[0] == layouts[1]

    # --- where results lie --------------------------------------------------------------

    def _find_lives(self) -> None:
        self.last: dict[int, int] = {}  # of an owner: the last item that reads its memory
        self.last_node: dict[int, int] = {}
        self.readers: dict[int, list[tuple[int, int]]] = {}  # (item, node whose array is read)
        for p, item in enumerate(self.items):
            for node in item.nodes:
                for parent in self.parents[node.number]:
                    for root in self.roots[parent]:
                        self.last[root], self.last_node[root] = p, node.number
                        self.readers.setdefault(root, []).append((p, parent))
        kept = {node.number for node in (*self.wanted, *(new for _, new in self.pairs))}
        kept |= set() if self.guard is None else {self.guard[0]}
        used = {n: p for p, item in enumerate(self.items) for node in item.nodes
                for n in self.parents[node.number]}  # fmt: skip
        # memory that calls ask for: its names let go of it as soon as nobody uses them
        self.let_go: dict[int, list[int]] = {}
        for n, p in used.items():
            if (
                not self._is_bound(n)
                and n not in kept
                and _size(self.nodes[n].value) > MIN_RELEASE_BYTES
            ):
                self.let_go.setdefault(p, []).append(n)
        for node in (*self.wanted, *(new for _, new in self.pairs)):
            for root in self.roots[node.number]:
                self.last[root] = _END
        if self.guard is not None:
            for root in self.roots[self.guard[0]]:
                self.last[root] = max(self.last.get(root, -1), self.stop or 0)

    def _find_homes(self) -> None:
        self.allocation: dict[int, tuple[str, int]] = {}  # ("input", place) or ("buffer", number)
        self.sizes: list[int] = []  # of buffers, in bytes
        self.released: dict[int, tuple[str, int]] = {}  # homes that were handed on
        self.inner: set[int] = set()  # nodes of a group that nothing else reads
        donated_to = {new.number: old for old, new in self.pairs if new is not old}
        free: list[int] = []
        ending: dict[int, list[int]] = {}
        for owner, p in self.last.items():
            ending.setdefault(p, []).append(owner)
        for p, item in enumerate(self.items):
            for node in item.nodes:
                n = node.number
                if n not in self.kept:
                    continue
                if len(item.nodes) > 1 and self.last[n] == p:
                    self.inner.add(n)
                elif n in self.over and self._takes_over(node, donated_to[n], p):
                    self.allocation[n] = ("input", self.places[donated_to[n].number])
                elif (spent := self._spent(node, p)) is not None and len(item.nodes) == 1:
                    self.allocation[n] = self.allocation.pop(spent)
                    self.released[spent] = self.allocation[n]
                else:
                    self.allocation[n] = ("buffer", self._buffer(free, node.value.nbytes))
            ended = [
                self.allocation[owner] for owner in ending.get(p, ()) if owner in self.allocation
            ]
            free += [number for kind, number in ended if kind == "buffer"]

    def _spent(self, node: Node, p: int) -> int | None:
        """An operand that this elementwise call is the last to read, and may be put over."""
        if not self._is_elementwise(node) or node.function is self.library.unsafe_in_place:
            return None
        for q in self.parents[node.number]:
            lies_there = self.allocation.get(q, ("", 0))[0] == "buffer" and self.last[q] == p
            if lies_there and self._are_alike(self.nodes[q], node):
                views = {reader for at, reader in self.readers[q] if at == p}
                if views == {q}:
                    return q
        return None

    def _buffer(self, free: list[int], size: int) -> int:
        fits = [b for b in free if size <= self.sizes[b] <= 2 * size + 256]
        if fits:
            best = min(fits, key=self.sizes.__getitem__)
            free.remove(best)
            return best
        self.sizes.append(size)
        return len(self.sizes) - 1

    def _takes_over(self, node: Node, old: Node, p: int) -> bool:
        """Whether what becomes of an argument can lie where that lies as soon as it is made."""
        last = self.last.get(old.number, -1)
        if not self._are_alike(node, old) or last > p or p < (self.stop or 0):
            return False
        if last < p:
            return True
        alike = all(
            self._are_alike(self.nodes[q], old) and self.nodes[q].start == old.start
            for at, q in self.readers[old.number]
            if at == p
        )
        plain = self._is_elementwise(node) and node.function is not self.library.unsafe_in_place
        return plain and alike and self.last_node[old.number] <= node.number

    # --- the code -----------------------------------------------------------------------

    def written(self) -> tuple[Callable, list[Callable], dict[str, Any]]:
        """A function that makes the calls, one for each argument that binds it, and their names.

        The function returns the calls that write to donated memory, which are still to be made.
        """
        env: dict[str, Any] = {
            "deferred_copy": self.library.deferred_copy,
            "partial": partial,
            "copy": self.library.copy,
            "split": self.library.split_rows,
            "address": self.library.address,
            "run_parallel": kernels.run_parallel,
            "ParallelCall": kernels.ParallelCall,
        }
        for n in self.constants:
            env[f"e{n}"] = self.nodes[n].value
        buffers = [self.library.allocate(size) for size in self.sizes]
        steady: list[str] = []
        binding: list[list[str]] = [[f"e{node.number} = array"] for node in self.inputs]
        where: dict[int, list[str]] = {}  # the code that makes what an owner's memory shows

        for n in sorted((*self.constants, *self.places, *self.order)):
            node = self.nodes[n]
            if n in self.places:
                where[n] = binding[self.places[n]]
            elif n in self.constants:
                where[n] = steady
            elif n in self.allocation or n in self.released:
                kind, number = self.allocation.get(n) or self.released[n]
                if kind == "input":
                    where[n] = binding[number]
                    where[n].append(f"e{n} = array")
                else:
                    where[n] = steady
                    env[f"e{n}"] = self.library.array_in(node.value, buffers[number])
            elif n in self.views:
                (root,) = self.roots[n]
                where[root].append(called(node, self.library, env))

        body, late, done = [], [], []
        for p, item in enumerate(self.items):
            if p == self.stop:
                body.append(f"if not e{self.guard[0]}: return ()")
            lines = self._lines(item, env, where)
            names = [f"e{n} = None" for n in self.let_go.get(p, ())]
            if p < self.commit:
                body += [*lines, *names]
                continue
            before, calls = delayed(lines)
            body += before
            late.append(calls)
            done += names
        if self.stop == len(self.items):
            body.append(f"if not e{self.guard[0]}: return ()")
        moved = [(old, new) for old, new in self.pairs if self._has_to_move(old, new)]
        theirs = {old.number for old, _ in self.pairs}
        for k, (_, new) in enumerate(moved):
            if self.roots[new.number] & theirs:  # which another result may be put over first
                body.append(f"m{k} = copy(e{new.number})")
        for k, (old, new) in enumerate(moved):
            source = f"m{k}" if self.roots[new.number] & theirs else f"e{new.number}"
            late.append(f"deferred_copy(e{old.number}, {source})")
        run = function("run", "", [*body, f"return [{', '.join(late)}]"], env)
        function("prepare", "", steady, env)()
        self.release = function("release", "", done, env)
        self.is_parallel = any(
            call.startswith("ParallelCall(") for call in late
        )  # by several threads
        return run, [function("bind", "array", lines, env) for lines in binding], env

    def is_elsewhere(self, node: Node) -> bool:
        """Whether a result shows memory that is not its own, so that it has to be copied."""
        return self._is_bound(node.number) or any(
            self._is_bound(root) for root in self.roots[node.number]
        )

    def _has_to_move(self, old: Node, new: Node) -> bool:
        return new is not old and self.allocation.get(new.number) != (
            "input",
            self.places[old.number],
        )

    def _lines(self, item: _Item, env: dict[str, Any], where: dict[int, list[str]]) -> list[str]:
        if len(item.nodes) == 1:
            (node,) = item.nodes
            kept = node.number in self.allocation or node.number in self.released
            return [called(node, self.library, env, f"e{node.number}" if kept else "")]
        lasting = lambda n: where[self._home(n)] if self._is_bound(n) else None  # noqa: E731
        return Group(self, item.nodes).lines(env, lasting)

    def memory(self, n: int) -> tuple:
        """Where a node lies: the same for two of them only if they show the same numbers."""
        if n in self.allocation or n in self.released:
            return self.allocation.get(n) or self.released[n]
        if n in self.places:
            return "input", self.places[n]
        if len(self.roots[n]) == 1 and n not in self.roots[n]:
            root = self.nodes[next(iter(self.roots[n]))]
            if root.start == self.nodes[n].start and self._are_alike(root, self.nodes[n]):
                return self.memory(root.number)
        return "node", n

    def _home(self, n: int) -> int:
        """The node with which an array that stays where it is becomes known."""
        return next(iter(self.roots[n])) if n in self.views else n


def _size(value: Any) -> int:
    return sum(getattr(one, "nbytes", 0) for one in leaves(value))
