"""Worker: one contender at one workload, in a process of its own.

`python -P -m benchmarks.worker NAME WORKLOAD` reads commands from stdin and answers them on
stdout, a line of JSON each:

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

LOSSES = 10  # that are compared with ours


class Worker:
    """What the commands do; `answer` to one is a dict for JSON."""

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
        """Make the contender and take the first steps, of which the very first compiles."""
        file = file_of(self.name)
        self.workload.parameters(), self.workload.batches()  # what drawing loads is everyone's
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
        """Do it again and again for about so long: seconds each, by the clock and of processor."""
        once = {"step": self._step, "epoch": self._epoch, "predict": self._predict}[what]
        if what not in self.seconds_each:
            self._time(what, once, 1)
            while self._time(what, once, self._count(what, seconds / 4))[0] < seconds / 8:
                pass
        count = self._count(what, seconds)
        gc.collect()
        spent = self._time(what, once, count)
        return dict(zip(("wall", "processor"), (each / count for each in spent), strict=True))

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
        """What was needed.

        resident_bytes: the most that this process held since the contender was made, less what
        it held before: libraries, compiler and data. array_bytes: the most that NumPy held of
        another one made now, data included; and step_bytes, how much of it only during a step.
        Of contenders with arrays elsewhere nobody knows the last two.
        """
        result = {"resident_bytes": peak_resident() - self.resident_before}
        if not self.contender.host_arrays:
            return result | {"array_bytes": None, "step_bytes": None}
        tracemalloc.start()
        self.contender = file_of(self.name).make(self.name, self.workload)
        for _ in range(4):  # a step may be looked at before it runs as it will from then on
            self._step()
        gc.collect()
        between, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        self._step()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return result | {"array_bytes": most, "step_bytes": most - between}


def _status(name):
    """A line of /proc/self/status, in bytes; None where there is no such file."""
    try:
        with open("/proc/self/status") as file:
            result = [line.split() for line in file if line.startswith(f"{name}:")]
        return int(result[0][1]) * 1024
    except (OSError, IndexError):
        return None


def resident():
    """Bytes of memory that this process holds now, or held at most where that is all one knows."""
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
    """Count the peak from now on: drawing weights and data is the harness's own doing."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


def threads():
    """What multiplies matrices here, and on how many threads, by threadpoolctl if it is there."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return []
    keys = ("internal_api", "version", "num_threads", "architecture", "prefix")
    return [{key: pool[key] for key in keys if key in pool} for pool in threadpool_info()]


def main(arguments):
    name, workload, *sizes = arguments
    core = os.environ.get("BENCHMARKS_CORE")
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core)})
    # what libraries print must not meet the answers
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        sizes = {key: int(value) for key, value in (size.split("=") for size in sizes)}
        worker = Worker(name, find(workload, **sizes))
        for line in sys.stdin:
            print(json.dumps(worker.answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
