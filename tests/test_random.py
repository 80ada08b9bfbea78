"""With one seed every backend draws the same random words as NumPy."""

import functools
import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn import random

HOST = nn.backend("numpy")
# key, counter, result: from kat_vectors of Random123, threefry2x32 of 20 rounds
PUBLISHED = [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]
DRAWS = 20_000


def key_of(backend, seed):
    return random.key(seed, xp=backend.xp, device=backend.device)


@functools.cache
def draw_on(backend, function, *args, seed=0):
    """Return `function(key, *args)`, computed inside jit, on the host."""
    return backend.to_numpy(
        backend.jit(lambda key: function(key, *args))(key_of(backend, seed))
    )


def real(backend, dtype):
    return getattr(backend.xp, dtype)


@pytest.mark.parametrize(("key", "counter", "expected"), PUBLISHED)
def test_threefry_equals_its_published_test_vectors(backend, key, counter, expected):
    """In uint32, or in wider integers on libraries whose uint32 lacks addition."""
    numbers = backend.asarray(np.asarray([*key, *counter], np.uint32)[:, None])
    numbers = backend.xp.astype(numbers, random.words(key_of(backend, 0), 1).dtype)
    result = random.threefry(*(numbers[i, :] for i in range(4)))
    assert tuple(int(word[0]) for word in result) == expected


@pytest.mark.parametrize("dtype", ["uint32", "int64", "uint64"])
@pytest.mark.parametrize(("key", "counter", "expected"), PUBLISHED)
def test_threefry_keeps_wider_integers_to_32_bits(key, counter, expected, dtype):
    result = random.threefry(*np.asarray([*key, *counter], dtype)[:, None])
    assert tuple(int(word[0]) for word in result) == expected


def test_the_first_words_equal_the_published_test_vector(backend):
    zero = backend.asarray(np.zeros(2, np.uint32))
    result = backend.to_numpy(random.words(zero, 2))
    np.testing.assert_array_equal(result, PUBLISHED[0][2])


def test_words_are_threefry_of_stream_and_index(backend):
    """Word 2i and 2i + 1 come from the counter (stream, i)."""
    key = np.asarray([0x13198A2E, 0x03707344], np.uint32)
    stream = 0x243F6A88
    counters = np.arange(10, dtype=np.uint32)
    pairs = random.threefry(
        key[0:1], key[1:2], np.full_like(counters, stream), counters
    )
    result = backend.to_numpy(random.words(backend.asarray(key), 20, stream))
    np.testing.assert_array_equal(result, np.stack(pairs, axis=-1).ravel())


@pytest.mark.parametrize(
    ("count", "stream"),
    [(0, 0), (1, 0), (2, 1), (7, 3), (1000, 2**31), (100_001, 2**32 - 1)],
)
def test_words_are_equal_on_every_backend(backend, count, stream):
    result = draw_on(backend, random.words, count, stream, seed=2**64 - 3)
    expected = draw_on(HOST, random.words, count, stream, seed=2**64 - 3)
    assert result.shape == (count,)
    np.testing.assert_array_equal(result, expected)


def test_words_do_not_depend_on_their_number(backend):
    many = draw_on(backend, random.words, 1001)
    for count in (1, 1000):
        np.testing.assert_array_equal(
            draw_on(backend, random.words, count), many[:count]
        )


def test_each_bit_of_a_word_is_set_half_of_the_time():
    words = draw_on(HOST, random.words, DRAWS)
    frequency = np.mean((words[:, None] >> np.arange(32, dtype=np.uint32)) & 1, axis=0)
    np.testing.assert_allclose(frequency, 0.5, atol=5 * 0.5 / math.sqrt(DRAWS))


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1])
def test_a_key_holds_all_64_bits_of_its_seed(backend, seed):
    key = key_of(backend, seed)
    assert key.dtype == backend.xp.uint32
    high, low = (int(word) for word in backend.to_numpy(key))
    assert (high << 32) + low == seed


@pytest.mark.parametrize("seed", [-1, 2**64, -(2**70)])
def test_a_seed_of_more_than_64_bits_is_refused(backend, seed):
    with pytest.raises(ValueError, match=rf"seed in \[0, 2\*\*64\), got {seed}"):
        key_of(backend, seed)


@pytest.mark.parametrize("seed", [1.0, "0", None], ids=repr)
def test_a_seed_that_is_not_an_integer_is_refused(backend, seed):
    with pytest.raises(TypeError):
        key_of(backend, seed)


def test_split_keys_are_keys_and_do_not_depend_on_their_number(backend):
    keys = random.split(key_of(backend, 5), 10)
    assert keys.dtype == backend.xp.uint32
    result = backend.to_numpy(keys)
    assert result.shape == (10, 2)
    assert len({tuple(row) for row in result.tolist()}) == 10
    np.testing.assert_array_equal(result, draw_on(HOST, random.split, 10, seed=5))
    np.testing.assert_array_equal(draw_on(backend, random.split, 3, seed=5), result[:3])


