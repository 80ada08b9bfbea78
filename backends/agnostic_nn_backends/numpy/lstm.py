"""An LSTM over a whole sequence, fused for NumPy.

Results are written to their final arrays, or to buffers that earlier steps have left in
the cache. One table has h, x and 1 as columns, and one matrix has R, W and b as rows,
so the gradients of R, W and b are one product. The products of x and 1 are computed for
several steps at a time.

The products give -a for the gates i, f and o. One exponential, e = exp(-a), gives both
the value and the slope of a gate: σ(a) = 1 / (1 + e) and s = σ'(a) = e σ(a)². s is the
same for a and -a, so it also gives the slope of g: tanh a = (p² - q²) / (p² + q²) for p
= σ(a), q = σ(-a), and therefore

    tanh'(a) = 1 - tanh² a = (2pq / (p² + q²))² = (2s / (1 - 2s))²        as p + q = 1

where 1 - 2s is at least 1/2. For c, tanh c itself is known: 1 - |tanh c| =
exp(-2|c|) (1 + |tanh c|), so tanh'(c) = exp(-2|c|) (1 + |tanh c|)².

Exponents are limited so that e does not overflow; σ there is below 1e-37 instead of
even smaller.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["lstm", "lstm_backward"]

# steps prepared and finished together: fewer calls, and arrays stay in the cache
_STEPS = 8

_Arrays = dict[str, np.ndarray]
# the table of h, x and 1, and the slopes of `_slopes`
_LSTMCache = tuple[np.ndarray, ...]


def _gates(x: np.ndarray) -> list[np.ndarray]:
    """Split the last axis of x into the parts of the gates i, f, g, o."""
    width = x.shape[-1] // 4
    return [x[..., k * width : (k + 1) * width] for k in range(4)]


def lstm(
    xs: np.ndarray,
    params: _Arrays,
    start: _Arrays,
    reverse: bool,
    keep: bool,
    fallback: Callable[[], Any],
) -> tuple[_Arrays, tuple[np.ndarray, _LSTMCache]]:
    """Implement `agnostic_nn.ops.lstm`."""
    time, batch, _ = xs.shape
    width = len(params["recurrent"])
    dtype = xs.dtype
    matrix = np.concatenate(
        (params["recurrent"], params["weight"], params["bias"][None])
    )
    matrix *= np.repeat(np.asarray((-1.0, -1.0, 1.0, -1.0), dtype), width)
    # in the order of the steps: row t + 1 holds the h after step t
    order = slice(None, None, -1 if reverse else 1)
    table = np.empty((time + 1, batch, len(matrix)), dtype)
    table[:-1, :, width:-1] = xs[order]
    table[..., -1] = 1.0
    hs = table[..., :width]
    rows = table.reshape((time + 1) * batch, len(matrix))
    hs[0] = start["h"]
    slopes = list(np.empty((6 * keep, time, batch, width), dtype))

    # buffers for `_STEPS` steps: products of x and 1; e = exp(-a), and tanh(g) in the
    # part of g; σ(a); tanh(g); tanh(c); c
    products, exps, sigmoids = np.empty((3, _STEPS, batch, 4 * width), dtype)
    tanh_g, tanh_c = np.empty((2, _STEPS, batch, width), dtype)
    cs = np.empty((_STEPS + 1, batch, width), dtype)
    cs[0] = start["c"]
    # an array is faster here than a number
    limit = np.full_like(exps[0], math.log(np.finfo(dtype).max) - 1.0)
    _, _, g, _ = _gates(exps)
    i, f, _, o = _gates(sigmoids)
    for first in range(0, time, _STEPS):
        count = min(_STEPS, time - first)
        inputs = rows[first * batch : (first + count) * batch, width:]
        out = products[:count].reshape(count * batch, 4 * width)
        np.matmul(inputs, matrix[width:], out=out)
        for n in range(count):
            e = exps[n]
            sigmoid = sigmoids[n]
            tanh = tanh_c[n]
            c = cs[n + 1]
            np.matmul(hs[first + n], matrix[:width], out=e)
            e += products[n]
            np.tanh(g[n], out=tanh_g[n])
            np.minimum(e, limit, out=e)
            np.exp(e, out=e)
            np.add(e, 1.0, out=sigmoid)
            np.divide(1.0, sigmoid, out=sigmoid)
            np.multiply(f[n], cs[n], out=c)
            # until tanh(c) is known, its memory is a buffer for i tanh(g)
            c += np.multiply(i[n], tanh_g[n], out=tanh)
            np.tanh(c, out=tanh)
            np.multiply(o[n], tanh, out=hs[first + n + 1])
        if keep:
            steps = slice(first, first + count)
            _slopes(
                sigmoids[:count],
                exps[:count],
                cs[:count],
                cs[1 : count + 1],
                tanh_g[:count],
                tanh_c[:count],
                *[slope[steps] for slope in slopes],
            )
        cs[0] = cs[count]
    end = {"h": hs[-1].copy(), "c": cs[0].copy()}
    return end, (hs[1:][order], (table, *slopes))


def _slopes(
    sigmoids: np.ndarray,
    exps: np.ndarray,
    c_before: np.ndarray,
    c: np.ndarray,
    tanh_g: np.ndarray,
    tanh_c: np.ndarray,
    f_out: np.ndarray,
    di: np.ndarray,
    df: np.ndarray,
    dg: np.ndarray,
    do: np.ndarray,
    dtanh: np.ndarray,
) -> None:
    """Compute the slopes that `lstm_backward` needs, for some steps.

    They are derivatives of c and h by the gates before their activation:

        f_out = f, di = ∂c/∂a_i, df = ∂c/∂a_f, dg = ∂c/∂a_g, do = ∂h/∂a_o, dtanh = ∂h/∂c

    The other arguments are those of the loop in `lstm`, and are overwritten.
    """
    # s = e σ²; that of g is of the exponential of a, not of -a, which gives the same
    exps *= sigmoids
    exps *= sigmoids
    i, f, _, o = _gates(sigmoids)
    i_slope, f_slope, g_slope, o_slope = _gates(exps)
    np.multiply(tanh_g, i_slope, out=di)
    np.multiply(c_before, f_slope, out=df)
    np.multiply(tanh_c, o_slope, out=do)
    # tanh'(a) = (2s / (1 - 2s))², with f_out as a buffer
    slope = np.add(g_slope, g_slope, out=tanh_g)
    slope /= np.subtract(1.0, slope, out=f_out)
    slope *= slope
    np.multiply(i, slope, out=dg)
    f_out[...] = f
    # exp(-2|c|), in the same buffer
    decay = np.abs(c, out=slope)
    np.multiply(decay, -2.0, out=decay)
    np.exp(decay, out=decay)
    np.multiply(o, decay, out=dtanh)
    # tanh'(c) = exp(-2|c|) (1 + |tanh c|)²
    np.abs(tanh_c, out=tanh_c)
    np.add(tanh_c, 1.0, out=tanh_c)
    dtanh *= tanh_c
    dtanh *= tanh_c


def lstm_backward(
    xs: np.ndarray,
    params: _Arrays,
    cache: _LSTMCache,
    dys: tuple[np.ndarray, ...],
    dend: _Arrays,
    reverse: bool,
    need_dx: bool,
    fallback: Callable[[], Any],
) -> tuple[np.ndarray | tuple[()], _Arrays, _Arrays]:
    """Implement `agnostic_nn.ops.lstm_backward`."""
    table, f, di, df, dg, do, dtanh = cache
    time, batch, width = f.shape
    order = slice(None, None, -1 if reverse else 1)
    dzs = np.empty((time, batch, 4 * width), f.dtype)
    # a contiguous copy, for a product at each step
    recurrent = np.ascontiguousarray(params["recurrent"].T)
    dh = dend["h"].copy()
    dc = dend["c"].copy()
    buffer = np.empty_like(f[0])
    slopes = (f, di, df, dg, do, dtanh)
    outputs_dh = [dy[order] for dy in dys]  # none, or one array for all steps
    arrays = (*slopes, dzs, *_gates(dzs), *outputs_dh)
    # from the last step to the first; iterating is faster than indexing
    for step in zip(*[array[::-1] for array in arrays], strict=True):
        f_t, di_t, df_t, dg_t, do_t, dtanh_t, *rest = step
        dz, dz_i, dz_f, dz_g, dz_o, *output_dh = rest
        for dy in output_dh:
            dh += dy
        dc += np.multiply(dh, dtanh_t, out=buffer)
        np.multiply(dc, di_t, out=dz_i)
        np.multiply(dc, df_t, out=dz_f)
        np.multiply(dc, dg_t, out=dz_g)
        np.multiply(dh, do_t, out=dz_o)
        np.matmul(dz, recurrent, out=dh)
        dc *= f_t
    flat = dzs.reshape(time * batch, 4 * width)
    total = table[:-1].reshape(time * batch, table.shape[2]).T @ flat
    grads = {"weight": total[width:-1], "recurrent": total[:width], "bias": total[-1]}
    end = {"h": dh, "c": dc}
    if not need_dx:
        return (), grads, end
    dxs = (flat @ params["weight"].T).reshape(xs.shape)[order]
    return dxs, grads, end
