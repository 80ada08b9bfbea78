"""The report of `compare` as dataclasses: each class is an object in report.json.

The string below a field describes it. `docs/report-schema.json`, a JSON Schema, and the
tables in `docs/report-schema.md` are generated from this file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

from .conversion import from_json, to_json

__all__ = [
    "PROBED",
    "SCHEMA",
    "TRAINED",
    "ArrayDeviation",
    "BatchTime",
    "ChangingPart",
    "ControlRun",
    "ControlRuns",
    "Deviations",
    "Difference",
    "Environment",
    "HalfLayer",
    "HalfPrecision",
    "LayerCost",
    "LayerRoundings",
    "LeftOut",
    "Machine",
    "MeasuredPrecision",
    "Memory",
    "NotChecked",
    "ReferenceRun",
    "RepeatDifference",
    "Repeats",
    "Report",
    "Result",
    "RunCounts",
    "Status",
    "StepTolerance",
    "Tolerance",
    "Verdict",
    "WorkloadInfo",
]

SCHEMA: Final = 5

Status = Literal["agrees", "differs", "not checked", "failed"]
# The groups of deviations: of results computed
# from the same inputs, and of whole trainings.
PROBED = ("layers", "loss", "gradients", "states", "updates", "predictions")
TRAINED = ("losses", "parameters", "trained_state", "outputs")


@dataclass(frozen=True, kw_only=True)
class RunCounts:
    """The number of runs with each status."""

    differs: int
    """runs that differ from the reference by more than rounding"""
    failed: int
    """runs that ended in an error"""
    not_checked: int
    """runs without a difference in which something could not be checked"""
    agrees: int
    """runs in which everything was checked and agrees"""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verdict on all runs."""

    status: Status
    """the worst status of all runs: `differs`, `failed`, `not checked`, `agrees`, in
    this order; `not checked` if no run has finished"""
    runs: RunCounts
    """the number of runs with each status"""


@dataclass(frozen=True, kw_only=True)
class WorkloadInfo:
    """The training that every run repeats: model, loss, optimizer and data."""

    name: str
    """what was trained, as in `--workload` or `--model`"""
    about: str
    """a description of the data"""
    model: str
    """the layers"""
    loss: str
    """the loss"""
    optimizer: str
    """the optimizer and its settings"""
    metric: str | None
    """the name of `test_metric`, such as `test accuracy`; None if there is none"""
    parameters: int
    """number of trained parameters"""
    training_examples: int
    """examples in the training set"""
    test_examples: int
    """examples in the test set: a fixed random part, not stratified"""
    data_sha256: str
    """SHA-256 of all examples, over names, dtypes, shapes and bytes"""
    batch_size: int
    """examples per step; the last batch of an epoch may have fewer"""
    epochs: int
    """passes over the training set"""
    steps: int
    """steps in total"""
    seed: int
    """determines weights, masks and the order of the data, but not the split"""
    options: tuple[str, ...]
    """the command-line options that select this workload; empty if it was created in
    Python"""


@dataclass(frozen=True, kw_only=True)
class ReferenceRun:
    """The training that all others are compared with."""

    backend: str
    """the backend of the reference"""
    dtype: str
    """the dtype of the reference, which has the same starting parameters, masks and
    order of data"""
    final_loss: float | None
    """its loss in the last step"""
    test_metric: float | None
    """the mean of the metric over the test set"""
    losses: tuple[float | None, ...]
    """its loss in each step, before the update; None within it if not finite"""
    scales: tuple[float | None, ...]
    """what a deviation of that loss is relative to: its size plus Σ |dL/dy| · max |y|
    over the outputs y; None within it if not finite"""
    agrees: bool | None
    """whether the reference itself agrees with the formulas, from the same inputs; None
    if no whole training exceeds its tolerance"""
    diverges: str | None
    """a sentence if its loss grows without bound"""


