"""The estimators for scikit-learn: its own checks, and what users do with them."""

import os

os.environ.setdefault("SCIPY_ARRAY_API", "1")  # before SciPy is imported

import copy
import pickle
import subprocess
import sys
import warnings
from functools import partial

import joblib
import numpy as np
import pandas
import polars
import pytest
import scipy.sparse
import sklearn
import torch
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_iris
from sklearn.ensemble import StackingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.estimator_checks import check_estimator

import agnostic_nn as nn
from agnostic_nn.sklearn import NetClassifier, NetRegressor

X, Y = load_iris(return_X_y=True)
X = StandardScaler().fit_transform(X)
FEW = {"optimizer": nn.Adam(5e-2), "epochs": 20, "random_state": 0}
MISSING = "cupy|dpnp|cuda|XPU|MPS"  # what a machine may lack

numbers = np.random.default_rng(0).normal(size=(60, 3))


def small(**options):
    return NetClassifier(**{"model": (8,)} | FEW | options)


@pytest.mark.parametrize("kind", [NetClassifier, NetRegressor])
def test_the_checks_of_scikit_learn_pass_but_for_missing_hardware(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(
            kind(optimizer=nn.Adam(1e-2), epochs=20), on_fail=None, on_skip=None
        )
    others = [
        (result["check_name"], result["status"], result["exception"])
        for result in results
        if result["status"] != "passed"
    ]
    assert len(results) - len(others) >= 60
    for name, status, exception in others:
        assert status == "skipped", (name, exception)
        with pytest.raises(type(exception), match=MISSING):
            raise exception


# --- training -------------------------------------------------------------------------


def test_an_estimator_trains_as_a_trainer_does():
    model = nn.Sequential(nn.Dense(8), nn.ReLU(), nn.Dense(3))
    trainer = nn.Trainer(
        model, nn.softmax_cross_entropy, nn.Adam(1e-2), seed=5, dtype="float64"
    )
    history = trainer.fit(X, Y, epochs=3, batch_size=50, verbose=0)
    options = {"optimizer": nn.Adam(1e-2), "batch_size": 50, "random_state": 5}
    estimator = small(**options, epochs=3).fit(X, Y)
    assert estimator.loss_curve_ == history["loss"]
    assert estimator.history_["accuracy"] == history["accuracy"]
    assert (estimator.predict_proba(X) == trainer.predict_probabilities(X)).all()
    assert (estimator.predict(X) == trainer.predict(X).argmax(axis=1)).all()


@pytest.mark.parametrize("names", [None, ["a", "b", "c"], [3.0, -1.0, 2.0]])
def test_labels_of_any_type_are_predicted_as_they_came(names):
    y = Y if names is None else np.asarray(names)[Y]
    estimator = small().fit(X, y)
    assert estimator.classes_.tolist() == sorted(set(y.tolist()))
    assert estimator.predict(X).dtype == y.dtype
    assert estimator.score(X, y) > 0.9


def test_two_classes_have_two_probabilities_and_one_decision():
    estimator = small().fit(X, Y == 2)
    p = estimator.predict_proba(X)
    decision = estimator.decision_function(X)
    assert p.shape == (150, 2)
    assert decision.shape == (150,)
    np.testing.assert_allclose(p[:, 1], 1.0 / (1.0 + np.exp(-decision)), rtol=1e-12)
    assert ((decision > 0) == estimator.predict(X)).all()
    np.testing.assert_allclose(np.exp(estimator.predict_log_proba(X)), p, rtol=1e-12)


def test_several_labels_are_predicted_each_by_its_own_probability():
    y = (numbers @ np.eye(3)[:, :2] > 0).astype(int)
    estimator = small(epochs=60).fit(numbers, y)
    p = estimator.predict_proba(numbers)
    assert p.shape == (60, 2)
    assert (estimator.predict(numbers) == (p > 0.5)).all()
    assert estimator.score(numbers, y) > 0.9
    assert estimator.classes_.tolist() == [0, 1]
    sparse = small(epochs=60).fit(numbers, scipy.sparse.csr_array(y))
    assert (sparse.predict_proba(numbers) == p).all()


def test_several_columns_of_classes_are_several_outputs():
    signs = np.where(numbers[:, 1] > 0, "up", "down")
    y = np.stack([np.digitize(numbers[:, 0], [-0.5, 0.5]).astype(str), signs], axis=1)
    estimator = small(epochs=80).fit(numbers, y)
    assert [each.tolist() for each in estimator.classes_] == [
        ["0", "1", "2"],
        ["down", "up"],
    ]
    assert [p.shape for p in estimator.predict_proba(numbers)] == [(60, 3), (60, 2)]
    scores = estimator.decision_function(numbers)
    assert [each.shape for each in scores] == [(60, 3), (60,)]
    predicted = estimator.predict(numbers)
    assert predicted.shape == y.shape
    assert (predicted[:, 1] == np.where(scores[1] > 0, "up", "down")).all()
    assert estimator.score(numbers, y) == (predicted == y).all(axis=1).mean() > 0.8
    parts = small().partial_fit(numbers[:9], y[:9], classes=estimator.classes_)
    assert len(parts.classes_[0]) == 3


@pytest.mark.parametrize("shape", [(60,), (60, 1), (60, 2)])
def test_numbers_are_predicted_in_the_shape_of_y(shape):
    y = (numbers[:, : shape[-1]] if len(shape) == 2 else numbers[:, 0]) * 2.0
    estimator = NetRegressor((8,), **FEW | {"epochs": 100}).fit(numbers, y)
    assert estimator.predict(numbers).shape == shape
    assert estimator.score(numbers, y) > 0.9


def test_a_weight_of_two_counts_as_two_examples():
    options = {"optimizer": nn.SGD(0.1), "batch_size": 1000}
    weights = np.arange(150) % 3
    repeated = np.repeat(np.arange(150), weights)
    weighted = small(**options).fit(X, Y, sample_weight=weights)
    plain = small(**options).fit(X[repeated], Y[repeated])
    np.testing.assert_allclose(
        weighted.predict_proba(X), plain.predict_proba(X), rtol=1e-9
    )


@pytest.mark.parametrize("class_weight", ["balanced", {0: 1.0, 1: 5.0, 2: 0.5}])
def test_class_weights_multiply_the_weights_of_examples(class_weight):
    part = slice(0, 120)  # of unequal classes
    by_example = 1.0 + np.arange(120) % 2
    by_class = compute_sample_weight(class_weight, Y[part])
    first = small(class_weight=class_weight).fit(X[part], Y[part], by_example)
    second = small().fit(X[part], Y[part], by_example * by_class)
    third = small().fit(X[part], Y[part], by_example)
    assert (first.predict_proba(X) == second.predict_proba(X)).all()
    assert (first.predict_proba(X) != third.predict_proba(X)).any()


@pytest.mark.parametrize("kind", [NetClassifier, NetRegressor])
def test_epochs_in_parts_are_the_epochs_of_one_fit(kind):
    whole = kind((8,), **FEW | {"epochs": 5}, batch_size=40).fit(X, Y)
    warm = clone(whole).set_params(epochs=2, warm_start=True).fit(X, Y)
    warm.set_params(epochs=3).fit(X, Y)
    parts = clone(whole)
    first = {"classes": [0, 1, 2]} if kind is NetClassifier else {}
    for _ in range(5):
        parts.partial_fit(X, Y, **first)
    assert warm.loss_curve_ == parts.loss_curve_ == whole.loss_curve_
    assert warm.n_iter_ == parts.n_iter_ == 5
    assert (warm.predict(X) == whole.predict(X)).all()
    assert (parts.predict(X) == whole.predict(X)).all()
    cold = clone(whole).fit(X, Y).fit(X, Y)
    assert cold.loss_curve_ == whole.loss_curve_


def test_a_warm_start_uses_the_optimizer_of_now_and_refuses_another_model():
    estimator = small(warm_start=True).fit(X, Y)
    before = estimator.predict_proba(X)
    estimator.set_params(optimizer__rate=1e-30).fit(X, Y)
    assert estimator.n_iter_ == 40
    assert (estimator.predict_proba(X) == before).all()
    with pytest.raises(ValueError, match="model or loss was changed"):
        estimator.set_params(model=(9,)).fit(X, Y)


def test_early_stopping_restores_the_best_weights_for_held_out_examples():
    noisy = np.random.default_rng(1).permutation(Y)  # learned by heart only
    stopping = nn.EarlyStopping(patience=3)
    estimator = NetClassifier((64,), **FEW | {"epochs": 300})
    estimator.set_params(early_stopping=stopping, validation_fraction=0.2)
    estimator.fit(X, noisy)
    curve = estimator.history_["validation_loss"]
    best = int(np.argmin(curve))
    assert estimator.n_iter_ == len(curve) == best + 1 + 3
    _, rows = nn.stratified_split(noisy, 0.2, seed=0)
    p = estimator.predict_proba(X[rows])[np.arange(30), noisy[rows]]
    assert -np.log(p).mean() == pytest.approx(curve[best], rel=1e-6)


def test_early_stopping_weighs_the_held_out_examples():
    weights = np.where(Y == 0, 3.0, 1.0)
    estimator = small(early_stopping=True).fit(X, Y, weights)
    _, rows = nn.stratified_split(Y, 0.1, seed=0)
    p = estimator.predict_proba(X[rows])[np.arange(15), Y[rows]]
    loss = np.average(-np.log(p), weights=weights[rows])
    assert min(estimator.history_["validation_loss"]) == pytest.approx(loss, rel=1e-6)


def test_callbacks_and_metrics_are_those_of_a_trainer():
    losses = []
    f1 = nn.OverAll(lambda y, target: np.mean(y.argmax(axis=1) == target))
    estimator = small(
        callbacks=[lambda trainer, row: losses.append(row["loss"])],
        metrics={"over_all": f1, "accuracy": nn.accuracy},
        validation_fraction=0.2,
    ).fit(X, Y)
    assert losses == estimator.loss_curve_
    row = estimator.history_.epochs[-1]
    assert row["validation_over_all"] == pytest.approx(row["validation_accuracy"])


def test_whole_epochs_are_kept_after_an_interrupt():
    def interrupt(trainer, row):
        if trainer.epoch == 3:
            raise KeyboardInterrupt

    estimator = small(callbacks=[interrupt])
    with pytest.raises(KeyboardInterrupt):
        estimator.fit(X, Y)
    assert estimator.n_iter_ == 3
    assert len(estimator.loss_curve_) == 2
    assert estimator.predict(X).shape == (150,)


# --- models ---------------------------------------------------------------------------


def test_an_output_layer_is_added_unless_the_model_ends_in_one():
    hidden = nn.Dense(8), nn.ReLU()
    whole = nn.Sequential(*hidden, nn.Dense(3))
    graph = nn.Graph(h=(nn.Sequential(*hidden), "x"), y=(nn.Dense(3), "h"))
    for model in ((8,), 8, [8], nn.Sequential(*hidden), whole):
        assert small(model=model, epochs=1).fit(X, Y).trainer_.model == whole
    assert small(model=graph, epochs=1).fit(X, Y).trainer_.model == graph
    added = small(model=whole, output_layer=True, epochs=1).fit(X, Y).trainer_.model
    assert added == nn.Sequential(*whole.layers, nn.Dense(3))
    ends = nn.Sequential(nn.Dense(3), nn.LogSoftmax())
    other = small(model=ends, output_layer=False, loss=nn.negative_log_likelihood)
    assert other.fit(X, Y).trainer_.model == ends
    np.testing.assert_allclose(other.predict_proba(X).sum(axis=1), 1.0)


def test_images_reach_convolutions():
    images = np.zeros((40, 6, 6, 1))
    images[20:, :3] = 1.0
    labels = np.repeat([0, 1], 20)
    model = nn.Sequential(nn.Conv2D(4, 3), nn.ReLU(), nn.GlobalAveragePool())
    estimator = small(model=model).fit(images, labels)
    assert estimator.score(images, labels) == 1.0


def test_a_loss_without_probabilities_has_no_predict_proba():
    estimator = small(loss=nn.multi_class_margin).fit(X, Y)
    assert not hasattr(estimator, "predict_proba")
    assert not hasattr(estimator, "predict_log_proba")
    assert estimator.score(X, Y) > 0.9
    smooth = partial(nn.softmax_cross_entropy, label_smoothing=0.1)
    assert hasattr(small(loss=smooth), "predict_proba")


def test_the_dtype_is_that_of_x():
    assert small().fit(X, Y).predict_proba(X).dtype == np.float64
    assert small().fit(X.astype("float32"), Y).trainer_.dtype == "float32"
    assert small(dtype="float32").fit(X, Y).predict_proba(X).dtype == np.float32
    mixed = small(precision="mixed_bfloat16", backend="torch:cpu").fit(X, Y)
    assert mixed.trainer_.precision == "mixed_bfloat16"
    assert mixed.predict_proba(X).dtype == np.float32


# --- parameters -----------------------------------------------------------------------

deep = NetClassifier(
    nn.Sequential(nn.Residual(nn.Dense(4), nn.Dropout(0.5)), nn.Dense(9)),
    optimizer=nn.ClipByGlobalNorm(nn.AdamW(0.1), 1.0),
    early_stopping=True,
)


@pytest.mark.parametrize(
    ("path", "before", "after"),
    [
        ("model__1__width", 9, 3),
        ("model__0__1__rate", 0.5, 0.25),
        ("model__0__0", nn.Dense(4), nn.Dense(4, bias=False)),
        ("optimizer__optimizer__rate", 0.1, 0.2),
        ("early_stopping__patience", 10, 2),
        ("early_stopping__monitor", "validation_loss", "loss"),
    ],
)
def test_options_of_layers_optimizers_and_callbacks_are_parameters(path, before, after):
    changed = clone(deep)
    assert changed.get_params()[path] == before
    changed.set_params(**{path: after})
    others = {
        name: value
        for name, value in changed.get_params().items()
        if not path.startswith(name) and not name.startswith(path)
    }
    assert changed.get_params()[path] == after
    assert all(deep.get_params()[name] == value for name, value in others.items())
    assert deep.get_params()[path] == before
    assert clone(changed).get_params() == changed.get_params()


def test_the_default_optimizer_has_parameters():
    estimator = NetClassifier()
    assert estimator.get_params()["optimizer__rate"] == 1e-3
    estimator.set_params(optimizer__rate=1e-2, optimizer__beta1=0.5)
    assert estimator.optimizer == nn.Adam(1e-2, beta1=0.5)
    both = NetClassifier().set_params(optimizer__rate=0.5, optimizer=nn.SGD(0.1))
    assert both.optimizer == nn.SGD(0.5)


REFUSED = [
    ({"model": "dense"}, TypeError, "expected model as a layer, or as the widths"),
    ({"model": nn.Dense}, TypeError, r"got the class Dense: write Dense\(...\)"),
    ({"model": (0,)}, ValueError, "width of at least 1, got 0"),
    ({"model": nn.Dense(5)}, ValueError, r"outputs of shape \(3,\).*makes \(5,\)"),
    ({"output_layer": "no"}, ValueError, "output_layer 'auto', True or False"),
    ({"loss": "hinge"}, TypeError, "the loss to be a function.*got 'hinge'"),
    ({"loss": nn.mean_squared_error}, TypeError, "real floating targets, got int32"),
    ({"optimizer": "adam"}, TypeError, "optimizer.*'adam'"),
    ({"epochs": 0}, ValueError, "epochs.*0"),
    ({"epochs": "ten"}, ValueError, "epochs.*ten"),
    ({"batch_size": "all"}, ValueError, "batch_size as an integer or 'auto'"),
    ({"early_stopping": 3}, TypeError, "early_stopping.*True or False, got 3"),
    ({"validation_fraction": 1.5}, ValueError, r"share in \(0, 1\), got 1.5"),
    ({"callbacks": "log"}, TypeError, "callbacks as a list, got 'log'"),
    ({"metrics": {"f": 3}}, TypeError, "metric 'f'"),
    ({"class_weight": "even"}, ValueError, "balanced"),
    ({"class_weight": {7: 1.0}}, ValueError, r"\[0, 1, 2\], are not in class_w"),
    ({"backend": "abacus"}, nn.BackendUnavailable, "no backend is called 'abacus'"),
    ({"dtype": "int8"}, ValueError, "int8"),
    ({"random_state": -1}, ValueError, "seed.* of at least 0, got -1"),
    ({"random_state": "x"}, ValueError, "'x' cannot be used to seed"),
]


@pytest.mark.parametrize(("options", "kind", "message"), REFUSED)
def test_values_of_parameters_are_refused_by_fit_with_what_was_expected(
    options, kind, message
):
    estimator = small(**options)
    with pytest.raises(kind, match=message):
        estimator.fit(X, Y)
    assert not hasattr(estimator, "trainer_")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rate", "Invalid parameter 'rate'.*Valid parameters are.*optimizer"),
        ("optimizer__momentum", r"Adam.* no parameter 'momentum'.*rate, beta1"),
        ("model__0__width", r"\(8,\) has no parameter '0', expected one of: none"),
        ("early_stopping__patience", "False has no parameter 'patience'"),
    ],
)
def test_names_of_parameters_are_refused_by_set_params_with_those_there_are(
    name, message
):
    with pytest.raises(ValueError, match=message):
        small().set_params(**{name: 1})