def test_fold_returns_a_different_key_for_each_number(backend):
    numbers = (0, 1, 2, 3, 2**16, 2**30, 2**31 - 1)
    key = key_of(backend, 5)
    folded = [random.fold(key, number) for number in numbers]
    assert all(k.dtype == backend.xp.uint32 for k in folded)
    result = [tuple(backend.to_numpy(k).tolist()) for k in folded]
    expected = [
        tuple(random.fold(key_of(HOST, 5), number).tolist()) for number in numbers
    ]
    assert result == expected
    split = draw_on(HOST, random.split, 10, seed=5).tolist()
    assert len({*result, *map(tuple, split), (0, 5)}) == len(numbers) + 10 + 1


@pytest.mark.parametrize("shape", [(), (2, 0, 3), (2, 3)], ids=str)
def test_draws_have_the_requested_shape_and_dtype(backend, widest, shape):
    def draws(key):
        floats = [
            draw(key, shape, real(backend, dtype))
            for dtype in ("float32", widest)
            for draw in (random.uniform, random.normal)
        ]
        return *floats, random.bernoulli(key, 0.5, shape)

    result = backend.to_numpy(backend.jit(draws)(key_of(backend, 0)))
    assert [drawn.shape for drawn in result] == [shape] * 5
    assert [drawn.dtype.name for drawn in result] == ["float32"] * 2 + [widest] * 2 + [
        "bool"
    ]


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 24), ("float64", 53)])
def test_uniform_draws_use_every_bit_and_are_equal_on_every_backend(
    backend, dtype, bits
):
    if dtype == "float64" and not backend.has_float64:
        pytest.skip(f"{backend} has no float64 as it is set up")
    drawn = draw_on(backend, random.uniform, (DRAWS,), real(backend, dtype))
    assert drawn.dtype == dtype
    np.testing.assert_array_equal(
        drawn, draw_on(HOST, random.uniform, (DRAWS,), real(HOST, dtype))
    )
    assert np.min(drawn) >= 0
    assert np.max(drawn) < 1
    integers = np.ldexp(drawn.astype(np.float64), bits).astype(np.uint64)
    np.testing.assert_array_equal(np.ldexp(integers.astype(np.float64), -bits), drawn)
    shifts = np.arange(bits, dtype=np.uint64)
    frequency = np.mean((integers[:, None] >> shifts) & np.uint64(1), axis=0)
    np.testing.assert_allclose(frequency, 0.5, atol=5 * 0.5 / math.sqrt(DRAWS))


def distance(sample, distribution):
    """Return √n · max |F_n - F|, which is above 1.95 for one of a thousand samples."""
    n = len(sample)
    expected = np.asarray([distribution(v) for v in np.sort(sample).tolist()])
    return math.sqrt(n) * np.max(np.abs(expected - (np.arange(n) + 0.5) / n))


@pytest.mark.parametrize("dtype", ["float32", "widest"])
def test_uniform_draws_are_uniform(backend, widest, dtype):
    dtype = real(backend, widest if dtype == "widest" else dtype)
    assert (
        distance(draw_on(backend, random.uniform, (DRAWS,), dtype), lambda v: v) < 1.95
    )


def test_normal_draws_are_normal(backend, widest):
    drawn = draw_on(backend, random.normal, (DRAWS,), real(backend, widest)).astype(
        np.float64
    )
    assert distance(drawn, NormalDist().cdf) < 1.95
    moments = [np.mean(drawn**k) for k in (1, 2, 3, 4)]
    spreads = [math.sqrt(v / DRAWS) for v in (1, 2, 15, 96)]
    for moment, expected, spread in zip(moments, (0, 1, 0, 3), spreads, strict=True):
        assert moment == pytest.approx(expected, abs=4 * spread)
    assert abs(np.mean(drawn[1:] * drawn[:-1])) < 4 / math.sqrt(DRAWS)


def test_normal_draws_are_computed_by_the_box_muller_transform():
    """So they are the same in every release."""
    key, shape = key_of(HOST, 0), (1000,)
    u, v = (random.uniform(k, shape, np.float64) for k in random.split(key, 2))
    pairs = zip(u.tolist(), v.tolist(), strict=True)
    expected = [
        math.sqrt(-2 * math.log(1 - a)) * math.cos(2 * math.pi * b) for a, b in pairs
    ]
    np.testing.assert_allclose(
        random.normal(key, shape, np.float64), expected, atol=1e-14
    )


