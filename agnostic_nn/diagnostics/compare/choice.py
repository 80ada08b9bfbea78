"""Choose the backends and dtypes to compare."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...core.backend import Backend, BackendUnavailable, backends
from ...core.backend import backend as choose
from .running import REFERENCE_DTYPE
from .schema import LeftOut
from .workloads import CannotCompare

__all__ = ["Missing", "one_line", "runs_to_make"]

ONLY_BY_NAME = {
    "array_api_strict": "array_api_strict is for tests only: name it to include it",
}


Policy = tuple[str | None, bool | None]


@dataclass(frozen=True)
class Missing:
    """A backend that was named and cannot run here."""

    name: str
    reason: str


def runs_to_make(
    names: Sequence[str | Backend] | None,
    dtypes: list[str],
    policy: Policy,
    machine: str,
) -> tuple[list[tuple[Backend | Missing, str]], list[LeftOut]]:
    """Return each backend with each of its dtypes, and what does not run."""
    chosen: Sequence[Backend | Missing]
    if names is None:
        chosen, left_out = _all_backends(policy, machine)
    else:
        chosen = _named(names, policy)
        left_out = []
    pairs: list[tuple[Backend | Missing, str]] = []
    lacking: list[tuple[Backend | Missing, str]] = []
    for backend in chosen:
        for dtype in dtypes:
            if (
                dtype == REFERENCE_DTYPE
                and isinstance(backend, Backend)
                and not backend.has_float64
            ):
                reason = backend.lacks_float64
                left_out.append(
                    LeftOut(backend=backend.name, reason=reason, machine=machine)
                )
                lacking.append((Missing(str(backend), reason), dtype))
            else:
                pairs.append((backend, dtype))
    if not pairs:
        reasons = "; ".join(each.reason for each in left_out)
        raise CannotCompare(f"there is nothing to compare: {reasons}")
    if names is not None and dtypes == [REFERENCE_DTYPE]:
        # A backend that was named but has no run at all is a failure, not left out.
        return pairs + lacking, []
    return pairs, left_out


def _all_backends(policy: Policy, machine: str) -> tuple[list[Backend], list[LeftOut]]:
    """Return every device that can run, and the backends left out."""
    chosen: list[Backend] = []
    left_out: list[LeftOut] = []

    def leave_out(name: str, reason: str) -> None:
        text = one_line(reason)
        left_out.append(LeftOut(backend=name, reason=text, machine=machine))

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
    return chosen, left_out


def _choose(name: str, policy: Policy) -> Backend:
    precision, deterministic = policy
    return choose(name, precision=precision, deterministic=deterministic)


def _named(names: Sequence[str | Backend], policy: Policy) -> list[Backend | Missing]:
    """Return the backends called `names`, each once; `Missing` if one cannot run."""
    chosen: list[Backend | Missing] = []
    for name in names:
        if isinstance(name, Backend):
            chosen.append(name)
            continue
        try:
            chosen.append(_choose(name, policy))
        except BackendUnavailable as error:
            statuses = {status.name: status for status in backends()}
            if name.partition(":")[0] not in statuses:
                devices = (
                    each for status in statuses.values() for each in status.devices
                )
                here = ", ".join(map(str, devices))
                raise CannotCompare(f"{error}; these can run here: {here}") from error
            chosen.append(Missing(name, one_line(str(error))))
    return list(dict.fromkeys(chosen))


def one_line(text: str) -> str:
    """Return the text with each run of spaces and line breaks as one space."""
    return " ".join(text.split())
