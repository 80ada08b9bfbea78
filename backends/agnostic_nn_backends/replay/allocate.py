"""Liveness and allocation: until when each result is needed, and where it is stored.

The memory of an owner (see `graph.Aliases`) is free once no later step reads it,
through whichever view. Results whose lifetimes do not overlap share a buffer.
"""

from dataclasses import dataclass, field
from typing import Any

from .graph import Aliases, Graph
from .schedule import Commitment, Schedule
from .trace import Node, leaves

__all__ = ["Allocation", "Liveness", "Slot", "allocate", "find_liveness"]

# smaller results are not released early: a statement costs more
MIN_RELEASE_BYTES = 2**12
_NEVER = 2**62  # a step after the last one
Slot = tuple[str, int]  # ("input", index) or ("buffer", index)


@dataclass
class Liveness:
    """When the memory of each owner is read. Steps are given by their index.

    last_step: the last step that reads the memory of an owner.
    last_reader: the last node that reads it.
    readers: for each owner all (step, node through which its memory is read).
    released_after: for a step the results made by the library that nothing reads after
        it; the program deletes its references to them.
    """

    last_step: dict[int, int] = field(default_factory=dict)
    last_reader: dict[int, int] = field(default_factory=dict)
    readers: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    released_after: dict[int, list[int]] = field(default_factory=dict)


def find_liveness(graph: Graph, aliases: Aliases, schedule: Schedule) -> Liveness:
    """Find the lifetimes of all results."""
    live = Liveness()
    last_use: dict[int, int] = {}  # of a node, not of the memory behind it
    for s, step in enumerate(schedule.steps):
        for node in step.nodes:
            for parent in graph.parents[node.number]:
                last_use[parent] = s
                for root in aliases.roots[parent]:
                    live.last_step[root] = s
                    live.last_reader[root] = node.number
                    live.readers.setdefault(root, []).append((s, parent))
    results = [*graph.outputs, *(new for _, new in graph.donations)]
    still_needed = {node.number for node in results}
    if graph.early_return is not None:
        still_needed.add(graph.early_return.condition)
    for n, s in last_use.items():
        is_large = _nbytes(graph.nodes[n].value) > MIN_RELEASE_BYTES
        if not aliases.is_bound(n) and n not in still_needed and is_large:
            live.released_after.setdefault(s, []).append(n)
    for node in results:
        for root in aliases.roots[node.number]:
            live.last_step[root] = _NEVER
    if graph.early_return is not None:
        # the check of the condition reads it too
        return_step = schedule.return_step or 0
        for root in aliases.roots[graph.early_return.condition]:
            last_step = live.last_step.get(root, -1)
            live.last_step[root] = max(last_step, return_step)
    return live


@dataclass
class Allocation:
    """The memory of the results of buffered nodes.

    slots: the slot of each node.
    overwritten: the former slot of a node whose memory a later call writes over.
    buffer_sizes: the size of each buffer in bytes.
    inner: members of a group that nothing outside of it reads; they need no slot.
    """

    slots: dict[int, Slot] = field(default_factory=dict)
    overwritten: dict[int, Slot] = field(default_factory=dict)
    buffer_sizes: list[int] = field(default_factory=list)
    inner: set[int] = field(default_factory=set)

    def slot(self, n: int) -> Slot | None:
        """Return where a node is stored, until it is overwritten if it is."""
        return self.slots.get(n) or self.overwritten.get(n)

    def take_buffer(self, free: list[int], size: int) -> int:
        """Return the smallest free buffer of at least `size` bytes, or a new one.

        A much larger one stays free for larger results.
        """
        fitting = [b for b in free if size <= self.buffer_sizes[b] <= 2 * size + 256]
        if fitting:
            smallest = min(fitting, key=self.buffer_sizes.__getitem__)
            free.remove(smallest)
            return smallest
        self.buffer_sizes.append(size)
        return len(self.buffer_sizes) - 1


def allocate(
    graph: Graph,
    aliases: Aliases,
    commitment: Commitment,
    schedule: Schedule,
    live: Liveness,
) -> Allocation:
    """Choose a slot for each result that is stored in memory of the program.

    In order of preference: the memory of the donated input that the result replaces,
    that of an operand that is read for the last time, a free buffer, a new buffer.
    """
    allocation = Allocation()
    slots = allocation.slots
    # new value -> the donated input that it replaces
    donor = {new.number: old for old, new in graph.donations if new is not old}
    free: list[int] = []
    ending: dict[int, list[int]] = {}  # the owners that a step is the last to read
    for owner, s in live.last_step.items():
        ending.setdefault(s, []).append(owner)
    for s, step in enumerate(schedule.steps):
        for node in step.nodes:
            n = node.number
            if n not in aliases.buffered:  # the library allocates it, at each call
                continue
            is_group = len(step.nodes) > 1
            if is_group and live.last_step[n] == s:
                allocation.inner.add(n)
                continue
            if n in commitment.in_place:
                old = donor[n]
                if _can_replace(graph, schedule, live, node, old, s):
                    slots[n] = ("input", graph.input_index[old.number])
                    continue
            operand = _reusable_operand(graph, live, slots, node, s)
            if operand is not None and not is_group:
                slots[n] = slots.pop(operand)
                allocation.overwritten[operand] = slots[n]
            else:
                slots[n] = ("buffer", allocation.take_buffer(free, node.value.nbytes))
        # after the step, so that its results do not share a buffer with its operands
        ended = [slots[owner] for owner in ending.get(s, ()) if owner in slots]
        free += [index for kind, index in ended if kind == "buffer"]
    return allocation


def _reusable_operand(
    graph: Graph, live: Liveness, slots: dict[int, Slot], node: Node, s: int
) -> int | None:
    """Return an operand in a buffer that a call may write its result over, or None."""
    if not graph.is_elementwise(node) or node.function is graph.library.unsafe_in_place:
        return None
    for parent in graph.parents[node.number]:
        is_in_buffer = slots.get(parent, ("", 0))[0] == "buffer"
        if not is_in_buffer or live.last_step[parent] != s:
            continue
        if graph.same_layout(graph.nodes[parent], node):
            # element i of the result overwrites element i of the operand, which a view
            # of the same memory may still need for another element
            read_through = {reader for at, reader in live.readers[parent] if at == s}
            if read_through == {parent}:
                return parent
    return None


def _can_replace(
    graph: Graph, schedule: Schedule, live: Liveness, node: Node, old: Node, s: int
) -> bool:
    """Return whether step `s` may write `node` over the donated input `old`."""
    last = live.last_step.get(old.number, -1)
    if not graph.same_layout(node, old) or last > s or s < (schedule.return_step or 0):
        return False
    if last < s:
        return True
    # this very step reads `old`: each element must be read where it is written, and not
    # later
    reads_in_place = all(
        graph.same_layout(graph.nodes[reader], old)
        and graph.nodes[reader].address == old.address
        for at, reader in live.readers[old.number]
        if at == s
    )
    is_unsafe = node.function is graph.library.unsafe_in_place
    is_safe = graph.is_elementwise(node) and not is_unsafe
    return is_safe and reads_in_place and live.last_reader[old.number] <= node.number


def _nbytes(value: Any) -> int:
    return sum(getattr(array, "nbytes", 0) for array in leaves(value))
