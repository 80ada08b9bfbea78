"""NetClassifier and NetRegressor: a `Trainer` with the methods of scikit-learn."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any, Self

import numpy as np
import sklearn
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data

from ..blocks import Graph, Sequential
from ..core.arrays import Array, Metric, device, namespace
from ..core.backend import Backend, backend_of
from ..core.backend import backend as choose
from ..core.errors import expect, expect_choice, expect_flag, expect_list
from ..core.trees import leaves, tree_map
from ..layers import Dense, Layer, ReLU
from ..layers.base import not_a_layer
from ..losses.base import Loss, probabilities_of
from ..optimizers import Adam, Optimizer
from ..training import EarlyStopping, History, Trainer, stratified_split
from .parameters import nested_parameters, with_parameter
from .targets import Columns, Indicators, Labels, Numbers, Targets

__all__ = ["NetClassifier", "NetRegressor"]

_AUTO_BATCH_SIZE = 200  # that of scikit-learn's MLPClassifier
_DEFAULT_VALIDATION_FRACTION = 0.1


class _Net(BaseEstimator):  # type: ignore[misc]
    """Base class of the classifier and the regressor; see `NetClassifier`."""

    trainer_: Trainer
    history_: History
    loss_curve_: list[float]
    n_iter_: int
    _targets: Targets
    _fitted_on: tuple[str, str]

    def __init__(
        self,
        model: Any = (100,),
        *,
        output_layer: str | bool = "auto",
        loss: Loss | None = None,
        optimizer: Optimizer | None = None,
        epochs: int = 200,
        batch_size: int | str = "auto",
        early_stopping: bool | EarlyStopping = False,
        validation_fraction: float | None = None,
        callbacks: Sequence[Any] = (),
        metrics: dict[str, Metric] | None = None,
        backend: Backend | str | None = None,
        dtype: str | None = None,
        precision: str | None = None,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.model = model
        self.output_layer = output_layer
        self.loss = loss
        self.optimizer = optimizer
        self.epochs = epochs
        self.batch_size = batch_size
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.callbacks = callbacks
        self.metrics = metrics
        self.backend = backend
        self.dtype = dtype
        self.precision = precision
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose

    # --- parameters -------------------------------------------------------------------

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name.

        deep: with the options inside them, such as optimizer__rate and model__0__width.
        """
        params: dict[str, Any] = super().get_params(deep=False)
        if deep:
            for name in list(params):
                params.update(nested_parameters(name, self._with_options(name)))
        return params

    def set_params(self, **params: Any) -> Self:
        """Set parameters, also options inside them: `optimizer__rate=1e-2`.

        Raises
        ------
        ValueError
            If there is no such parameter.
        """
        known = super().get_params(deep=False)
        # whole parameters first, then the options inside them
        for path in sorted(params, key=lambda path: path.count("__")):
            name, _, rest = path.partition("__")
            if name not in known:
                raise ValueError(
                    f"Invalid parameter {name!r} for {type(self).__name__}. Valid "
                    f"parameters are: {sorted(known)}"
                )
            new = params[path]
            if rest:
                new = with_parameter(self._with_options(name), rest, new)
            setattr(self, name, new)
        return self

    def _with_options(self, name: str) -> Any:
        """Return the value of a parameter, or the object that stands for it."""
        value = getattr(self, name)
        if name == "optimizer" and value is None:
            return Adam()
        if name == "early_stopping" and value is True:
            return EarlyStopping()
        return value

    # --- training ---------------------------------------------------------------------

    def _learn(
        self, X: Any, y: Any, sample_weight: Any, targets: Targets | None, epochs: int
    ) -> Self:
        """Train on validated data; targets: of a new network, or None to go on."""
        losses: list[float] = []
        if targets is None:
            targets = self._targets
            trainer = self._continued_trainer(targets)
            losses = self.loss_curve_
        else:
            trainer = self._new_trainer(X, targets)
        target = targets.encode(y, _data_dtype(trainer))
        weights = self._weights(sample_weight, y)
        if weights is not None:
            weights = weights.astype(_data_dtype(trainer))
        data = self._input(X, trainer), target, weights
        data, held_out = self._split(data, targets, trainer.seed)
        rows: list[dict[str, Any]] = []
        try:
            trainer.fit(
                data[0],
                data[1],
                weights=data[2],
                epochs=epochs,
                batch_size=self._batch_size(data[0].shape[0]),
                validation=None if held_out is None else [held_out],
                callbacks=[*self._callbacks(), lambda _, row: rows.append(dict(row))],
                verbose=self.verbose,
            )
        finally:
            if rows:  # after Ctrl-C the weights of whole epochs are there
                self.trainer_ = trainer
                self._targets = targets
                self._fitted_on = _place(X)
                self.history_ = History(rows)
                self.loss_curve_ = losses + [row["loss"] for row in rows]
                self.n_iter_ = trainer.epoch
        return self

    def _continued_trainer(self, targets: Targets) -> Trainer:
        """Return the trainer of the last call, with the current optimizer."""
        trainer = self.trainer_
        model = self._whole_model(targets)
        loss = targets.loss_of(self.loss)
        if model != trainer.model or loss != trainer.loss:
            raise ValueError(
                "model or loss was changed after the last call, whose network warm_"
                "start and partial_fit continue: use fit with warm_start=False"
            )
        optimizer = self._with_options("optimizer")
        if optimizer != trainer.optimizer:
            trainer.optimizer = optimizer
        return trainer

    def _new_trainer(self, X: Array, targets: Targets) -> Trainer:
        """Return a trainer of a new network for data like X."""
        backend = self.backend
        if backend is None and not isinstance(X, np.ndarray):
            backend = backend_of(X)
        if not isinstance(backend, Backend):
            backend = choose(backend)
        dtype = self.dtype
        if dtype is None:
            is_single = str(X.dtype).endswith("float32") or self.precision is not None
            dtype = "float32" if is_single or not backend.has_float64 else "float64"
        shape = tuple(X.shape[1:])
        trainer = Trainer(
            self._whole_model(targets),
            targets.loss_of(self.loss),
            self._with_options("optimizer"),
            backend=backend,
            seed=_seed(self.random_state),
            dtype=dtype,
            precision=self.precision,
            shape=shape,
            metrics=self.metrics,
        )
        expect(
            trainer.out_shape == targets.out_shape,
            "expected a model with outputs of shape {} for this y, but it makes {} of "
            "examples {}: end it before its last layer, and output_layer=True adds one "
            "of the right width",
            *(targets.out_shape, trainer.out_shape, shape),
        )
        return trainer

    def _whole_model(self, targets: Targets) -> Layer:
        """Return the model with an output layer."""
        model = self.model
        if isinstance(model, int | tuple | list):
            widths = [model] if isinstance(model, int) else model
            layers = [layer for width in widths for layer in (Dense(width), ReLU())]
            model = Sequential(*layers)
        elif not isinstance(model, Layer):
            raise TypeError(
                "expected model as a layer, or as the widths of hidden layers such as "
                f"(64, 32), got {not_a_layer(model)}"
            )
        choice = self.output_layer
        if choice not in ("auto", True, False):
            raise ValueError(
                f"expected output_layer 'auto', True or False, got {choice!r}"
            )
        is_complete = (
            isinstance(_last(model), Dense) if choice == "auto" else not choice
        )
        return model if is_complete else targets.with_output(model)

    def _input(self, X: Array, trainer: Trainer) -> Array:
        """Return X for the trainer: in its dtype, on its backend or on the host."""
        if not trainer.backend.holds(X):
            X = _to_host(X)
        if trainer.model.input_kinds != "real floating":
            return X
        xp = namespace(X)
        return xp.astype(X, getattr(xp, _data_dtype(trainer)), copy=False)

    def _weights(self, sample_weight: Any, y: np.ndarray) -> np.ndarray | None:
        """Return the weights of the examples, or None if all count the same."""
        if sample_weight is None:
            return None
        weights = np.asarray(_to_host(sample_weight), dtype=np.float64)
        fits = weights.shape == (len(y),)
        expect(fits, "expected sample_weight ({},), got {}", len(y), weights.shape)
        message = "expected a sample_weight above 0, but all {} weights are zero"
        expect(bool(weights.any()), message, len(y))
        return weights

    def _batch_size(self, count: int) -> int:
        if not isinstance(self.batch_size, str):
            return self.batch_size
        expect_choice("batch_size as an integer or", self.batch_size, ("auto",))
        return min(_AUTO_BATCH_SIZE, count)

    def _callbacks(self) -> list[Any]:
        expect_list("callbacks", self.callbacks)
        stopping = self._with_options("early_stopping")
        if isinstance(stopping, EarlyStopping):
            return [*self.callbacks, stopping]
        expect_flag("early_stopping, if it is not an nn.EarlyStopping,", stopping)
        return list(self.callbacks)

    def _split(
        self, data: tuple[Any, ...], targets: Targets, seed: int
    ) -> tuple[tuple[Any, ...], tuple[Any, ...] | None]:
        """Return the training data, and the validation data or None."""
        share = self.validation_fraction
        if share is None:
            monitor = getattr(self._with_options("early_stopping"), "monitor", "")
            if not monitor.startswith("validation_"):
                return data, None
            share = _DEFAULT_VALIDATION_FRACTION
        labels = targets.split_by_class(data[1])
        parts = [
            tuple(_rows_of(each, rows) for each in data)
            for rows in stratified_split(labels, share, seed=seed)
        ]
        training, held_out = parts
        if held_out[2] is None:
            return training, held_out[:2]
        expect(
            held_out[2].sum() > 0.0,
            "the weights of all {} validation examples are 0",
            len(held_out[2]),
        )
        return training, held_out

    # --- prediction -------------------------------------------------------------------

    def _outputs(self, X: Any, method: str, *, probabilities: bool = False) -> Any:
        """Return the outputs of the network for X, or probabilities, where X is.

        method: the one that was called, for an error.
        """
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, allow_nd=True)
        if sklearn.get_config()["array_api_dispatch"]:
            place = _place(X)
            name = f"{type(self).__name__}.{method}()"
            expect(
                place == self._fitted_on,
                f"the input of {name} must use the same namespace and the same device "
                "as that of fit: it is on {}, that of fit was on {}",
                " ".join(place),
                " ".join(self._fitted_on),
            )
        trainer = self.trainer_
        predict = trainer.predict_probabilities if probabilities else trainer.predict
        return tree_map(lambda y: _like(X, y), predict(self._input(X, trainer)))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "trainer_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.array_api_support = True
        tags.target_tags.multi_output = True
        return tags


