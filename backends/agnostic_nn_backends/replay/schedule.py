"""The schedule of a program: the order of its calls, fused groups, and the commit.

Calls that write to donated memory come last, so that an exception before them leaves
the old values intact: see `commit`. Elementwise calls on large arrays that follow one
another form one step, a group, which `fuse` turns into a kernel or a loop over blocks.
"""

import math
from dataclasses import dataclass
from typing import Any

from .fuse import kernel_call, matrix_shape
from .graph import Aliases, Graph
from .trace import Node, leaves

__all__ = ["Commitment", "Schedule", "Step", "find_commitment", "make_schedule"]

MIN_KERNEL_SIZE = 2**7  # elements; on smaller arrays a kernel saves nothing


@dataclass(eq=False)
class Step:
    """One call, or several elementwise calls that are fused."""

    nodes: list[Node]


@dataclass
class Schedule:
    """The steps of a program, in order.

    return_step: the step before which the program checks the condition and may return
        early; None without an early return.
    commit_step: the first step of the commit.
    """

    steps: list[Step]
    return_step: int | None
    commit_step: int


@dataclass
class Commitment:
    """The calls that make up the commit.

    in_place: the new values that are computed directly in the memory of a donated
        input. Other new values are copied there at the end.
    late: all calls of the commit: those in place, and all that depend on them.
    """

    in_place: set[int]
    late: set[int]


def find_commitment(graph: Graph, aliases: Aliases) -> Commitment:
    """Find the calls that can be part of the commit.

    The commit is a list of calls that no exception can interrupt. So each of them has
    to be a call of a C function that writes to memory of the program, and none may
    compute a value that is returned or the condition of the early return.
    """
    readers: dict[int, list[int]] = {}  # the calls that read a node or a view of it
    for n in graph.order:
        for parent in graph.parents[n]:
            readers.setdefault(parent, []).append(n)
    returned = {node.number for node in graph.outputs}
    if graph.early_return is not None:
        returned.add(graph.early_return.condition)

    def can_be_late(n: int) -> bool:
        if n in aliases.views:
            return True
        is_atomic = graph.library.is_atomic(graph.nodes[n].function)
        return n in aliases.buffered and is_atomic

    in_place: set[int] = set()
    late: set[int] = set()
    for old, new in graph.donations:
        if new is old or new.number in graph.input_index:
            continue
        if new.number not in aliases.buffered or not graph.is_elementwise(new):
            continue
        # if `new` is late, then so is everything that reads it
        extended = set(late)
        queue = [new.number]
        while queue:
            n = queue.pop()
            if n not in extended:
                extended.add(n)
                queue += readers.get(n, ())
        if all(can_be_late(n) for n in extended - late) and not extended & returned:
            in_place.add(new.number)
            late = extended
    # a call that only late calls read joins them, so that it can be fused with them
    for n in reversed(graph.order):
        if n in late or n in returned or n not in readers:
            continue
        is_read_late = set(readers[n]) <= late
        is_buffered = n in aliases.buffered and can_be_late(n)
        if is_read_late and is_buffered and _is_blockwise(graph, graph.nodes[n]):
            late.add(n)
    return Commitment(in_place, late)


def make_schedule(graph: Graph, aliases: Aliases, late: set[int]) -> Schedule:
    """Order the calls and fuse elementwise ones on large arrays.

    Sorts `graph.order` so that late calls come last. A small call that is independent
    of the group being collected is moved before it, so that it does not cut the group
    in two.
    """
    steps: list[Step] = []
    early_return = graph.early_return
    return_step: int | None = None
    commit_step: int | None = None
    group: list[Node] = []

    def end_group() -> None:
        if group:
            steps.append(Step(list(group)))
            group.clear()

    graph.order.sort(key=late.__contains__)  # a stable sort
    for n in graph.order:
        node = graph.nodes[n]
        is_first_late = commit_step is None and n in late
        if is_first_late:
            end_group()
            commit_step = len(steps)
        if early_return is not None and return_step is None:
            # nothing of the commit may run before the condition is checked
            is_return_due = is_first_late or n >= early_return.start
            if is_return_due:
                end_group()
                return_step = len(steps)
        if n in aliases.views:
            continue  # made when its owner is bound
        members = {member.number for member in group}
        read_from_group = [p for p in graph.parents[n] if aliases.roots[p] & members]
        if n in aliases.buffered and _is_blockwise(graph, node):
            same_shape = not group or group[0].value.shape == node.value.shape
            # a view of a member needs the whole member, so it cannot be read block by
            # block
            if not same_shape or any(p not in members for p in read_from_group):
                end_group()
            group.append(node)
            continue
        is_small = not graph.is_wide(node.value) and graph.is_elementwise(node)
        if read_from_group or not is_small:
            end_group()
        # a small call comes before the group, which is appended when it ends
        steps.append(Step([node]))
    end_group()
    if early_return is not None and return_step is None:
        return_step = len(steps)
    if commit_step is None:
        commit_step = len(steps)
    return Schedule(steps, return_step, commit_step)


def _is_blockwise(graph: Graph, node: Node) -> bool:
    """Return whether a call can be part of a group.

    It has to be elementwise, on contiguous arrays that are large and have the shape of
    the result. An operand may also be a vector along the last axis, or have a last axis
    of length 1.
    """
    value = node.value
    if not graph.is_elementwise(node) or node.kwargs:
        return False
    has_kernel = kernel_call(node, graph.library) is not None
    min_size = MIN_KERNEL_SIZE if has_kernel else graph.library.block_size()
    if math.prod(value.shape) <= min_size:
        return False
    arrays: list[Any] = [value]
    for arg in leaves(node.args):
        operand = arg.value if isinstance(arg, Node) else arg
        if graph.is_wide(operand):
            arrays.append(operand)
    is_contiguous = graph.library.is_contiguous
    return all(matrix_shape(a, value.shape) and is_contiguous(a) for a in arrays)
