"""Random: a counter-based generator, so one seed gives the same words on every backend.

Threefry-2x32 with 20 rounds (Salmon et al., "Parallel Random Numbers: As Easy
as 1, 2, 3", SC 2011): pure functions of a key, hence safe under `jit`. A key is
an array of two uint32 words. Word i of a key is the same however many are drawn.
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
    """The key for `seed`, any integer of up to 64 bits, as an array of the library `xp`.

    Raises
    ------
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
    """`count` independent keys, as rows of a (count, 2) array."""
    xp = namespace(key)
    return xp.astype(xp.reshape(words(key, 2 * count), (count, 2)), key.dtype)


def fold(key: Key, number: int) -> Key:
    """A key made of `key` and a number in [0, 2³¹), another one for each number."""
    return namespace(key).astype(words(key, 2, stream=number + 1), key.dtype)


@singledispatch
def words(key: Key, count: int, stream: int = 0) -> Array:
    """`count` random words, integers from [0, 2³²): Threefry of the counters 0, 1, 2, …

    `stream` is the counter's high word. The dtype is uint32, or a wider one where a
    library has no arithmetic for uint32.
    """
    xp = namespace(key)
    low = xp.arange((count + 1) // 2, dtype=key.dtype, device=device(key))
    pairs = threefry(key[0:1], key[1:2], xp.full_like(low, stream), low)
    return xp.reshape(xp.stack(pairs, axis=-1), (-1,))[:count]


def bernoulli(key: Key, probability: float, shape: Shape) -> Array:
    """Booleans, each true with `probability` to 31 bits, by comparing integers.

    No float is involved, so all backends and dtypes draw the same ones.
    """
    expect(0.0 <= probability <= 1.0, "expected a probability in [0, 1], got {}", probability)
    xp = namespace(key)
    drawn = xp.reshape(words(key, math.prod(shape)), shape) >> 1
    share = round(probability * 2.0**31)
    # JAX takes no Python integer past int32, and nothing drawn is larger
    return drawn < share if share < 2**31 else xp.ones_like(drawn, dtype=xp.bool)


def uniform(key: Key, shape: Shape, dtype: Any) -> Array:
    """Draws from [0, 1) with as many random bits as `dtype` holds: 24, or 53 for float64.

    Raises
    ------
    ValueError
        If dtype is neither float32 nor float64.
    """
    xp = namespace(key)
    bits = float_bits(dtype, xp)
    expect(bits in (32, 64), "expected float32 or float64, got {}", dtype)
    count = math.prod(shape)
    if bits == 64:
        drawn = xp.reshape(words(key, 2 * count), (count, 2))
        high, low = xp.astype(drawn[:, 0] >> 5, dtype), xp.astype(drawn[:, 1] >> 6, dtype)
        return xp.reshape((high * 2.0**26 + low) * 2.0**-53, shape)
    return xp.reshape(xp.astype(words(key, count) >> 8, dtype) * 2.0**-24, shape)


def normal(key: Key, shape: Shape, dtype: Any) -> Array:
    """Draws from the standard normal distribution.

    √(-2 log u) cos(2πv) with u from (0, 1] and v from [0, 1) (Box & Muller,
    "A Note on the Generation of Random Normal Deviates", 1958).
    """
    xp = namespace(key)
    keys = split(key, 2)
    radius = xp.sqrt(-2.0 * xp.log(1.0 - uniform(keys[0, :], shape, dtype)))
    return radius * xp.cos(2.0 * math.pi * uniform(keys[1, :], shape, dtype))


def permutation(key: Key, count: int) -> Array:
    """0 … count - 1 in random order: where a stable sort of `count` words puts each."""
    return namespace(key).argsort(words(key, count), stable=True)


def threefry(key0: Array, key1: Array, x0: Array, x1: Array) -> tuple[Array, Array]:
    """Threefry-2x32-20 of the counter words (x0, x1) under the key words (key0, key1).

    Integers of any dtype; the result is kept to 32 bits where the dtype is wider.
    """
    xp = namespace(x0)
    wide = x0.dtype != xp.uint32
    keys = (key0, key1, key0 ^ key1 ^ _PARITY)

    def word(x):
        return x & _WORD if wide else x

    x0, x1 = word(x0 + keys[0]), word(x1 + keys[1])
    for block in range(5):
        for r in _ROTATIONS[block % 2]:
            x0 = word(x0 + x1)
            x1 = word((x1 << r) | (x1 >> (32 - r))) ^ x0
        x0 = word(x0 + keys[(block + 1) % 3])
        x1 = word(x1 + keys[(block + 2) % 3] + (block + 1))
    return x0, x1
