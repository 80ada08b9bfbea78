"""Weights of losses that follow a schedule, and arrays that a step does not train."""

import functools
import types

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core.trees import tree_map
from agnostic_nn.losses.base import check_of, metrics_of, takes_keyword
from agnostic_nn.training.config import describe, rebuild

RAMP = nn.schedules.Linear(0.0, 1.0, steps=8)


def data(rows=12, width=2):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(rows, width)).astype("float32")
    return x, x[:, :1] * 2.0 - 1.0


def annealed(backend, loss=None, **options):
    loss = loss or nn.Weighted(nn.mean_squared_error, RAMP)
    model = nn.Dense(1, bias=False)
    return nn.Trainer(model, loss, nn.SGD(0.05), backend=backend, shape=(2,), **options)


def by_hand(backend, steps, x, target, weights):
    """Return the losses of gradient steps for y = x W, one for each of `weights`."""
    weight = backend.to_numpy(annealed(backend).params)["weight"].astype("float64")
    values = []
    for k in range(steps):
        rows = slice(4 * (k % 3), 4 * (k % 3) + 4)
        error = x[rows] @ weight - target[rows]
        values.append(weights[k] * float((error**2).mean()))
        weight = weight - 0.05 * weights[k] * 2.0 * x[rows].T @ error / len(error)
    return values


# --- weights that follow a schedule ---------------------------------------------------


def test_the_weight_of_a_loss_follows_its_schedule(backend):
    x, target = data()
    weights = [min(k / 8, 1.0) for k in range(12)]
    expected = by_hand(backend, 12, x, target, weights)
    trainer = annealed(backend)
    result = [
        float(trainer.step(x[r : r + 4], target[r : r + 4]))
        for _ in range(4)
        for r in (0, 4, 8)
    ]
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)
    # one compiled loop of many steps takes the weight of each
    losses = annealed(backend).fit(
        x, target, epochs=4, batch_size=4, shuffle=False, verbose=0
    )
    means = np.asarray(expected).reshape(4, 3).mean(axis=1)
    np.testing.assert_allclose(losses["loss"], means, rtol=1e-4, atol=1e-6)


def test_an_annealed_kl_term_next_to_another_loss(backend):
    """A variational loss: reconstruction plus β(t) · KL, as `Losses` of two outputs."""

    def kl(y, target, weights=None):
        return nn.mean_squared_error(y, 0.0 * target, weights)

    x, target = data()
    loss = nn.Losses(
        kl=kl,
        reconstruction=nn.mean_squared_error,
        weights={"kl": RAMP, "reconstruction": 2.0},
    )
    trainer = _two_headed(backend, loss)
    both = {"kl": target, "reconstruction": target}
    parts = [
        _two_headed(
            backend, nn.Losses(kl=kl, reconstruction=nn.mean_squared_error, weights=w)
        )
        for w in (
            {"kl": 1.0, "reconstruction": 0.0},
            {"kl": 0.0, "reconstruction": 1.0},
        )
    ]
    first, second = (part.evaluate(x, both)["loss"] for part in parts)
    assert trainer.evaluate(x, both)["loss"] == pytest.approx(2 * second, rel=1e-5)
    trainer.steps = 4
    assert trainer.evaluate(x, both)["loss"] == pytest.approx(
        0.5 * first + 2 * second, rel=1e-5
    )


def _two_headed(backend, loss):
    outputs = ("kl", "reconstruction")
    nodes = {name: (nn.Dense(1), "x") for name in outputs}
    model = nn.Graph(**nodes, outputs=dict(zip(outputs, outputs, strict=True)))
    return nn.Trainer(model, loss, nn.SGD(0.05), backend=backend, shape=(2,))


def test_evaluation_and_validation_take_the_weight_of_the_current_step(backend):
    x, target = data()
    trainer = annealed(backend)
    assert trainer.evaluate(x, target)["loss"] == 0.0
    history = trainer.fit(x, target, batch_size=4, verbose=0, validation=(x, target))
    plain = annealed(backend, nn.mean_squared_error)
    plain.start_from(backend.to_numpy(trainer.params))
    expected = 3 / 8 * plain.evaluate(x, target)["loss"]
    assert history["validation_loss"][0] == pytest.approx(expected, rel=1e-5)
    assert trainer.evaluate(x, target, batch_size=5)["loss"] == pytest.approx(
        expected, rel=1e-5
    )


