"""Results of training: tables and plots of a history, probabilities and the rate."""

import sys
from functools import partial

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core.trees import named_leaves

X = np.random.default_rng(0).standard_normal((30, 4)).astype("float32")
LABELS = np.arange(30) % 3


def make_trainer(backend, loss=nn.softmax_cross_entropy, optimizer=None, **options):
    return nn.Trainer(
        nn.Dense(3),
        loss,
        nn.SGD(0.1) if optimizer is None else optimizer,
        backend=backend,
        seed=1,
        **options,
    )


def history():
    return nn.History(
        [
            {"epoch": 1, "loss": 300.0, "accuracy": 0.5, "validation_accuracy": 0.25},
            {"epoch": 2, "loss": 1.0, "accuracy": 0.75, "validation_accuracy": 0.5},
        ]
    )


# --- history --------------------------------------------------------------------------


def test_a_history_becomes_a_dataframe():
    pytest.importorskip("pandas")
    frame = history().to_dataframe()
    assert list(frame.columns) == list(history().epochs[0])
    assert frame["loss"].tolist() == [300.0, 1.0]
    assert frame["epoch"].dtype == "int64"
    missing = nn.History([{"epoch": 1, "rate": 0.1}, {"epoch": 2}]).to_dataframe()
    assert missing["rate"].isna().tolist() == [False, True]
    empty = nn.History().to_dataframe()
    assert (len(empty), list(empty.columns)) == (0, ["epoch", "loss"])


def test_without_pandas_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install pandas"):
        history().to_dataframe()


def test_a_history_is_plotted_in_one_figure(tmp_path):
    matplotlib = pytest.importorskip(
        "matplotlib", reason="the extra `report` is not installed"
    )
    matplotlib.use("agg")
    figure = history().plot()
    loss, accuracy = figure.axes
    assert (loss.get_title("left"), accuracy.get_title("left")) == ("loss", "accuracy")
    labels = [line.get_label() for line in accuracy.lines]
    assert labels == ["accuracy", "validation_accuracy"]
    np.testing.assert_array_equal(loss.lines[0].get_xydata(), [[1, 300.0], [2, 1.0]])
    assert loss.get_yscale() == "log"
    figure.savefig(tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"at least two epochs .*, got 1$"):
        nn.History(history().epochs[:1]).plot()
    pyplot = pytest.importorskip("matplotlib.pyplot")
    figures = [pyplot.figure(number) for number in pyplot.get_fignums()]
    assert figure in figures, "as by pyplot.show() in a script"
    pyplot.close(figure)


def test_without_matplotlib_plot_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install 'agnostic-nn\[report\]'"):
        history().plot()


# --- predictions ----------------------------------------------------------------------


def softmax(y):
    exponentials = np.exp(y.astype("float64"))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def sigmoid(y):
    return 1.0 / (1.0 + np.exp(-y.astype("float64")))


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (nn.softmax_cross_entropy, softmax),
        (partial(nn.softmax_cross_entropy, label_smoothing=0.1), softmax),
        (nn.Weighted(nn.softmax_cross_entropy, 2.0), softmax),
        (nn.binary_cross_entropy, sigmoid),
        (nn.negative_log_likelihood, np.exp),
        (nn.kl_divergence, np.exp),
    ],
    ids=["softmax", "partial", "weighted", "binary", "likelihood", "divergence"],
)
def test_probabilities_are_those_of_the_loss(backend, loss, expected):
    trainer = make_trainer(backend, loss, shape=(4,))
    probabilities = trainer.predict_probabilities(X, batch_size=8)
    assert isinstance(probabilities, np.ndarray)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, expected(trainer.predict(X)), rtol=1e-5)


def test_probabilities_of_an_array_of_the_backend_stay_there(backend):
    trainer = make_trainer(backend, shape=(4,))
    probabilities = trainer.predict_probabilities(backend.asarray(X))
    assert type(probabilities) is type(trainer.predict(backend.asarray(X)))
    sums = backend.to_numpy(probabilities).sum(axis=1)
    np.testing.assert_allclose(sums, 1.0, rtol=1e-6)


def test_probabilities_follow_the_averaged_parameters(backend):
    trainer = make_trainer(backend, optimizer=nn.Average(nn.SGD(0.1), decay=0.9))
    trainer.fit(X, LABELS, epochs=1, batch_size=10, verbose=0)
    averaged = trainer.predict_probabilities(X, averaged=True)
    expected = softmax(trainer.predict(X, averaged=True))
    np.testing.assert_allclose(averaged, expected, rtol=1e-5)
    assert not np.allclose(averaged, trainer.predict_probabilities(X), atol=1e-6)


