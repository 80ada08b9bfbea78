"""The plan of a program: the passes over a trace, in the order in which they run.

1. `Graph`: the calls that the results need, and the early return.
2. `find_aliases`: which results share memory.
3. `find_commitment`: the calls that write to donated memory and come last.
4. `make_schedule`: the order of the calls, and the fused groups.
5. `find_liveness`: until when each result is read.
6. `allocate`: where each result is stored.

`emit` turns the plan into code.
"""

from .allocate import Slot, allocate, find_liveness
from .graph import Donation, Graph, find_aliases
from .schedule import find_commitment, make_schedule
from .trace import Node, Trace

__all__ = ["Plan"]


class Plan:
    """All decisions that `emit` needs to write the code of a program.

    The program computes `outputs`, and writes new over old for each of `donations`.
    inputs, outputs, donations: see `Graph`.
    """

    def __init__(
        self,
        trace: Trace,
        inputs: list[Node],
        outputs: list[Node],
        donations: list[Donation],
    ) -> None:
        self.library = trace.library
        self.graph = Graph(trace, inputs, outputs, donations)
        self.aliases = find_aliases(self.graph)
        commitment = find_commitment(self.graph, self.aliases)
        self.schedule = make_schedule(self.graph, self.aliases, commitment.late)
        self.liveness = find_liveness(self.graph, self.aliases, self.schedule)
        self.allocation = allocate(
            self.graph, self.aliases, commitment, self.schedule, self.liveness
        )

    def location(self, n: int) -> Slot:
        """Return where the result of a node is stored.

        Two nodes have equal locations only if they are the same elements in the same
        order.
        """
        slot = self.allocation.slot(n)
        if slot is not None:
            return slot
        if n in self.graph.input_index:
            return "input", self.graph.input_index[n]
        roots = self.aliases.roots[n]
        if len(roots) == 1 and n not in roots:
            # a view that shows all of its owner is the same elements
            node = self.graph.nodes[n]
            (root_number,) = roots
            root = self.graph.nodes[root_number]
            is_same_start = root.address == node.address
            if is_same_start and self.graph.same_layout(root, node):
                return self.location(root_number)
        return "node", n

    def shows_bound_memory(self, node: Node) -> bool:
        """Return whether a result may be in memory of an input, a constant or a buffer.

        Then it has to be copied before it is returned.
        """
        if self.aliases.is_bound(node.number):
            return True
        return any(
            self.aliases.is_bound(root) for root in self.aliases.roots[node.number]
        )
