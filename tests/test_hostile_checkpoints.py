"""Loading a malicious file is cheap and raises CheckpointError."""

import os
import time
import tracemalloc

import numpy as np
import pytest
from cases import hostile

import agnostic_nn as nn

posix = pytest.mark.skipif(os.name != "posix", reason="pipes and devices")
MEMORY = 2**24  # bytes that a refusal may use, plus twice the size of the file


def assert_refused(path):
    with pytest.raises(nn.CheckpointError) as caught:
        nn.Trainer.load(path, "numpy")
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 2000
    assert str(caught.value).isprintable()


def test_the_file_from_which_hostile_ones_are_made_is_valid(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(hostile.encode())
    trainer = nn.Trainer.load(path, "numpy")
    assert (trainer.steps, trainer.epoch, trainer.shape) == (7, 2, (4,))
    assert trainer.predict(np.ones((2, 4), "float32")).shape == (2, 3)
    trainer.save(path)
    loaded = nn.Trainer.load(path, "numpy")
    assert (loaded.steps, loaded.model) == (7, trainer.model)


LARGE = (  # memory is measured for these only, because that is slow
    *(
        "width 1000000000",
        "an input of 1000000000",
        "Embedding of 1000000000",
        "a wide text",
    ),
    *("LSTM 1000000000 deep", "1000000000 times Dropout", "a window of 1000000000"),
    *("Orthogonal of 1000000000", "many pairs", "pairs in a header", "a wide header"),
)


@pytest.mark.parametrize("kind", hostile.KINDS, ids=lambda kind: kind.__name__)
def test_every_hostile_file_is_refused_quickly_and_with_little_memory(tmp_path, kind):
    """All files of `tests/cases/hostile.py`, except those that are slow to create."""
    path, errors = tmp_path / "a", []
    for name, data in kind():
        path.write_bytes(data)
        size, is_large = len(data), name in LARGE
        del data
        if is_large:
            tracemalloc.start()
        started = time.process_time()
        try:
            assert_refused(path)
            assert time.process_time() - started < 4.0, (
                "slow"
            )  # machines of CI are slow, too
            if is_large:
                assert tracemalloc.get_traced_memory()[1] < MEMORY + 2 * size, "large"
        except (Exception, pytest.fail.Exception) as error:
            errors.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
        finally:
            tracemalloc.stop()
    assert errors == []


@posix
def test_a_path_that_is_not_a_file_is_refused_without_hanging(tmp_path):
    for _, path in hostile.special(tmp_path):
        assert_refused(path)
