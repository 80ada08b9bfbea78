"""Operators that move, select, repeat or join elements, and reductions."""

from collections.abc import Sequence
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np

from ...layers.activations import LogSoftmax, Softmax
from ...layers.merging import Concatenate
from ...layers.patches import PixelShuffle
from ...layers.resampling import Pad
from ...layers.resizing import Resize
from .. import operations as op
from ..building import BatchLength, Length, Value
from .call import Call, Handler, Unsupported, as_lengths, as_numbers

__all__ = ["HANDLERS"]


# --- shapes ---------------------------------------------------------------------------


def _reshape(call: Call) -> Value:
    value = call.value(0)
    target = call.integers("shape", 1)
    call.expect(target is not None, "the shape is missing")
    assert target is not None
    if not call.attributes.get("allowzero", 0):
        shape = as_numbers(value.shape)
        target = [int(shape[i]) if n == 0 else n for i, n in enumerate(target)]
    call.expect(0 not in target, f"a length of {target} is 0")
    return _reshaped(call, value, as_lengths(target))


def _reshaped(call: Call, value: Value, target: Sequence[Length]) -> Value:
    return call.builder.reshape(value, _with_batch(value, target))


def _with_batch(value: Value, target: Sequence[Length]) -> tuple[Length, ...]:
    """Return `target` with the batch in it, if the file has a fixed batch size.

    A batch of k is in the first length that can hold it: the elements before it are
    those before the batch in `value`.
    """
    target = tuple(target)
    batch = value.batch_axis
    has_batch = any(isinstance(n, BatchLength) for n in target)
    if batch is None or has_batch or -1 in target:
        return target
    lengths = [n.factor if isinstance(n, BatchLength) else n for n in value.shape]
    elements = prod(lengths)
    size = prod(n for n in target if isinstance(n, int))
    if elements == 0 or size % elements:
        return target
    fixed = size // elements
    before = prod(lengths[:batch])
    done = 1
    for i, n in enumerate(target):
        assert isinstance(n, int)
        if done * n >= before * fixed and n % fixed == 0:
            length = BatchLength(n // fixed)
            return (*target[:i], length, *target[i + 1 :])
        done *= n
    return target


def _flatten(call: Call) -> Value:
    value = call.value(0)
    axis = int(call.attribute("axis", 1))
    axis = axis + len(value.shape) if axis < 0 else axis
    shape = [int(n) for n in as_numbers(value.shape)]
    rows = prod(shape[:axis])
    columns = prod(shape[axis:])
    return call.builder.reshape(value, as_lengths([rows, columns]))


def _squeeze(call: Call) -> Value:
    value = call.value(0)
    rank = len(value.shape)
    axes = call.integers("axes", 1)
    if axes is None:
        axes = [i for i, n in enumerate(value.shape) if n == 1]
    axes = [call.axis(axis, rank) for axis in axes]
    batch = value.batch_axis
    call.expect(batch is None or batch not in axes, "it removes the batch axis")
    wrong = [axis for axis in axes if value.shape[axis] != 1]
    call.expect(not wrong, f"axes {wrong} of {value.shape} do not have length 1")
    shape = [n for i, n in enumerate(value.shape) if i not in axes]
    return call.builder.reshape(value, shape)


def _unsqueeze(call: Call) -> Value:
    value = call.value(0)
    axes = call.integers("axes", 1)
    call.expect(axes is not None, "the axes are missing")
    assert axes is not None
    rank = len(value.shape) + len(axes)
    axes = [call.axis(axis, rank) for axis in axes]
    lengths = iter(value.shape)
    shape = [1 if i in axes else next(lengths) for i in range(rank)]
    return call.builder.reshape(value, shape)


def _transpose(call: Call) -> Value:
    value = call.value(0)
    rank = len(value.shape)
    order = call.attributes.get("perm", list(range(rank))[::-1])
    return call.builder.permute(value, [int(axis) for axis in order])


def _expand(call: Call) -> Any:
    value = call.value(0)
    target = list(as_lengths(call.array(1).reshape(-1)))
    return _expanded(call, value, target)


def _expanded(call: Call, value: Value, target: Sequence[Length]) -> Any:
    rank = max(len(value.shape), len(target))
    target = [1] * (rank - len(target)) + list(target)
    shape = [1] * (rank - len(value.shape)) + list(value.shape)
    # a value that is equal for all examples keeps length 1 at the batch
    full = [
        n if m == 1 or (isinstance(m, BatchLength) and n == 1) else m
        for n, m in zip(shape, target, strict=True)
    ]
    value = call.builder.reshape(value, shape)
    axes = [i for i, (n, m) in enumerate(zip(shape, full, strict=True)) if n != m]
    if not axes:
        return value
    for axis in axes:
        call.expect(shape[axis] == 1, f"cannot expand {shape} to {target}")
        value, _ = call.inner_axis(value, axis)
    stored = list(value.stored)
    for axis in axes:
        value, at = call.inner_axis(value, axis)
        length = full[axis]
        assert isinstance(length, int)
        stored[at - 1] = length
    layer = op.BroadcastTo(tuple(stored))
    return call.builder.same_layout(call.name, layer, value)


def _tile(call: Call) -> Value:
    value = call.value(0)
    repeats = [int(n) for n in call.array(1).reshape(-1)]
    for axis, count in enumerate(repeats):
        if count == 1:
            continue
        call.expect(count >= 1, f"it repeats {count} times")
        value, at = call.inner_axis(value, axis)
        counts = [1] * len(value.stored)
        counts[at - 1] = count
        layer = op.Tile(tuple(counts))
        value = call.builder.same_layout(call.name, layer, value)
    return value


def _pixel_shuffle(call: Call) -> Value:
    value = call.value(0)
    block = int(call.attribute("blocksize"))
    if call.attributes.get("mode", "DCR") == "CRD" and len(value.shape) == 4:
        layer = PixelShuffle(block)
        result: Value = call.builder.channels_last(call.name, layer, value)
        return result
    batch, channels, rows, columns = value.shape
    assert isinstance(channels, int)
    shape = (batch, block, block, channels // block**2, rows, columns)
    value = call.builder.reshape(value, shape)
    value = call.builder.permute(value, (0, 3, 4, 1, 5, 2))
    out = (batch, channels // block**2, rows * block, columns * block)
    return call.builder.reshape(value, out)


def _space_to_depth(call: Call) -> Value:
    value = call.value(0)
    block = int(call.attribute("blocksize"))
    batch, channels, rows, columns = value.shape
    assert isinstance(rows, int)
    assert isinstance(columns, int)
    fits = rows % block == 0 and columns % block == 0
    call.expect(fits, f"{rows} × {columns} cannot be split into blocks of {block}")
    shape = (batch, channels, rows // block, block, columns // block, block)
    value = call.builder.reshape(value, shape)
    is_first = call.attributes.get("mode", "DCR") == "DCR"
    order = (0, 3, 5, 1, 2, 4) if is_first else (0, 1, 3, 5, 2, 4)
    value = call.builder.permute(value, order)
    out = (batch, channels * block**2, rows // block, columns // block)
    return call.builder.reshape(value, out)


# --- selections -----------------------------------------------------------------------


def _slice(call: Call) -> Value:
    value = call.value(0)
    starts = call.integers("starts", 1)
    ends = call.integers("ends", 2)
    call.expect(starts is not None and ends is not None, "starts or ends are missing")
    assert starts is not None
    assert ends is not None
    axes = call.integers("axes", 3) or list(range(len(starts)))
    steps = call.integers("steps", 4) or [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        value = _sliced(call, value, axis, start, end, step)
    return value


def _sliced(
    call: Call, value: Value, axis: int, start: int, end: int, step: int
) -> Any:
    axis = call.axis(axis, len(value.shape))
    length = int(as_numbers(value.shape)[axis])
    chosen = range(length)[start:end:step]
    if chosen == range(length):
        return value
    if value.batch_axis == axis:
        raise Unsupported("it takes some examples of the batch")
    part = (chosen.start, len(chosen), step)
    return call.along(lambda at: op.Slice(((at, *part),)), value, axis)


def _split(call: Call) -> tuple[Value, ...]:
    value = call.value(0)
    axis = call.axis(int(call.attribute("axis", 0)), len(value.shape))
    length = int(as_numbers(value.shape)[axis])
    sizes = call.integers("split", 1)
    if sizes is None:
        count = int(call.attributes.get("num_outputs", len(call.outputs)))
        size = -(-length // count)
        sizes = [size] * (count - 1) + [length - size * (count - 1)]
    parts = []
    start = 0
    for size in sizes:
        parts.append(_sliced(call, value, axis, start, start + size, 1))
        start += size
    return tuple(parts)


def _split_to_sequence(call: Call) -> tuple[Value, ...]:
    value = call.value(0)
    axis = call.axis(int(call.attribute("axis", 0)), len(value.shape))
    length = int(as_numbers(value.shape)[axis])
    split = call.array(1, [1])
    sizes = [int(n) for n in split.reshape(-1)]
    if split.ndim == 0:
        count = -(-length // sizes[0])
        sizes = [min(sizes[0], length - i * sizes[0]) for i in range(count)]
    elif not call.has(1):
        sizes = [1] * length
    parts = []
    start = 0
    for size in sizes:
        parts.append(_sliced(call, value, axis, start, start + size, 1))
        start += size
    if not call.has(1) and not call.attributes.get("keepdims", 1):
        shape = [n for i, n in enumerate(value.shape) if i != axis]
        parts = [call.builder.reshape(part, shape) for part in parts]
    return tuple(parts)


def _gather(call: Call) -> Value:
    axis = int(call.attribute("axis", 0))
    value, indices = call.value(0), call.value(1)
    axis = call.axis(axis, len(value.shape))
    if indices.array is None:
        raise Unsupported(
            "it looks values up that are not a table of the file, or along another "
            "axis than 0, at computed indices"
        )
    length = int(as_numbers(value.shape)[axis])
    numbers = np.asarray(indices.array, np.int64)
    numbers = np.where(numbers < 0, numbers + length, numbers)
    if value.batch_axis == axis:
        raise Unsupported("it takes some examples of the batch")
    if numbers.size == 1:
        first = int(numbers.reshape(()))
        value = call.along(lambda at: op.Slice(((at, first, 1, 1),)), value, axis)
    else:
        state = {"indices": numbers.reshape(-1).astype(np.int32)}
        value = call.along(
            lambda at: op.Take(at, numbers.size), value, axis, state=state
        )
    shape = (*value.shape[:axis], *numbers.shape, *value.shape[axis + 1 :])
    return call.builder.reshape(value, shape)


def _gather_elements(call: Call) -> Value:
    value, indices = call.value(0), call.value(1)
    axis = call.axis(int(call.attribute("axis", 0)), len(value.shape))
    call.expect(value.batch_axis == 0, "it looks up what does not have the batch first")
    call.expect(axis != 0, "it takes some examples of the batch")
    values = {"x": value, "indices": call.builder.expand_batch(call.name, indices)}
    layer = op.TakeAlongAxis(axis)
    result: Value = call.builder.add(call.name, layer, values, kind="real floating")
    return result


def _concatenate(call: Call) -> Value:
    values = [call.value(i) for i in range(len(call.inputs))]
    values = [value for value in values if 0 not in value.shape]
    rank = len(values[0].shape)
    axis = call.axis(int(call.attribute("axis", 1)), rank)
    if len(values) == 1:
        return values[0]
    with_batch = [value for value in values if value.has_batch]
    if not with_batch:
        raise Unsupported("it joins trained values that have no batch")
    batch = with_batch[0].batch_axis
    call.expect(batch != axis, "it joins batches")
    call.expect(
        all(value.batch_axis == batch for value in with_batch),
        "its inputs have the batch at different axes",
    )
    values = [_at_batch(call, value, batch) for value in values]
    order = call.stored_order(values[0])
    values = [call.builder.permute(value, order) for value in values]
    layer = Concatenate(order.index(axis))
    kind = values[0].kind
    joined: Value = call.builder.add(call.name, layer, *values, kind=kind)
    return call.builder.permute(joined, [order.index(i) for i in range(rank)])


def _at_batch(call: Call, value: Value, batch: int | None) -> Value:
    """Return a value without batch repeated for each example, at the axis `batch`."""
    if value.has_batch:
        return value
    assert batch is not None
    rank = len(value.shape)
    call.expect(value.shape[batch] == 1, "it joins a fixed batch to a variable one")
    shape = [n for i, n in enumerate(value.shape) if i != batch]
    value = call.builder.expand_batch(call.name, call.builder.reshape(value, shape))
    order = list(range(1, rank))
    order.insert(batch, 0)
    return call.builder.permute(value, order)


# --- padding and resizing -------------------------------------------------------------

_PAD_MODES = {"constant": "constant", "reflect": "reflect"}
_PAD_MODES |= {"edge": "replicate", "wrap": "circular"}


def _pad(call: Call) -> Value:
    value = call.value(0)
    rank = len(value.shape)
    pads = call.integers("pads", 1) or call.integers("paddings", 1)
    call.expect(pads is not None, "the pads are missing")
    assert pads is not None
    axes = [int(axis) for axis in call.array(3, list(range(rank)))]
    axes = [call.axis(axis, rank) for axis in axes]
    half = len(pads) // 2
    padding = [(0, 0)] * rank
    for axis, low, high in zip(axes, pads[:half], pads[half:], strict=True):
        padding[axis] = (low, high)
    number = float(call.attributes.get("value", call.number(2, 0.0)))
    mode = str(call.attributes.get("mode", "constant"))
    for axis, (low, high) in enumerate(padding):
        if min(low, high) < 0:  # it removes elements
            length = value.shape[axis]
            end = length + min(high, 0) if isinstance(length, int) else 0
            value = _sliced(call, value, axis, max(-low, 0), end, 1)
    added = [(max(low, 0), max(high, 0)) for low, high in padding]
    return _padded(call, value, added, _PAD_MODES[mode], number)


def _padded(
    call: Call, value: Value, pads: list[tuple[int, int]], mode: str, number: float
) -> Value:
    if not any(map(any, pads)):
        return value
    rank = len(value.shape)
    batch = value.batch_axis
    call.expect(batch is None or not any(pads[batch]), "it pads the batch")
    if batch == 0 and rank > 2 and not any(pads[1]):
        layer = Pad(tuple(pads[2:]), mode, value=number)
        padded: Value = call.builder.channels_last(call.name, layer, value)
        return padded
    call.expect(batch == 0, "it pads a value that does not have the batch first")
    # all axes become spatial ones, before a last axis of length 1
    value = call.builder.reshape(value, (*value.shape, 1))
    layer = Pad(tuple(pads[1:]), mode, value=number)
    value = call.builder.add(call.name, layer, value)
    return call.builder.reshape(value, value.shape[:-1])


def _resize(call: Call) -> Value:
    value = call.value(0)
    rank = len(value.shape)
    call.expect(rank >= 3 and value.batch_axis == 0, "it resizes no (N, C, ...) array")
    if call.operator == "Upsample":
        scales = call.attributes.get("scales")
        scales = call.array(1) if scales is None else np.asarray(scales)
        sizes = None
    else:
        at = 2 if call.opset >= 11 else 1
        scales = call.array(at) if call.has(at) and np.size(call.array(at)) else None
        sizes = call.array(3) if call.has(3) and np.size(call.array(3)) else None
    if "axes" in call.attributes:
        raise Unsupported("the attribute axes is not supported")
    call.expect(
        call.attributes.get("keep_aspect_ratio_policy", "stretch") == "stretch",
        "keep_aspect_ratio_policy is not supported",
    )
    options = _resize_options(call)
    if sizes is not None:
        layer = Resize(tuple(int(n) for n in sizes[2:]), **options)
        is_torch = call.attributes.get("coordinate_transformation_mode")
        is_torch = is_torch == "pytorch_half_pixel"
        fits = not (is_torch and 1 in sizes[2:])
        call.expect(fits, "pytorch_half_pixel to a length of 1")
        whole = sizes[1] == value.shape[1]
    else:
        assert scales is not None
        factors = [float(scale) for scale in scales[2:]]
        layer = _by_factors(call, value, factors, options)
        whole = bool(np.all(scales[:2] == 1))
    call.expect(whole, "it resizes the batch or the channels")
    resized: Value = call.builder.channels_last(call.name, layer, value)
    return resized


def _by_factors(
    call: Call, value: Value, factors: list[float], options: dict[str, Any]
) -> Resize:
    """Return a `Resize` to sizes, if the factors give whole numbers, or by factors."""
    sizes = [n * f for n, f in zip(value.shape[2:], factors, strict=True)]  # type: ignore[operator]
    if all(abs(size - round(size)) < 1e-4 for size in sizes):
        return Resize(tuple(round(size) for size in sizes), **options)
    call.expect(
        not options["align_corners"],
        f"with align_corners the factors {factors} give no whole lengths",
    )
    # 0.6 instead of the nearest number of float32
    simple = [float(Fraction(f).limit_denominator(1000)) for f in factors]
    pairs = zip(simple, factors, strict=True)
    is_same = all(np.float32(a) == np.float32(b) for a, b in pairs)
    return Resize(factors=tuple(simple if is_same else factors), **options)


def _resize_options(call: Call) -> dict[str, Any]:
    """Return mode and options of `Resize`; raise for interpolations that it lacks."""
    mode = str(call.attributes.get("mode", "nearest"))
    default = "half_pixel" if call.opset >= 11 else "asymmetric"
    place = str(call.attributes.get("coordinate_transformation_mode", default))
    rounding = str(call.attributes.get("nearest_mode", "round_prefer_floor"))
    rounding = "floor" if call.opset < 11 else rounding
    antialias = bool(call.attributes.get("antialias", 0))
    call.expect(not antialias, "antialias=1 has other weights than Resize")
    if mode == "nearest":
        if (place, rounding) == ("asymmetric", "floor"):
            return {"mode": "nearest", "align_corners": False}
        if place in ("half_pixel", "pytorch_half_pixel"):
            call.expect(
                rounding == "round_prefer_ceil",
                f"nearest with {place} rounds by {rounding}, not round_prefer_ceil",
            )
            return {"mode": "nearest-exact", "align_corners": False}
        raise Unsupported(f"nearest with {place} and {rounding} is not supported")
    is_half = place in ("half_pixel", "pytorch_half_pixel")
    call.expect(
        is_half or place == "align_corners", f"{mode} with {place} is not supported"
    )
    call.expect(not call.attributes.get("exclude_outside", 0), "exclude_outside=1")
    if mode == "cubic":
        a = float(call.attributes.get("cubic_coeff_a", -0.75))
        call.expect(a == -0.75, f"cubic_coeff_a={a}, and Resize has -0.75")
    options = {"mode": mode, "align_corners": not is_half}
    call.expect(mode in ("linear", "cubic"), f"mode {mode} is not supported")
    return options


# --- along axes -----------------------------------------------------------------------


def _softmax(make: type[Softmax | LogSoftmax]) -> Handler:
    def convert(call: Call) -> Any:
        value = call.value(0)
        rank = len(value.shape)
        if call.opset >= 13:
            axis = call.axis(int(call.attribute("axis", -1)), rank)
            return call.along(make, value, axis)
        axis = call.axis(int(call.attribute("axis", 1)), rank)
        if axis == rank - 1:
            return call.along(make, value, axis)
        # before opset 13 it is over all axes from this one on
        shape = value.shape
        value = call.builder.reshape(value, (*shape[:axis], -1))
        value = call.along(make, value, axis)
        return call.builder.reshape(value, shape)

    return convert


def _reduce(make: type[op.Reduction], *after: Any) -> Handler:
    """Return a handler of a reduction, and layers after it."""

    def convert(call: Call) -> Any:
        value = call.value(0)
        call.expect(value.kind == "real floating", f"x holds {value.kind} numbers")
        rank = len(value.shape)
        axes = call.integers("axes", 1)
        if not axes:
            if call.attributes.get("noop_with_empty_axes", 0):
                return value
            axes = list(range(rank))
        axes = [call.axis(axis, rank) for axis in axes]
        call.expect(value.batch_axis not in axes, "it reduces the batch")
        call.expect(0 not in value.shape, f"x has no elements: {value.shape}")
        for axis in axes:
            value, _ = call.inner_axis(value, axis)
        stored = tuple(call.inner_axis(value, axis)[1] for axis in axes)
        layer = make(stored, keepdims=True)
        value = call.builder.same_layout(call.name, layer, value)
        for extra in after:
            value = call.builder.same_layout(call.name, extra(), value)
        if call.attributes.get("keepdims", 1):
            return value
        shape = [n for i, n in enumerate(value.shape) if i not in axes]
        return call.builder.reshape(value, shape)

    return convert


def _arg_max(smallest: bool) -> Handler:
    def convert(call: Call) -> Any:
        call.expect(
            not call.attributes.get("select_last_index", 0), "select_last_index"
        )
        value = call.value(0)
        axis = call.axis(int(call.attribute("axis", 0)), len(value.shape))
        value = call.along(
            lambda at: op.ArgMax(at, keepdims=True, smallest=smallest),
            value,
            axis,
            kind="integral",
        )
        if call.attributes.get("keepdims", 1):
            return value
        shape = [n for i, n in enumerate(value.shape) if i != axis]
        return call.builder.reshape(value, shape)

    return convert


def _cumulative_sum(call: Call) -> Any:
    options = {
        name: bool(call.attributes.get(name, 0)) for name in ("exclusive", "reverse")
    }
    axis = int(call.array(1).reshape(()))
    return call.along(lambda at: op.CumulativeSum(at, **options), call.value(0), axis)


def _normalize(call: Call) -> Any:
    value = call.value(0)
    axis = call.axis(int(call.attribute("axis", -1)), len(value.shape))
    power = int(call.attribute("p", 2))
    make = {1: op.ReduceL1, 2: op.ReduceL2}[power]
    norm = call.along(lambda at: make((at,), keepdims=True), value, axis)
    return call.builder.same_layout(call.name, op.BroadcastDivide(), value, norm)


def _one_hot(call: Call) -> Value:
    depth = int(call.array(1).reshape(()))
    off, on = (float(n) for n in call.array(2).reshape(-1))
    call.expect(
        (off, on) == (0.0, 1.0), f"its values are {off:g} and {on:g}, not 0 and 1"
    )
    indices = call.value(0)
    call.expect(indices.kind == "integral", "its indices are not integers")
    result: Value = call.builder.add(
        call.name, op.OneHot(depth), indices, kind="real floating"
    )
    rank = len(result.shape)
    axis = call.axis(int(call.attribute("axis", -1)), rank)
    order = list(range(rank - 1))
    order.insert(axis, rank - 1)
    return call.builder.permute(result, order)


def _trilu(call: Call) -> Any:
    value = call.value(0)
    k = int(call.number(1, 0))
    rows, columns = value.shape[-2:]
    if not (isinstance(rows, int) and isinstance(columns, int)):
        raise Unsupported("it mixes examples of the batch")
    keep = np.triu if call.attributes.get("upper", 1) else np.tril
    mask = keep(np.ones((rows, columns), np.float32), k)
    constant = call.builder.constant(mask)
    return call.builder.same_layout(call.name, op.BroadcastMultiply(), value, constant)


HANDLERS: dict[str, Handler] = {
    "ArgMax": _arg_max(smallest=False),
    "ArgMin": _arg_max(smallest=True),
    "Concat": _concatenate,
    "CumSum": _cumulative_sum,
    "DepthToSpace": _pixel_shuffle,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "LogSoftmax": _softmax(LogSoftmax),
    "LpNormalization": _normalize,
    "OneHot": _one_hot,
    "Pad": _pad,
    "ReduceL1": _reduce(op.ReduceL1),
    "ReduceL2": _reduce(op.ReduceL2),
    "ReduceLogSum": _reduce(op.ReduceSum, op.Log),
    "ReduceLogSumExp": _reduce(op.ReduceLogSumExp),
    "ReduceMax": _reduce(op.ReduceMax),
    "ReduceMean": _reduce(op.ReduceMean),
    "ReduceMin": _reduce(op.ReduceMin),
    "ReduceProd": _reduce(op.ReduceProduct),
    "ReduceSum": _reduce(op.ReduceSum),
    "ReduceSumSquare": _reduce(op.ReduceSumSquare),
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "Softmax": _softmax(Softmax),
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "SplitToSequence": _split_to_sequence,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
    "Upsample": _resize,
}