# --- data -----------------------------------------------------------------------------


@pytest.mark.parametrize("library", [pandas, polars], ids=lambda each: each.__name__)
def test_data_frames_have_names_of_features(library):
    names = ["a", "b", "c", "d"]
    frame = library.DataFrame(dict(zip(names, X.T, strict=True)))
    labels = library.Series(np.asarray(["x", "y", "z"])[Y].tolist())
    estimator = small().fit(frame, labels)
    assert estimator.feature_names_in_.tolist() == names
    assert estimator.n_features_in_ == 4
    assert set(estimator.predict(frame)) == {"x", "y", "z"}
    with pytest.raises(ValueError, match="feature names should match"):
        estimator.predict(frame[["b", "a", "c", "d"]])


def with_number(number):
    x = X.copy()
    x[7, 2] = number
    return x


BAD_DATA = [
    (scipy.sparse.csr_array(X), Y, TypeError, r"Use '.toarray\(\)'"),
    (with_number(np.nan), Y, ValueError, "contains NaN"),
    (with_number(np.inf), Y, ValueError, "infinity"),
    (X[:, 0], Y, ValueError, "Reshape your data"),
    (X, Y[:-1], ValueError, "inconsistent numbers of samples"),
    (X, X[:, 0], ValueError, "Unknown label type: continuous"),
]


