"""Run contenders in separate processes, check their losses, and time them in turns."""

import json
import math
import os
import random
import select
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .workloads import Workload, find

__all__ = [
    "AGAIN",
    "BEFORE",
    "REFERENCE",
    "Entry",
    "Process",
    "difference",
    "entries",
    "measure",
]

ROOT = Path(__file__).parents[1]
REFERENCE = "agnostic_nn numpy"  # all others must have the losses of this one
BEFORE = ", before"  # suffix of the label of an older checkout of this library
AGAIN = ", again"  # suffix of the label of a second process of the same contender
LIMIT = 900  # seconds until a worker must answer; torch.compile is slow

_ONE_THREAD = {
    **dict.fromkeys(
        (
            "OMP_NUM_THREADS",
            "OPENBLAS_NUM_THREADS",
            "MKL_NUM_THREADS",
            "BLIS_NUM_THREADS",
        ),
        "1",
    ),
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}
_REPRODUCIBLE = {  # compile each time, on the CPU
    "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
}
_ON_A_GPU = ("cuda", "cupy")


@dataclass(frozen=True)
class Entry:
    """A row of the table: a contender, with its label and its checkout."""

    contender: str
    label: str
    checkout: Path = field(default=ROOT)


def entries(contenders: Sequence[str], before: Path | None = None) -> list[Entry]:
    """Return the entries to measure: the reference twice, then the contenders.

    Those of this library are also measured in the checkout `before`.

    Raises
    ------
    FileNotFoundError
        If there is no checkout at `before`.
    """
    chosen = [REFERENCE, *(name for name in contenders if name != REFERENCE)]
    result = [Entry(name, name) for name in chosen]
    result.insert(1, Entry(REFERENCE, REFERENCE + AGAIN))
    if before is not None:
        before = before.resolve()
        if not (before / "agnostic_nn" / "__init__.py").exists():
            raise FileNotFoundError(f"{before} contains no agnostic_nn")
        ours = [name for name in chosen if name.startswith("agnostic_nn")]
        ours = [
            name for name in ours if not name.endswith(", kernels")
        ]  # older versions have none
        result += [Entry(name, name + BEFORE, before) for name in ours]
    return result


class Process:
    """A worker process, which receives commands over pipes."""

    def __init__(
        self, entry: Entry, workload: str, sizes: dict[str, int], threads: str
    ):
        environment = {k: v for k, v in os.environ.items() if k not in _ONE_THREAD}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        kernels = entry.contender.endswith(", kernels")
        environment["AGNOSTIC_NN_KERNELS"] = "1" if kernels else "0"
        if not entry.contender.endswith(_ON_A_GPU):
            environment |= _REPRODUCIBLE
        if threads == "1":
            environment |= _ONE_THREAD
            if hasattr(os, "sched_getaffinity"):
                environment["BENCHMARKS_CORE"] = str(max(os.sched_getaffinity(0)))
        paths = (entry.checkout, entry.checkout / "backends", ROOT)
        environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
        sized = [f"{name}={value}" for name, value in sizes.items()]
        command = [
            sys.executable,
            "-P",
            "-m",
            "benchmarks.worker",
            entry.contender,
            workload,
        ]
        self.stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 until `close`
        self.process = subprocess.Popen(
            [*command, *sized],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            env=environment,
            cwd=ROOT,
            text=True,
        )

    def ask(self, **command) -> dict:
        """Return the answer to a command: its results, "error" or "unavailable"."""
        try:
            print(json.dumps(command), file=self.process.stdin, flush=True)
            if not select.select([self.process.stdout], [], [], LIMIT)[0]:
                return {"error": f"no answer in {LIMIT} seconds"}
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            return json.loads(line)
        self.stderr.seek(0)
        status = self.process.wait()
        return {"error": f"ended with status {status}: {self.stderr.read()[-2000:]}"}

    def close(self):
        try:
            self.process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
        self.stderr.close()


def measure(
    name: str,
    chosen: Sequence[Entry],
    *,
    threads: str = "1",
    clock: str = "wall",
    rounds: int = 9,
    seconds: float = 0.3,
    report=print,
    **sizes: int,
) -> dict:
    """Measure all entries at one workload; return times and omissions as data for JSON.

    Each round runs every entry once for about `seconds`, in a new order, so that noise
    of the machine affects all equally. clock: "wall", or "processor" for the time of
    this process on its core, which other programs disturb far less; with all cores it
    is always the wall clock. report: called with a line about the progress. sizes:
    those of `mlp`, for scaling curves.
    """
    workload = find(name, **sizes)
    left_out: dict[str, str] = {}
    result: dict[str, dict] = {}
    running: dict[str, Process] = {}

    def drop(label, reason):
        left_out[label] = reason
        result.pop(label, None)
        if label in running:
            running.pop(label).close()
        report(f"  {label} is left out: {reason.strip().splitlines()[-1]}")

    try:
        for entry in chosen:
            report(f"{name}: {entry.label}")
            running[entry.label] = Process(entry, name, sizes, threads)
            answer = running[entry.label].ask(do="build")
            reason = _refusal(answer) or difference(result, workload, answer["losses"])
            if reason and entry.label == REFERENCE:
                raise RuntimeError(f"{REFERENCE} cannot run {name}: {reason}")
            if reason:
                drop(entry.label, reason)
            else:
                result[entry.label] = answer | {"seconds": {}}
        clock = clock if threads == "1" else "wall"
        _take_turns(running, result, drop, name, clock, rounds, seconds, report)
        for label in list(running):
            answer = running[label].ask(do="memory")
            if _refusal(answer):
                drop(label, _refusal(answer))
            else:
                result[label] |= answer
    finally:
        for process in running.values():
            process.close()
    return {"about": workload.about, "contenders": result, "left_out": left_out}


def _take_turns(running, result, drop, name, clock, rounds, seconds, report):
    order = random.Random(0)
    kinds = ("step", "epoch", "predict") if name == "tiny" else ("step",)
    turns = [(label, kind) for label in running for kind in kinds]
    for number in range(1, rounds + 1):
        report(f"{name}: round {number} of {rounds}")
        order.shuffle(turns)
        for label, kind in list(turns):
            if label not in running:
                continue
            answer = running[label].ask(do="burst", what=kind, seconds=seconds)
            if "unavailable" in answer:
                turns.remove((label, kind))
            elif "error" in answer:
                drop(label, answer["error"])
            else:
                result[label]["seconds"].setdefault(kind, []).append(answer[clock])


def _refusal(answer):
    return answer.get("unavailable") or answer.get("error")


def difference(
    result: dict, workload: Workload, losses: list[float] | None
) -> str | None:
    """Return where a contender's first losses differ from ours, or None if nowhere.

    A contender without losses, such as the matrix products, is not compared.
    """
    if losses is None or REFERENCE not in result:
        return None
    reference = result[REFERENCE]["losses"]
    for i, (loss, ours) in enumerate(zip(losses, reference, strict=True), 1):
        if not math.isclose(loss, ours, rel_tol=workload.tolerance):  # NaN is not close
            losses_differ = f"its loss {i} is {loss:.6g}, ours {ours:.6g}"
            return f"it computes something else: {losses_differ}"
    return None
