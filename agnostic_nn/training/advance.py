"""Take a step so that an exception at any moment leaves a whole number of steps."""

from collections.abc import Callable
from typing import Any

from ..core.atomic import into
from .run import Attempt, CurrentRun, Run, copy_of

__all__ = ["advance", "after_one_step", "after_steps"]


def advance(
    current: CurrentRun,
    step: Callable[..., Any],
    after: Callable[[Run, Any], tuple[Run, Any]],
    *args: Any,
) -> Any:
    """Take steps by one call of `step`, and return the second result of `after`.

    after: see `Attempt`. If an exception comes at any moment, either nothing is
    changed or the steps are taken and counted.
    """
    with current.lock:
        carry = current.carry()
        run = current.settled()
        if run.is_shared or current.run is not run:
            carry = copy_of(carry)
        attempt = current.run = Attempt(run, [], after)
        try:
            with current.during_step():
                into(step, attempt.outcome, carry, *args)
            ended, answer = attempt.ended()
            if current.run is attempt:
                current.run = ended
        except BaseException:
            if current.run is attempt:
                current.run, _ = attempt.ended()
            raise
    return answer


def after_one_step(run: Run, result: Any) -> tuple[Run, Any]:
    """Return the run after one step, and its loss."""
    carry, value, *_ = result
    return after_steps(run, carry, 1), value


def after_steps(run: Run, carry: Any, count: int, **changes: Any) -> Run:
    """Return the run after `count` steps that led to `carry`, with other `changes`."""
    changes |= {"carry": carry, "steps": run.steps + count}
    return run._replace(is_shared=False, lost="", **changes)
