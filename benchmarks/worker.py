"""A worker process: one contender at one workload.

`python -P -m benchmarks.worker NAME WORKLOAD` reads commands from stdin and answers on
stdout, one line of JSON each:

    {"do": "build"}                                  first losses, seconds, versions
    {"do": "burst", "what": "step", "seconds": 0.3}  seconds per step, epoch or predict
    {"do": "memory"}                                 bytes
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

LOSSES = 10  # the first losses, which must equal ours


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
        """Create the contender and take the first steps, in which libraries compile."""
        file = file_of(self.name)
        # load the modules that drawing data needs, which all contenders share
        self.workload.parameters()
        self.workload.batches()
        self.resident_before = resident()
        start = time.perf_counter()
        self.contender = file.make(self.name, self.workload)
        built = time.perf_counter()
        forget_peak()
        losses, first = [], None
        for _ in range(LOSSES):
            self._step()
            self.contender.wait()
            first = first or time.perf_counter() - built
            try:
                losses.append(float(self.contender.loss()))
            except Unavailable:
                losses = None
                break
        return {
            "losses": losses,
            "build_seconds": built - start,
            "first_step_seconds": first,
            "versions": file.versions(),
            "threads": threads(),
        }

    def burst(self, what, seconds):
        """Repeat for about `seconds`; return wall and processor seconds per call."""
        once = {"step": self._step, "epoch": self._epoch, "predict": self._predict}[
            what
        ]
        if what not in self.seconds_each:
            self._time(what, once, 1)
            wall = 0.0
            while wall < seconds / 8:
                wall, _ = self._time(what, once, self._count(what, seconds / 4))
        count = self._count(what, seconds)
        gc.collect()
        wall, processor = self._time(what, once, count)
        return {"wall": wall / count, "processor": processor / count}

    def _count(self, what, seconds):
        return max(1, round(seconds / self.seconds_each[what]))

    def _time(self, what, once, count):
        self.contender.wait()
        start, processor_start = time.perf_counter(), time.process_time()
        for _ in range(count):
            once()
        self.contender.wait()
        wall = time.perf_counter() - start
        self.seconds_each[what] = wall / count
        return wall, time.process_time() - processor_start

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
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return result | {"array_bytes": peak, "step_bytes": peak - between}


def _status(name):
    """Return a field of /proc/self/status in bytes, or None without that file."""
    try:
        with open("/proc/self/status") as file:
            result = [line.split() for line in file if line.startswith(f"{name}:")]
        return int(result[0][1]) * 1024
    except (OSError, IndexError):
        return None


def resident():
    """Return the resident memory of this process in bytes, or its peak if unknown."""
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
    """Return the BLAS libraries and their threads; empty without threadpoolctl."""
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
