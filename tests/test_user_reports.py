"""Faults that users reported of other libraries do not exist here.

Each docstring names the reports that led to the test. Inputs are new, and expected
values are computed from the defining formula in float64.
"""

import math
from functools import partial

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn import metrics, schedules
from agnostic_nn.core.trees import leaves, named_leaves, tree_map
from agnostic_nn.diagnostics.examples import OPTIMIZERS

HOST = nn.core.arrays.namespace(np.zeros(()))


@pytest.fixture(autouse=True)
def _needs_float64(backend):
    if not backend.has_float64:
        pytest.skip(
            "expected values are float64: the session with float64 runs these tests"
        )


def close(actual, expected, *, rtol=1e-6, atol=1e-7):
    np.testing.assert_allclose(
        np.asarray(actual, np.float64), expected, rtol=rtol, atol=atol
    )


def same(actual, expected):
    np.testing.assert_array_equal(actual, expected)


def generator(seed):
    return np.random.default_rng(seed)


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def flat(tree):
    """Return all numbers of a tree of NumPy arrays as one float64 vector."""
    return np.concatenate(
        [np.ravel(np.asarray(leaf, np.float64)) for leaf in leaves(tree)]
    )


def cast(tree, dtype):
    """Return a tree with its floating-point arrays in another dtype."""
    arrays = tree_map(np.asarray, tree)
    return tree_map(
        lambda leaf: leaf.astype(dtype) if leaf.dtype.kind == "f" else leaf, arrays
    )


def loss_of(backend, loss, y, target, weights=None, *, dtype="float64", **options):
    """Return the value and dy of a loss on the backend, on the host."""
    arguments = [
        None if part is None else backend.asarray(cast(part, dtype))
        for part in (y, target, weights)
    ]
    value, dy = loss(*arguments, **options)
    return backend.to_numpy(value), backend.to_numpy(dy)


def init(layer, shape, dtype="float64"):
    params, state, _ = layer.init(nn.random.key(0, xp=HOST), shape, getattr(np, dtype))
    return params, state


def run(
    backend, layer, x, dy=None, *, params=None, state=None, train=False, dtype="float64"
):
    """Return y, dx, the gradients and the new state of a layer, on the host."""
    x = cast(x, dtype)
    first_params, first_state = init(
        layer, tree_map(lambda leaf: leaf.shape[1:], x), dtype
    )
    params = first_params if params is None else params
    state = first_state if state is None else state

    def both(params, state, x, dy):
        y, after, cache = layer.forward(params, state, x, train=train)
        if isinstance(dy, tuple):  # no gradient is needed
            return y, (), (), after
        dx, grads = layer.backward(params, cache, dy)
        return y, () if dx is None else dx, grads, after

    dy = () if dy is None else cast(dy, dtype)
    if isinstance(train, nn.RowMask):  # jit cannot take it as an argument
        results = both(*backend.asarray((params, state, x, dy)))
    else:
        results = backend.jit(both)(*backend.asarray((params, state, x, dy)))
    return tuple(backend.to_numpy(part) for part in results)


def make(backend, model, loss, optimizer=None, **options):
    return nn.Trainer(model, loss, optimizer or nn.SGD(0.1), backend=backend, **options)


def host(trainer, tree):
    return trainer.backend.to_numpy(tree)


# --- losses ---------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_label_smoothing_excludes_ignored_rows(backend, reduction):
    """pytorch#73205: the uniform part of the target included ignored rows."""
    logits = generator(1).normal(size=(6, 4))
    labels = np.array([0, -100, 3, 2, -100, 1])
    counts = labels != -100
    options = {"label_smoothing": 0.2, "ignore_index": -100, "reduction": reduction}
    value, slope = loss_of(backend, nn.softmax_cross_entropy, logits, labels, **options)
    target = np.eye(4)[labels[counts]] * 0.8 + 0.05
    divisor = counts.sum() if reduction == "mean" else 1
    close(value, -(target * np.log(softmax(logits[counts]))).sum() / divisor)
    expected = np.zeros_like(logits)
    expected[counts] = (softmax(logits[counts]) - target) / divisor
    close(slope, expected)


def test_a_mean_of_ignored_labels_only_is_0(backend):
    """pytorch#70348, #116349: the mean over no labels was NaN."""
    logits = generator(3).normal(size=(3, 5))
    ignored = np.full(3, -1)
    value, slope = loss_of(
        backend, nn.softmax_cross_entropy, logits, ignored, ignore_index=-1
    )
    assert value == 0
    same(slope, np.zeros((3, 5)))
    loss = partial(nn.softmax_cross_entropy, ignore_index=-1)
    trainer = make(backend, nn.Dense(3), loss, shape=(2,))
    results = trainer.evaluate(np.ones((4, 2), "float32"), np.full(4, -1))
    assert results["loss"] == 0
    assert math.isnan(results["accuracy"])


def test_narrow_labels_and_an_ignore_index_outside_their_dtype(backend):
    """pytorch#15508, PaddleSeg#2939: uint8 labels, 255 or -100 ignored."""
    logits = generator(4).normal(size=(2, 3, 4))

    def expected(labels, counts):
        chances = softmax(logits)
        indices = np.where(counts, labels, 0).astype(int)[..., None]
        at_label = np.take_along_axis(chances, indices, axis=-1)[..., 0]
        return -np.log(at_label[counts]).mean()

    labels = np.array([[0, 255, 3], [255, 1, 1]], np.uint8)
    value, _ = loss_of(
        backend, nn.softmax_cross_entropy, logits, labels, ignore_index=255
    )
    close(value, expected(labels, labels != 255))
    labels = np.array([[0, 2, 3], [3, 1, 1]], np.uint8)
    value, _ = loss_of(
        backend, nn.softmax_cross_entropy, logits, labels, ignore_index=-100
    )
    close(value, expected(labels, labels >= 0))


