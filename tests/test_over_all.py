"""Metrics of all outputs and targets at once."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

import agnostic_nn as nn

GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((43, 4)).astype("float32")
LABELS = (X[:, 0] + 0.5 * GENERATOR.standard_normal(43) > 0.5).astype(int)


def macro_f1(y, target):
    return f1_score(target, y.argmax(axis=-1), average="macro")


def auc(y, target):
    return roc_auc_score(target, y[:, 1] - y[:, 0])


METRICS = {
    "f1": nn.OverAll(macro_f1),
    "accuracy": nn.accuracy,
    "auc": nn.OverAll(auc),
}


def make(backend, metrics=METRICS):
    return nn.Trainer(
        nn.Dense(2),
        nn.softmax_cross_entropy,
        nn.Adam(1e-2),
        backend=backend,
        shape=(4,),
        metrics=metrics,
    )


def test_f1_and_the_area_under_the_curve_are_those_of_all_examples(backend):
    trainer = make(backend)
    y = trainer.predict(X)
    expected = {"f1": macro_f1(y, LABELS), "auc": auc(y, LABELS)}
    # batches of 8 hold both classes or one only; the last one is padded
    result = trainer.evaluate(X, LABELS, batch_size=8)
    assert list(result) == ["loss", "f1", "accuracy", "auc"]
    assert result["f1"] == pytest.approx(expected["f1"])
    assert result["auc"] == pytest.approx(expected["auc"])
    assert result["accuracy"] == pytest.approx((y.argmax(-1) == LABELS).mean())
    assert type(result["f1"]) is float
    parts = [macro_f1(y[i : i + 8], LABELS[i : i + 8]) for i in range(0, 43, 8)]
    assert abs(np.mean(parts) - expected["f1"]) > 1e-3


def test_fit_reports_a_metric_over_all_of_the_validation_data_only(backend):
    calls = []

    def counted(y, target):
        calls.append((y.shape, target.shape))
        return macro_f1(y, target)

    trainer = make(backend, METRICS | {"f1": nn.OverAll(counted)})
    names = []
    history = trainer.fit(
        X,
        LABELS,
        epochs=2,
        batch_size=8,
        validation=(X[:20], LABELS[:20]),
        callbacks=[lambda trainer, row: names.extend(row)],
        verbose=0,
    )
    assert names[: len(names) // 2] == [
        *("epoch", "steps", "loss", "accuracy"),
        *("validation_loss", "validation_f1", "validation_accuracy"),
        *("validation_auc", "seconds"),
    ]
    y = trainer.predict(X[:20])
    assert history["validation_f1"][-1] == pytest.approx(macro_f1(y, LABELS[:20]))
    assert calls == [((20, 2), (20,))] * 3  # once before the first step


def test_a_model_with_several_outputs_passes_trees():
    model = nn.Graph(
        **{name: (nn.Dense(1), "x") for name in ("a", "b")},
        outputs={"a": "a", "b": "b"},
    )
    trainer = nn.Trainer(
        model,
        nn.Losses(a=nn.huber, b=nn.huber),
        nn.SGD(0.1),
        backend="numpy",
        shape=(4,),
        metrics={"gap": nn.OverAll(lambda y, t: (y["a"] - t["b"]).max())},
    )
    target = {"a": X[:, :1], "b": X[:, 1:2]}
    result = trainer.evaluate(X, target, batch_size=10)["gap"]
    expected = (trainer.predict(X)["a"] - target["b"]).max()
    assert result == pytest.approx(float(expected), rel=1e-5)


def test_a_metric_over_all_that_fails_or_is_not_a_number_is_refused():
    for wrong, message in (
        (lambda y, t: y[:, 0], "the metric 'f1' to return one real number for all"),
        (lambda y, t: None, "one real number for all examples, got None"),
        (lambda y, t: 1j, "one real number for all examples, got 1j"),
    ):
        trainer = make("numpy", {"f1": nn.OverAll(wrong)})
        with pytest.raises(TypeError, match=message):
            trainer.fit(X, LABELS, validation=(X, LABELS), verbose=0)
        assert trainer.steps == 0
    trainer = make("numpy", {"f1": nn.OverAll(lambda y, t: 1 // 0)})
    with pytest.raises(ZeroDivisionError) as caught:
        trainer.evaluate(X, LABELS)
    assert caught.value.__notes__ == ["in the metric 'f1'"]
    with pytest.raises(TypeError, match=r"function of OverAll to be a function of \(y"):
        nn.OverAll(lambda y: 0.0)
    with pytest.raises(TypeError, match=r"apply it to `Trainer.predict`"):
        nn.compare(nn.Dense(2), X, LABELS, metric=nn.OverAll(macro_f1))
