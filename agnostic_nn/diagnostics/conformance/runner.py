"""Trying: one thing after the other, here or in a process that may hang or crash."""

import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from multiprocessing import get_context

from ...core.backend import Backend, BackendUnavailable
from .library import library
from .results import Conformance, Finding
from .trials import SECTIONS
from .verdicts import judged

__all__ = ["conformance", "guarded"]

SPAWN = get_context("spawn")  # a fork of a process with threads may hang by itself
SECONDS = 120.0  # that one thing may take, and a library to start


def conformance(
    chosen: Backend | str, *, only: str = "", told: Callable[[str], None] = lambda name: None
) -> Conformance:
    """Try everything on the library `chosen`; `told` is given the name of what is under way.

    only: the one section, or the one thing, to try.

    Raises
    ------
    BackendUnavailable
        If there is no such library, or it cannot run.
    """
    chosen = library(chosen) if isinstance(chosen, str) else chosen
    findings = []
    for section, trial in _trials(only):
        told(trial.name)
        findings.append(judged(section, trial, chosen))
    return replace(_begun(chosen), findings=tuple(findings))


def guarded(
    name: str,
    *,
    bare: bool = False,
    only: str = "",
    seconds: float = SECONDS,
    told: Callable[[str], None] = lambda name: None,
) -> Conformance:
    """The same of `library(name, bare=bare)`, in a process of its own, which may hang or crash.

    What takes longer than `seconds`, or ends the process, is unsupported; the rest is tried by
    another process.
    """
    wanted = [(section, trial.name) for section, trial in _trials(only)]
    findings: list[Finding] = []
    begun: Conformance | None = None
    while begun is None or len(findings) < len(wanted):
        ours, theirs = SPAWN.Pipe(duplex=False)
        asked = theirs, name, bare, only, len(findings)
        worker = SPAWN.Process(target=_work, args=asked, daemon=True)
        worker.start()
        theirs.close()
        try:
            begun = _answer(ours, worker, max(seconds, SECONDS))
            while len(findings) < len(wanted):
                told(wanted[len(findings)][1])
                findings.append(_answer(ours, worker, seconds))
        except _Silent as error:
            if begun is None:
                raise BackendUnavailable(f"{name} does not start: {error}") from error
            findings.append(Finding(*wanted[len(findings)], "unsupported", reason=str(error)))
        finally:
            worker.kill()
            worker.join()
    return replace(begun, findings=tuple(findings))


def _trials(only):
    """Section and trial of all that is asked for, in order."""
    for section, trials in SECTIONS.items():
        for trial in trials():
            if only in ("", section, trial.name):
                yield section, trial


def _begun(chosen):
    """All but the findings."""
    adapter = getattr(chosen.adapter, "__name__", None)
    adapter = f"through the adapter {adapter}" if adapter else "without an adapter"
    return Conformance(str(chosen), chosen.version, chosen.hardware, adapter, ())


def _work(answers, name, bare, only, start):
    """Answer with what the library is, and each finding from the one numbered `start` on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # to stop is for the process that asks
    try:
        chosen = library(name, bare=bare)
    except BackendUnavailable as error:
        answers.send(error)
        return
    answers.send(_begun(chosen))
    for section, trial in islice(_trials(only), start, None):
        answers.send(judged(section, trial, chosen))


class _Silent(Exception):
    """No answer comes any more; the message says why."""


def _answer(answers, worker, seconds):
    if not answers.poll(seconds):
        raise _Silent(f"no answer within {seconds:g} seconds")
    try:
        answer = answers.recv()
    except EOFError:
        worker.join()
        code = worker.exitcode
        ended = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"
        raise _Silent(f"the process ended {ended}") from None
    if isinstance(answer, Exception):
        raise answer
    return answer
