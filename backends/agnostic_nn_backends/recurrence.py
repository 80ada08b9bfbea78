"""Recurrence: an LSTM over a whole sequence, in NumPy's own way.

h, x and 1 stand side by side, R, W and b below one another, so each step is one product, and
so are all their gradients. Everything else is written where it will stay, or into memory that
the step before has left in the cache.

The product gives -a for the gates i, f and o, and -2a for g, of which one exponential makes
all that there is to know: with e = exp(-a), σ(a) = 1 / (1 + e) and σ'(a) = e σ(a)², and
tanh'(a) = 4 σ'(2a). Exponents end where e would overflow; σ is 0 there to all its digits.
"""

import math

import numpy as np

__all__ = ["lstm", "lstm_backward"]

_SOME = 4  # steps whose slopes are computed together: fewer calls, and they stay in the cache


def _parts(x):
    """The last axis of x in four: what belongs to the gates i, f, g, o."""
    width = x.shape[-1] // 4
    return [x[..., k * width : (k + 1) * width] for k in range(4)]


def lstm(xs, params, start, reverse, keep, by_steps):
    time, batch, _ = xs.shape
    width, kind = len(params["recurrent"]), xs.dtype
    matrix = np.concatenate((params["recurrent"], params["weight"], params["bias"][None]))
    matrix *= np.repeat(np.asarray((-1.0, -1.0, 1.0, -1.0), kind), width)
    # in the order that steps are read: the h after one is that before the next
    table = np.empty((time + 1, batch, len(matrix)), kind)
    rows, order = table[:-1], slice(None, None, -1 if reverse else 1)
    rows[..., width:-1] = xs[order]
    rows[..., -1] = 1.0
    hs = table[..., :width]
    hs[0] = start["h"]
    slopes = list(np.empty((6 * keep, time, batch, width), kind))

    a, s = np.empty((2, _SOME, batch, 4 * width), kind)
    grown, shown = np.empty((2, _SOME, batch, width), kind)
    cs = np.empty((_SOME + 1, batch, width), kind)
    limit = np.full_like(a[0], math.log(np.finfo(kind).max) - 1.0)  # read faster than a number
    g, (i, f, _, o) = _parts(a)[2], _parts(s)
    cs[0] = start["c"]
    for first in range(0, time, _SOME):
        count = min(_SOME, time - first)
        for n in range(count):
            e, one, t, c, h = a[n], s[n], grown[n], cs[n + 1], hs[first + n + 1]
            np.matmul(rows[first + n], matrix, out=e)
            np.tanh(g[n], out=t)
            np.exp(np.minimum(e, limit, out=e), out=e)
            np.divide(1.0, np.add(e, 1.0, out=one), out=one)
            np.multiply(f[n], cs[n], out=c)
            c += np.multiply(i[n], t, out=shown[n])
            np.multiply(o[n], np.tanh(c, out=shown[n]), out=h)
        if keep:
            made = [one[:count] for one in (s, a, cs, cs[1:], grown, shown)]
            _slopes(*made, *[one[first : first + count] for one in slopes])
        cs[0] = cs[count]
    end = {"h": hs[-1].copy(), "c": cs[0].copy()}
    return end, (hs[1:][order], (rows, *slopes))


def _slopes(s, e, before, now, grown, shown, kept_f, by_i, by_f, by_g, by_o, across):
    """Those of `agnostic_nn.LSTM`, of some steps; what they are made of is spent."""
    e *= s
    e *= s
    (i, f, _, o), (i_slope, f_slope, g_slope, o_slope) = _parts(s), _parts(e)
    kept_f[...] = f
    np.multiply(grown, i_slope, out=by_i)
    np.multiply(before, f_slope, out=by_f)
    np.multiply(shown, o_slope, out=by_o)
    slope, more = np.add(g_slope, g_slope, out=grown), shown
    slope /= np.subtract(1.0, slope, out=more)
    slope *= slope
    np.multiply(i, slope, out=by_g)
    np.multiply(np.abs(now, out=slope), -2.0, out=slope)
    np.add(np.exp(slope, out=slope), 1.0, out=more)
    slope /= more
    slope /= more
    slope *= 4.0
    np.multiply(o, slope, out=across)


def lstm_backward(xs, params, kept, dys, dend, reverse, wanted, by_steps):
    rows, f, by_i, by_f, by_g, by_o, across = kept
    time, batch, width = f.shape
    order = slice(None, None, -1 if reverse else 1)
    dzs = np.empty((time, batch, 4 * width), f.dtype)
    around = np.ascontiguousarray(params["recurrent"].T)
    dh, dc, more = dend["h"].copy(), dend["c"].copy(), np.empty_like(f[0])
    each = f, by_i, by_f, by_g, by_o, across, dzs, *_parts(dzs), *(dy[order] for dy in dys)
    for now in zip(*(one[::-1] for one in each), strict=True):
        kept_f, to_i, to_f, to_g, to_o, to_c, dz, di, df, dg, do, *dy = now
        for one in dy:
            dh += one
        dc += np.multiply(dh, to_c, out=more)
        np.multiply(dc, to_i, out=di)
        np.multiply(dc, to_f, out=df)
        np.multiply(dc, to_g, out=dg)
        np.multiply(dh, to_o, out=do)
        np.matmul(dz, around, out=dh)
        dc *= kept_f
    flat = dzs.reshape(time * batch, 4 * width)
    total = rows.reshape(time * batch, rows.shape[-1]).T @ flat
    grads = {"weight": total[width:-1], "recurrent": total[:width], "bias": total[-1]}
    dxs = (flat @ params["weight"].T).reshape(xs.shape)[order] if wanted else ()
    return dxs, grads, {"h": dh, "c": dc}
