"""scikit-learn estimators that train with this library.

`NetClassifier` and `NetRegressor` work in pipelines, grid searches and wherever else
scikit-learn takes an estimator.

    estimators  the two classes
    base        what they share: parameters, training and the outputs for X
    arrays      arrays of other libraries, moved to the host and back
    targets     how y becomes the target of a loss, and outputs become predictions
    parameters  options of layers and optimizers as parameters, such as optimizer__rate
"""

from agnostic_nn.interop.extras import import_extra

# first, so that the error names the extra if scikit-learn is missing
import_extra("sklearn", extra="sklearn", purpose="agnostic_nn.sklearn")

from .estimators import NetClassifier, NetRegressor  # noqa: E402

__all__ = ["NetClassifier", "NetRegressor"]