def test_a_resumed_run_goes_on_with_the_weight_of_its_step(backend, tmp_path):
    x, target = data()
    whole = annealed(backend)
    losses = whole.fit(x, target, epochs=3, batch_size=4, verbose=0)["loss"]
    part = annealed(backend)
    part.fit(x, target, epochs=1, batch_size=4, verbose=0)
    part.save(tmp_path / "part.safetensors")
    again = nn.Trainer.load(tmp_path / "part.safetensors", backend)
    assert again.loss == nn.Weighted(nn.mean_squared_error, RAMP)
    assert again.fit(x, target, epochs=2, batch_size=4, verbose=0)["loss"] == losses[1:]
    for name, leaf in backend.to_numpy(whole.params).items():
        np.testing.assert_array_equal(backend.to_numpy(again.params)[name], leaf)
    assert whole.to("numpy").evaluate(x, target)["loss"] == pytest.approx(
        whole.evaluate(x, target)["loss"], rel=1e-5
    )


@pytest.mark.parametrize(
    "loss",
    [
        nn.Weighted(functools.partial(nn.huber, delta=2.0), RAMP),
        nn.Weighted(nn.softmax_cross_entropy, 0.5),
        nn.Losses(
            a=nn.huber,
            b=nn.Weighted(nn.huber, RAMP),
            weights={"a": nn.schedules.Constant(2.0)},
        ),
    ],
    ids=["partial", "number", "losses"],
)  # fmt: skip
def test_weighted_losses_are_described_and_rebuilt(loss):
    again = rebuild(describe(loss))
    assert type(again) is type(loss)
    assert repr(again) == repr(loss)
    assert describe(again) == describe(loss)


def test_a_weighted_loss_brings_what_its_loss_does():
    loss = nn.Weighted(
        functools.partial(nn.softmax_cross_entropy, ignore_index=9), RAMP
    )
    assert list(metrics_of(loss)) == ["accuracy"]
    check_of(loss)(np.asarray([9, 1]), (3,))
    with pytest.raises(ValueError, match="labels from 0 to 2"):
        check_of(loss)(np.asarray([7, 1]), (3,))
    assert repr(loss).startswith(
        "Weighted(partial(softmax_cross_entropy, ignore_index=9), Linear("
    )
    assert takes_keyword(loss, "step")
    assert not takes_keyword(nn.Weighted(nn.huber, 2.0), "step")
    assert takes_keyword(nn.Losses(a=loss), "step")
    assert not takes_keyword(nn.Losses(a=nn.huber), "step")


def test_weighted_batches_are_joined_by_what_their_loss_divides_by(backend):
    x, labels = np.eye(6, 3, dtype="float32"), np.asarray([0, 1, 9, 9, 9, 2])
    loss = nn.Weighted(functools.partial(nn.softmax_cross_entropy, ignore_index=9), 0.5)
    trainer = nn.Trainer(nn.Dense(3), loss, nn.SGD(0.1), backend=backend, shape=(3,))
    whole = trainer.evaluate(x, labels)["loss"]
    assert trainer.evaluate(x, labels, batch_size=2)["loss"] == pytest.approx(
        whole, rel=1e-5
    )


def test_a_weight_that_is_none_is_refused():
    for weight, error in (
        ("big", TypeError),
        (-1.0, ValueError),
        (nn.schedules.Linear, TypeError),
    ):
        with pytest.raises(error, match="the weight"):
            nn.Weighted(nn.huber, weight)
        with pytest.raises(error, match="the weight of a"):
            nn.Losses(a=nn.huber, weights={"a": weight})
    with pytest.raises(TypeError, match="the loss to be a function"):
        nn.Weighted(0.5, nn.huber)
    y = np.zeros((2, 1))
    with pytest.raises(
        ValueError, match="follows a schedule: pass the number of the step, train with"
    ):
        nn.Weighted(nn.huber, RAMP)(y, y)
    value, _ = nn.Weighted(nn.huber, RAMP)(y + 1.0, y, step=np.asarray(4.0))
    assert float(value) == 0.5 * 0.5


# --- a tree of arrays -----------------------------------------------------------------


def distance(y, target, weights=None, *, context):
    value, dy = nn.mean_squared_error(y, target, weights)
    return value * context["scale"], dy * context["scale"]


def with_scale(backend, context, **options):
    return nn.Trainer(
        nn.Dense(1),
        distance,
        nn.SGD(1e-9),
        backend=backend,
        shape=(2,),
        context=context,
        **options,
    )


def test_a_context_may_change_between_steps_without_compiling_again(backend):
    ran = []

    def loss(y, target, weights=None, *, context):
        ran.append(1)
        return distance(y, target, weights, context=context)

    x, target = data()
    trainer = nn.Trainer(
        *(nn.Dense(1), loss, nn.SGD(1e-9)),
        backend=backend, shape=(2,), context={"scale": np.float32(1.0)},
    )  # fmt: skip
    first = [float(trainer.step(x, target)) for _ in range(4)][-1]
    calls = len(ran)
    for scale in (2.0, 3.0, 4.0):
        trainer.context = {"scale": np.asarray(scale, np.float32)}
        assert float(trainer.step(x, target)) == pytest.approx(scale * first, rel=1e-5)
        assert trainer.evaluate(x, target)["loss"] == pytest.approx(
            scale * first, rel=1e-5
        )
    assert float(backend.to_numpy(trainer.context["scale"])) == 4.0
    if not hasattr(backend.adapter, "eager") or backend.adapter.eager is None:
        return
    compiled_anew = len(ran) - calls
    assert compiled_anew <= 4  # of `evaluate`