@pytest.mark.parametrize(("x", "y", "kind", "message"), BAD_DATA)
def test_bad_data_are_refused(x, y, kind, message):
    with pytest.raises(kind, match=message):
        small().fit(x, y)


def test_data_of_another_shape_or_with_new_classes_are_refused():
    estimator = small(warm_start=True, epochs=1).fit(X, Y)
    with pytest.raises(ValueError, match="X has 3 features, but NetClassifier is exp"):
        estimator.predict(X[:, :3])
    with pytest.raises(ValueError, match=r"y has the classes \[3, 4\], which are not"):
        estimator.fit(X, np.where(Y == 2, Y + 1 + np.arange(150) % 2, Y))
    with pytest.raises(ValueError, match=r"sample_weight \(150,\), got \(150, 2\)"):
        estimator.fit(X, Y, np.ones((150, 2)))
    with pytest.raises(ValueError, match="weights are zero"):
        estimator.fit(X, Y, np.zeros(150))
    with pytest.raises(ValueError, match="at least 0, but weights"):
        estimator.fit(X, Y, np.where(np.arange(150) == 4, -1.0, 1.0))
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        small().partial_fit(X, Y)
    with pytest.raises(ValueError, match="class_weight as a dict for partial_fit"):
        small(class_weight="balanced").partial_fit(X, Y, classes=[0, 1, 2])
    columns = small(warm_start=True, epochs=1).fit(X, np.stack([Y] * 2, axis=1))
    with pytest.raises(ValueError, match=r"expected y \(examples, 2\)"):
        columns.fit(X, np.stack([Y] * 3, axis=1))


