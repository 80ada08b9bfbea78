"""Losses, without reduction: the value and the slopes of each example."""

import numpy as np

import agnostic_nn as nn
from agnostic_nn.diagnostics.examples import drawn, loss_of

from . import Case


def each(name, **options):
    """A loss of torch.nn.functional of y and target."""

    def theirs(t, g):
        function = getattr(t.nn.functional, name)
        return function(g.x["y"], g.x["target"], reduction="none", **options)

    return theirs


def by_class(name, weight=None, **options):
    """One that wants classes as axis 1 and labels in int64."""

    def theirs(t, g):
        y, target = g.x["y"].movedim(-1, 1), g.x["target"]
        target = target.movedim(-1, 1) if target.is_floating_point() else target.long()
        weights = None if weight is None else t.tensor(weight, dtype=y.dtype)
        function = getattr(t.nn.functional, name)
        return function(y, target, weights, reduction="none", **options)

    return theirs


def focal(weight, gamma, smoothing=0.0):
    """The formula, to PyTorch's autograd: it has no focal loss of many classes."""

    def theirs(t, g):
        y, target = g.x["y"], g.x["target"]
        classes = y.shape[-1]
        p = (
            target
            if target.is_floating_point()
            else t.eye(classes, dtype=y.dtype)[target.long()]
        )
        p = (1.0 - smoothing) * p + smoothing / classes
        q = y.softmax(-1)
        return -(
            t.tensor(weight, dtype=y.dtype) * p * (1.0 - q) ** gamma * q.log()
        ).sum(-1)

    return theirs


def margins(t, g, power=1, margin=1.0):
    function = t.nn.functional.multi_margin_loss
    return function(g.x["y"], g.x["target"].long(), power, margin, reduction="none")


def ranking(t, g):
    """PyTorch's hinge of -t (y - 0)."""
    y = g.x["y"]
    other = t.zeros_like(y)
    return t.nn.functional.margin_ranking_loss(
        y, other, g.x["target"], 1.0, reduction="none"
    )


def gaussian(t, g, **options):
    y = g.x["y"]
    mean, variance = y if isinstance(y, tuple) else (y["mean"], y["variance"])
    return t.nn.functional.gaussian_nll_loss(
        mean, g.x["target"], variance, reduction="none", **options
    )


def ctc(t, g, blank=0):
    """PyTorch wants log-probabilities with time first, and all lengths."""
    y, target = g.x["y"], g.x["target"]
    target = target if isinstance(target, dict) else {"labels": target}
    labels = target["labels"].long()
    times = target.get("input_lengths", t.full(y.shape[:1], y.shape[1]))
    lengths = target.get("label_lengths", t.full(y.shape[:1], labels.shape[1]))
    return t.nn.functional.ctc_loss(
        y.log_softmax(-1).movedim(1, 0), labels, times, lengths, blank, reduction="none"
    )


def triplet(t, g):
    a, p, n = g.x["y"]
    function = t.nn.functional.triplet_margin_loss
    return function(a, p, n, margin=0.5, eps=0.0, reduction="none")


def pair(t, g):
    """By their cosine: their cosine_embedding_loss adds 1e-12 to squares, which can be seen."""
    cosine = t.nn.functional.cosine_similarity(
        g.x["y"]["first"], g.x["y"]["second"], -1
    )
    return t.where(g.x["target"] > 0, 1.0 - cosine, (cosine - 0.1).clamp(min=0.0))


def numbers(generator, shape):
    return generator.standard_normal(shape["target"])


def counts(generator, shape):
    return generator.poisson(1.5, shape["target"]).astype("float64")


def signs(generator, shape):
    return generator.choice([-1.0, 1.0], shape["target"])


def chances(generator, shape):
    return generator.random(shape["target"])


def labels(generator, shape):
    return generator.integers(0, shape["y"][-1], shape["target"])


def some_ignored(generator, shape):
    target = labels(generator, shape)
    return np.where(generator.random(shape["target"]) < 0.3, -100, target)


def distributions(generator, shape):
    p = generator.random(shape["target"]) * (generator.random(shape["target"]) > 0.3)
    p[..., 0] += 0.1
    return p / np.sum(p, axis=-1, keepdims=True)


def positive(generator, shape):
    return generator.uniform(0.3, 2.0, shape)


def labellings(generator, shape):
    """Labels but the blank, 0, some of them repeated, in as many times as they need or more."""
    _, time, classes = shape["y"]
    batch, length = shape["target"]["labels"]
    lengths = generator.integers(0, length + 1, batch)
    wanted = generator.integers(1, classes, (batch, length))
    wanted[..., 1] = wanted[..., 0]
    times = generator.integers(length + 1, time + 1, batch)
    return {"labels": wanted, "label_lengths": lengths, "input_lengths": times}


def full_labellings(generator, shape):
    """Labels but the blank, which is the last class."""
    return generator.integers(0, shape["y"][-1] - 1, shape["target"])


def log_chances(generator, shape):
    y = generator.standard_normal(shape)
    return y - np.log(np.sum(np.exp(y), axis=-1, keepdims=True))


