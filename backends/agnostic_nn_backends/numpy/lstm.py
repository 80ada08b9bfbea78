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

Exponents are limited so that e does not overflow;
σ there is below 1e-37 instead of even smaller.
"""

import math

import numpy as np

__all__ = ["lstm", "lstm_backward"]

# steps prepared and finished together: fewer calls, and arrays stay in the cache
_STEPS = 8


def _parts(x):
    """Split the last axis of x into the parts of the gates i, f, g, o."""
    width = x.shape[-1] // 4
    return [x[..., k * width : (k + 1) * width] for k in range(4)]


def lstm(xs, params, start, reverse, keep, by_steps):
    time, batch, _ = xs.shape
    width = len(params["recurrent"])
    kind = xs.dtype
    matrix = np.concatenate(
        (params["recurrent"], params["weight"], params["bias"][None])
    )
    matrix *= np.repeat(np.asarray((-1.0, -1.0, 1.0, -1.0), kind), width)
    # in the order of the steps: row t + 1 holds the h after step t
    order = slice(None, None, -1 if reverse else 1)
    table = np.empty((time + 1, batch, len(matrix)), kind)
    table[:-1, :, width:-1] = xs[order]
    table[..., -1] = 1.0
    hs = table[..., :width]
    rows = table.reshape((time + 1) * batch, len(matrix))
    hs[0] = start["h"]
    slopes = list(np.empty((6 * keep, time, batch, width), kind))

    z, a, s = np.empty((3, _STEPS, batch, 4 * width), kind)
    grown, shown = np.empty((2, _STEPS, batch, width), kind)
    cs = np.empty((_STEPS + 1, batch, width), kind)
    cs[0] = start["c"]
    limit = np.full_like(
        a[0], math.log(np.finfo(kind).max) - 1.0
    )  # an array is faster here than a number
    g, (i, f, _, o) = _parts(a)[2], _parts(s)
    for first in range(0, time, _STEPS):
        count = min(_STEPS, time - first)
        read = rows[first * batch : (first + count) * batch, width:]
        np.matmul(read, matrix[width:], out=z[:count].reshape(count * batch, 4 * width))
        for n in range(count):
            e = a[n]
            one = s[n]
            t = shown[n]
            c = cs[n + 1]
            np.matmul(hs[first + n], matrix[:width], out=e)
            e += z[n]
            np.tanh(g[n], out=grown[n])
            np.exp(np.minimum(e, limit, out=e), out=e)
            np.divide(1.0, np.add(e, 1.0, out=one), out=one)
            np.multiply(f[n], cs[n], out=c)
            c += np.multiply(i[n], grown[n], out=t)
            np.multiply(o[n], np.tanh(c, out=t), out=hs[first + n + 1])
        if keep:
            made = [one[:count] for one in (s, a, cs, cs[1:], grown, shown)]
            _slopes(*made, *[one[first : first + count] for one in slopes])
        cs[0] = cs[count]
    end = {"h": hs[-1].copy(), "c": cs[0].copy()}
    return end, (hs[1:][order], (table, *slopes))


def _slopes(s, e, before, now, grown, shown, kept_f, by_i, by_f, by_g, by_o, across):
    """Compute the slopes of `agnostic_nn.LSTM` for some steps; the arguments are overwritten."""
    e *= s
    e *= s
    (i, f, _, o), (i_slope, f_slope, g_slope, o_slope) = _parts(s), _parts(e)
    np.multiply(grown, i_slope, out=by_i)
    np.multiply(before, f_slope, out=by_f)
    np.multiply(shown, o_slope, out=by_o)
    slope = np.add(g_slope, g_slope, out=grown)
    slope /= np.subtract(1.0, slope, out=kept_f)
    slope *= slope
    np.multiply(i, slope, out=by_g)
    kept_f[...] = f
    decay = np.exp(np.multiply(np.abs(now, out=slope), -2.0, out=slope), out=slope)
    np.multiply(o, decay, out=across)
    across *= np.add(np.abs(shown, out=shown), 1.0, out=shown)
    across *= shown


def lstm_backward(xs, params, kept, dys, dend, reverse, wanted, by_steps):
    table, f, by_i, by_f, by_g, by_o, across = kept
    time, batch, width = f.shape
    order = slice(None, None, -1 if reverse else 1)
    dzs = np.empty((time, batch, 4 * width), f.dtype)
    around = np.ascontiguousarray(params["recurrent"].T)
    dh = dend["h"].copy()
    dc = dend["c"].copy()
    more = np.empty_like(f[0])
    each = (
        f,
        by_i,
        by_f,
        by_g,
        by_o,
        across,
        dzs,
        *_parts(dzs),
        *(dy[order] for dy in dys),
    )
    for now in zip(*(one[::-1] for one in each), strict=True):
        kept_f, to_i, to_f, to_g, to_o, to_c, dz, dz_i, dz_f, dz_g, dz_o, *dy = now
        for one in dy:
            dh += one
        dc += np.multiply(dh, to_c, out=more)
        np.multiply(dc, to_i, out=dz_i)
        np.multiply(dc, to_f, out=dz_f)
        np.multiply(dc, to_g, out=dz_g)
        np.multiply(dh, to_o, out=dz_o)
        np.matmul(dz, around, out=dh)
        dc *= kept_f
    flat = dzs.reshape(time * batch, 4 * width)
    total = table[:-1].reshape(time * batch, table.shape[2]).T @ flat
    grads = {"weight": total[width:-1], "recurrent": total[:width], "bias": total[-1]}
    dxs = (flat @ params["weight"].T).reshape(xs.shape)[order] if wanted else ()
    return dxs, grads, {"h": dh, "c": dc}
