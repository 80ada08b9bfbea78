"""The graph of a trace: which calls a result needs, and which arrays share memory.

This is the first part of planning. Nodes are referred to by their numbers.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .trace import Node, Trace

__all__ = ["Aliases", "Donation", "EarlyReturn", "Graph", "find_aliases"]

Donation = tuple[Node, Node]  # (donated input, result that replaces it)


@dataclass(frozen=True)
class EarlyReturn:
    """A condition on which all donated inputs depend: they change only if it is true.

    condition: the node of the condition.
    start: the first node that is needed only if the condition is true.
    """

    condition: int
    start: int


class Graph:
    """The nodes of a trace, and those of them that a program has to compute.

    inputs: the nodes of the arguments.
    outputs: the results that are returned as new arrays.
    donations: pairs (old, new); the result `new` is written to the memory of the input
        `old`.
    order: the numbers of the required calls, in the order of the trace.
    """

    def __init__(
        self,
        trace: Trace,
        inputs: list[Node],
        outputs: list[Node],
        donations: list[Donation],
    ) -> None:
        self.library = trace.library
        self.nodes = trace.nodes
        self.inputs = inputs
        self.outputs = outputs
        self.parents = [
            [parent.number for parent in node.parents] for node in trace.nodes
        ]
        self.constants = {node.number for node in trace.nodes if node.is_constant}
        self.input_index = {node.number: i for i, node in enumerate(inputs)}
        self.early_return, self.donations = self._find_early_return(
            trace.selects, donations
        )
        condition = () if self.early_return is None else (self.early_return.condition,)
        self.order = self._required(self.donations, condition)

    def _find_early_return(
        self, selects: dict[int, int], donations: list[Donation]
    ) -> tuple[EarlyReturn | None, list[Donation]]:
        """Return the early return, or None, and the donations if its condition is true.

        An early return exists if each donated input is either unchanged or replaced by
        `select(condition, new, input)`, with one condition for all, and nothing else
        needs the new values or the selection. Then the program can return before it
        computes the new values.
        """
        candidates = set()
        if_true = []
        for old, new in donations:
            if new is old:
                if_true.append((old, new))
                continue
            if new.number not in selects or new.args[2] is not old:
                return None, donations
            condition, value, _ = new.args
            candidates.add(EarlyReturn(condition.number, selects[new.number]))
            if_true.append((old, value))
        if len(candidates) != 1:
            return None, donations
        (early_return,) = candidates
        # a result that is computed after the new values have begun may need them
        if any(node.number >= early_return.start for node in self.outputs):
            return None, donations
        # no call that remains may read the result of a selection
        required = self._required(if_true, [early_return.condition])
        if any(parent in selects for n in required for parent in self.parents[n]):
            return None, donations
        return early_return, if_true

    def _required(self, donations: list[Donation], others: Iterable[int]) -> list[int]:
        """Return the calls on which the results and the nodes `others` depend."""
        queue = [node.number for node in self.outputs]
        queue += [new.number for _, new in donations]
        queue += others
        required: set[int] = set()
        while queue:
            n = queue.pop()
            if n not in required:
                required.add(n)
                queue += self.parents[n]
        return sorted(
            n for n in required if n not in self.constants and n not in self.input_index
        )

    def is_elementwise(self, node: Node) -> bool:
        """Return whether a call is elementwise and accepts an output array."""
        return self.library.is_elementwise(node.function)

    def is_wide(self, value: Any) -> bool:
        """Return whether a value is an array with axes, or contains several values."""
        if isinstance(value, self.library.array_type):
            has_axes: bool = value.ndim > 0
            return has_axes
        return isinstance(value, tuple | list | dict)

    def accepts_out(self, node: Node) -> bool:
        """Return whether a call can write its result to an existing array."""
        value = node.value
        if not isinstance(value, self.library.array_type):
            return False
        if value.ndim == 0 or "out" in node.kwargs:
            return False
        accepted = self.is_elementwise(node) or self.library.accepts_out(node.function)
        return accepted and self.library.is_dense(value)

    def same_layout(self, a: Node, b: Node) -> bool:
        """Return whether two results have the same shape, dtype and strides."""
        return self._layout(a.value) == self._layout(b.value)

    def _layout(self, value: Any) -> tuple[Any, ...] | None:
        is_array = isinstance(value, self.library.value_types)
        return self.library.layout(value) if is_array else None


@dataclass
class Aliases:
    """Which results share memory.

    Memory has an owner: an input, a constant, or the node of a call that made an array.
    A view owns none.

    constants: the numbers of the constants.
    inputs: for the node of each argument its index among the arguments.
    roots: for each node the owners of the memory that its result may show.
    views: views that are made once, when their owner is bound, since its memory stays
        in place.
    buffered: owners whose memory the program provides; their calls get an output array.
    """

    constants: set[int]
    inputs: dict[int, int]
    roots: dict[int, frozenset[int]]
    views: set[int]
    buffered: set[int]

    def is_bound(self, n: int) -> bool:
        """Return whether the array of a node stays in place from call to call."""
        return (
            n in self.constants
            or n in self.inputs
            or n in self.buffered
            or n in self.views
        )

    def owner(self, n: int) -> int:
        """Return the owner of the memory of a bound array."""
        return next(iter(self.roots[n])) if n in self.views else n


def find_aliases(graph: Graph) -> Aliases:
    """Find the owners of the memory of each result."""
    roots = {n: frozenset((n,)) for n in (*graph.constants, *graph.input_index)}
    aliases = Aliases(graph.constants, graph.input_index, roots, set(), set())
    output_numbers = {node.number for node in graph.outputs}
    for n in graph.order:
        node = graph.nodes[n]
        shared = [parent.number for parent in node.aliases]
        is_array = isinstance(node.value, graph.library.array_type)
        owns_memory = not (is_array and shared)
        owners = frozenset([n] if owns_memory else [])
        roots[n] = owners.union(*(roots[parent] for parent in shared))
        # a result that is returned has to be a new array at each call
        if owns_memory and graph.accepts_out(node) and n not in output_numbers:
            aliases.buffered.add(n)
        # a view stays in place if its owner does, and nothing but constants, such as an
        # index, determines which part it shows
        others = [parent for parent in graph.parents[n] if parent not in shared]
        is_fixed = all(parent in graph.constants for parent in others)
        has_one_owner = len(shared) == 1 and not owns_memory
        if has_one_owner and is_fixed and aliases.is_bound(shared[0]):
            aliases.views.add(n)
    return aliases
