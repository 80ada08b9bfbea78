"""Paragraphs that explain the numbers of a report."""

__all__ = ["ABOUT_DETAILS", "ABOUT_HALF", "ABOUT_TABLES", "HOW_TO_READ"]

ABOUT_DETAILS = (
    "Absolute: the largest difference of two elements. Relative: divided by the "
    "largest magnitude in the reference's array. ULPs: in units of the distance from "
    "one number of the dtype to the next, at that magnitude. Tolerance: the relative "
    "deviation that rounding explains."
)
ABOUT_HALF = (
    "In float32: the run in float32 on the same device. Rounding alone: the reference "
    "with random errors of its gradients, as large as rounding in this dtype makes "
    "them. Error of gradients: of all gradients together, relative to their norm in "
    "float64."
)

# on the table that has this column
ABOUT_TABLES = {
    "layers": (
        "Layers (their outputs), gradients, updates, state and predictions are "
        "computed from the same inputs on both sides, at the first, the middle and the "
        "last step. Training loss, parameters and outputs are those of the whole "
        "training."
    ),
    "first step, ms": (
        "ms per step is the median of all steps but the first, which may compile. The "
        "column 25-75 % has its quartiles. Memory is the peak that the device reports, "
        "or else the predicted peak of a step."
    ),
    "products, eager": (
        "Products are the format in which float32 is multiplied. It is measured, with "
        "products whose result depends on it, in direct calls (eager) and within "
        "compiled functions."
    ),
}

HOW_TO_READ = (
    "A deviation is the largest difference between two arrays: absolute, relative to "
    "the largest magnitude in the reference's array, and in ULPs, the spacing of the "
    "dtype at that magnitude. Outputs of layers, gradients, new states, updates and "
    "predictions are computed from the same inputs on both sides: those of the "
    "reference at the first, the middle and the last step. Losses, parameters and "
    "outputs after training belong to whole trainings.",
    "For results from the same inputs, rounding is measured. The reference is computed "
    "again with a random error added to each operation, as large as one rounding in "
    "the dtype of the backend. The tolerance is 4 times the resulting change of the "
    "worst element, plus ε times the largest element, where ε is the spacing of the "
    "dtype at 1. A result that deviates further differs. The usual causes are a lower "
    "precision inside multiplications (TF32) and errors in the code.",
    "For the training as a whole, roundings are counted. The tolerance is {formula}, "
    "where n is the number of roundings in a row that lead to a result. A sum counts "
    "as many as it has terms, any other operation counts one, and one step has "
    "{step_roundings:,}. The loss is checked at every step t, with n of t steps, "
    "relative to that step's loss and to what errors of the outputs do to it. "
    "Parameters, state and outputs are checked at the end, with n of all steps. The "
    "starting parameters must have the same bits. Roundings have random signs, so "
    "their sum exceeds the tolerance with a probability below 3e-14 (Higham "
    "& Mary, 2019). If rounding cannot be measured, as in a custom layer that accepts "
    "only NumPy arrays, results from the same inputs are checked by counting too: n is "
    "counted layer by layer, and predictions have {prediction_roundings:,}.",
    "If the training as a whole exceeds its tolerance, it is compared with control "
    "runs, in which nothing is changed but rounding. A deviation that rounding alone "
    "can cause is reported as not checked.",
    "In float16 and bfloat16, layers compute in 16 bits; parameters and updates are in "
    "float32. Only results from the same inputs are judged; their rounding is emulated "
    "in float64. In addition, each layer alone computes in 16 bits, and the norms of "
    "its output and of all gradients are judged in the same way. Whole trainings are "
    "described by their loss and metric next to those in float32, and to a control "
    "run: the reference, with errors of gradients as large as rounding in the dtype.",
    "The time of a step begins when its batch is on the device, and ends when the new "
    "parameters have their values. The first step, which may compile, is listed "
    "separately. The column 25-75 % is the range between the quartiles of the other "
    "steps. Memory is the peak that the device reports. If it reports none, it is the "
    "predicted peak of a step: parameters, state, moments, what is saved for backward, "
    "and temporary arrays.",
    "A strict backend has to multiply float32 numbers as float32; a fast one may "
    "convert them to TensorFloat-32. Such settings do not always take effect, so the "
    "format is measured, with products whose result depends on it. They are run "
    "eagerly and compiled: products of matrices, of stacks of matrices, and "
    "convolutions.",
)
