"""Compare: the same training on every backend and device, held to one float64 reference."""

from .comparing import compare
from .merging import merge
from .own import own
from .page import page
from .report import summary, write
from .workloads import WORKLOADS, CannotCompare, Workload

__all__ = [
    "WORKLOADS",
    "CannotCompare",
    "Workload",
    "compare",
    "merge",
    "own",
    "page",
    "summary",
    "write",
]