@pytest.mark.parametrize("gamma", [0.3, 0.5, 1.0, 2.0])
def test_focal_loss_of_a_saturated_output_has_a_finite_slope(backend, gamma):
    """kornia#918, MyGrad#269, optax#1267: (1 - q)^(γ - 1) is infinite at q = 1."""
    logits = np.array([[200.0, 0.0, -3.0], [-150.0, 90.0, 0.0], [0.0, 0.0, 0.0]])
    options = {"gamma": gamma, "reduction": "sum"}
    value, slope = loss_of(
        backend, nn.softmax_cross_entropy, logits, np.array([0, 0, 2]), **options
    )
    q = 1 / 3
    log_q = math.log(q)
    scale = (1 - q) ** gamma * (1 - gamma * q * log_q / (1 - q))
    close(slope, [[0, 0, 0], [-1, 1, 0], [q * scale, q * scale, (q - 1) * scale]])
    close(value, 240 - (1 - q) ** gamma * log_q)


def ctc_by_all_paths(y, labels):
    """Return -log p and its gradient by the logits, from all paths; blank is 0."""
    time, classes = y.shape
    chances = softmax(y)
    total = 0.0
    gradient = np.zeros_like(y)
    for path in np.ndindex(*(classes,) * time):
        changes = [k for i, k in enumerate(path) if i == 0 or path[i - 1] != k]
        if [k for k in changes if k != 0] == list(labels):
            p = math.prod(chances[t, k] for t, k in enumerate(path))
            total += p
            for t, k in enumerate(path):
                gradient[t, k] += p
    return -math.log(total), chances - gradient / total


def test_ctc_of_an_empty_target_in_a_batch_with_others(backend):
    """pytorch#18215: without labels only the path of blanks counts."""
    y = generator(5).normal(size=(3, 4, 3))
    lengths = np.array([2, 0, 2])
    labels = np.array([[1, 2, 9], [0, 0, 0], [2, 2, 0]])
    target = {"labels": labels, "label_lengths": lengths}
    values, _ = loss_of(backend, nn.ctc, y, target, reduction="none")
    _, dy = loss_of(backend, nn.ctc, y, target, reduction="sum")
    for i, length in enumerate(lengths):
        value, gradient = ctc_by_all_paths(y[i], labels[i, :length])
        close(values[i], value)
        close(dy[i], gradient)


def test_targets_that_are_not_probabilities_are_refused(backend):
    """pytorch#110865, #15262: targets of 2 or -0.1 make the loss unbounded below."""
    trainer = make(backend, nn.Dense(1), nn.binary_cross_entropy, shape=(2,))
    x = np.ones((3, 2), "float32")
    with pytest.raises(ValueError, match=r"\[1, 0\].*2"):
        trainer.fit(x, np.array([[0], [2], [1]], "float32"), verbose=0)
    with pytest.raises(ValueError, match=r"-0\.1"):
        trainer.evaluate(x, np.array([[0], [1], [-0.1]], "float32"))


def test_log_cosh_is_accurate_near_0_and_for_large_errors(backend):
    """keras#8524, torchmetrics#3488: cosh overflows although its logarithm does not."""
    errors = np.array([0.0, 1e-4, -3e-3, 0.7, 95.0, -4000.0, 1e30])
    zeros = np.zeros(7)
    options = {"dtype": "float32"}
    value, _ = loss_of(backend, nn.log_cosh, errors, zeros, reduction="none", **options)
    _, dy = loss_of(backend, nn.log_cosh, errors, zeros, reduction="sum", **options)
    errors = errors.astype("float32").astype("float64")
    size = np.abs(errors)
    series = errors**2 / 2 - errors**4 / 12
    expected = np.where(
        size < 0.1, series, size + np.log1p(np.exp(-2 * size)) - math.log(2)
    )
    close(value, expected, atol=0)
    close(dy, np.tanh(errors))


def test_cosine_distance_of_zero_tiny_and_huge_vectors(backend):
    """pytorch#2421, nd4j#1586: zero vectors and overflow of lengths."""
    y = np.array([[0, 0, 0], [3, 0, 4], [3e-25, 0, 4e-25], [3e25, 0, 4e25]])
    target = np.array([[1.0, 2.0, 2.0]] * 4)
    options = {"dtype": "float32"}
    value, _ = loss_of(
        backend, nn.cosine_distance, y, target, reduction="none", **options
    )
    _, dy = loss_of(backend, nn.cosine_distance, y, target, reduction="sum", **options)
    cosine = (3 * 1 + 4 * 2) / 15
    close(value, [1, 1 - cosine, 1 - cosine, 1 - cosine], rtol=1e-5)
    expected = (cosine * y[1] / 5 - target[1] / 3) / 5
    same(dy[0], np.zeros(3))
    close(dy[1], expected, rtol=1e-5)
    close(dy[2].astype("float64") * 1e-25, expected, rtol=1e-4)
    close(dy[3].astype("float64") * 1e25, expected, rtol=1e-4)


def test_triplet_margin_of_identical_embeddings(backend):
    """sentence-transformers#4033: a distance of 0 has gradient 0."""
    anchor = np.array([[1.0, 2.0], [1.0, 2.0]])
    shift = np.array([[0, 0.5], [0, 0]])
    y = {"anchor": anchor, "positive": anchor.copy(), "negative": anchor + shift}
    value, _ = loss_of(backend, nn.triplet_margin, y, None, reduction="none")
    _, dy = loss_of(backend, nn.triplet_margin, y, None, reduction="sum")
    close(value, [0.5, 1.0])
    close(dy["anchor"], [[0, 1.0], [0, 0]])
    close(dy["negative"], [[0, -1.0], [0, 0]])
    close(dy["positive"], np.zeros((2, 2)))