def test_a_custom_loss_may_define_probabilities(backend):
    def loss(y, target, weights=None):
        return nn.softmax_cross_entropy(y, target, weights)

    trainer = make_trainer(backend, loss, shape=(4,))
    with pytest.raises(
        TypeError, match="such as softmax_cross_entropy, got loss: compute"
    ):
        trainer.predict_probabilities(X)
    loss.probabilities = lambda y: 0.5 * y
    np.testing.assert_allclose(
        trainer.predict_probabilities(X), 0.5 * trainer.predict(X), rtol=1e-6
    )


@pytest.mark.parametrize(
    "loss", [nn.mean_squared_error, nn.Losses({"y": nn.mean_squared_error})]
)
def test_other_losses_have_no_probabilities(backend, loss):
    with pytest.raises(TypeError, match="a loss that makes probabilities"):
        make_trainer(backend, loss, shape=(4,)).predict_probabilities(X)


def test_probabilities_of_several_outputs_are_those_of_their_losses(backend):
    model = nn.Graph(
        label=(nn.Dense(3), "x"),
        flag=(nn.Dense(1), "z"),
        size=(nn.Dense(1), "x"),
        outputs={"label": "label", "flag": "flag", "size": "size"},
    )
    loss = nn.Losses(
        label=nn.softmax_cross_entropy,
        flag=nn.Weighted(nn.binary_cross_entropy, 2.0),
        size=nn.huber,
    )
    shape = {"x": (4,), "z": (4,)}
    trainer = nn.Trainer(model, loss, nn.SGD(0.1), backend=backend, shape=shape)
    x = {"x": X, "z": X}
    y = trainer.predict(x)
    result = trainer.predict_probabilities(x, batch_size=7)
    assert sorted(result) == ["flag", "label"]
    exponentials = np.exp(y["label"])
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(result["label"], expected, rtol=1e-5)
    np.testing.assert_allclose(result["flag"], 1 / (1 + np.exp(-y["flag"])), rtol=1e-5)
    without = nn.Losses(label=nn.huber, flag=nn.huber, size=nn.huber)
    trainer = nn.Trainer(model, without, nn.SGD(0.1), backend=backend, shape=shape)
    with pytest.raises(TypeError, match="makes probabilities of the outputs"):
        trainer.predict_probabilities(x)


def test_one_example_without_a_batch_axis_is_refused_with_the_remedy(backend):
    trainer = make_trainer(backend, shape=(4,))
    remedy = r"got \(4,\): pass one example as x\[None\], of shape \(1, 4\)"
    for x in (X[0], X[0].tolist()):
        with pytest.raises(ValueError, match=remedy):
            trainer.predict(x)
    with pytest.raises(ValueError, match=r"got \(5,\)$"):
        trainer.predict(np.zeros(5, "float32"))
    assert trainer.predict(X[0][None]).shape == (1, 3)


# --- learning rate --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "first", "then"),
    [
        (nn.SGD(0.25), 0.25, 0.25),
        (nn.Adam(nn.schedules.Linear(1.0, 0.0, steps=6)), 1.0, 0.5),
        (nn.Muon(nn.schedules.StepDecay(1.0, 3, factor=0.5)), 1.0, 0.5),
        (
            nn.ClipByNorm(nn.SGD(nn.schedules.Linear(1.0, 0.0, steps=6)), 1.0),
            1.0,
            0.5,
        ),
        (nn.Accumulate(nn.SGD(lambda t: 1.0 / (t + 1.0)), every=3), 1.0, 0.5),
    ],
    ids=["number", "schedule", "muon", "wrapped", "accumulate"],
)
def test_the_rate_is_that_of_the_next_step(backend, optimizer, first, then):
    trainer = make_trainer(backend, optimizer=optimizer)
    assert trainer.rate == pytest.approx(first), "before weights are drawn"
    trainer.build((4,))
    assert trainer.rate == pytest.approx(first)
    trainer.fit(X, LABELS, epochs=1, batch_size=10, verbose=0)
    assert type(trainer.rate) is float
    assert trainer.rate == pytest.approx(then)


def test_the_rate_includes_the_scale(backend):
    trainer = make_trainer(backend, optimizer=nn.Scaled(nn.SGD(0.5)), shape=(4,))
    scale = backend.asarray(np.asarray(0.1, "float32"))
    trainer.moments = trainer.moments | {"scale": scale}
    assert trainer.rate == pytest.approx(0.05)


def test_the_rate_is_set_by_its_optimizer_and_may_not_exist(backend):
    trainer = make_trainer(backend)
    with pytest.raises(AttributeError, match=r"trainer\.optimizer = nn\.Adam\(0\.5\)"):
        trainer.rate = 0.5
    parts = nn.Parts((("bias", nn.SGD(0.1)),), rest=nn.Adam())
    with pytest.raises(TypeError, match=r"Trainer\.rate needs .* one rate, got Parts"):
        make_trainer(backend, optimizer=parts).rate  # noqa: B018