def test_a_context_is_used_in_fit_and_may_change_in_a_callback(backend):
    x, target = data()
    trainer = with_scale(backend, {"scale": 1.0})

    def change(trainer, row):
        trainer.context = {
            "scale": 2.0 * float(backend.to_numpy(trainer.context["scale"]))
        }

    losses = trainer.fit(
        x,
        target,
        epochs=3,
        batch_size=5,
        verbose=0,
        callbacks=[change],
        validation=(x, target),
    )
    first = losses["loss"][0]
    np.testing.assert_allclose(losses["loss"], [first, 2 * first, 4 * first], rtol=1e-5)
    np.testing.assert_allclose(losses["validation_loss"], losses["loss"], rtol=1e-5)


def test_a_function_gives_the_context_of_each_step(backend):
    x, target = data()
    arguments = []

    def context():
        arguments.append(len(arguments))
        return {"scale": backend.asarray(np.float32(len(arguments)))}

    trainer = with_scale(backend, context)
    weights = np.ones(4, "float32")
    first = float(trainer.step(x[:4], target[:4], weights))
    assert float(trainer.step(x[:4], target[:4])) == pytest.approx(2 * first, rel=1e-5)
    arguments.clear()
    history = trainer.fit(
        x[:4], target[:4], epochs=4, batch_size=4, verbose=0, prefetch=1
    )
    np.testing.assert_allclose(history["loss"], first * np.arange(1.0, 5.0), rtol=1e-5)
    assert len(arguments) == 4
    assert trainer.context is context


def test_a_tree_is_copied_when_it_is_given(backend):
    x, target = data()
    scale = np.ones((), "float32")
    trainer = with_scale(backend, {"scale": scale})
    first = float(trainer.step(x, target))
    scale[...] = 5.0
    assert float(trainer.step(x, target)) == pytest.approx(first, rel=1e-5)


def test_a_metric_may_read_the_context(backend):
    x, target = data()

    def shifted(y, target, *, context):
        return (y - target)[:, 0] * 0.0 + context["by"]

    trainer = nn.Trainer(
        *(nn.Dense(1), nn.mean_squared_error, nn.SGD(0.1)),
        backend=backend, metrics={"shifted": shifted}, context={"by": 3.0},
    )  # fmt: skip
    trainer.build((2,))
    assert trainer.evaluate(x, target, batch_size=5)["shifted"] == pytest.approx(3.0)
    (row,) = trainer.fit(x, target, validation=(x, target), verbose=0).epochs
    assert row["validation_shifted"] == pytest.approx(3.0)
    losses = nn.Losses(a=distance)
    assert takes_keyword(losses, "context")
    assert takes_keyword(nn.Weighted(distance, 2.0), "context")
    assert not takes_keyword(
        functools.partial(distance, context={"scale": 1.0}), "context"
    )


def test_a_context_that_does_not_fit_is_refused_and_the_old_one_stays(backend):
    trainer = with_scale(backend, {"scale": 1.0})
    x, target = data()
    first = float(trainer.step(x, target))
    for wrong, error, message in (
        (
            {"scale": np.ones(2, "float32")},
            ValueError,
            r"context.scale to be float32 \(\) .*\(2,\)",
        ),
        (
            {"scale": 1.0, "more": 1.0},
            ValueError,
            "context.more to be nothing as before",
        ),
        ({}, ValueError, "context.scale .* got nothing"),
        ({"scale": "large"}, TypeError, "expected context.scale as a NumPy array"),
        ({"scale": object()}, TypeError, "expected context.scale as a NumPy array"),
    ):
        with pytest.raises(error, match=message):
            trainer.context = wrong
    assert float(trainer.step(x, target)) == pytest.approx(first, rel=1e-5)
    trainer.context = lambda: {"scale": np.ones(3, "float32")}
    with pytest.raises(ValueError, match="keeps its nesting"):
        trainer.step(x, target)
    assert trainer.steps == 2
    trainer.context = None
    with pytest.raises(TypeError, match="context"):
        trainer.step(x, target)
    with pytest.raises(ValueError, match="declares a parameter `context`"):
        nn.Trainer(
            nn.Dense(1), nn.huber, nn.SGD(0.1), backend=backend, context={"a": 1.0}
        )