def test_normal_draws_agree_on_every_backend(backend, widest, epsilon):
    """2πv is rounded, and the radius multiplies the error; measured: 3 eps."""
    result = draw_on(backend, random.normal, (DRAWS,), real(backend, widest))
    expected = draw_on(HOST, random.normal, (DRAWS,), real(HOST, widest))
    np.testing.assert_allclose(result, expected, rtol=0, atol=8 * epsilon)


EXTREMES = [0, 2**32 - 1]


@pytest.fixture(params=EXTREMES, ids=hex)
def extreme(request, monkeypatch):
    """Replace every word by the smallest or the largest."""
    words = random.words

    def constant(key, count, stream=0):
        drawn = words(key, count, stream)
        return drawn * 0 + request.param

    monkeypatch.setattr(random, "words", constant)
    return request.param


def test_draws_from_extreme_words_are_in_range(extreme):
    for dtype, bits in ((np.float32, 24), (np.float64, 53)):
        (drawn,) = random.uniform(key_of(HOST, 0), (1,), dtype)
        assert drawn == (1.0 - 2.0**-bits if extreme else 0.0)
        assert np.isfinite(random.normal(key_of(HOST, 0), (1,), dtype))


def test_bernoulli_draws_from_extreme_words_are_right(extreme):
    def drawn(probability):
        return bool(random.bernoulli(key_of(HOST, 0), probability, ()))

    assert not drawn(0.0)
    assert drawn(1.0)
    assert drawn(2.0**-31) == (extreme == 0)
    assert drawn(1.0 - 2.0**-31) == (extreme == 0)


def test_a_permutation_keeps_the_order_of_equal_words(backend, monkeypatch):
    bits = draw_on(HOST, random.words, 1000) & np.uint32(1)
    words = backend.xp.astype(
        backend.asarray(bits), random.words(key_of(backend, 0), 1).dtype
    )
    monkeypatch.setattr(random, "words", lambda key, count: words)
    result = backend.to_numpy(random.permutation(key_of(backend, 0), 1000))
    np.testing.assert_array_equal(
        result, [*np.flatnonzero(bits == 0), *np.flatnonzero(bits)]
    )


@pytest.mark.parametrize(
    "probability",
    [0.0, 2.0**-31, 0.1, 0.5, 2 / 3, 0.9, 1.0 - 2.0**-31, 1.0 - 2.0**-33, 1.0],
)
def test_bernoulli_draws_are_equal_on_every_backend(backend, probability):
    result = draw_on(backend, random.bernoulli, probability, (DRAWS,))
    np.testing.assert_array_equal(
        result, draw_on(HOST, random.bernoulli, probability, (DRAWS,))
    )
    spread = math.sqrt(probability * (1.0 - probability) / DRAWS)
    assert np.mean(result) == pytest.approx(probability, abs=4 * spread + 1e-9)
    if probability in (0.0, 1.0):
        assert np.all(result == bool(probability))


@pytest.mark.parametrize("probability", [-0.1, 1.1, math.nan, math.inf])
def test_a_probability_outside_0_and_1_is_refused(backend, probability):
    with pytest.raises(
        ValueError, match=rf"probability in \[0, 1\], got {probability}"
    ):
        random.bernoulli(key_of(backend, 0), probability, (3,))


@pytest.mark.parametrize("count", [0, 1, 2, 7, 1000])
def test_a_permutation_is_complete_and_equal_on_every_backend(backend, count):
    result = draw_on(backend, random.permutation, count)
    np.testing.assert_array_equal(np.sort(result), np.arange(count))
    np.testing.assert_array_equal(result, draw_on(HOST, random.permutation, count))


def test_all_permutations_are_equally_likely():
    """χ² with 23 degrees of freedom is above 49.7 once in a thousand samples."""
    keys = random.split(key_of(HOST, 0), 2400)
    drawn = [tuple(random.permutation(key, 4).tolist()) for key in keys]
    counts = [drawn.count(order) for order in itertools.permutations(range(4))]
    assert sum((count - 100) ** 2 / 100 for count in counts) < 49.7


def test_jit_draws_the_same_words(backend):
    def draws(key):
        return {
            "words": random.words(key, 10),
            "split": random.split(key, 5),
            "mask": random.bernoulli(key, 0.3, (2, 5)),
            "uniform": random.uniform(key, (10,), backend.xp.float32),
            "order": random.permutation(key, 10),
        }

    key = key_of(backend, 99)
    eager, jitted = (backend.to_numpy(run(key)) for run in (draws, backend.jit(draws)))
    for name, expected in eager.items():
        np.testing.assert_array_equal(jitted[name], expected, err_msg=name)


def test_a_key_can_be_used_twice(backend):
    key = key_of(backend, 3)
    first, second = (backend.to_numpy(random.words(key, 5)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(
        first, backend.to_numpy(random.words(key_of(backend, 4), 5))
    )
