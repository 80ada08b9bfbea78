"""scikit-learn: `MLPClassifier`, a batch at a time by `partial_fit`.

Its weights are overwritten with ours, and its optimizer starts again. It computes in
float32 if x is float32.
"""

import warnings

from ..workloads import EPOCH
from . import Contender, Unavailable

__all__ = ["NAMES", "make", "versions"]

NAMES = ("scikit-learn",)


def make(name, workload):
    if workload.name not in ("mlp", "tiny"):
        raise Unavailable("supports dense layers and classification only")
    try:
        import sklearn.exceptions
        import sklearn.neural_network
    except ImportError as error:
        raise Unavailable(f"scikit-learn cannot be imported: {error}") from error
    # each `fit` is one epoch, which does not converge
    warnings.simplefilter("ignore", sklearn.exceptions.ConvergenceWarning)
    return _Classifier(sklearn.neural_network.MLPClassifier, workload)


def versions():
    import sklearn

    return {"scikit-learn": sklearn.__version__}


class _Classifier(Contender):
    host_arrays = True

    def __init__(self, kind, workload):
        named = sorted(workload.parameters().items())
        weights = [value for name, value in named if name.endswith("weight")]
        biases = [value for name, value in named if name.endswith("bias")]
        self.batches = workload.batches()
        self.examples = workload.examples(EPOCH) if workload.name == "tiny" else None
        self.network = kind(
            hidden_layer_sizes=[weight.shape[1] for weight in weights[:-1]],
            solver=workload.rule,
            alpha=0.0,
            batch_size=workload.batch,
            learning_rate_init=workload.rate,
            momentum=0.0,
            nesterovs_momentum=False,
            max_iter=1,
        )
        self.network.partial_fit(*self.batches[0], classes=range(weights[-1].shape[1]))
        for coefficients, weight in zip(self.network.coefs_, weights, strict=True):
            coefficients[...] = weight
        for intercepts, bias in zip(self.network.intercepts_, biases, strict=True):
            intercepts[...] = bias
        del self.network._optimizer

    def step(self, i):
        self.network.partial_fit(*self.batches[i % len(self.batches)])

    def loss(self):
        return self.network.loss_

    def epoch(self):
        self.network.set_params(warm_start=True)  # `partial_fit` refuses it
        self.network.fit(*self.examples)
        self.network.set_params(warm_start=False)

    def predict(self):
        self.network.predict_proba(self.batches[0][0][:1])
