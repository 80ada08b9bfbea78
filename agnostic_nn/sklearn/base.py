"""The base class of the estimators: parameters, training and the outputs for X."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any, Self

import numpy as np
import sklearn
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from ..blocks import Graph, Sequential
from ..core.arrays import Array, Metric, namespace
from ..core.backend import Backend, backend_of
from ..core.backend import backend as choose
from ..core.errors import expect, expect_choice, expect_flag, expect_list
from ..core.trees import tree_map
from ..layers import Dense, Layer, ReLU
from ..layers.base import not_a_layer
from ..losses.base import Loss
from ..optimizers import Adam, Optimizer
from ..training import EarlyStopping, History, Trainer, stratified_split
from .arrays import like, place_of, rows_of, to_host
from .parameters import nested_parameters, with_parameter
from .targets import Targets

__all__ = ["Net"]

_AUTO_BATCH_SIZE = 200  # that of scikit-learn's MLPClassifier
_DEFAULT_VALIDATION_FRACTION = 0.1


class Net(BaseEstimator):  # type: ignore[misc]
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
        own = super().get_params(deep=False)
        # whole parameters first, then the options inside them
        for path in sorted(params, key=lambda path: path.count("__")):
            name, _, rest = path.partition("__")
            if name not in own:
                raise ValueError(
                    f"Invalid parameter {name!r} for {type(self).__name__}. Valid "
                    f"parameters are: {sorted(own)}"
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
                self._fitted_on = place_of(X)
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
            X = to_host(X)
        if trainer.model.input_kinds != "real floating":
            return X
        xp = namespace(X)
        return xp.astype(X, getattr(xp, _data_dtype(trainer)), copy=False)

    def _weights(self, sample_weight: Any, y: np.ndarray) -> np.ndarray | None:
        """Return the weights of the examples, or None if all count the same."""
        if sample_weight is None:
            return None
        weights = np.asarray(to_host(sample_weight), dtype=np.float64)
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
            tuple(rows_of(each, rows) for each in data)
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
            place = place_of(X)
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
        return tree_map(lambda y: like(X, y), predict(self._input(X, trainer)))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "trainer_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.array_api_support = True
        tags.target_tags.multi_output = True
        return tags


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
