"""Our layers against PyTorch's with the same weights, in float64.

An oracle that shares no line with us; `cases` say how PyTorch computes each.
"""

import numpy as np
import pytest
from cases import layer_cases

pytest.importorskip("torch", reason="PyTorch is the oracle here")
from cases._torch import against_torch

TWINS = [case for case in layer_cases() if callable(case.theirs)]


@pytest.mark.parametrize("train", [True, False], ids=["train", "predict"])
@pytest.mark.parametrize("case", TWINS, ids=str)
def test_pytorch_computes_the_same(backend, thorough, case, train):
    if case.thorough and not thorough:
        pytest.skip("one of a sweep, which takes a compiler long: nox -s sweep")
    for name, ours, theirs in against_torch(backend, case, train):
        assert_close(name, ours, theirs)


def assert_close(name, actual, expected):
    """To 64 units in the last place of the largest number, or of 1: such went in."""
    scale = np.max(np.abs(expected), initial=1.0)
    atol = 64 * np.finfo("float64").eps * scale
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol, err_msg=name)