@dataclass(frozen=True, kw_only=True)
class LayerRoundings:
    """The roundings in a row that lead to the results of one layer."""

    layer: str
    """the layer's path in the model, such as `2`; `""` is the model"""
    about: str
    """the layer and its settings"""
    output_roundings: int
    """n of its outputs"""
    gradient_roundings: int | None
    """n of its gradients; None if they are not computed"""


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """The deviation that rounding explains, by counting roundings."""

    formula: str
    """the tolerance after n roundings in a row"""
    epsilon: dict[str, float]
    """ε by dtype: the distance from 1 to the next number; without dtypes of 16 bits, in
    which no roundings are counted"""
    step_roundings: int
    """n of a whole step"""
    prediction_roundings: int
    """n of predictions"""
    layers: tuple[LayerRoundings, ...]
    """n of each layer"""
    zero_gradients: tuple[str, ...]
    """parameters whose gradient is zero up to rounding; it is checked relative to the
    largest of all gradients"""


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """Memory and operations of one layer in a training step."""

    path: str
    """the layer's path in the model, such as `2.0`"""
    layer: str
    """the layer and its settings"""
    shape: str
    """the shape of its output, without the batch"""
    parameters: int
    """number of its trained parameters"""
    bytes_kept: int
    """bytes that NumPy saves for its backward pass"""
    frozen: int
    """number of its frozen parameters"""
    flops_forward: int
    """operations of its forward pass"""
    flops_backward: int
    """operations of its backward pass"""
    recompute_saves: int
    """bytes freed if it and all layers inside it are recomputed in backward"""
    recompute_flops: int
    """operations that this adds"""
    depth: int
    """number of entries that contain it"""


@dataclass(frozen=True, kw_only=True)
class MeasuredPrecision:
    """The formats in which float32 is multiplied, such as `TensorFloat-32`.

    They are listed by the kind of product, such as `matmul` or `convolve_weight`.
    """

    eager: dict[str, str]
    """the format in direct calls, by the kind of product"""
    compiled: dict[str, str]
    """the same within `jit`"""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A deviation that is larger than rounding explains."""

    step: int
    """the step, from 1; 0 is the start"""
    description: str
    """in words, such as `the gradient of 0.weight (Dense)`"""
    quantity: str
    """`start`, or the group in `deviations`, such as `gradients`; `probe` stands for
    everything computed from the same inputs at a step, and `repeats` for the bits of a
    backend that is deterministic by policy"""
    name: str
    """the array in that group; for `predictions` the first layer that differs"""
    layer: str | None
    """the path of its layer, `""` for the model; None if it belongs to no single
    layer"""
    relative: float | None
    """its relative deviation, as in `deviations`"""
    tolerance: float | None
    """the relative deviation that rounding explains"""


@dataclass(frozen=True, kw_only=True)
class NotChecked(Difference):
    """A result that could not be checked."""

    reason: str
    """why it could not be checked"""


@dataclass(frozen=True, kw_only=True)
class ControlRun:
    """A training in which nothing is changed but rounding."""

    name: str
    """the control run"""
    exceeds_tolerance_at: int | None
    """the step at which its own loss exceeds the tolerance"""


@dataclass(frozen=True, kw_only=True)
class ControlRuns:
    """The control runs of a training, and how far they magnify rounding."""

    step: int
    """the step at which the run exceeds its tolerance"""
    magnification: float | None
    """the deviation of the furthest control run up to that step, in units of ε"""
    runs: tuple[ControlRun, ...]
    """the control runs"""


@dataclass(frozen=True, kw_only=True)
class BatchTime:
    """The time of a step with another batch size."""

    size: int
    """examples in a batch"""
    step_ms: float
    """milliseconds of a step with such a batch: the median of a few"""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of memory in a training step."""

    peak: int | None
    """the peak of the process on the device so far; None if the library does not report
    it"""
    predicted: int | None
    """the predicted peak of a step on NumPy without a memory plan; None if it cannot be
    predicted"""
    parameters: int
    """parameters"""
    state: int
    """what layers carry from step to step"""
    moments: int
    """the state of the optimizer"""
    saved_for_backward: int | None
    """what layers save for the backward pass of a batch; None if it is unknown"""


@dataclass(frozen=True, kw_only=True)
class StepTolerance:
    """The tolerances of a whole training at its two ends."""

    first_step: float
    """for the loss at the first step"""
    last_step: float
    """for outputs, parameters and the loss at the last step"""