# --- arrays of other libraries --------------------------------------------------------


def test_arrays_of_torch_are_trained_on_by_torch():
    x = torch.asarray(X, dtype=torch.float32)
    labels = torch.asarray(Y)
    with sklearn.config_context(array_api_dispatch=True):
        estimator = small().fit(x, labels)
        assert estimator.trainer_.backend == nn.backend("torch:cpu")
        for result in (
            estimator.predict(x),
            estimator.predict_proba(x),
            estimator.decision_function(x),
            estimator.classes_,
        ):
            assert isinstance(result, torch.Tensor)
        assert estimator.score(x, labels) > 0.9
        regressor = NetRegressor((8,), **FEW).fit(x, x[:, 0])
        assert isinstance(regressor.predict(x), torch.Tensor)
        named = small().fit(x, np.asarray(["a", "b", "c"])[Y])
        assert set(named.predict(x)) <= {"a", "b", "c"}
        with pytest.raises(ValueError, match="must use the same namespace"):
            estimator.predict(X)
    numpy = small().fit(X.astype("float32"), Y)
    expected = estimator.predict_proba(X.astype("float32"))
    assert isinstance(expected, np.ndarray)
    np.testing.assert_allclose(numpy.predict_proba(X), expected, rtol=1e-3)


def test_early_stopping_holds_out_rows_of_torch():
    x, labels = torch.asarray(X), torch.asarray(Y)
    with sklearn.config_context(array_api_dispatch=True):
        there = small(early_stopping=True).fit(x, labels)
    here = small(early_stopping=True).fit(X, Y)
    np.testing.assert_allclose(
        there.history_["validation_loss"], here.history_["validation_loss"], rtol=1e-9
    )


