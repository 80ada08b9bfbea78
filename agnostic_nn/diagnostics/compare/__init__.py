"""Compare the same training on every backend and device with a float64 reference.

`api.py` has the public function. `workloads.py` defines what is trained, and
`user_model.py` makes a workload of a user's model and data, which `data_file.py` reads.
`running.py` trains on one backend, `probes.py` runs parts of single steps, and
`controls.py` repeats a training with nothing changed but rounding. `rounding.py` counts
roundings, `deviation.py` says how far they may move a number, and `verdicts.py` judges
a run. `emulation.py` emulates half precision, and `half.py` answers whether a model may
be trained in it. `repeat.py` compares the bits of several runs of one backend, and
`repeated_parts.py` finds the part of a step whose bits change. `choice.py` chooses
backends and dtypes, `plan.py` validates a comparison before it trains, `results.py`
makes the result of each run, and `comparison.py` puts the report together, with a
description of the machine from `environment.py`. `schema.py` defines the report as
dataclasses, and `conversion.py` converts them to JSON and back. `report` formats it,
and `merge.py` combines several reports. `junit.py` and `github.py` write it for CI
services.
"""

from .api import compare
from .comparison import run_comparison
from .github import annotations, step_summary
from .junit import junit
from .merge import merge
from .report import Comparison, page, summary, write
from .schema import Report
from .user_model import user_workload
from .workloads import WORKLOADS, CannotCompare, Workload

__all__ = [
    "WORKLOADS",
    "CannotCompare",
    "Comparison",
    "Report",
    "Workload",
    "annotations",
    "compare",
    "junit",
    "merge",
    "page",
    "run_comparison",
    "step_summary",
    "summary",
    "user_workload",
    "write",
]