def test_a_weighted_mean_divides_by_the_weights(backend):
    """keras#13329: it divided by the count. Weight 0 excludes an infinite loss."""
    y = np.array([[1.0], [2.0], [4.0]])
    zeros = np.zeros((3, 1))
    value, dy = loss_of(
        backend, nn.mean_squared_error, y, zeros, np.array([0.0, 3.0, 1.0])
    )
    close(value, (3 * 4 + 16) / 4)
    close(dy, [[0], [3], [2]])
    value, dy = loss_of(backend, nn.mean_squared_error, y, zeros, np.zeros(3))
    assert value == 0
    same(dy, zeros)
    y = np.array([[math.inf], [2.0]])
    value, dy = loss_of(
        backend, nn.mean_squared_error, y, zeros[:2], np.array([0.0, 1.0])
    )
    close(value, 4)
    close(dy, [[0], [4]])


# --- layers ---------------------------------------------------------------------------


def test_gelu_is_accurate_in_its_tail(backend):
    """pytorch#187806, #189234, onnxruntime#28463: 1 + erf cancels there."""
    x = np.array([[-2.9, -3.7, -4.6, -5.2, -5.5, -5.7, -6.4, -7.7]])
    y, dx, _, _ = run(backend, nn.GELU(), x, np.ones_like(x), dtype="float32")
    below = np.array([0.5 * math.erfc(-t / math.sqrt(2)) for t in x[0]])
    density = np.exp(-(x[0] ** 2) / 2) / math.sqrt(2 * math.pi)
    close(y[0], x[0] * below, rtol=1e-3, atol=0)
    close(dx[0], below + x[0] * density, rtol=1e-3, atol=0)


@pytest.mark.parametrize("layer", [nn.LayerNorm(), nn.GroupNorm(1)], ids=repr)
def test_norms_of_rows_far_from_zero(backend, layer):
    """pytorch#51102, onnxruntime#28463, burn#5607: E[x²] - E[x]² cancels."""
    x = np.array(
        [
            [2000.25, 2001.5, 1999.0, 2000.0],
            [7e4, 7e4 + 2, 7e4 - 1, 7e4 + 1],
            [-3e5, -3e5 + 1, -3e5 + 3, -3e5],
        ]
    )
    y, dx, _, _ = run(
        backend, layer, x, generator(0).normal(size=x.shape), dtype="float32"
    )
    centered = x - x.mean(axis=-1, keepdims=True)
    variance = (centered**2).mean(axis=-1, keepdims=True)
    close(y, centered / np.sqrt(variance + 1e-5), rtol=1e-3, atol=0.03)
    assert np.isfinite(dx).all()


def test_batch_norm_counts_real_rows_only(backend):
    """keras#19848, tensorflow#30161: filler rows entered the statistics."""
    x = generator(2).normal(size=(8, 3, 2, 4))
    counts = np.array([1.0, 1, 1, 0, 0, 0, 0, 0])
    dy = generator(3).normal(size=x.shape) * counts[:, None, None, None]
    layer = nn.BatchNorm()
    filled = run(backend, layer, x, dy, train=nn.RowMask(backend.asarray(counts)))
    alone = run(backend, layer, x[:3], dy[:3], train=True)
    close(filled[0][:3], alone[0])
    close(filled[1][:3], alone[1])
    close(flat(filled[2]), flat(alone[2]))
    close(flat(filled[3]), flat(alone[3]))


def test_a_last_batch_of_one_does_not_change_the_running_variance(backend):
    """pytorch#4534, fastai#1352, skorch#477: one row has no variance."""
    x = (3.0 * generator(4).normal(size=(33, 2))).astype("float32")
    layer = nn.BatchNorm(momentum=0.5)
    trainer = make(backend, layer, nn.mean_squared_error, nn.SGD(1e-3), shape=(2,))
    trainer.fit(x, np.zeros_like(x), batch_size=32, shuffle=False, verbose=0)
    expected = 0.5 + 0.5 * x[:32].astype("float64").var(axis=0, ddof=1)
    close(host(trainer, trainer.state)["variance"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    "norm", [nn.Freeze(nn.BatchNorm()), nn.BatchNorm(frozen=True)], ids=repr
)
def test_a_frozen_batch_norm_does_not_change(backend, norm):
    """keras#7085, #9522, #6570: a frozen norm still moved."""
    x = generator(5).normal(size=(16, 3)).astype("float32") + 7
    labels = generator(6).integers(0, 2, 16)
    model = nn.Sequential(norm, nn.Dense(2))
    trainer = make(backend, model, nn.softmax_cross_entropy, nn.AdamW(0.1), shape=(3,))
    state, params = (
        flat(host(trainer, part)) for part in (trainer.state, trainer.params)
    )
    trainer.fit(x, labels, epochs=2, batch_size=8, verbose=0)
    same(flat(host(trainer, trainer.state)), state)
    assert np.abs(flat(host(trainer, trainer.params)) - params).max() > 0


@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(3, bidirectional=True, depth=2, sequence=False),
        nn.GRU(3, bidirectional=True, sequence=False),
    ],
    ids=repr,
)
@pytest.mark.parametrize("left", [0, 2])
def test_a_padded_sequence_gives_the_results_of_the_short_one(backend, layer, left):
    """pytorch#517, Element-Research/rnn#123: the reverse direction read the padding."""
    x = generator(7).normal(size=(2, 3, 2))
    dy = generator(8).normal(size=(2, 6))
    expected = run(backend, layer, x, dy)
    padded = np.full((2, 5, 2), 99.0)
    padded[:, left : left + 3] = x
    mask = np.zeros((2, 5), bool)
    mask[:, left : left + 3] = True
    y, dx, grads, _ = run(backend, layer, {"x": padded, "mask": mask}, dy)
    close(y, expected[0])
    close(dx["x"][:, left : left + 3], expected[1])
    close(flat(grads), flat(expected[2]))


