"""Compare: the same training on every backend and device, held to one float64 reference."""

from .comparing import compare
from .report import summary, write
from .workloads import WORKLOADS, CannotCompare, Workload

__all__ = ["WORKLOADS", "CannotCompare", "Workload", "compare", "summary", "write"]
