"""Whatever a file says, loading it costs little and ends in a CheckpointError."""

import collections
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


@pytest.mark.parametrize("kind", hostile.KINDS, ids=lambda kind: kind.__name__)
def test_every_hostile_file_is_refused_soon_and_with_little_memory(tmp_path, kind):
    path, faults = tmp_path / "a", collections.Counter()
    nn.Trainer(nn.Dense(3), nn.mean_squared_error, nn.SGD(0.1), backend="numpy")  # imports
    for name, data in kind():
        path.write_bytes(data)
        size, heavy = len(data), kind in (hostile.models, hostile.bombs)
        del data
        if heavy:
            tracemalloc.start()
        started = time.process_time()
        try:
            refused(path)
            # tracing makes it up to four times as slow; CI's machines are slow too
            assert time.process_time() - started < (8.0 if heavy else 2.0), "slow"
            if heavy:
                assert tracemalloc.get_traced_memory()[1] < ROOM + 2 * size, "large"
        except (Exception, pytest.fail.Exception) as error:
            faults[f"{name}: {type(error).__name__}: {str(error)[:200]}"] += 1
        finally:
            tracemalloc.stop()
    assert not faults


def test_there_are_as_many_as_we_say():
    assert sum(1 for kind in hostile.KINDS for _ in kind()) >= 560


@posix
def test_what_is_not_a_file_is_refused_and_does_not_hang(tmp_path):
    for _, path in hostile.special(tmp_path):
        refused(path)
