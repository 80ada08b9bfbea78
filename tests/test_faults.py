"""A sample of the fault campaign: both tools catch one planted fault of each kind."""

import numpy as np
import pytest
from faults.campaign import bisected, compared, remembered
from faults.catalogue import KINDS, Fault, catalogue
from faults.models import MODELS
from faults.truth import effect


@pytest.fixture(scope="module", autouse=True)
def _remembered():
    with remembered():
        yield


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_of_each_kind_is_caught_and_located(kind):
    grid = [
        fault for fault in KINDS[kind][0]() if fault.model in ("MLP", "CNN", "graph")
    ]
    fault = grid[len(grid) * 2 // 5]
    assert effect(fault).counts
    for answer in (bisected(fault), compared(fault)):
        assert (answer.verdict, answer.located) == ("differ", True), (
            f"{fault}: {answer.detail}"
        )


def test_no_difference_is_found_without_a_fault():
    for model in ("MLP", "embedding"):
        fault = Fault("none", "none", model, ("",), ("",))
        assert effect(fault).largest == 0.0
        assert bisected(fault).verdict == "agree"
        assert compared(fault).verdict in ("agree", "not checked")


def test_a_change_below_rounding_is_not_counted():
    def changes():
        from agnostic_nn import layers

        def make(old):
            def forward(self, params, state, x, *, train=False):
                y, *rest = old(self, params, state, x, train=train)
                return y * np.asarray(1.0 + 1e-9, y.dtype), *rest

            return forward

        return [(layers.Dense, "forward", make)]

    fault = Fault("forward", "times 1 + 1e-9", "MLP", ("0",), ("forward",), changes)
    assert 0.0 < effect(fault).largest < 1.0
    assert not effect(fault).counts


def test_the_campaign_has_at_least_400_different_faults():
    faults = catalogue()
    assert len(faults) >= 400
    assert {fault.model for fault in faults} == set(MODELS)
    assert len(set(map(str, faults))) > 0.98 * len(faults)


def test_compare_locates_a_prediction_inside_a_graph():
    name = "prediction only: predictions times 1.3 (graph, again)"
    fault = next(fault for fault in catalogue() if str(fault) == name)
    answer = compared(fault)
    assert (answer.verdict, answer.located) == ("differ", True), answer.detail
