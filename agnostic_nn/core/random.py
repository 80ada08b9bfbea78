"""Random numbers from a counter-based generator, with equal words on every backend.

The generator is Threefry-2x32 with 20 rounds (Salmon et al., "Parallel Random Numbers:
As Easy as 1, 2, 3", SC 2011). All functions are pure functions of a key, and so work
under `jit`. A key is an array of two uint32 words. Word i of a key does not depend on
how many words are drawn.
"""

import math
from functools import singledispatch
from typing import Any

from .arrays import Array, Key, Shape, device, float_bits, namespace
from .errors import expect

__all__ = [
    "bernoulli",
    "fold",
    "key",
    "normal",
    "permutation",
    "split",
    "threefry",
    "uniform",
    "words",
]

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA  # the key schedule's constant, Salmon et al., sec. 3.3
_WORD = 0xFFFFFFFF


def key(seed: int, *, xp: Any, device: Any = None) -> Key:
    """Return the key for `seed`, an integer in [0, 2**64), as an array of `xp`.

    Raises
    ------
    TypeError
        If the seed is not an integer.
    ValueError
        If the seed is negative or needs more than 64 bits.
    """
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise TypeError(f"expected a seed, an integer in [0, 2**64), got {seed!r}")
    seed = seed.__index__()
    if not 0 <= seed < 2**64:
        raise ValueError(f"expected a seed in [0, 2**64), got {seed}")
    return xp.asarray([seed >> 32, seed & _WORD], dtype=xp.uint32, device=device)


def split(key: Key, count: int) -> Array:
    """Return `count` independent keys, as rows of a (count, 2) array."""
    xp = namespace(key)
    return xp.astype(xp.reshape(words(key, 2 * count), (count, 2)), key.dtype)


def fold(key: Key, number: int) -> Key:
    """Return a key derived from `key`, a different one for each number in [0, 2³¹)."""
    return namespace(key).astype(words(key, 2, stream=number + 1), key.dtype)


@singledispatch
def words(key: Key, count: int, stream: int = 0) -> Array:
    """Return `count` random integers in [0, 2³²): the words of the counters 0, 1, 2, …

    `stream` is the high word of the counter. The dtype is uint32, or a wider one if the
    library has no arithmetic for uint32.
    """
    xp = namespace(key)
    low = xp.arange((count + 1) // 2, dtype=key.dtype, device=device(key))
    pairs = threefry(key[0:1], key[1:2], xp.full_like(low, stream), low)
    return xp.reshape(xp.stack(pairs, axis=-1), (-1,))[:count]


def bernoulli(key: Key, probability: float, shape: Shape) -> Array:
    """Draw booleans, each true with `probability` (rounded to 31 bits).

    Only integers are compared, so the result is the same for every backend and dtype.
    """
    is_valid = 0.0 <= probability <= 1.0
    expect(is_valid, "expected a probability in [0, 1], got {}", probability)
    xp = namespace(key)
    integers = xp.reshape(words(key, math.prod(shape)), shape) >> 1
    threshold = round(probability * 2.0**31)
    # every integer is below 2³¹, a Python integer that JAX does not accept
    if threshold == 2**31:
        return xp.ones_like(integers, dtype=xp.bool)
    return integers < threshold


def uniform(key: Key, shape: Shape, dtype: Any) -> Array:
    """Draw uniformly from [0, 1), with 24 random bits, or 53 in float64.

    Raises
    ------
    ValueError
        If `dtype` is neither float32 nor float64.
    """
    xp = namespace(key)
    bits = float_bits(dtype, xp)
    expect(bits in (32, 64), "expected float32 or float64, got {}", dtype)
    count = math.prod(shape)
    if bits == 64:
        pairs = xp.reshape(words(key, 2 * count), (count, 2))
        high = xp.astype(pairs[:, 0] >> 5, dtype)
        low = xp.astype(pairs[:, 1] >> 6, dtype)
        return xp.reshape((high * 2.0**26 + low) * 2.0**-53, shape)
    return xp.reshape(xp.astype(words(key, count) >> 8, dtype) * 2.0**-24, shape)


def normal(key: Key, shape: Shape, dtype: Any) -> Array:
    """Draw from the standard normal distribution.

    The formula is √(-2 log u) cos(2πv) with u from (0, 1] and v from [0, 1) (Box &
    Muller, "A Note on the Generation of Random Normal Deviates", 1958).
    """
    xp = namespace(key)
    keys = split(key, 2)
    radius = xp.sqrt(-2.0 * xp.log(1.0 - uniform(keys[0, :], shape, dtype)))
    return radius * xp.cos(2.0 * math.pi * uniform(keys[1, :], shape, dtype))


def permutation(key: Key, count: int) -> Array:
    """Return 0 … count - 1 in random order: the indices that sort random words."""
    return namespace(key).argsort(words(key, count), stable=True)


def threefry(key0: Array, key1: Array, x0: Array, x1: Array) -> tuple[Array, Array]:
    """Return the Threefry-2x32-20 words of the counter (x0, x1) for (key0, key1).

    The integers may have any dtype. In a dtype wider than uint32 the results are masked
    to 32 bits.
    """
    xp = namespace(x0)
    wide = x0.dtype != xp.uint32
    keys = (key0, key1, key0 ^ key1 ^ _PARITY)

    def word(x: Array) -> Array:
        return x & _WORD if wide else x

    x0 = word(x0 + keys[0])
    x1 = word(x1 + keys[1])
    for block in range(5):
        for r in _ROTATIONS[block % 2]:
            x0 = word(x0 + x1)
            x1 = word((x1 << r) | (x1 >> (32 - r))) ^ x0
        x0 = word(x0 + keys[(block + 1) % 3])
        x1 = word(x1 + keys[(block + 2) % 3] + (block + 1))
    return x0, x1
