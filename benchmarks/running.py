"""Run contenders in separate processes, compare their losses with ours, and time them in turns."""

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
    "entries",
    "follows",
    "measure",
]

ROOT = Path(__file__).parents[1]
REFERENCE = "agnostic_nn numpy"  # all others must have the losses of this one
BEFORE, AGAIN = (
    ", before",
    ", again",
)  # another checkout of this library, and a second process of the same one
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
_ALIKE = {  # compile each time, on the CPU
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
    """Return the reference and its twin, then the contenders; ours also from the checkout `before`.

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
            raise FileNotFoundError(f"no agnostic_nn lies in {before}")
        ours = [name for name in chosen if name.startswith("agnostic_nn")]
        ours = [name for name in ours if not name.endswith(", kernels")]  # it had none
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
            environment |= _ALIKE
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
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115 until `close`
        self.process = subprocess.Popen(
            [*command, *sized],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            env=environment,
            cwd=ROOT,
            text=True,
        )

    def ask(self, **command) -> dict:
        """Return the answer to a command; it has "error" or "unavailable" if the command failed."""
        try:
            print(json.dumps(command), file=self.process.stdin, flush=True)
            if not select.select([self.process.stdout], [], [], LIMIT)[0]:
                return {"error": f"no answer in {LIMIT} seconds"}
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            return json.loads(line)
        self.said.seek(0)
        return {
            "error": f"ended with status {self.process.wait()}: {self.said.read()[-2000:]}"
        }

    def close(self):
        try:
            self.process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
        self.said.close()


def measure(
    name: str,
    chosen: Sequence[Entry],
    *,
    threads: str = "1",
    clock: str = "wall",
    rounds: int = 9,
    seconds: float = 0.3,
    told=print,
    **sizes: int,
) -> dict:
    """Measure all entries at one workload; return times and reasons of omission, as data for JSON.

    Each round runs every entry once for about `seconds`, in a new order, so that noise
    of the machine affects all equally. clock: "wall", or "processor" for the time of
    this process on its core alone, which other work on the machine disturbs far less;
    on all cores that would be the work of all, so there it is the wall's. sizes: those
    of `mlp`, for scaling curves.
    """
    workload, left_out, result, running = find(name, **sizes), {}, {}, {}

    def drop(label, reason):
        left_out[label] = reason
        result.pop(label, None)
        if label in running:
            running.pop(label).close()
        told(f"  {label} is left out: {reason.strip().splitlines()[-1]}")

    try:
        for entry in chosen:
            told(f"{name}: {entry.label}")
            running[entry.label] = Process(entry, name, sizes, threads)
            answer = running[entry.label].ask(do="build")
            reason = _refusal(answer) or follows(result, workload, answer["losses"])
            if reason and entry.label == REFERENCE:
                raise RuntimeError(f"{REFERENCE} cannot run {name}: {reason}")
            if reason:
                drop(entry.label, reason)
            else:
                result[entry.label] = answer | {"seconds": {}}
        clock = clock if threads == "1" else "wall"
        _take_turns(running, result, drop, name, clock, rounds, seconds, told)
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


def _take_turns(running, found, drop, name, clock, rounds, seconds, told):
    order = random.Random(0)
    what = ("step", "epoch", "predict") if name == "tiny" else ("step",)
    turns = [(label, kind) for label in running for kind in what]
    for number in range(1, rounds + 1):
        told(f"{name}: round {number} of {rounds}")
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
                found[label]["seconds"].setdefault(kind, []).append(answer[clock])


def _refusal(answer):
    return answer.get("unavailable") or answer.get("error")


def follows(found: dict, workload: Workload, losses: list[float] | None) -> str | None:
    """Return why a contender's first losses show that it computes something else, or None if equal.

    The matrix products alone have no losses and are not compared.
    """
    if losses is None or REFERENCE not in found:
        return None
    ours = found[REFERENCE]["losses"]
    for i, (loss, wanted) in enumerate(zip(losses, ours, strict=True)):
        # comparisons with NaN are false
        if not math.isclose(loss, wanted, rel_tol=workload.tolerance):
            return (
                f"it does other work: its loss {i + 1} is {loss:.6g}, ours {wanted:.6g}"
            )
    return None