ONE = {"y": (5,), "target": (5,)}
LABELS, MANY = {"y": (5,), "target": ()}, {"y": (3, 4), "target": (3,)}
WEIGHTS = (0.5, 2.0, 0.0, 1.25)
FIVE = (0.5, 2.0, 0.0, 1.25, 1.0)
PAIR = {"y": {"first": (5, 4), "second": (5, 4)}, "target": (5,)}
TWO = {"y": {"mean": (3,), "variance": (3,)}, "target": (3,)}
THREE = {"y": ((3, 4), (3, 4), (3, 4)), "target": (0,)}
SPELLED = {
    "y": (7, 4),
    "target": {"labels": (3,), "label_lengths": (), "input_lengths": ()},
}

CASES = [
    Case(loss_of(nn.mean_squared_error), ONE, each("mse_loss"), drawn(numbers)),
    Case(loss_of(nn.mean_absolute_error), ONE, each("l1_loss"), drawn(numbers)),
    Case(
        loss_of(nn.huber, delta=0.7), ONE, each("huber_loss", delta=0.7), drawn(numbers)
    ),
    Case(
        loss_of(nn.log_cosh),
        ONE,
        lambda t, g: (g.x["y"] - g.x["target"]).cosh().log(),
        drawn(numbers),
    ),
    Case(loss_of(nn.poisson_nll), ONE, each("poisson_nll_loss"), drawn(counts)),
    Case(
        loss_of(nn.poisson_nll, log_rate=False, full=True),
        ONE,
        each("poisson_nll_loss", log_input=False, full=True),
        drawn(counts, positive),
    ),
    Case(loss_of(nn.gaussian_nll), TWO, gaussian, drawn(numbers, positive)),
    Case(
        loss_of(nn.gaussian_nll, full=True),
        {"y": ((3,), (3,)), "target": (3,)},
        lambda t, g: gaussian(t, g, full=True),
        drawn(numbers, positive),
        thorough=True,
    ),
    Case(
        loss_of(nn.softmax_cross_entropy, labels=True),
        MANY,
        by_class("cross_entropy"),
        drawn(labels),
        thorough=True,
    ),
    Case(
        loss_of(
            nn.softmax_cross_entropy,
            labels=True,
            class_weights=WEIGHTS,
            ignore_index=-100,
            label_smoothing=0.2,
        ),
        MANY,
        by_class("cross_entropy", WEIGHTS, ignore_index=-100, label_smoothing=0.2),
        drawn(some_ignored),
    ),
    Case(
        loss_of(nn.softmax_cross_entropy, class_weights=WEIGHTS),
        {"y": (4,), "target": (4,)},
        by_class("cross_entropy", WEIGHTS),
        drawn(distributions),
    ),
    Case(
        loss_of(nn.softmax_cross_entropy, labels=True, class_weights=FIVE, gamma=2.0),
        LABELS,
        focal(FIVE, 2.0),
        drawn(labels),
    ),
    Case(
        loss_of(nn.softmax_cross_entropy, gamma=0.5, label_smoothing=0.1),
        {"y": (2, 4), "target": (2, 4)},
        focal((1.0,) * 4, 0.5, 0.1),
        drawn(distributions),
        thorough=True,
    ),
    Case(
        loss_of(nn.binary_cross_entropy),
        ONE,
        each("binary_cross_entropy_with_logits"),
        drawn(chances),
    ),
    Case(
        loss_of(nn.binary_cross_entropy, positive_weight=WEIGHTS),
        {"y": (2, 4), "target": (2, 4)},
        lambda t, g: t.nn.functional.binary_cross_entropy_with_logits(
            g.x["y"],
            g.x["target"],
            reduction="none",
            pos_weight=t.tensor(WEIGHTS).double(),
        ),
        drawn(chances),
    ),
    Case(
        loss_of(
            nn.negative_log_likelihood,
            labels=True,
            class_weights=WEIGHTS,
            ignore_index=-100,
        ),
        MANY,
        by_class("nll_loss", WEIGHTS, ignore_index=-100),
        drawn(some_ignored, log_chances),
    ),
    Case(
        loss_of(nn.kl_divergence),
        {"y": (2, 4), "target": (2, 4)},
        lambda t, g: each("kl_div")(t, g).sum(-1),
        drawn(distributions, log_chances),
    ),
    Case(loss_of(nn.hinge), ONE, ranking, drawn(signs)),
    Case(loss_of(nn.squared_hinge), ONE, lambda t, g: ranking(t, g) ** 2, drawn(signs)),
    Case(loss_of(nn.multi_class_margin, labels=True), LABELS, margins, drawn(labels)),
    Case(
        loss_of(nn.multi_class_margin, labels=True, power=2, margin=0.5),
        LABELS,
        lambda t, g: margins(t, g, 2, 0.5),
        drawn(labels),
    ),
    Case(
        loss_of(nn.cosine_distance),
        {"y": (2, 4), "target": (2, 4)},
        lambda t, g: (
            1.0 - t.nn.functional.cosine_similarity(g.x["y"], g.x["target"], -1)
        ),
        drawn(numbers),
    ),
    Case(loss_of(nn.cosine_embedding, margin=0.1), PAIR, pair, drawn(signs)),
    Case(loss_of(nn.triplet_margin, margin=0.5), THREE, triplet, drawn(numbers)),
    Case(loss_of(nn.ctc, labels=True), SPELLED, ctc, drawn(labellings)),
    Case(
        loss_of(nn.ctc, labels=True, blank=3),
        {"y": (6, 4), "target": (2,)},
        lambda t, g: ctc(t, g, blank=3),
        drawn(full_labellings),
        thorough=True,
    ),
]
