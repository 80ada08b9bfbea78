"""Compare an ONNX file, run by ONNX Runtime, with the formulas on NumPy."""

from pathlib import Path
from typing import Any

import numpy as np

from ..core.trees import leaves
from ..diagnostics.observe import Hook, observed_model
from ..layers import Layer
from .extras import import_extra
from .onnx_graph import onnx
from .onnx_jobs import Job, flat_trees
from .onnx_recorder import Recorder, layer_name

__all__ = ["Checker"]

_Array = np.ndarray[Any, Any]

_CHECKED = 1, 2, 5  # the batch sizes at which an exported graph is compared
_STEPS = 3  # of training that are compared


class Checker:
    """Runs a file in ONNX Runtime, and compares it with the formulas on NumPy."""

    def __init__(
        self,
        job: Job,
        path: Path,
        model: Any,
        recorder: Recorder,
        tolerance: float,
    ) -> None:
        self._job = job
        self._path = path
        self._model = model
        self._recorder = recorder
        self._tolerance = tolerance
        self.undetermined: set[str] = set()
        self._runtime = import_extra(
            "onnxruntime", extra="onnx", purpose="export_onnx with check=True"
        )

    def run(self) -> dict[str, float]:
        """Return the largest deviation of each run; raise if one is too large."""
        session = self._session(str(self._path))
        if self._job.is_training:
            return self._run_steps(session)
        checked = {}
        names = [symbol.name for symbol in self._job.symbols]
        cases = [self._job.fixed]
        if names:
            cases = [
                self._job.fixed | {s: n if s == "batch" else 2 * n + 5 for s in names}
                for n in _CHECKED
            ]
        for lengths in cases:
            inputs = self._job.inputs(lengths)
            result = self._outputs(session, flat_trees(inputs), lengths)
            expected = self._job.run(inputs, self._job.carry)
            label = ", ".join(f"{name} {n}" for name, n in lengths.items())
            checked[label] = self._compare(expected, result, label, inputs)
        return checked

    def _session(self, model: Any) -> Any:
        options = self._runtime.SessionOptions()
        options.log_severity_level = 4
        return self._runtime.InferenceSession(model, options)

    def _outputs(
        self, session: Any, feed: dict[str, _Array], lengths: Any
    ) -> dict[str, _Array]:
        names = [output.name for output in session.get_outputs()]
        try:
            return dict(zip(names, session.run(names, feed), strict=True))
        except Exception as error:  # ONNX Runtime has no public class of errors
            reason = " ".join(str(error).split())
            remedy = ": pass batch=N" if self._job.symbols else ""
            raise ValueError(
                f"the exported graph fails in ONNX Runtime for {lengths}{remedy}: "
                f"{reason}"
            ) from error

    def _run_steps(self, session: Any) -> dict[str, float]:
        """Compare steps one by one, each from the carry of this library."""
        inputs = self._job.inputs({})
        carry = self._job.carry
        checked = {}
        for number in range(1, _STEPS + 1):
            if "step" in inputs and number > 1:
                inputs = inputs | {"step": np.asarray(inputs["step"] + 1)}
            result = self._outputs(
                session, flat_trees(inputs) | carry, f"step {number}"
            )
            expected = self._job.run(inputs, carry)
            self._leave_out_noise(expected, inputs, carry)
            label = f"step {number}"
            checked[label] = self._compare(expected, result, label, None)
            carry = {k: np.asarray(v) for k, v in _following(expected).items()}
        return checked

    def _leave_out_noise(
        self,
        expected: dict[str, _Array],
        inputs: dict[str, Any],
        carry: dict[str, _Array],
    ) -> None:
        """Find outputs that change as much as the tolerance if weights hardly do."""
        generator = np.random.default_rng(2)
        size = self._tolerance / 100

        def moved(array: _Array) -> _Array:
            if array.dtype.kind != "f":
                return array
            noise = generator.standard_normal(array.shape) * size
            return np.asarray(array * (1 + noise), array.dtype)

        params = {k: moved(v) for k, v in carry.items() if k.startswith("params.")}
        changed = self._job.run(inputs, carry | params)
        for name, array in expected.items():
            if _deviation(np.asarray(changed[name]), array) > self._tolerance / 4:
                self.undetermined.add(name)

    def _compare(
        self,
        expected: dict[str, _Array],
        result: dict[str, _Array],
        label: str,
        inputs: Any,
    ) -> float:
        worst = 0.0
        for name, array in expected.items():
            if name in self.undetermined:
                continue
            error = _deviation(result[name], array)
            if not error <= self._tolerance:
                where = "" if inputs is None else self._first_difference(inputs)
                raise ValueError(
                    f"the exported graph computes another {name} than the model for "
                    f"{label}: it deviates by {error:.2g}, where {self._tolerance:g} "
                    f"is allowed{where}"
                    + ("; pass batch=N" if self._job.symbols else "")
                )
            worst = max(worst, error)
        return worst

    def _first_difference(self, inputs: dict[str, Any]) -> str:
        """Return the name of the first layer whose y differs, as part of a message."""
        expected: dict[str, tuple[str, list[Any]]] = {}

        def hooks(layer: Layer, path: str) -> dict[str, Hook]:
            def forward(method: Any, *args: Any, **kwargs: Any) -> Any:
                result = method(*args, **kwargs)
                y = result[0] if method.func.__name__ == "forward" else result
                expected.pop(path, None)
                expected[path] = layer_name(layer, path), leaves(y)
                return result

            return {"forward": forward, "predict": forward}

        model = observed_model(self._job.model, hooks)
        with np.errstate(all="ignore"):
            self._job.compute(model, self._job.nested(self._job.carry), inputs)
        computed = {name for node in self._model.graph.node for name in node.output}
        to_compare = {
            label: (name, array)
            for path, (name, arrays) in expected.items()
            for label, array in zip(
                self._recorder.layer_outputs.get(path, []), arrays, strict=False
            )
            if label in computed
        }
        twin = onnx.ModelProto()
        twin.CopyFrom(self._model)
        twin.graph.output.extend(
            onnx.ValueInfoProto(name=label) for label in to_compare
        )
        session = self._session(twin.SerializeToString())
        results = session.run(list(to_compare), flat_trees(inputs))
        for result, (name, array) in zip(results, to_compare.values(), strict=True):
            if not _deviation(result, np.asarray(array)) <= self._tolerance:
                return f". The first layer whose output differs is {name}"
        return ""


def _following(outputs: dict[str, _Array]) -> dict[str, _Array]:
    """Return the inputs of the next step that are outputs of the one before it."""
    start = "next."
    return {k.removeprefix(start): v for k, v in outputs.items() if k.startswith(start)}


def _deviation(result: _Array, expected: Any) -> float:
    """Return max|result - expected| / (1 + max|expected|), or ∞ if shapes differ."""
    expected = np.asarray(expected)
    if result.shape != expected.shape:
        return float("inf")
    if not expected.size:
        return 0.0
    wide = expected.astype(np.float64)
    with np.errstate(all="ignore"):
        error = np.abs(result.astype(np.float64) - wide)
    error = np.where(np.isnan(wide) & np.isnan(result.astype(np.float64)), 0.0, error)
    error = np.where(wide == result.astype(np.float64), 0.0, error)
    finite = wide[np.isfinite(wide)]
    scale = 1.0 + (float(np.max(np.abs(finite))) if finite.size else 0.0)
    worst = float(np.max(error))
    return float("inf") if np.isnan(worst) else worst / scale