def test_without_dispatch_arrays_become_those_of_numpy():
    x, labels = torch.asarray(X), torch.asarray(Y)
    estimator = small().fit(x, labels)
    assert estimator.trainer_.backend == nn.backend()
    assert isinstance(estimator.predict(x), np.ndarray)


@pytest.mark.parametrize("name", ["torch:cpu", "jax"])
def test_a_backend_by_name_takes_arrays_of_numpy(name):
    single = X.astype("float32")
    estimator = small(backend=name, epochs=5).fit(single, Y)
    assert estimator.trainer_.backend == nn.backend(name)
    assert isinstance(estimator.predict_proba(single), np.ndarray)
    expected = small(epochs=5).fit(single, Y).loss_curve_
    assert estimator.loss_curve_ == pytest.approx(expected, rel=1e-5)


def test_arrays_of_jax_stay_arrays_of_jax():
    import jax

    x = jax.numpy.asarray(X, dtype="float32")
    with sklearn.config_context(array_api_dispatch=True):
        estimator = small(epochs=5).fit(x, jax.numpy.asarray(Y))
        assert isinstance(estimator.predict(x), jax.Array)
    assert estimator.trainer_.backend == nn.backend("jax")


# --- with the rest of scikit-learn ----------------------------------------------------


def test_a_grid_search_in_two_processes_searches_options_inside():
    model = nn.Sequential(nn.Dense(1), nn.ReLU())
    pipeline = make_pipeline(StandardScaler(), small(model=model))
    grid = {
        "netclassifier__model__0__width": [1, 16],
        "netclassifier__optimizer__rate": [1e-5, 5e-2],
    }
    search = GridSearchCV(pipeline, grid, n_jobs=2, cv=3).fit(X, Y)
    assert search.best_params_ == {
        "netclassifier__model__0__width": 16,
        "netclassifier__optimizer__rate": 5e-2,
    }
    assert search.best_score_ > 0.9


