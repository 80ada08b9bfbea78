"""A compiled function stores programs of a bounded number of shapes."""

import gc
import weakref

import numpy as np
import pytest

from agnostic_nn.core.atomic import into
from agnostic_nn_backends import program_limit

LIMIT = 2


@pytest.fixture
def compiled(backend, monkeypatch):
    """Return a function from a function to it, compiled, with a limit of two programs.

    Skip where programs are not stored.
    """
    monkeypatch.setenv("AGNOSTIC_NN_PROGRAMS", str(LIMIT))

    def compile_it(function, donate=()):
        result = backend.adapter.jit(function, backend.device, donate)
        if not hasattr(result, "programs"):
            pytest.skip(f"{backend} stores no programs")
        return result

    return compile_it


def called(function, backend, rows):
    """Call a function until a program is stored, and return its result on the host."""
    x = np.arange(3.0 * rows, dtype="float32").reshape(rows, 3)
    for _ in range(3):
        y = function(backend.asarray(x))
    return x, backend.to_numpy(y)


def test_programs_of_other_shapes_are_dropped(backend, compiled):
    runs = []

    def double(x):
        runs.append(x.shape[0])
        return x + x

    function = compiled(double)
    references = []
    for rows in (1, 2, 1, 3, 4):
        x, y = called(function, backend, rows)
        assert np.array_equal(y, x + x)
        assert len(function.programs) <= LIMIT
        references.append(weakref.ref(list(function.programs.values())[-1]))
    gc.collect()
    alive = [reference() is not None for reference in references]
    assert alive == [False, False, False, True, True], "the memory is freed"
    before = len(runs)
    called(function, backend, 4)
    assert len(runs) == before, "the program of the last shape is used"
    called(function, backend, 1)
    assert len(runs) > before, "that of a shape of long ago is built again"


def test_the_program_used_longest_ago_is_dropped(backend, compiled):
    runs = []

    def double(x):
        runs.append(x.shape[0])
        return x + x

    function = compiled(double)
    for rows in (1, 2, 1, 3):  # 2 makes room for 3
        called(function, backend, rows)
    runs.clear()
    called(function, backend, 1)
    assert runs == []
    called(function, backend, 2)
    assert set(runs) == {2}


def test_a_program_is_freed_when_other_shapes_come_once_each(backend, compiled):
    """Not only once another program is stored."""
    function = compiled(lambda x: x + x)
    called(function, backend, 1)
    (program,) = map(weakref.ref, function.programs.values())
    for rows in (2, 3):
        function(backend.asarray(np.zeros((rows, 3), "float32")))
    gc.collect()
    assert program() is None


def test_steps_of_many_shapes_overwrite_the_memory_that_they_are_given(
    backend, compiled
):
    def step(total, x):
        return total + backend.xp.sum(x, axis=0), backend.xp.sum(x)

    function = compiled(step, donate=(0,))
    total, expected = backend.asarray(np.zeros(3, "float32")), np.zeros(3)
    for rows in (1, 1, 1, 2, 2, 2, 3, 3, 3, 1, 1, 1, 2):
        x = np.arange(3.0 * rows, dtype="float32").reshape(rows, 3)
        expected = expected + x.sum(axis=0)
        outcome = []
        into(function, outcome, total, backend.asarray(x))
        total, value = outcome[1]
        assert float(value) == x.sum()
        assert np.array_equal(backend.to_numpy(total), expected)
        assert len(function.programs) <= LIMIT


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", "²"])
def test_the_limit_is_a_positive_integer(monkeypatch, text):
    monkeypatch.setenv("AGNOSTIC_NN_PROGRAMS", text)
    with pytest.raises(ValueError, match=f"AGNOSTIC_NN_PROGRAMS.*got {text!r}"):
        program_limit()
    monkeypatch.setenv("AGNOSTIC_NN_PROGRAMS", "")
    assert program_limit() == 16