def test_the_rate_of_an_optimizer_that_counts_no_steps_is_refused():
    class Plain:
        rate = staticmethod(lambda t: 0.1)

        def init(self, params):
            return {}

        def update(self, params, grads, moments):
            return params, moments

    trainer = nn.Trainer(nn.Dense(1), nn.huber, Plain(), shape=(2,))
    with pytest.raises(TypeError, match=r'count them in its moments, as "step"'):
        trainer.rate  # noqa: B018


# --- another optimizer ----------------------------------------------------------------


def carry_of(trainer):
    arrays = trainer.params, trainer.moments
    return dict(named_leaves(trainer.backend.to_numpy(arrays)))


def assert_same(actual, expected):
    actual, expected = carry_of(actual), carry_of(expected)
    assert actual.keys() == expected.keys()
    for name, leaf in expected.items():
        np.testing.assert_allclose(actual[name], leaf, rtol=1e-5, atol=1e-7)


def test_another_optimizer_continues_with_the_same_moments(backend, tmp_path):
    first, second = nn.Adam(0.1), nn.AdamW(0.01, beta1=0.5)
    trainer = make_trainer(backend, optimizer=first)
    trainer.step(X, LABELS)
    step = nn.make_step(trainer.model, trainer.loss, second)
    carry = trainer.backend.to_numpy((trainer.params, trainer.state, trainer.moments))
    carry = trainer.backend.asarray(carry)
    trainer.optimizer = second
    assert (trainer.optimizer, trainer.rate) == (second, 0.01)
    trainer.step(X, LABELS)
    (params, _, moments), *_ = step(
        carry, *trainer.backend.asarray((X, LABELS.astype("int32")))
    )
    expected = trainer.backend.to_numpy((params, moments))
    for name, leaf in named_leaves(expected):
        np.testing.assert_allclose(carry_of(trainer)[name], leaf, rtol=1e-4, atol=1e-6)
    trainer.save(tmp_path / "saved")
    loaded = nn.Trainer.load(tmp_path / "saved", backend)
    assert loaded.optimizer == second
    assert trainer.to(backend).optimizer == second
    for each in (trainer, loaded):
        each.step(X, LABELS)
    assert_same(loaded, trainer)


def test_a_schedule_of_another_optimizer_is_evaluated_at_the_current_step(backend):
    trainer = make_trainer(backend, optimizer=nn.Scaled(nn.SGD(0.5)))
    trainer.fit(X, LABELS, epochs=1, batch_size=10, verbose=0)
    trainer.optimizer = nn.Scaled(nn.SGD(nn.schedules.Linear(1.0, 0.0, steps=6)))
    assert trainer.rate == pytest.approx(0.5)


def test_a_callback_may_assign_an_optimizer_during_fit(backend):
    def lower(trainer, row):
        if row["epoch"] == 1:
            trainer.optimizer = nn.Adam(0.01)

    during, between = (make_trainer(backend, optimizer=nn.Adam(0.1)) for _ in range(2))
    options = {"batch_size": 10, "verbose": 0}
    during.fit(X, LABELS, epochs=2, callbacks=[lower], **options)
    between.fit(X, LABELS, epochs=1, **options)
    between.optimizer = nn.Adam(0.01)
    between.fit(X, LABELS, epochs=1, **options)
    assert_same(during, between)


def test_moments_are_never_dropped_silently(backend):
    adam = nn.Adam(0.1)
    trainer, other = (make_trainer(backend, optimizer=adam) for _ in range(2))
    for each in (trainer, other):
        each.step(X, LABELS)
    no_moments = (
        r"same moments as Adam, .* got SGD: moments\.m\.bias is nothing, "
        r"expected float32 \(3,\)\. To begin with new moments"
    )
    nested = r"moments\.inner\.m\.bias is float32"
    for optimizer, error, message in (
        (nn.SGD(0.1), ValueError, no_moments),
        (nn.Scaled(nn.Adam(0.1)), ValueError, nested),
        (nn.Adam, TypeError, r"write Adam\(\.\.\.\)"),
        (0.1, TypeError, "optimizer"),
    ):
        with pytest.raises(error, match=message):
            trainer.optimizer = optimizer
        assert trainer.optimizer is adam
    for each in (trainer, other):
        each.step(X, LABELS)
    assert_same(trainer, other)


def test_before_there_are_weights_any_optimizer_may_be_assigned(backend):
    trainer, other = (
        make_trainer(backend, optimizer=optimizer)
        for optimizer in (nn.Adam(0.1), nn.SGD(0.1))
    )
    trainer.optimizer = nn.SGD(0.1)
    for each in (trainer, other):
        each.build((4,))
    assert_same(trainer, other)
    for each in (trainer, other):
        each.step(X, LABELS)
    assert_same(trainer, other)
