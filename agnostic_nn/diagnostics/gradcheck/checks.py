"""Compare the hand-derived gradients of a layer with the derivatives of its forward.

Authors of a layer run this first. The layer runs on NumPy in float64, at a random point
away from its initial parameters and state, and is compared there with the oracles that
`oracles.py` describes. With `dtypes`, its arithmetic in float16, bfloat16 or float32 is
compared with float64, as `dtypes.py` describes.

Before that, in float32 and float64, the contract is checked: shape, dtype and nesting
of everything that the layer returns, no argument changed in place, the same results at
a second call, and no state changed by predicting.

If a block fails, the layers inside are checked in the same way, each with the
parameters, the state and the input that it gets in the block, and the message names the
first that fails by itself.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ...blocks import Block
from ...core.arrays import Shape
from ...core.backend import Backend, backend
from ...core.backend import backends as installed
from ...core.errors import (
    described,
    expect,
    expect_count,
    expect_function,
    expect_integer,
)
from ...core.trees import leaves, shape_map, tree_map
from ...layers.base import Layer, is_shape
from .cases import Case, expect_contract, random_case, read_only
from .dtypes import backends_with, expected_dtypes, in_dtypes
from .inputs import batched, draw_for
from .inside import failure_inside
from .oracles import (
    AT_KINKS,
    BY_DIFFERENTIATION,
    SAME,
    adjoint,
    central_differences,
    filled_batch,
    layout,
    on_backend,
    shortcuts,
    small_batches,
)
from .report import CheckFailed, Report, Row

__all__ = ["check"]

# how a message starts if all is right on NumPy
ON_BACKENDS = (SAME, BY_DIFFERENTIATION, "train on ", "predict on ")


def check(
    layer: Layer,
    shape: Shape,
    *,
    batch: int = 3,
    seed: int = 0,
    backends: Iterable[str | Backend] | None = None,
    dtypes: Iterable[str] = (),
    elements: int = 50,
    draw: Callable[[np.random.Generator, Shape], np.ndarray] | None = None,
) -> Report:
    """Check the contract and the gradients of `layer`.

    shape: the shape of one example, or a tree of shapes where x is a tree.
    backends: names or handles; None means all that run here, each on its first device.
    dtypes: of "float16", "bfloat16" and "float32", those in which forward and backward
        are also compared with float64, on NumPy and on each backend that has them. The
        tolerance is measured for the rounding of each dtype. Numbers that a dtype
        cannot hold are named in the report; they are not errors.
    elements: how many elements of a leaf the central differences check, drawn at random
        where it has more.
    draw: returns x for a generator and the shape of x, or tree of shapes. By default, x
        holds normal draws, booleans of which three in four are true, or integers that
        `layer.check` accepts.

    Raises
    ------
    CheckFailed
        If the contract is broken or anything is out of tolerance. The message names the
        worst entry of the first oracle that differs, and ends with the table. If the
        layer is a block, it also names the first layer inside that fails by itself.
    BackendUnavailable
        If one of `backends` cannot run or has no float64, or if no backend has one of
        the `dtypes`.
    TypeError
        If `layer` is not a layer. A loss is checked as a layer,
        `agnostic_nn.diagnostics.gradcheck.loss_of(loss)`.
    """
    if not isinstance(layer, Layer):
        raise TypeError(
            f"expected a layer, got {layer!r}; a loss is checked as "
            'check(loss_of(loss), {"y": (3,), "target": (3,)}), '
            "with loss_of from agnostic_nn.diagnostics.gradcheck"
        )
    if not is_shape(shape):
        example = "a tuple of integers such as (3,), or a tree of them"
        raise TypeError(
            f"expected the shape of one example, {example}, got {described(shape)}"
        )
    expect_count("batch", batch)
    expect_count("elements", elements)
    expect_integer("seed", seed, 0)
    if draw is not None:
        expect_function("draw", draw, "generator, shape")
    if backends is not None:
        backends = _expect_backends(backends)
    dtypes = expected_dtypes(dtypes)
    in_dtype_on = backends_with(dtypes, backends) if dtypes else []
    draw_x = draw or partial(draw_for, layer)
    # Another generator, so that this draw does not change those of the other oracles.
    others = partial(draw_x, np.random.default_rng([seed, 1]), batched(shape, 2))

    def cases(generator: np.random.Generator, check_init: bool) -> Iterator[Case]:
        for dtype in (np.float32, np.float64):
            yield random_case(
                layer, batched(shape, batch), dtype, draw_x, generator, check_init
            )

    generator = np.random.default_rng(seed)
    title = f"{layer} on {shape}, a batch of {batch}, seed {seed}"
    settings = _Settings(elements, generator, backends, dtypes, in_dtype_on)
    try:
        return _judge(title, cases(generator, True), others, settings)
    except CheckFailed as failure:
        if isinstance(layer, Block):
            fault, *rest = str(failure).split("\n\n", 1)
            generator = np.random.default_rng(seed)
            needed = backends if fault.startswith(ON_BACKENDS) else []
            failing = [dtype for dtype in dtypes if fault.startswith(f"{dtype} on ")]
            settings = _Settings(elements, generator, needed, failing, in_dtype_on)

            def judge(drawn: list[Case], other_x: Callable[[], Any]) -> Report:
                return _judge("", drawn, other_x, settings)

            block_cases = list(cases(generator, False))
            block_cases.append(replace(block_cases[-1], x=others()))
            inside = failure_inside(
                layer, block_cases, generator, judge, AT_KINKS in fault
            )
            failure.args = ("\n\n".join([fault, inside, *rest]),)
        raise


@dataclass(frozen=True)
class _Settings:
    """Some of the arguments of `check`, and a generator."""

    elements: int
    generator: np.random.Generator
    backends: list[str | Backend] | None
    dtypes: list[str]
    dtype_backends: list[Backend]  # on which the dtypes are checked, if they have them


def _judge(
    title: str,
    drawn_cases: Iterable[Case],
    others: Callable[[], Any],
    settings: _Settings,
) -> Report:
    """Return the report of a layer; raise CheckFailed if something is wrong.

    drawn_cases: one in float32, then one in float64. others: returns the x of two other
        examples.
    """
    for case in drawn_cases:
        for mode in ("train", "predict"):
            expect_contract(replace(case, mode=mode))

    layer = case.layer
    cases = [replace(case.map(read_only), mode=mode) for mode in ("train", "predict")]
    has_numbers = any(leaf.size for leaf in leaves(cases[0].point))
    shape = shape_map(lambda axes: axes[1:], tree_map(np.shape, case.x))
    expect(has_numbers, "there is no number to check in examples of {}", shape)
    rows: list[Row] = []
    generator = settings.generator
    other_x = others()
    for case in cases:
        rows += central_differences(case, settings.elements, generator)
        rows += adjoint(case, generator)
        rows += layout(case)
        rows += small_batches(case, generator)
        rows += shortcuts(case)
        rows += filled_batch(case, other_x)
    for other in _usable() if settings.backends is None else settings.backends:
        other = backend(other) if isinstance(other, str) else other
        try:
            with other.double():
                rows += on_backend(cases, other)
        except Exception as error:
            error.add_note(f"while {layer} was checked on {other}")
            raise

    in_dtype_rows, remarks = in_dtypes(cases, settings.dtypes, settings.dtype_backends)
    rows += in_dtype_rows
    report = Report(title, tuple(rows), tuple(remarks))
    failures = [row for row in rows if not row.error <= row.tolerance]
    if failures:
        first = failures[0].oracle
        worst = Report("", tuple(row for row in failures if row.oracle == first)).worst
        failure = CheckFailed(
            f"{worst.oracle} on {worst.backend}, {worst.mode}: "
            f"{worst.leaf}{list(worst.index)} is {worst.got!r}, expected "
            f"{worst.expected!r}; relative error {worst.error:.3g}, tolerance "
            f"{worst.tolerance:g}\n\n{report}"
        )
        failure.report = report
        raise failure
    return report


def _expect_backends(backends: Any) -> list[str | Backend]:
    """Return `backends` as a list; raise TypeError unless it holds names or handles."""
    if isinstance(backends, str) or not isinstance(backends, Iterable):
        raise TypeError(
            f"expected backends as a list of names, got {described(backends)}"
        )
    chosen = list(backends)
    for choice in chosen:
        if not isinstance(choice, str | Backend):
            raise TypeError(
                f"expected backends or their names, got {described(choice)}"
            )
    return chosen


def _usable() -> Iterator[Backend]:
    """Yield each backend except NumPy, on its first device that can have float64."""
    for status in installed():
        others = (device for device in status.devices if device != backend("numpy"))
        yield from [device for device in others if device.can_double][:1]