def test_a_query_without_an_allowed_key_has_no_gradient(backend):
    """pytorch#41508, #160064: y is the bias; other rows are not affected."""
    x = generator(8).normal(size=(2, 4, 6))
    dy = generator(9).normal(size=x.shape)
    mask = np.ones((2, 4, 4), bool)
    mask[0, 2] = False
    mask[1, :, 3] = False
    layer = nn.MultiHeadAttention(2)
    y, dx, grads, _ = run(backend, layer, {"x": x, "mask": mask}, dy)
    same(y[0, 2], np.zeros(6))
    # Except for the bias, such a query equals one whose dy is 0.
    sees_all = mask.copy()
    sees_all[0, 2] = True
    dy_without = dy.copy()
    dy_without[0, 2] = 0
    _, expected_dx, expected, _ = run(
        backend, layer, {"x": x, "mask": sees_all}, dy_without
    )
    close(dx["x"], expected_dx["x"])
    close(grads["key"]["weight"], expected["key"]["weight"])
    close(grads["value"]["weight"], expected["value"]["weight"])


@pytest.mark.parametrize(
    ("layer", "dy", "expected"),
    [
        (nn.MaxPool1D(3), [7.0, 11.0], [7, 0, 0, 11, 0, 0]),
        (nn.MaxPool1D(3, stride=1), [1.0, 2.0, 4.0, 8.0], [1, 0, 0, 14, 0, 0]),
        (nn.AdaptiveMaxPool(2), [7.0, 11.0], [7, 0, 0, 11, 0, 0]),
    ],
    ids=repr,
)
def test_a_tie_of_maxima_has_the_gradient_once(backend, layer, dy, expected):
    """tensorflow#4886, #51682, Theano#4568: each tied input received dy."""
    x = np.array([2.0, 2.0, 1.0, 5.0, 5.0, 5.0]).reshape(1, 6, 1)
    _, dx, _, _ = run(backend, layer, x, np.reshape(dy, (1, -1, 1)))
    same(dx[0, :, 0], expected)


def test_a_tie_of_global_maxima_has_the_gradient_once(backend):
    x = np.array([2.0, 5.0, 5.0]).reshape(1, 3, 1)
    _, dx, _, _ = run(backend, nn.GlobalMaxPool(), x, np.array([[3.0]]))
    same(dx[0, :, 0], [0, 3, 0])


def test_padding_is_never_the_maximum(backend):
    """distdl#195, FluxML/NNlib#133: padding of 0 is larger than negative inputs."""
    x = -1.0 - generator(10).random((2, 5, 5, 2))
    layer = nn.MaxPool2D(3, stride=2, padding=1)
    y, dx, _, _ = run(backend, layer, x, np.ones((2, 3, 3, 2)))
    around = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(around, (3, 3), axis=(1, 2))
    close(y, windows[:, ::2, ::2].max(axis=(-2, -1)))
    close(dx.sum(), 36)
    lowest = np.full((1, 3, 3, 1), np.finfo("float32").min)
    layer = nn.MaxPool2D(3, stride=1, padding="same")
    y, _, _, _ = run(backend, layer, lowest, dtype="float32")
    same(y, lowest)