def test_estimators_calibrate_stack_and_cross_validate():
    calibrated = CalibratedClassifierCV(small(), cv=2).fit(X, Y)
    assert calibrated.score(X, Y) > 0.8
    first = [("net", small()), ("linear", LogisticRegression())]
    assert StackingClassifier(first, cv=2).fit(X, Y).score(X, Y) > 0.9
    out_of_fold = cross_val_predict(small(epochs=40), X, Y, cv=2)
    assert (out_of_fold == Y).mean() > 0.85


def test_a_pipeline_passes_data_frames_on():
    frame = pandas.DataFrame(X, columns=list("abcd"))
    scaler = StandardScaler().set_output(transform="pandas")
    pipeline = make_pipeline(scaler, small()).fit(frame, Y)
    assert pipeline[-1].feature_names_in_.tolist() == list("abcd")
    assert pipeline.score(frame, Y) > 0.9


def copied(estimator, tmp_path):
    yield pickle.loads(pickle.dumps(estimator))
    yield copy.deepcopy(estimator)
    joblib.dump(estimator, tmp_path / "estimator")
    yield joblib.load(tmp_path / "estimator")


def test_copies_predict_the_same_and_train_on(tmp_path):
    estimator = small(warm_start=True).fit(X, Y)
    copies = list(copied(estimator, tmp_path))
    expected = estimator.predict_proba(X)
    continued = estimator.fit(X, Y).predict_proba(X)
    for other in copies:
        assert (other.predict_proba(X) == expected).all()
        assert (other.fit(X, Y).predict_proba(X) == continued).all()
        assert other.loss_curve_ == estimator.loss_curve_


def test_estimators_are_displayed():
    estimator = small(model=nn.Sequential(nn.Dense(8), nn.ReLU()))
    assert "Dense(width=8" in repr(estimator)
    for displayed in (estimator, estimator.fit(X, Y), make_pipeline(estimator)):
        html = displayed._repr_html_()
        assert "NetClassifier" in html
        assert "random_state" in html


def test_a_missing_scikit_learn_is_named_with_its_extra():
    program = "import sys; sys.modules['sklearn'] = None; import agnostic_nn.sklearn"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert "pip install 'agnostic-nn[sklearn]'" in result.stderr
