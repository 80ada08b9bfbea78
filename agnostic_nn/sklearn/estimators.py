"""NetClassifier and NetRegressor: a `Trainer` with the methods of scikit-learn."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils import column_or_1d
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import validate_data

from ..core.arrays import Array, Metric, namespace
from ..core.backend import Backend
from ..core.errors import expect
from ..core.trees import leaves, tree_map
from ..losses.base import Loss, probabilities_of
from ..optimizers import Optimizer
from ..training import EarlyStopping
from .arrays import like, to_host
from .base import Net
from .targets import Columns, Indicators, Labels, Numbers, Targets

__all__ = ["NetClassifier", "NetRegressor"]


def _makes_probabilities(estimator: Net) -> bool:
    """Return whether the loss makes probabilities of outputs."""
    return estimator.loss is None or probabilities_of(estimator.loss) is not None


class NetClassifier(ClassifierMixin, Net):  # type: ignore[misc]
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
        y = to_host(y.toarray() if hasattr(y, "toarray") else y)
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
            return Labels(np.unique(y if classes is None else to_host(classes)))
        columns = list(y.T) if classes is None else classes
        count = len(columns)
        fits = count == y.shape[1]
        expect(fits, "expected classes of {} columns, got {}", y.shape[1], count)
        unique = [np.unique(to_host(column)) for column in columns]
        return Columns({f"y{i}": Labels(each) for i, each in enumerate(unique)})

    def _classes(self, X: Array) -> Any:
        """Return `classes_`, in the library of X where it has such a dtype."""
        if isinstance(self._targets, Labels):
            return like(X, self._targets.classes)
        if isinstance(self._targets, Columns):
            columns = self._targets.columns.values()
            return [like(X, labels.classes) for labels in columns]
        return like(X, np.arange(self._targets.out_shape[0]))

    def _weights(self, sample_weight: Any, y: np.ndarray) -> np.ndarray | None:
        weights = super()._weights(sample_weight, y)
        if self.class_weight is None:
            return weights
        by_class: np.ndarray = compute_sample_weight(self.class_weight, y)
        return by_class if weights is None else weights * by_class

    def predict(self, X: Any) -> Any:
        """Return the class of each example, in the form of the y passed to `fit`."""
        outputs = self._outputs(X, "predict")
        predictions = self._targets.decode(tree_map(to_host, outputs))
        return like(leaves(outputs)[0], predictions)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the share of examples whose prediction is right in all columns."""
        if not self.__sklearn_is_fitted__() or not isinstance(self._targets, Columns):
            return float(super().score(X, y, sample_weight))
        is_right = (to_host(self.predict(X)) == np.asarray(to_host(y))).all(axis=1)
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


class NetRegressor(RegressorMixin, Net):  # type: ignore[misc]
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
            to_host(y),
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


def _difference_of_two(scores: Array) -> Array:
    """Return the score of the second class less the first, of more all scores."""
    return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores


def _listed(outputs: Any) -> Any:
    """Return the values of a dict as a list, and an array unchanged."""
    return list(outputs.values()) if isinstance(outputs, dict) else outputs