@dataclass(frozen=True, kw_only=True)
class ArrayDeviation:
    """The distance of an array from the reference's."""

    absolute: float | None
    """the largest difference of two elements; None if unknown"""
    relative: float | None
    """`absolute` divided by `scale`; None if unknown"""
    ulps: float | None
    """`absolute` divided by the distance from one number of the dtype to the next at
    the magnitude of `scale`; None if unknown"""
    tolerance: float | None
    """the limit for `relative`; None if the array was not checked"""
    step: int
    """the step with the largest deviation in units of its tolerance"""
    scale: float | None
    """the largest magnitude in the reference's array, or in the arrays from which it
    inherits its rounding; None if unknown"""


@dataclass(frozen=True, kw_only=True)
class Deviations:
    """The deviations of all arrays, by their paths in the model.

    `2.weight` belongs to layer 2, counted from 0. The groups up to `predictions` are
    computed from the same inputs; the others belong to whole trainings.
    """

    layers: dict[str, ArrayDeviation]
    """the output of each layer in training mode"""
    loss: ArrayDeviation | None
    """the loss of one step; None if no step could be computed from the same inputs"""
    gradients: dict[str, ArrayDeviation]
    """the gradient of each parameter"""
    states: dict[str, ArrayDeviation]
    """the new state"""
    updates: dict[str, ArrayDeviation]
    """each parameter after one update with the same gradients; the new moments are
    called `moments.` and their path"""
    predictions: dict[str, ArrayDeviation]
    """predictions: `y`, or `y.` and a path if there are several"""
    losses: ArrayDeviation | None
    """the loss, at the step where its deviation is largest"""
    parameters: dict[str, ArrayDeviation]
    """each parameter after the last step"""
    trained_state: dict[str, ArrayDeviation]
    """the state after the last step"""
    outputs: dict[str, ArrayDeviation]
    """the outputs for the test set after the last step"""

    def group(self, name: str) -> dict[str, ArrayDeviation]:
        """Return the deviations in a group by the path of the array; "" for a loss."""
        group = getattr(self, name)
        if group is None:
            return {}
        return {"": group} if isinstance(group, ArrayDeviation) else group

    def arrays(self) -> Iterator[tuple[str, str, ArrayDeviation]]:
        """Yield group, path and deviation of each array."""
        for group in (*PROBED, *TRAINED):
            for path, deviation in self.group(group).items():
                yield group, path, deviation


@dataclass(frozen=True, kw_only=True)
class RepeatDifference:
    """A difference between the first and another run of one backend.

    The bits differ; the numbers say by how much.
    """

    run: int
    """the number of the other run, from 2"""
    step: int
    """the step whose loss differs; the last step for results at the end"""
    quantity: str
    """the group, as in `deviations`: `losses`, `parameters`, `trained_state` or
    `outputs`"""
    name: str
    """the array in that group"""
    relative: float | None
    """the relative difference, as in `deviations`; None if it is NaN or infinite"""
    ulps: float | None
    """the same in units in the last place"""
    tolerance: float | None
    """the relative deviation that rounding explains there"""


@dataclass(frozen=True, kw_only=True)
class ChangingPart:
    """A part of a step whose bits change between calls with the same inputs."""

    step: int
    """the step whose inputs it was called with"""
    description: str
    """the first of its results that changes, in words, such as `the gradient of
    0.weight (Embedding)`"""
    quantity: str
    """what this result is: `output`, `gradient`, `state`, `loss`, `update`,
    `prediction`, `random words` or `data`"""
    name: str
    """the array, such as `weight`; empty if there is only one"""
    layer: str | None
    """the path of its layer, `""` for the model; None if it belongs to no single
    layer"""
    operation: str | None
    """the first operation inside whose result changes, a function of the Array API
    Standard or of `ops`, such as `matmul` or `ops.scatter_add`; None if none changes
    alone"""
    calls: int
    """the number of calls with the same inputs"""
    changed: int
    """the number of calls whose result differs from that of the first"""
    only_when_compiled_again: bool
    """whether it repeats its bits until it is compiled again"""
    relative: float | None
    """the largest difference, relative to the largest magnitude of the first result;
    None if it is NaN or infinite"""
    ulps: float | None
    """the same in units in the last place; None for integers"""


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """The answer to whether a backend repeats its own bits."""

    runs: int
    """the number of runs, from the same start"""
    same_bits: bool
    """whether all have the same bits: the loss of each step, and parameters, state and
    outputs after the last one; a NaN equals a NaN"""
    first: RepeatDifference | None = None
    """the first difference; None if there is none"""
    largest: RepeatDifference | None = None
    """the largest of the first differing loss and the results at the end, in units of
    its tolerance; None if there is none"""
    parts: tuple[ChangingPart, ...] = ()
    """the parts of a step that do not repeat their bits, in the order of computation"""
    remark: str | None = None
    """why there are no such parts although the runs differ"""


