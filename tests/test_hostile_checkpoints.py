"""Loading a malicious file is cheap and raises CheckpointError."""

import os
import time
import tracemalloc

import numpy as np
import pytest
from cases import hostile

import agnostic_nn as nn

posix = pytest.mark.skipif(os.name != "posix", reason="pipes and devices")
ROOM = 2**24


def refused(path):
    with pytest.raises(nn.CheckpointError) as caught:
        nn.Trainer.load(path, "numpy")
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 2000
    assert str(caught.value).isprintable()


def test_the_file_that_all_others_are_made_of_is_sound(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(hostile.made())
    trainer = nn.Trainer.load(path, "numpy")
    assert (trainer.steps, trainer.epoch, trainer.shape) == (7, 2, (4,))
    assert trainer.predict(np.ones((2, 4), "float32")).shape == (2, 3)
    trainer.save(path)
    again = nn.Trainer.load(path, "numpy")
    assert (again.steps, again.model) == (7, trainer.model)


LARGE = (  # whose memory is measured, which takes long
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
def test_every_hostile_file_is_refused_soon_and_with_little_memory(tmp_path, kind):
    """All of `python tests/cases/hostile.py` but those that take long to make."""
    path, faults = tmp_path / "a", []
    for name, data in kind():
        path.write_bytes(data)
        size, is_large = len(data), name in LARGE
        del data
        if is_large:
            tracemalloc.start()
        started = time.process_time()
        try:
            refused(path)
            assert time.process_time() - started < 4.0, "slow"  # CI's machines are, too
            if is_large:
                assert tracemalloc.get_traced_memory()[1] < ROOM + 2 * size, "large"
        except (Exception, pytest.fail.Exception) as error:
            faults.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
        finally:
            tracemalloc.stop()
    assert faults == []


@posix
def test_what_is_not_a_file_is_refused_and_does_not_hang(tmp_path):
    for _, path in hostile.special(tmp_path):
        refused(path)