def test_a_context_moves_with_its_trainer_and_is_given_again_after_loading(
    backend, tmp_path
):
    x, target = data()
    trainer = with_scale(backend, {"scale": 3.0})
    expected = trainer.evaluate(x, target)["loss"]
    assert trainer.to("numpy").evaluate(x, target)["loss"] == pytest.approx(
        expected, rel=1e-5
    )
    trainer.save(tmp_path / "t.safetensors")
    again = nn.Trainer.load(
        tmp_path / "t.safetensors", backend, loss=distance, context={"scale": 3.0}
    )
    assert again.evaluate(x, target)["loss"] == pytest.approx(expected, rel=1e-5)


# --- what people do with it -----------------------------------------------------------


def critic_loss(y, target, weights=None):
    return nn.binary_cross_entropy(y, target, weights)


def gan(backend, together, rounds):
    """Train a generator of numbers near 3 against a critic; return their means.

    together: whether the generator's loss reads the critic's parameters as a context,
    or has them copied by hand in each round, as a loop without a context would.
    """
    maker, critic = nn.Dense(1), nn.Sequential(nn.Dense(8), nn.Tanh(), nn.Dense(1))

    def fooling(y, target, weights=None, *, context):
        logits, _, cache = critic.forward(context, ({}, {}, {}), y, train=True)
        value, slope = nn.binary_cross_entropy(logits, target, weights)
        return value, critic.backward(context, cache, slope)[0]

    judge = nn.Trainer(
        critic, critic_loss, nn.Adam(0.05), backend=backend, shape=(1,), seed=1
    )
    read = (lambda: judge.params) if together else backend.to_numpy(judge.params)
    maker = nn.Trainer(
        maker, fooling, nn.Adam(0.05), backend=backend, shape=(2,), context=read
    )
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(16, 2)).astype("float32")
    ones = np.ones((16, 1), "float32")
    means, losses = [float(maker.predict(noise).mean())], []
    for _ in range(rounds):
        real = generator.normal(3.0, 0.5, size=(16, 1)).astype("float32")
        both = np.concatenate([real, maker.predict(noise)])
        losses.append(float(judge.step(both, np.concatenate([ones, 0 * ones]))))
        if not together:
            maker.context = backend.to_numpy(judge.params)
        losses.append(float(maker.step(noise, ones)))
    means.append(float(maker.predict(noise).mean()))
    return means, losses


def test_two_trainers_make_a_gan(backend):
    (before, after), losses = gan(backend, together=True, rounds=30)
    assert abs(after - 3.0) < abs(before - 3.0) - 0.5
    _, again = gan(backend, together=False, rounds=4)
    np.testing.assert_allclose(again, losses[:8], rtol=1e-4, atol=1e-5)


def test_a_target_network_that_lags_behind(backend):
    """Learn the values of a chain of states from a network that is sometimes copied."""
    model, discount = nn.Dense(1, bias=False), 0.5
    states = np.eye(4, dtype="float32")
    after = np.roll(states, -1, axis=0) * (np.arange(4)[:, None] < 3)
    reward = np.asarray([[0.0], [0.0], [0.0], [1.0]], "float32")

    def bootstrapped(y, target, weights=None, *, context):
        reward, after = target[:, :1], target[:, 1:]
        aim = reward + discount * model.predict(context, {}, after)
        return nn.mean_squared_error(y, aim, weights)

    online = nn.Trainer(model, bootstrapped, nn.SGD(1.0), backend=backend, shape=(4,))
    online.context = online.params
    target = np.concatenate([reward, after.astype("float32")], axis=1)
    for _ in range(6):
        for _ in range(20):
            online.step(states, target)
        online.context = online.params
    values = backend.to_numpy(online.params)["weight"][:, 0]
    np.testing.assert_allclose(values, [0.125, 0.25, 0.5, 1.0], atol=1e-3)


def test_a_teacher_whose_answers_are_imitated(backend):
    x, target = data(rows=16)
    model = nn.Dense(1)
    teacher = nn.Trainer(
        model, nn.mean_squared_error, nn.SGD(0.2), backend=backend, seed=3
    )
    teacher.fit(x, target, epochs=40, batch_size=16, verbose=0)

    def imitate(y, target, weights=None, *, context):
        return nn.mean_squared_error(y, model.predict(context, {}, target), weights)

    pupil = nn.Trainer(
        *(model, imitate, nn.SGD(0.2)),
        backend=backend,
        shape=(2,),
        context=lambda: teacher.params,
    )
    before = tree_map(np.array, backend.to_numpy(teacher.params))
    pupil.fit(x, x, epochs=90, batch_size=16, verbose=0)
    np.testing.assert_allclose(pupil.predict(x), teacher.predict(x), atol=1e-3)
    np.testing.assert_array_equal(
        backend.to_numpy(teacher.params)["weight"], before["weight"]
    )
    teacher.fit(x, target, verbose=0, batch_size=4)
    assert isinstance(pupil.context, types.FunctionType)
