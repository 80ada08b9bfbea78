"""A worker process: one contender at one workload.

`python -P -m benchmarks.worker NAME WORKLOAD` reads commands from stdin and answers on
stdout, one line of JSON each:

    {"do": "build"}                                    the first losses, seconds, versions
    {"do": "burst", "what": "step", "seconds": 0.3}    seconds a step, epoch or prediction
    {"do": "memory"}                                   bytes
"""

import gc
import json
import os
import sys
import time
import traceback
import tracemalloc

from .contenders import Unavailable, file_of
from .workloads import find

__all__ = ["LOSSES", "Worker", "main"]

LOSSES = 10  # compared with ours


class Worker:
    """Executes commands; `answer` returns a dict for JSON."""

    def __init__(self, name, workload):
        self.name, self.workload = name, workload
        self.contender, self.steps = None, 0
        self.seconds_each = {}
        self.resident_before = 0

    def answer(self, command):
        try:
            return getattr(self, command.pop("do"))(**command)
        except Unavailable as reason:
            return {"unavailable": str(reason)}
        except Exception:
            return {"error": traceback.format_exc()}

    def build(self):
        """Create the contender and take the first steps; the very first one compiles."""
        file = file_of(self.name)
        (
            self.workload.parameters(),
            self.workload.batches(),
        )  # modules loaded by drawing data are common to all contenders
        self.resident_before = resident()
        began = time.perf_counter()
        self.contender = file.make(self.name, self.workload)
        made = time.perf_counter()
        forget_peak()
        losses, first = [], None
        for _ in range(LOSSES):
            self._step()
            self.contender.wait()
            first = first or time.perf_counter() - made
            try:
                losses.append(float(self.contender.loss()))
            except Unavailable:
                losses = None
                break
        return {
            "losses": losses,
            "build_seconds": made - began,
            "first_step_seconds": first,
            "versions": file.versions(),
            "threads": threads(),
        }

    def burst(self, what, seconds):
        """Repeat for about `seconds`; return wall and processor seconds of each repetition."""
        once = {"step": self._step, "epoch": self._epoch, "predict": self._predict}[
            what
        ]
        if what not in self.seconds_each:
            self._time(what, once, 1)
            while (
                self._time(what, once, self._count(what, seconds / 4))[0] < seconds / 8
            ):
                pass
        count = self._count(what, seconds)
        gc.collect()
        spent = self._time(what, once, count)
        return dict(
            zip(("wall", "processor"), (each / count for each in spent), strict=True)
        )

    def _count(self, what, seconds):
        return max(1, round(seconds / self.seconds_each[what]))

    def _time(self, what, once, count):
        self.contender.wait()
        began, busy = time.perf_counter(), time.process_time()
        for _ in range(count):
            once()
        self.contender.wait()
        spent = time.perf_counter() - began
        self.seconds_each[what] = spent / count
        return spent, time.process_time() - busy

    def _step(self):
        self.contender.step(self.steps)
        self.steps += 1

    def _epoch(self):
        self.contender.epoch()

    def _predict(self):
        self.contender.predict()

    def memory(self):
        """Return the memory that was needed.

        resident_bytes: peak memory of this process since the contender was created,
        minus the memory before (libraries, compiler and data). array_bytes: peak memory
        of NumPy arrays of a second contender created now, data included; step_bytes:
        the part of it that is only held during a step. The last two are unknown for
        contenders with other arrays.
        """
        result = {"resident_bytes": peak_resident() - self.resident_before}
        if not self.contender.host_arrays:
            return result | {"array_bytes": None, "step_bytes": None}
        tracemalloc.start()
        self.contender = file_of(self.name).make(self.name, self.workload)
        for _ in range(4):  # the first steps may record before they run at full speed
            self._step()
        gc.collect()
        between, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        self._step()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return result | {"array_bytes": most, "step_bytes": most - between}


def _status(name):
    """Return a field of /proc/self/status in bytes, or None without that file."""
    try:
        with open("/proc/self/status") as file:
            result = [line.split() for line in file if line.startswith(f"{name}:")]
        return int(result[0][1]) * 1024
    except (OSError, IndexError):
        return None


def resident():
    """Return the resident memory of this process in bytes, or its peak where only that is known."""
    result = _status("VmRSS")
    return peak_resident() if result is None else result


def peak_resident():
    result = _status("VmHWM")
    if result is None:
        import resource

        result = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result *= 1 if sys.platform == "darwin" else 1024
    return result


def forget_peak():
    """Reset the peak, so that weights and data drawn by the harness do not count."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


def threads():
    """Return which library multiplies matrices, on how many threads (needs threadpoolctl)."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return []
    keys = ("internal_api", "version", "num_threads", "architecture", "prefix")
    return [
        {key: pool[key] for key in keys if key in pool} for pool in threadpool_info()
    ]


def main(arguments):
    name, workload, *sizes = arguments
    core = os.environ.get("BENCHMARKS_CORE")
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core)})
    # output of libraries must not mix with the answers
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        sizes = {key: int(value) for key, value in (size.split("=") for size in sizes)}
        worker = Worker(name, find(workload, **sizes))
        for line in sys.stdin:
            print(json.dumps(worker.answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
