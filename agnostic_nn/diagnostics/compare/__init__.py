"""Compare: the same training on every backend and device, held to one float64 reference.

`workloads.py` has what is trained, and `own.py` takes a user's own. `running.py` trains on one
backend and `comparing.py` on all; `roundings.py` counts roundings, `deviation.py` says how far they
may take a number. `report.py` and `page.py` write what came of it, with `environment.py` telling of
the machine, and `merging.py` makes one report of several.
"""

from .comparison import compare
from .merge import merge
from .page import page
from .report import summary, write
from .user_model import own
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