@dataclass(frozen=True, kw_only=True)
class HalfLayer:
    """The error that one layer causes if it alone computes in half precision."""

    path: str
    """the layer's path in the model, such as `2`; `""` is the model"""
    layer: str
    """the class of the layer"""
    gradient_error: float | None
    """the error of all gradients together, relative to their norm in float64: the root
    of the mean square over the compared steps; None if not finite"""


@dataclass(frozen=True, kw_only=True)
class HalfPrecision:
    """The answer to the question whether a model may be trained in half precision.

    Losses are means over the last epoch.
    """

    answer: Literal["yes", "worse", "no"]
    """`yes`: as good as in float32; `worse`: it trains, but ends worse; `no`: its loss
    is not finite, or the device computes wrong numbers"""
    sentence: str
    """the answer in words"""
    loss: float | None
    """the loss; None if not finite"""
    test_metric: float | None
    """the metric of the test set"""
    float32_loss: float | None
    """the loss of the run in float32 on the same device; None if there is none"""
    float32_test_metric: float | None
    """the metric of that run"""
    reference_loss: float | None
    """the loss of the float64 reference"""
    reference_test_metric: float | None
    """the metric of the reference"""
    control_loss: float | None
    """the loss of the control run: the reference with gradients that have random errors
    as large as the rounding of this dtype"""
    control_test_metric: float | None
    """the metric of the control run"""
    loss_allowed: float | None
    """the loss may be this much higher than in float32: 2 % of the distance that it
    falls in training"""
    metric_allowed: float | None
    """the metric may be this far from that of float32: two standard errors of its mean
    over the test set, or 2 % of it if they are unknown"""
    gradient_error: float | None
    """the error of all gradients in half precision, relative to their norm in float64:
    the root of the mean square over the compared steps"""
    float32_gradient_error: float | None
    """the same in float32"""
    layers: tuple[HalfLayer, ...]
    """the layers, from the largest error to the smallest"""
    layers_not_measured: tuple[str, ...]
    """the paths of layers that were not measured, to limit the time"""
    keep: tuple[str, ...]
    """the layers to keep in float32; empty if the answer is `yes`"""
    policy: str
    """the model with these layers kept, as Python code"""
    kept_gradient_error: float | None
    """the error of all gradients with these layers kept; None if there are none"""
    kept_loss: float | None
    """the loss of a training with these layers kept; None if there are none"""
    kept_test_metric: float | None
    """the metric of that training"""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The run on one backend, device and dtype."""

    backend: str
    """the library, such as `jax`"""
    device: str | None
    """its device, such as `cpu:0`; None if none was named and none is available"""
    machine: str
    """the label of the machine, as in `machines`"""
    hardware: str | None = None
    """the name that the device reports"""
    version: str | None = None
    """the library's version"""
    dtype: str
    """the dtype of the training"""
    has_float64: bool | None = None
    """whether the device has float64 with its current settings"""
    precision: str | None = None
    """`strict`, or `fast` if float32 may be multiplied in a lower precision"""
    deterministic: bool | None = None
    """whether every run was requested to give the same bits"""
    measured_precision: MeasuredPrecision | None = None
    """the formats in which it multiplies float32, measured after a training in float32;
    None in other dtypes, and if the measurement failed"""
    precision_issue: str | None = None
    """why the requested precision is not confirmed: it is strict and multiplies in a
    lower precision than float32, or the measurement failed"""
    status: Status = "failed"
    """the outcome: `agrees`, `differs`, `not checked` or `failed`"""
    verdict: str = "failed"
    """the outcome in words"""
    error: str | None = None
    """why it could not run, or what stopped it"""
    first_difference: Difference | None = None
    """the first of `differences`: by step, then in the order of computation"""
    differences: tuple[Difference, ...] = ()
    """all deviations that are larger than rounding explains"""
    not_checked: tuple[NotChecked, ...] = ()
    """what could not be checked"""
    repeats: Repeats | None = None
    """how the run compares with further runs on the same backend; None without
    `--repeat`"""
    control: ControlRuns | None = None
    """what control runs show; None if none were needed"""
    command: str | None = None
    """a command that looks into the step in question; None if nothing differs, or the
    workload has no command-line options"""
    test_metric: float | None = None
    """the mean of the metric over the test set after the last step"""
    final_loss: float | None = None
    """the loss in the last step"""
    steps: int | None = None
    """number of steps"""
    first_step_ms: float | None = None
    """milliseconds of the first step, including compilation"""
    step_ms: float | None = None
    """milliseconds per step: the median of all others"""
    step_ms_quartiles: tuple[float, float] | None = None
    """their lower and upper quartile"""
    samples_per_second: float | None = None
    """training examples per second in all steps but the first"""
    batches: tuple[BatchTime, ...] | None = None
    """steps with other batch sizes; empty with `--no-batches`, shorter if time ran
    out"""
    memory: Memory | None = None
    """bytes of memory in a step"""
    start_sha256: str | None = None
    """of the starting parameters after moving to the device and back; the report's
    `start_sha256` if they are unchanged"""
    max_relative_deviation: float | None = None
    """the largest `relative` of all that was checked"""
    tolerance: StepTolerance | None = None
    """its tolerances"""
    deviations: Deviations | None = None
    """the deviations of all arrays; None if the backend failed"""
    loss_deviations: tuple[float | None, ...] | None = None
    """the deviation of the loss in each step, relative to `reference.scales`; None
    within it if unknown"""
    losses: tuple[float | None, ...] | None = None
    """the loss in each step, before the update; None within it if not finite"""
    half_precision: HalfPrecision | None = None
    """in bfloat16 and float16: whether the model may be trained in it on this device;
    None in other dtypes, and if the run failed"""

    @property
    def name(self) -> str:
        """The backend with its device, as in `nn.backend`."""
        return f"{self.backend}:{self.device}" if self.device else self.backend


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A backend that did not run: it was not named, or `--skip-missing` was set."""

    backend: str
    """a backend that cannot run, does not have the dtype, or cannot be deterministic"""
    reason: str
    """why it did not run"""
    machine: str
    """the label of the machine"""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The machine, the library versions and the settings of a report."""

    date: str
    """when the report was made, ISO 8601, UTC"""
    platform: str
    """the operating system"""
    processor: str
    """the processor's name"""
    cores: int | None
    """logical processors of the machine"""
    usable_cores: int | None
    """those that this process may use"""
    blas: str | None
    """the BLAS library of NumPy"""
    versions: dict[str, str | None]
    """versions of Python and packages; those of the compared libraries are in
    `results`"""
    variables: dict[str, str]
    """environment variables that affect threads, precision and devices, if set"""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine, or a setting of one, on which a report was made."""

    label: str
    """the name of the machine in this report"""
    environment: Environment
    """its processor, versions and settings"""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The report of `agnostic-nn compare`."""

    schema: Literal[5] = SCHEMA
    """the version of this description"""
    verdict: Verdict
    """the verdict on all runs that have finished"""
    unfinished: tuple[str, ...] = ()
    """the runs that are missing; empty if the report is complete"""
    workload: WorkloadInfo
    """what was trained, and on what"""
    start_sha256: str
    """SHA-256 of the starting parameters on the host, over names, dtypes, shapes and
    bytes"""
    reference: ReferenceRun
    """the training that all others are compared with"""
    tolerance: Tolerance
    """what rounding explains"""
    layer_costs: tuple[LayerCost, ...]
    """memory and operations of each layer, in the order of computation; empty if the
    model accepts only NumPy arrays"""
    results: tuple[Result, ...]
    """the runs: one per backend, device and dtype, in the order in which they ran"""
    left_out: tuple[LeftOut, ...]
    """what did not run, and was not named or skipped with `--skip-missing`"""
    machines: tuple[Machine, ...]
    """one machine, unless reports were merged"""
    differences: tuple[str, ...]
    """for merged reports: how the machines and their results differ"""

    def to_json(self) -> dict[str, Any]:
        """Return the report as data for `json.dumps`."""
        data: dict[str, Any] = to_json(self)
        return data

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Return the report whose `to_json` is `data`.

        Raises
        ------
        ValueError
            If a value does not have the type of its field, or if a field is missing or
            unknown. The message has the path of the value, what was expected and what
            came.
        """
        return from_json(cls, data)
