"""The examples of models of several parts learn what they should, on every backend."""

import importlib.util
import sys
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core.trees import leaves, tree_map

PARTS = Path(__file__).parents[1] / "examples" / "parts"
GENERATOR = np.random.default_rng(0)


@cache
def load(name):
    spec = importlib.util.spec_from_file_location(name, PARTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- what they learn ------------------------------------------------------------------


def test_a_generator_finds_the_mean_of_real_numbers(backend):
    result = load("gan").compute(backend, rounds=250)
    assert abs(result["mean before"] - 3.0) > 2.0
    assert abs(result["mean after"] - 3.0) < 0.5


def test_a_dqn_finds_the_way_and_its_values(backend):
    result = load("dqn").compute(backend, steps=250, size=32)
    assert result["cells solved"] == 1.0
    assert result["largest error"] < 0.15  # values are between 0.59 and 1


def test_a_vae_codes_a_curve_by_one_number_and_can_be_repeated(backend):
    result = load("vae").compute(backend, count=256, epochs=30)
    assert result["error"] < 0.1  # of the variance
    assert 0.3 < result["deviation"] < 4.0
    numpy = nn.backend("numpy")
    first, again = (load("vae").compute(numpy, count=64, epochs=3) for _ in range(2))
    assert first == again


def test_views_of_one_thing_are_matched(backend):
    result = load("contrastive").compute(backend, count=512, epochs=8)
    assert result["matched before"] < 0.05
    assert result["after"] > 0.1  # a guess is right in 1 of 128


def test_policy_gradients_with_negative_weights_find_the_best_action(backend):
    result = load("reinforce").compute(backend, steps=60)
    assert result["best action before"] < 0.3
    assert result["after"] > 0.9


def test_a_student_learns_more_from_a_teacher_than_from_few_labels(backend, thorough):
    if not thorough:
        pytest.skip("three networks to compile")
    result = load("distillation").compute(backend, few=16, many=1024, epochs=(15, 10))
    assert result["distilled"] > result["student alone"] + 0.02
    assert result["teacher"] > result["distilled"]


def test_a_mean_teacher_makes_use_of_points_without_labels(backend, thorough):
    if not thorough:
        pytest.skip("two networks to compile")
    result = load("mean_teacher").compute(backend, steps=200)
    assert result["mean teacher"] > result["labels alone"] + 0.05
    assert result["student"] > result["labels alone"] + 0.05


def test_adapters_of_a_transformer_learn_another_task(backend, thorough):
    if not thorough:
        pytest.skip("two transformers to compile")
    result = load("lora").compute(backend, count=256, epochs=(8, 8))
    assert result["adapted"] < 0.8 * result["loss before"]
    assert result["merged"] == pytest.approx(result["adapted"], rel=1e-4)
    assert result["numbers trained"] < 0.4 * result["of"]


def test_directions_of_weights_only_grow(backend, thorough):
    if not thorough:
        pytest.skip("two networks to compile")
    result = load("weight_norm").compute(backend, epochs=5)
    assert result["least growth"] > 1.0
    assert max(result["loss plain"], result["loss normed"]) < 1.3  # at first about 2


# --- their gradients ------------------------------------------------------------------


def drawn(*shape):
    return GENERATOR.standard_normal(shape)


def context_of(model, shape, **others):
    xp = nn.backend("numpy").xp
    params, state, _ = model.init(nn.random.key(0, xp=xp), shape, xp.float64)
    return {"params": params, "state": state, **others}


def losses():
    gan, dqn, vae = load("gan"), load("dqn"), load("vae")
    distillation, teacher = load("distillation"), load("mean_teacher")
    _, transitions = dqn.transitions(np.random.default_rng(1), 6)
    transitions = tree_map(lambda leaf: leaf.astype("float64"), transitions)
    judged = context_of(gan.DISCRIMINATOR, (1,))
    taught = context_of(teacher.MODEL, (2,), weight=np.float64(3.0))
    has_label = np.asarray([1.0, 1, 0, 0, 1, 0])
    labels = {"label": np.arange(6) % 2, "has_label": has_label}
    softened = partial(distillation.softened, temperature=2.0)
    return {
        "gan": (partial(gan.fooling, context=judged), drawn(6, 1), np.ones((6, 1))),
        "dqn": (
            partial(dqn.temporal_difference, context=context_of(dqn.NETWORK, (7,))),
            *(drawn(6, 2), transitions),
        ),
        "vae": (vae.divergence, drawn(6, 2), None),
        "distillation": (softened, drawn(6, 4), distillation.softmax(drawn(6, 4))),
        "mean_teacher": (
            partial(teacher.consistent, context=taught),
            *(drawn(6, 2), {**labels, "noisy": drawn(6, 2)}),
        ),
    }


@pytest.mark.parametrize("name", ["gan", "dqn", "vae", "distillation", "mean_teacher"])
def test_the_gradient_of_each_custom_loss_is_that_of_central_differences(name):
    loss, y, target = losses()[name]
    direction = drawn(*y.shape)
    _, dy = loss(y, target)
    step = 1e-6
    values = [loss(y + sign * step * direction, target)[0] for sign in (1, -1)]
    slope = float(values[0] - values[1]) / (2 * step)
    assert slope == pytest.approx(float((dy * direction).sum()), rel=1e-6)


def test_the_context_of_a_mean_teacher_is_the_average_of_the_student():
    parameters = [{"w": np.asarray([float(i)])} for i in range(4)]
    average = nn.Average(nn.SGD(1.0), decay=0.5)
    moments = average.init(parameters[0])
    for before, after in pairwise(parameters):
        grads = tree_map(lambda a, b: a - b, before, after)
        moved, moments = average.update(before, grads, moments)
        np.testing.assert_allclose(moved["w"], after["w"])
    own = nn.Average.own_moments(moments)
    weights = 0.5 ** np.asarray([2.0, 1.0, 0.0])
    expected = (weights * [1.0, 2.0, 3.0]).sum() / weights.sum()
    (result,) = leaves(average.averaged(parameters[-1], own))
    np.testing.assert_allclose(result, [expected])


# --- the table ------------------------------------------------------------------------


def test_every_example_is_in_the_table_and_in_the_guide(capsys, monkeypatch):
    table = load("table")
    files = {path.stem for path in PARTS.glob("*.py")} - {"table"}
    assert files == set(table.EXAMPLES)
    guide = PARTS.parents[1] / "docs" / "guides" / "several_parts.md"
    text = guide.read_text(encoding="utf-8")
    assert all(f"examples/parts/{name}.py" in text for name in files)
    monkeypatch.setattr(table, "EXAMPLES", {"reinforce": "REINFORCE"})
    module = load("reinforce")
    monkeypatch.setattr(module, "compute", partial(module.compute, steps=2))
    monkeypatch.setitem(sys.modules, "reinforce", module)
    table.show(nn.backend("numpy"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| example | results on numpy | seconds |"
    assert lines[2].startswith("| REINFORCE | best action before 0.1")