def _makes_probabilities(estimator: _Net) -> bool:
    """Return whether the loss makes probabilities of outputs."""
    return estimator.loss is None or probabilities_of(estimator.loss) is not None


class NetClassifier(ClassifierMixin, _Net):  # type: ignore[misc]
    """Neural network that classifies: a scikit-learn estimator around `Trainer`.

    y holds the class of each example, of any type, or 0 and 1 for each of several
    labels, (examples, labels), or several columns of classes. The outputs of the
    network are a score for each class; `predict` returns the class with the largest,
    and of labels those with a score above 0.

    Parameters
    ----------
    model
        The hidden layers: a layer such as `nn.Sequential(...)`, or widths, (64, 32), of
        `Dense` layers with `ReLU`.
    output_layer
        Whether to add a `Dense` with the outputs behind the model. "auto" does so
        unless the model ends in a `Dense`.
    loss
        The default is `softmax_cross_entropy`, or `binary_cross_entropy` for several
        labels. Other losses get integers from 0 as targets, or 0.0 and 1.0 for labels.
    optimizer
        The default is `Adam()`.
    epochs
        The number of passes through the data.
    batch_size
        The number of examples in a step; "auto" is 200, or all if there are fewer.
    early_stopping
        True stops when the loss on held-out data has not improved for 10 epochs, and
        restores the best weights. An `nn.EarlyStopping` has other settings.
    validation_fraction
        The share of examples that is held out to measure `validation_loss` and metrics
        after each epoch, with the same share of each class. The default is 0.1 with
        early_stopping, and none without.
    callbacks
        `nn.Callback` objects or functions (trainer, row).
    metrics
        {name: function of (y, target)} to report for each epoch: see `Trainer`.
    class_weight
        "balanced", or a dict from classes to weights, which multiply `sample_weight`;
        for several columns a list of dicts.
    backend
        The name of a backend such as "jax". By default that of X if scikit-learn's
        array_api_dispatch is on, and otherwise, for NumPy arrays, lists and DataFrames,
        that of `nn.backend()`.
    dtype
        The default is "float32" if X is float32, and otherwise "float64" if the backend
        has it. float32 is up to twice as fast.
    precision
        "mixed_bfloat16" or "mixed_float16": see `Trainer`.
    warm_start
        Whether `fit` continues from the weights of the last one. Optimizer, epochs and
        data may then change; backend, dtype and seed stay as they were.
    random_state
        Fixes weights, dropout, the order of the data and the held-out examples. An
        integer is the `seed` of the `Trainer`.
    verbose
        0 shows no progress bar.

    Attributes
    ----------
    classes_
        The classes in sorted order; for several columns a list of arrays.
    trainer_
        The `Trainer`, with the parameters, `summary()`, `save` and `to`.
    history_
        The `History` of the last call: loss and metrics of each epoch.
    loss_curve_
        The training loss of each epoch since the network was created.
    n_iter_
        The number of these epochs.
    n_features_in_, feature_names_in_
        The number of columns of X, and their names if X is a DataFrame.
    """

    def __init__(
        self,
        model: Any = (100,),
        *,
        output_layer: str | bool = "auto",
        loss: Loss | None = None,
        optimizer: Optimizer | None = None,
        epochs: int = 200,
        batch_size: int | str = "auto",
        early_stopping: bool | EarlyStopping = False,
        validation_fraction: float | None = None,
        callbacks: Sequence[Any] = (),
        metrics: dict[str, Metric] | None = None,
        class_weight: Any = None,
        backend: Backend | str | None = None,
        dtype: str | None = None,
        precision: str | None = None,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(
            model,
            output_layer=output_layer,
            loss=loss,
            optimizer=optimizer,
            epochs=epochs,
            batch_size=batch_size,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            callbacks=callbacks,
            metrics=metrics,
            backend=backend,
            dtype=dtype,
            precision=precision,
            warm_start=warm_start,
            random_state=random_state,
            verbose=verbose,
        )
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on X (examples, features) and y; return the estimator.

        X may also be images or sequences, with more axes, if the model takes them.
        sample_weight: how much each example counts in the loss.
        """
        is_new = not (self.warm_start and self.__sklearn_is_fitted__())
        return self._fit(X, y, None, sample_weight, is_new, self.epochs)

    def partial_fit(
        self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None
    ) -> Self:
        """Train for one epoch on X and y, which may be a part of the data.

        classes: all classes that will occur; needed in the first call only, and not for
        several labels. For several columns of y a list of arrays.
        """
        expect(
            self.class_weight != "balanced",
            "expected class_weight as a dict for partial_fit, got 'balanced': one part "
            "of the data does not show how often classes are. See "
            "sklearn.utils.class_weight.compute_class_weight",
        )
        is_new = not self.__sklearn_is_fitted__()
        return self._fit(X, y, classes, sample_weight, is_new, 1, is_part=True)

    def _fit(
        self,
        X: Any,
        y: Any,
        classes: Any,
        sample_weight: Any,
        is_new: bool,
        epochs: int,
        *,
        is_part: bool = False,
    ) -> Self:
        y = _to_host(y.toarray() if hasattr(y, "toarray") else y)
        X, y = validate_data(self, X, y, multi_output=True, reset=is_new, allow_nd=True)
        check_classification_targets(y)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        targets = self._new_targets(y, classes, is_part) if is_new else None
        self._learn(X, y, sample_weight, targets, epochs)
        if targets is not None:
            self.classes_ = self._classes(X)
        return self

    def _new_targets(self, y: np.ndarray, classes: Any, is_part: bool) -> Targets:
        """Return how to encode y."""
        if classes is None and type_of_target(y).startswith("multilabel"):
            return Indicators(y.shape[1])
        if is_part and classes is None:
            raise ValueError(
                "classes must be passed on the first call to partial_fit, as one part "
                "of the data may lack some"
            )
        if y.ndim == 1:
            return Labels(np.unique(y if classes is None else _to_host(classes)))
        columns = list(y.T) if classes is None else classes
        count = len(columns)
        fits = count == y.shape[1]
        expect(fits, "expected classes of {} columns, got {}", y.shape[1], count)
        unique = [np.unique(_to_host(column)) for column in columns]
        return Columns({f"y{i}": Labels(each) for i, each in enumerate(unique)})

    def _classes(self, X: Array) -> Any:
        """Return `classes_`, in the library of X where it has such a dtype."""
        if isinstance(self._targets, Labels):
            return _like(X, self._targets.classes)
        if isinstance(self._targets, Columns):
            columns = self._targets.columns.values()
            return [_like(X, labels.classes) for labels in columns]
        return _like(X, np.arange(self._targets.out_shape[0]))

    def _weights(self, sample_weight: Any, y: np.ndarray) -> np.ndarray | None:
        weights = super()._weights(sample_weight, y)
        if self.class_weight is None:
            return weights
        by_class: np.ndarray = compute_sample_weight(self.class_weight, y)
        return by_class if weights is None else weights * by_class

    def predict(self, X: Any) -> Any:
        """Return the class of each example, in the form of the y passed to `fit`."""
        outputs = self._outputs(X, "predict")
        predictions = self._targets.decode(tree_map(_to_host, outputs))
        return _like(leaves(outputs)[0], predictions)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the share of examples whose prediction is right in all columns."""
        if not self.__sklearn_is_fitted__() or not isinstance(self._targets, Columns):
            return float(super().score(X, y, sample_weight))
        is_right = (_to_host(self.predict(X)) == np.asarray(_to_host(y))).all(axis=1)
        return float(np.average(is_right, weights=sample_weight))

    @available_if(_makes_probabilities)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> Any:
        """Return the probability of each class, or label; of several columns a list."""
        return _listed(self._outputs(X, "predict_proba", probabilities=True))

    @available_if(_makes_probabilities)  # type: ignore[untyped-decorator]
    def predict_log_proba(self, X: Any) -> Any:
        """Return the logarithm of `predict_proba`."""
        outputs = self._outputs(X, "predict_log_proba", probabilities=True)
        return _listed(tree_map(lambda p: namespace(p).log(p), outputs))

    def decision_function(self, X: Any) -> Any:
        """Return the outputs of the network; of two classes the second less the first.

        With several columns of y it is a list of arrays.
        """
        outputs = self._outputs(X, "decision_function")
        if isinstance(self._targets, Indicators):
            return outputs
        return _listed(tree_map(_difference_of_two, outputs))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class NetRegressor(RegressorMixin, _Net):  # type: ignore[misc]
    """Neural network that predicts numbers: a scikit-learn estimator around `Trainer`.

    y holds one number for each example or several, (examples, outputs). The network
    learns best if y is about as large as 1: see
    `sklearn.compose.TransformedTargetRegressor`.

    Parameters and attributes are those of `NetClassifier`, without `class_weight` and
    `classes_`. The default loss is `mean_squared_error`.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on X (examples, features) and y; return the estimator.

        X may also be images or sequences, with more axes, if the model takes them.
        sample_weight: how much each example counts in the loss.
        """
        is_new = not (self.warm_start and self.__sklearn_is_fitted__())
        return self._fit(X, y, sample_weight, is_new, self.epochs)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train for one epoch on X and y, which may be a part of the data."""
        is_new = not self.__sklearn_is_fitted__()
        return self._fit(X, y, sample_weight, is_new, 1)

    def _fit(
        self, X: Any, y: Any, sample_weight: Any, is_new: bool, epochs: int
    ) -> Self:
        X, y = validate_data(
            self,
            X,
            _to_host(y),
            multi_output=True,
            y_numeric=True,
            reset=is_new,
            allow_nd=True,
        )
        targets = Numbers(y.shape[1:]) if is_new else None
        return self._learn(X, y, sample_weight, targets, epochs)

    def predict(self, X: Any) -> Any:
        """Return the numbers for each example, in the form of the y passed to `fit`."""
        outputs = self._outputs(X, "predict")
        is_single = self._targets == Numbers(())
        return outputs[:, 0] if is_single else outputs


def _last(model: Layer) -> Layer:
    """Return the last layer of a sequence, or of a graph with one output."""
    if isinstance(model, Sequential) and type(model) is Sequential and model.layers:
        return _last(model.layers[-1])
    if isinstance(model, Graph) and isinstance(model.outputs, str):
        last = dict(model.nodes).get(model.outputs, (model,))[0]
        return model if last is model else _last(last)
    return model


def _data_dtype(trainer: Trainer) -> str:
    """Return the dtype of data; in half precision it is float32."""
    return "float64" if trainer.dtype == "float64" else "float32"


def _seed(random_state: Any) -> int:
    """Return the seed of a trainer for an int, a generator or None."""
    if isinstance(random_state, Integral):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))


def _to_host(values: Any) -> Any:
    """Return an array of another library as NumPy's, and anything else unchanged."""
    try:
        xp = namespace(values)
    except TypeError:  # lists, DataFrames
        return values
    if xp is namespace(np.empty(0)):
        return values
    return backend_of(values).to_numpy(values)


def _like(X: Any, values: Array) -> Array:
    """Return numbers as an array of the library and device of X; text stays NumPy's."""
    if isinstance(X, np.ndarray) or not isinstance(values, np.ndarray):
        return values
    if values.dtype.kind not in "biuf":
        return values
    return namespace(X).asarray(values, device=device(X))


def _rows_of(data: Any, rows: np.ndarray) -> Any:
    """Return some rows of each array in a tree; None stays None."""
    if data is None:
        return None

    def of_array(array: Array) -> Array:
        xp = namespace(array)
        return xp.take(array, xp.asarray(rows, device=device(array)), axis=0)

    return tree_map(of_array, data)


def _place(X: Array) -> tuple[str, str]:
    """Return the names of the library and of the device of X."""
    return namespace(X).__name__, str(device(X))


def _difference_of_two(scores: Array) -> Array:
    """Return the score of the second class less the first, of more all scores."""
    return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores


def _listed(outputs: Any) -> Any:
    """Return the values of a dict as a list, and an array unchanged."""
    return list(outputs.values()) if isinstance(outputs, dict) else outputs
