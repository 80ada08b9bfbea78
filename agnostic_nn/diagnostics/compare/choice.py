"""Choose the backends and dtypes to compare."""

from collections.abc import Callable, Sequence

from ...core.backend import Backend, BackendUnavailable, backends
from ...core.backend import backend as choose
from .schema import LeftOut
from .workloads import CannotCompare

__all__ = ["Policy", "RunToMake", "one_line", "runs_to_make", "title_of"]

ONLY_BY_NAME = {
    "array_api_strict": "array_api_strict is for tests only: name it to include it",
}

Policy = tuple[str | None, bool | None]
RunToMake = tuple[Backend, str]


def runs_to_make(
    names: Sequence[str | Backend] | None,
    dtypes: list[str],
    policy: Policy,
    machine: str,
    *,
    skip_missing: bool = False,
) -> tuple[list[RunToMake], list[LeftOut]]:
    """Return each backend with each of its dtypes, and what does not run.

    skip_missing: leave out a named backend that cannot run, or does not have one of the
    dtypes.

    Raises
    ------
    CannotCompare
        If a named backend is unknown, or cannot run here with this policy and these
        dtypes (the message lists all such backends), or if nothing is left to run.
    """
    left_out: list[LeftOut] = []

    def leave_out(name: str, reason: str) -> None:
        text = one_line(reason)
        left_out.append(LeftOut(backend=name, reason=text, machine=machine))

    unknown: list[str] = []
    if names is None:
        chosen = _all_backends(policy, leave_out)
    else:
        chosen = _named(names, policy, leave_out, unknown.append)
    runs: list[RunToMake] = []
    for backend in chosen:
        for dtype in dtypes:
            lacks = backend.lacks_dtype(dtype)
            if lacks:
                leave_out(str(backend), lacks)
            else:
                runs.append((backend, dtype))
    missing = [] if names is None or skip_missing else [r.reason for r in left_out]
    if unknown or missing:
        refused = {each.backend for each in left_out}
        raise CannotCompare(_refusal(unknown, missing, refused))
    if not runs:
        reasons = "; ".join(each.reason for each in left_out)
        raise CannotCompare(f"there is nothing to compare: {reasons}")
    return runs, left_out


def title_of(run: RunToMake) -> str:
    """Return the name of a run: its backend and dtype, and its policy if not usual."""
    backend, dtype = run
    words = [str(backend), dtype]
    words += [backend.precision] if backend.precision != "strict" else []
    words += ["deterministic"] if backend.deterministic else []
    return " ".join(words)


def _all_backends(
    policy: Policy, leave_out: Callable[[str, str], None]
) -> list[Backend]:
    """Return every device that can run; call `leave_out` for other backends."""
    chosen: list[Backend] = []
    for status in backends():
        reason = status.reason or ONLY_BY_NAME.get(status.name)
        if reason:
            leave_out(status.name, reason)
            continue
        for device in status.devices:
            try:
                chosen.append(_choose(str(device), policy))
            except BackendUnavailable as error:  # available, but not with this policy
                leave_out(status.name, str(error))
    return chosen


def _choose(name: str, policy: Policy) -> Backend:
    precision, deterministic = policy
    return choose(name, precision=precision, deterministic=deterministic)


def _named(
    names: Sequence[str | Backend],
    policy: Policy,
    leave_out: Callable[[str, str], None],
    reject: Callable[[str], None],
) -> list[Backend]:
    """Return the backends called `names`, each once.

    Calls `leave_out` for those that cannot run, and `reject` with the message for names
    that are not known.
    """
    chosen: list[Backend] = []
    for name in dict.fromkeys(names):
        if isinstance(name, Backend):
            chosen.append(name)
            continue
        try:
            chosen.append(_choose(name, policy))
        except BackendUnavailable as error:
            if name.partition(":")[0] in {status.name for status in backends()}:
                leave_out(name, str(error))
            else:
                reject(one_line(str(error)))
    return list(dict.fromkeys(chosen))


def _refusal(unknown: list[str], missing: list[str], refused: set[str]) -> str:
    """Say why named backends cannot run, which ones can, and how to go on.

    `refused` names backends that lack a dtype, besides those that cannot run.
    """
    names = (str(device) for status in backends() for device in status.devices)
    devices = [name for name in names if name not in refused]
    parts = [*unknown, *dict.fromkeys(missing)]
    if devices:
        parts += [f"these can run here: {', '.join(devices)}"]
    if missing:
        parts += ["--skip-missing (skip_missing=True in Python) leaves out the others"]
    return "; ".join(parts)


def one_line(text: str) -> str:
    """Return the text with each run of spaces and line breaks as one space."""
    return " ".join(text.split())
