"""Run all trials, in this process or in another one that may hang or crash."""

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from multiprocessing import get_context
from typing import Any

from ...core.backend import Backend, BackendUnavailable
from .library import library
from .results import Conformance, Finding
from .trials import SECTIONS, Trial
from .verdicts import judge

__all__ = ["conformance", "guarded"]

SPAWN = get_context("spawn")  # a forked copy of a process with threads may hang
SECONDS = 120.0  # time limit of a trial, and for a library to start


def conformance(
    chosen: Backend | str,
    *,
    only: str = "",
    progress: Callable[[str], None] = lambda name: None,
) -> Conformance:
    """Run all trials on the library `chosen`, in this process.

    only: run one section or one trial of this name. progress: called with the name of
    each trial before it runs.

    Raises
    ------
    BackendUnavailable
        If there is no such library, or it cannot run.
    """
    chosen = library(chosen) if isinstance(chosen, str) else chosen
    findings = []
    for section, trial in _trials(only):
        progress(trial.name)
        findings.append(judge(section, trial, chosen))
    return replace(_without_findings(chosen), findings=tuple(findings))


def guarded(
    name: str,
    *,
    bare: bool = False,
    only: str = "",
    seconds: float = SECONDS,
    progress: Callable[[str], None] = lambda name: None,
) -> Conformance:
    """Run all trials on `library(name, bare=bare)` in another process, which may crash.

    A trial that takes longer than `seconds`, or ends the process, is unsupported. A new
    process runs the trials after it.

    Raises
    ------
    BackendUnavailable
        If there is no such library, or it cannot run or start.
    """
    names = [(section, trial.name) for section, trial in _trials(only)]
    findings: list[Finding] = []
    result: Conformance | None = None
    while result is None or len(findings) < len(names):
        receiver, sender = SPAWN.Pipe(duplex=False)
        arguments = sender, name, bare, only, len(findings)
        worker = SPAWN.Process(target=_run_worker, args=arguments, daemon=True)
        worker.start()
        sender.close()  # so that `receiver` notices when the worker ends
        try:
            result = _receive(receiver, worker, max(seconds, SECONDS))
            while len(findings) < len(names):
                progress(names[len(findings)][1])
                findings.append(_receive(receiver, worker, seconds))
        except _NoAnswer as error:
            if result is None:
                raise BackendUnavailable(f"{name} does not start: {error}") from error
            findings.append(
                Finding(*names[len(findings)], "unsupported", reason=str(error))
            )
        finally:
            worker.kill()
            worker.join()
    return replace(result, findings=tuple(findings))


def _trials(only: str) -> Iterator[tuple[str, Trial]]:
    """Yield the section and the trial of all, or of those called `only`, in order."""
    for section, trials in SECTIONS.items():
        for trial in trials():
            if only in ("", section, trial.name):
                yield section, trial


def _without_findings(chosen: Backend) -> Conformance:
    """Return a result that describes the library and has no findings yet."""
    adapter = getattr(chosen.adapter, "__name__", None)
    adapter = f"through the adapter {adapter}" if adapter else "without an adapter"
    return Conformance(str(chosen), chosen.version, chosen.hardware, adapter, ())


def _run_worker(sender: Any, name: str, bare: bool, only: str, start: int) -> None:
    """Send a result without findings, and then each finding from number `start` on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    try:
        chosen = library(name, bare=bare)
    except BackendUnavailable as error:
        sender.send(error)
        return
    sender.send(_without_findings(chosen))
    for section, trial in islice(_trials(only), start, None):
        sender.send(judge(section, trial, chosen))


class _NoAnswer(Exception):
    """The worker sends nothing more; the message says why."""


def _receive(receiver: Any, worker: Any, seconds: float) -> Any:
    """Return what the worker sends next; raise an exception that it sent."""
    if not receiver.poll(seconds):
        raise _NoAnswer(f"no answer within {seconds:g} seconds")
    try:
        answer = receiver.recv()
    except EOFError:
        worker.join()
        code = worker.exitcode
        ended = (
            f"by {signal.Signals(-code).name}"
            if code < 0
            else f"with exit status {code}"
        )
        raise _NoAnswer(f"the process ended {ended}") from None
    if isinstance(answer, Exception):
        raise answer
    return answer