@pytest.mark.parametrize(("n", "m"), [(10, 3), (7, 4), (5, 5), (3, 7), (1, 3)])
def test_adaptive_pools_with_unequal_bins(backend, n, m):
    """FlagGems#4915, mlx-image#16, tensorflow/addons#2321: ⌊in/m⌋ to ⌈(i+1)n/m⌉."""
    x = generator(n).normal(size=(2, n, 3))
    dy = generator(m).normal(size=(2, m, 3))
    bins = [(i * n // m, -(-(i + 1) * n // m)) for i in range(m)]
    means = np.zeros((m, n))
    for i, (start, end) in enumerate(bins):
        means[i, start:end] = 1 / (end - start)
    y, dx, _, _ = run(backend, nn.AdaptiveAveragePool(m), x, dy)
    close(y, np.einsum("mn,bnc->bmc", means, x))
    close(dx, np.einsum("mn,bmc->bnc", means, dy))
    y, _, _, _ = run(backend, nn.AdaptiveMaxPool(m), x)
    close(y, np.stack([x[:, start:end].max(axis=1) for start, end in bins], axis=1))


@pytest.mark.parametrize(
    ("n", "window", "stride", "dilation"),
    [
        (4, 3, 2, 1),
        (5, 4, 2, 1),
        (3, 2, 1, 1),
        (4, 3, 1, 2),
        (3, 5, 3, 1),
        (4, 1, 2, 1),
    ],
)
def test_a_transposed_convolution_is_the_adjoint_of_the_same_convolution(
    backend, n, window, stride, dilation
):
    """keras#22876, #20949, keras-core#774: it was off by one."""
    x = generator(n).normal(size=(1, n, 2))
    weight = generator(window).normal(size=(window, 3, 2))
    options = {"stride": stride, "padding": "same", "dilation": dilation, "bias": False}
    layer = nn.ConvTranspose1D(3, window, **options)
    y, _, _, _ = run(backend, layer, x, params={"weight": weight})
    length = n * stride
    excess = max((n - 1) * stride + dilation * (window - 1) + 1 - length, 0)
    expected = np.zeros((1, length, 3))
    for o in range(n):
        for j in range(window):
            i = o * stride + j * dilation - excess // 2
            if 0 <= i < length:
                expected[0, i] += weight[j] @ x[0, o]
    close(y, expected)


def test_an_index_out_of_range_is_refused_with_its_position(backend):
    """jax#3774, tinygrad#5873, mxnet#8940: it was clamped or wrapped silently."""
    model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Dense(2))
    trainer = make(backend, model, nn.softmax_cross_entropy, shape=(2,))
    with pytest.raises(ValueError, match=r"\[1, 1\].*5"):
        trainer.predict(np.array([[0, 1], [4, 5]]))
    with pytest.raises(ValueError, match="-1"):
        trainer.predict(np.array([[0, -1]]))
    with pytest.raises(ValueError, match="2"):
        trainer.evaluate(np.array([[0, 1]]), np.array([2]))


def test_recomputed_dropout_has_the_same_mask(backend):
    """guided-diffusion#167, OLMo-core#828: the second forward drew another mask."""
    x = generator(1).normal(size=(4, 6))
    dy = generator(2).normal(size=(4, 8))
    body = nn.Sequential(nn.Dense(8), nn.Dropout(0.5), nn.Tanh(), nn.Dropout(0.3))
    plain = run(backend, body, x, dy, train=True)
    recomputed = run(backend, nn.Recompute(body), x, dy, train=True)
    for actual, expected in zip(recomputed, plain, strict=True):
        close(flat(actual), flat(expected))
    next_step = run(backend, body, x, state=plain[3], train=True)
    assert np.abs(next_step[0] - plain[0]).max() > 0


def test_dropout_with_extreme_rates(backend):
    """flax#2055, keras#9141, burn#2694: rates of 0, and of 1 and -10."""
    x = generator(3).normal(size=(4, 5))
    y, dx, _, _ = run(backend, nn.Dropout(0.0), x, np.ones_like(x), train=True)
    close(y, x)
    close(dx, np.ones_like(x))
    for rate in (1.0, -10.0):
        with pytest.raises(ValueError, match=r"\[0\.?0?, 1\.?0?\)"):
            nn.Dropout(rate)


def test_softplus_is_accurate_everywhere(backend):
    """A threshold at 20 loses digits: e^x at -40, x + e^-x at 21."""
    x = np.array([[-80.0, -40.0, -16.0, 0.0, 16.0, 21.0, 90.0, 3e38]])
    y, dx, _, _ = run(backend, nn.Softplus(), x, np.ones_like(x), dtype="float32")
    decay = np.exp(-np.abs(x))
    close(y, np.maximum(x, 0) + np.log1p(decay), rtol=5e-7, atol=0)
    close(dx, np.where(x < 0, decay, 1) / (1 + decay), rtol=5e-7, atol=0)


def test_sinusoidal_positions_of_an_odd_width_are_refused(backend):
    """BERT-pytorch#78, pyaptamer#607, mlx#147: sine and cosine come in pairs."""
    with pytest.raises(ValueError, match="even"):
        nn.SinusoidalPositions().init(nn.random.key(0, xp=HOST), (4, 5), np.float64)


# --- optimizers and schedules ---------------------------------------------------------


def steps(backend, optimizer, params, *gradients):
    """Return parameters, on the host, and moments after one step for each gradient."""
    params = backend.asarray(params)
    moments = optimizer.init(params)
    for gradient in gradients:
        params, moments = optimizer.update(params, backend.asarray(gradient), moments)
    return backend.to_numpy(params), moments


@pytest.mark.parametrize("clip", [nn.ClipByGlobalNorm, nn.ClipByNorm])
@pytest.mark.parametrize("size", [1e20, 1e-1])
def test_the_norm_of_clipping_does_not_overflow(backend, clip, size):
    """tensorflow#21363, ray#45055, ferx-core#1112: a step of 0 is not clipping."""
    gradient = {"w": np.array([3 * size, 4 * size], "float32")}
    limit = min(1.0, 2 * size)
    params, _ = steps(
        backend, clip(nn.SGD(1.0), limit=limit), {"w": np.zeros(2, "float32")}, gradient
    )
    close(params["w"], [-0.6 * limit, -0.8 * limit])


@pytest.mark.parametrize(
    "optimizer",
    # that of Parts names a bias, which is not among these parameters
    [optimizer for optimizer in OPTIMIZERS if not isinstance(optimizer, nn.Parts)],
    ids=lambda optimizer: type(optimizer).__name__,
)
def test_empty_and_scalar_parameters_take_steps(backend, optimizer):
    """deepspeed#7736: a matrix moves in the same way with and without them."""
    empty, scalar = np.zeros((0, 3)), np.array(2.0)
    weight = np.arange(6.0).reshape(2, 3) + 1
    gradient = {"weight": np.full((2, 3), 0.1)}
    params = {"empty": empty, "scalar": scalar, "weight": weight}
    more = gradient | {"empty": empty, "scalar": np.array(0.5)}
    moved, moments = steps(backend, optimizer, params, more, more, more)
    alone, _ = steps(
        backend, optimizer, {"weight": weight}, gradient, gradient, gradient
    )
    assert moved["empty"].shape == (0, 3)
    assert moved["scalar"].shape == ()
    assert moved["scalar"] < 2.0
    assert all(np.isfinite(leaf).all() for leaf in leaves(backend.to_numpy(moments)))
    close(moved["weight"], alone["weight"])


def test_adafactor_factors_each_matrix_of_a_kernel(backend):
    """pytorch-optimizer#469: row and column means of the last two axes."""
    params = generator(0).normal(size=(3, 2, 4))
    gradients = generator(1).normal(size=(2, 3, 2, 4))
    trees = [{"w": gradient} for gradient in gradients]
    moved, _ = steps(backend, nn.Adafactor(0.5), {"w": params}, *trees)
    rows = columns = 0.0
    for t, gradient in enumerate(gradients, 1):
        weight = t**-0.8
        squares = gradient**2 + 1e-30
        rows = (1 - weight) * rows + weight * squares.mean(axis=-1, keepdims=True)
        columns = (1 - weight) * columns + weight * squares.mean(axis=-2, keepdims=True)
        update = gradient / np.sqrt(rows * columns / rows.mean(axis=-2, keepdims=True))
        update /= max(1.0, np.sqrt((update**2).mean()))
        size = max(1e-3, np.sqrt((params**2).mean()))
        params = params - size * min(0.5, 1 / math.sqrt(t)) * update
    close(moved["w"], params)


@pytest.mark.parametrize("decay", [0.9, 0.9999])
def test_a_running_average_is_unbiased_from_the_first_step(backend, decay):
    """timm#1182, nanochat#818, tqdm#1101: Σ w θ / Σ w, w = decay^(t - i)."""
    optimizer = nn.Average(nn.SGD(1.0), decay=decay)
    params = backend.asarray({"w": np.zeros(1, "float32")})
    moments = optimizer.init(params)
    history = []
    for t, gradient in enumerate((-1.0, -2.0, 4.0), 1):
        gradients = backend.asarray({"w": np.array([gradient], "float32")})
        params, moments = optimizer.update(params, gradients, moments)
        history.append(float(backend.to_numpy(params)["w"][0]))
        weights = decay ** (t - np.arange(1, t + 1))
        average = backend.to_numpy(optimizer.averaged(params, moments))["w"]
        close(average, [np.average(history, weights=weights)], rtol=1e-4)


@pytest.mark.parametrize(("options", "others"), [({}, 1.0), ({"no_decay": ()}, 0.95)])
def test_weight_decay_does_not_change_biases_and_scales(backend, options, others):
    """optax#25, transformers#4360, keras#16201: with gradient 0 only weights shrink."""
    model = nn.Sequential(nn.Dense(3), nn.LayerNorm(), nn.PReLU(), nn.Dense(2))
    params = tree_map(np.ones_like, init(model, (4,))[0])
    optimizer = nn.AdamW(0.1, weight_decay=0.5, **options)
    moved, _ = steps(backend, optimizer, params, tree_map(np.zeros_like, params))
    for path, leaf in named_leaves(moved):
        close(leaf, np.full(leaf.shape, 0.95 if path.endswith("weight") else others))


def rates(backend, schedule, *counts, dtype="float64"):
    return [
        float(backend.to_numpy(schedule(backend.asarray(np.asarray(t, dtype)))))
        for t in counts
    ]


def test_schedules_reach_their_final_rates_and_keep_them(backend):
    """pytorch#91765, lightly#1842: first, largest, last and later rates."""
    cycle = schedules.OneCycle(0.1, 20)
    first, top, last, past = rates(backend, cycle, 0, 5, 19, 25)
    close([first, top], [0.004, 0.1])
    assert last == past < 1e-5
    cosine = schedules.Cosine(1.0, 10, warmup=4, final=0.1)
    close(rates(backend, cosine, 0, 3, 4, 7, 10, 99), [0.25, 1.0, 1.0, 0.55, 0.1, 0.1])
    decay = schedules.StepDecay(1.0, 3, factor=0.1)
    close(
        rates(backend, decay, 0, 2, 3, 5, 6, 9),
        [1, 1, 0.1, 0.1, 0.01, 0.001],
        rtol=1e-9,
    )
    halves = schedules.StepDecay(1.0, 49, factor=0.5)
    counts = (48, 49, 97, 98, 49 * 7, 49 * 7 - 1)
    expected = [1, 0.5, 0.5, 0.25, 0.5**7, 0.5**6]
    close(rates(backend, halves, *counts, dtype="float32"), expected, rtol=1e-5)
    restarts = schedules.CosineRestarts(1.0, (2, 4))
    close(rates(backend, restarts, 0, 1, 2, 4, 6, 50), [1, 0.5, 1, 0.5, 0, 0])


def test_accumulated_batches_equal_one_large_batch(backend):
    """transformers#24725, torchtune#1875, OpenNMT-py#2209: 1 and 5 real labels."""
    x = generator(1).normal(size=(2, 6, 3)).astype("float32")
    labels = generator(2).integers(0, 4, (2, 6))
    labels[0, 1:] = -1
    labels[1, 5] = -1
    loss = partial(nn.softmax_cross_entropy, ignore_index=-1)
    whole = make(backend, nn.Dense(4), loss, nn.SGD(1.0), shape=(6, 3))
    whole.fit(x, labels, batch_size=2, shuffle=False, verbose=0)
    parts = make(
        backend, nn.Dense(4), loss, nn.Accumulate(nn.SGD(1.0), every=2), shape=(6, 3)
    )
    parts.fit(x, labels, batch_size=1, shuffle=False, verbose=0)
    close(
        flat(host(parts, parts.params)),
        flat(host(whole, whole.params)),
        rtol=1e-5,
        atol=1e-6,
    )


# --- training -------------------------------------------------------------------------


def test_evaluate_does_not_depend_on_the_batch_size(backend):
    """tensorflow#38596, Lightning#2924, nolearn#247: means of unequal batches."""
    x = generator(3).normal(size=(7, 3)).astype("float32")
    y = (10 * generator(4).normal(size=(7, 2))).astype("float32")
    trainer = make(
        backend, nn.Dense(2), nn.mean_squared_error, nn.SGD(1e-12), shape=(3,)
    )
    params = host(trainer, trainer.params)
    errors = x.astype("float64") @ params["weight"] + params["bias"] - y
    expected = (errors**2).mean()
    for batch_size in (1, 2, 3, 5, 7, 100):
        close(
            trainer.evaluate(x, y, batch_size=batch_size)["loss"], expected, rtol=1e-5
        )
    close(trainer.fit(x, y, batch_size=3, verbose=0)["loss"][0], expected, rtol=1e-5)


def test_evaluate_with_ignored_labels_does_not_depend_on_the_batch_size(backend):
    """transformers#24839, #41898, keras#4186, #2546: unequal ignored labels."""
    x = generator(4).normal(size=(4, 3, 2)).astype("float32")
    labels = np.array([[0, 1, 2], [1, -1, -1], [-1, -1, -1], [2, -1, 0]])
    loss = partial(nn.softmax_cross_entropy, ignore_index=-1)
    trainer = make(backend, nn.Dense(3), loss, shape=(3, 2))
    params = host(trainer, trainer.params)
    chances = softmax(x.astype("float64") @ params["weight"] + params["bias"])
    counts = labels >= 0
    at_label = np.take_along_axis(
        chances, np.where(counts, labels, 0)[..., None], axis=-1
    )
    expected = -np.log(at_label[..., 0][counts]).mean()
    for batch_size in (4, 2, 1, 3):
        close(
            trainer.evaluate(x, labels, batch_size=batch_size)["loss"],
            expected,
            rtol=1e-5,
        )


def test_the_best_epoch_is_restored_when_the_epochs_run_out(backend):
    """tensorflow#35634, keras#12511, #20323: only after an early stop."""
    x = generator(7).normal(size=(24, 3)).astype("float32")
    y = (x @ generator(8).normal(size=(3, 1))).astype("float32")
    held_out = (x[:8] + 1, y[:8] * 3)
    model = nn.Sequential(nn.BatchNorm(), nn.Dense(8), nn.Tanh(), nn.Dense(1))
    trainer = make(backend, model, nn.mean_squared_error, nn.SGD(0.3), shape=(3,))
    stopping = nn.EarlyStopping(patience=50)
    options = {"epochs": 12, "batch_size": 8, "validation": held_out, "verbose": 0}
    history = trainer.fit(x, y, callbacks=[stopping], **options)
    close(
        trainer.evaluate(*held_out)["loss"], min(history["validation_loss"]), rtol=1e-5
    )


def test_arrays_of_the_user_and_the_trainer_are_independent(backend):
    """jax#37830, #899: changes on one side must not be visible on the other."""
    x = generator(9).normal(size=(64, 32)).astype("float32")
    y = generator(10).normal(size=(64, 16)).astype("float32")
    before = x.copy(), y.copy()
    trainer = make(
        backend, nn.Dense(16), nn.mean_squared_error, nn.Adam(0.1), shape=(32,)
    )
    weight = generator(11).normal(size=(32, 16)).astype("float32")
    params = {"weight": weight.copy(), "bias": np.zeros(16, "float32")}
    start = flat(params)
    trainer.start_from(params)
    trainer.keep("start")
    read = trainer.params
    options = {"batch_size": 16, "verbose": 0}
    trainer.fit(x, y, epochs=3, **options)
    same(flat(params), start)
    same(flat(host(trainer, read)), start)
    for _ in range(2):
        trainer.restore("start")
        same(flat(host(trainer, trainer.params)), start)
        trainer.fit(x, y, epochs=1, **options)
    trainer.restore("start")
    params["weight"][:] = 7
    same(flat(host(trainer, trainer.params)), start)
    same(x, before[0])
    same(y, before[1])


def test_results_of_predict_share_no_memory_with_the_input(backend):
    """gymnasium#239 and NumPy's views: a model that only reshapes."""
    x = np.arange(12, dtype="float32").reshape(2, 2, 3)
    model = nn.Graph(
        flat=(nn.Reshape((6,)), "x"),
        dense=(nn.Dense(2), "flat"),
        outputs={"flat": "flat", "dense": "dense"},
    )
    losses = nn.Losses(flat=nn.mean_squared_error, dense=nn.mean_squared_error)
    trainer = make(backend, model, losses, shape=(2, 3))
    expected = x.reshape(2, 6).copy()
    y = np.asarray(trainer.predict(x)["flat"])
    if y.flags.writeable:
        y[:] = -1
    same(x.reshape(2, 6), expected)
    y = np.asarray(trainer.predict(x)["flat"])
    x[:] = 5
    same(y, expected)


def test_a_run_resumed_in_the_middle_of_a_schedule_equals_an_uninterrupted_run(
    backend, tmp_path
):
    """pytorch#60265, Lightning#4655, torchtune#2730: the schedule lagged or jumped."""
    x = generator(11).normal(size=(20, 3)).astype("float32")
    labels = generator(12).integers(0, 2, 20)

    def trainer():
        model = nn.Sequential(nn.Dense(6), nn.BatchNorm(), nn.Dropout(0.3), nn.Dense(2))
        optimizer = nn.Average(nn.AdamW(schedules.Cosine(0.1, 10, warmup=3)))
        return make(backend, model, nn.softmax_cross_entropy, optimizer, shape=(3,))

    options = {"batch_size": 4, "verbose": 0}
    whole = trainer()
    whole.fit(x, labels, epochs=2, **options)
    part = trainer()
    part.fit(x, labels, epochs=2, steps=7, **options)
    part.save(tmp_path / "part.safetensors")
    resumed = nn.Trainer.load(tmp_path / "part.safetensors", backend)
    resumed.fit(x, labels, epochs=1, **options)
    for name in ("params", "state", "moments"):
        actual, expected = (flat(host(t, getattr(t, name))) for t in (resumed, whole))
        same(actual, expected)


@pytest.mark.parametrize("batch_size", [200, 64])
def test_r2_of_targets_far_from_zero(backend, batch_size):
    """torchmetrics#3077, #1161, ignite#3836: Σ t² - (Σ t)² / n in float32."""
    target = (300_000 + 5 * generator(13).normal(size=(200, 1))).astype("float32")
    noise = 0.3 * generator(14).normal(size=target.shape)
    x = ((target.astype("float64") - 300_000) / 5 + noise).astype("float32")
    scores = {"r2": metrics.r2}
    trainer = make(
        backend, nn.Dense(1), nn.mean_squared_error, shape=(1,), metrics=scores
    )
    weight, bias = np.array([[5.0]], "float32"), np.array([300_000.0], "float32")
    trainer.start_from({"weight": weight, "bias": bias})
    errors = target.astype("float64") - trainer.predict(x)
    centered = target.astype("float64") - target.astype("float64").mean()
    expected = 1 - (errors**2).sum() / (centered**2).sum()
    close(trainer.evaluate(x, target, batch_size=batch_size)["r2"], expected, rtol=1e-3)


def test_ties_do_not_exceed_the_top_k(backend):
    """tensorflow#13005, NVIDIA-Merlin#617: constant predictions were always right."""

    def hits(y, labels, k):
        y, labels = (
            backend.asarray(np.asarray(y, "float64")),
            backend.asarray(np.asarray(labels)),
        )
        return backend.to_numpy(metrics.top_k_accuracy(y, labels, k=k))

    close(hits(np.zeros((5, 5)), np.arange(5), 2).mean(), 2 / 5)
    assert hits([[6, 5, 4, 4, 4]] * 3, [2, 3, 4], 3).sum() == 1
    same(hits([[math.nan] * 3], [2], 1), [0])


def test_every_backend_has_the_same_initial_values_and_order(backend):
    """keras#20804, #22695: the order or the initial values depended on the backend."""

    def train(name):
        order = []

        def look(x, labels, generator):
            order.append(np.array(x[:, 0]))
            return x, labels

        model = nn.Sequential(nn.Dense(4), nn.Dropout(0.5), nn.Dense(2))
        trainer = make(name, model, nn.softmax_cross_entropy, shape=(1,), seed=7)
        start = flat(host(trainer, trainer.params))
        x = np.arange(11, dtype="float32")[:, None]
        options = {"epochs": 2, "batch_size": 4, "verbose": 0}
        trainer.fit(x, np.arange(11) % 2, augment=look, **options)
        return start, np.concatenate(order), flat(host(trainer, trainer.params))

    start, order, end = train(backend)
    expected_start, expected_order, expected_end = train("numpy")
    same(start, expected_start)
    same(order, expected_order)
    close(end, expected_end, rtol=1e-4, atol=1e-5)
    same(np.sort(order[:11]), np.arange(11))
    assert (order[:11] != order[11:]).any()


BAD_DATA = {
    "datetime64": np.zeros((3, 2), "datetime64[D]"),
    "<U": np.array([["a", "b"]]),
    "object": np.array([[1, None]], object),
    "complex": np.ones((2, 2), complex),
    "mask": np.ma.masked_array(np.ones((2, 2), "float32"), mask=[[0, 1], [0, 0]]),
    "nan": np.array([[1, math.nan]], "float32"),
    "equal lengths": [[1.0, 2.0], [3.0]],
    "float16": np.ones((2, 2), "float16"),
    "generator": (row for row in [[1.0, 2.0]]),
}


@pytest.mark.parametrize("word", BAD_DATA)
def test_data_that_are_not_numbers_are_refused(backend, word):
    trainer = make(backend, nn.Dense(2), nn.mean_squared_error, shape=(2,))
    with pytest.raises((TypeError, ValueError), match=word):
        trainer.predict(BAD_DATA[word])


def test_a_loss_uses_an_annealed_weight(backend):
    """keras#13826, #6446, #19054, jax#1426: the closure stayed constant."""
    beta = [0.0]

    def loss(y, target, weights=None):
        value, dy = nn.mean_squared_error(y, target, weights)
        return value * beta[0], dy * beta[0]

    def anneal(trainer, row):
        beta[0] = 1.0

    trainer = make(backend, nn.Dense(1), loss, shape=(2,))
    start = flat(host(trainer, trainer.params))
    x, y = np.ones((8, 2), "float32"), np.full((8, 1), 9, "float32")
    history = trainer.fit(x, y, epochs=5, batch_size=4, callbacks=[anneal], verbose=0)
    assert history["loss"][0] == 0
    assert min(history["loss"][1:]) > 0
    assert np.abs(flat(host(trainer, trainer.params)) - start).max() > 0


def test_a_weight_of_2_equals_repeating_the_example(backend):
    """scikit-learn#30155, #11723: weights (2, 1, 0, 3) equal that many repetitions."""
    x = generator(4).normal(size=(4, 3)).astype("float32")
    labels = np.array([0, 1, 1, 2])
    weights = np.array([2, 1, 0, 3])

    def train(x, labels, **options):
        model = nn.Sequential(nn.Dense(4), nn.Tanh(), nn.Dense(3))
        trainer = make(
            backend, model, nn.softmax_cross_entropy, nn.Adam(0.05), shape=(3,)
        )
        trainer.fit(x, labels, epochs=5, verbose=0, **options)
        return flat(host(trainer, trainer.params))

    rows = np.repeat(np.arange(4), weights)
    repeated = train(x[rows], labels[rows], batch_size=6)
    close(
        train(x, labels, weights=weights, batch_size=4), repeated, rtol=1e-4, atol=1e-5
    )


def test_batches_of_unequal_size_from_an_iterable(backend):
    """keras#13780, #4186: means and BatchNorm count only existing rows."""
    x = generator(5).normal(size=(9, 2)).astype("float32")
    y = generator(6).normal(size=(9, 1)).astype("float32")
    cuts = [slice(0, 3), slice(3, 5), slice(5, 9)]
    model = nn.Sequential(nn.BatchNorm(momentum=0.5), nn.Dense(1))
    trainer = make(backend, model, nn.mean_squared_error, nn.SGD(1e-9), shape=(2,))
    params = host(trainer, trainer.params)[1]
    history = trainer.fit(batches=[(x[c], y[c]) for c in cuts], epochs=2, verbose=0)
    mean, variance = np.zeros(2), np.ones(2)
    for epoch in range(2):
        total = 0.0
        for cut in cuts:
            rows = x[cut].astype("float64")
            normed = (rows - rows.mean(axis=0)) / np.sqrt(rows.var(axis=0) + 1e-5)
            total += ((normed @ params["weight"] + params["bias"] - y[cut]) ** 2).sum()
            mean = 0.5 * mean + 0.5 * rows.mean(axis=0)
            variance = 0.5 * variance + 0.5 * rows.var(axis=0, ddof=1)
        close(history["loss"][epoch], total / 9, rtol=1e-5)
    state = host(trainer, trainer.state)[0]
    close(state["mean"], mean, rtol=1e-4, atol=1e-5)
    close(state["variance"], variance, rtol=1e-4)
