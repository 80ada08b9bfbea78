"""Losses, without reduction: the value and the slopes of each example."""

import agnostic_nn as nn
from agnostic_nn.diagnostics.draws import (
    chances,
    counts,
    distributions,
    drawn,
    labels,
    labels_or_ignored,
    log_probabilities,
    numbers,
    positive,
    probabilities,
    signs,
    zeros_and_ones,
)
from agnostic_nn.diagnostics.examples import loss_of

from . import Case


def options_of(g):
    return dict(g.layer.options)


def each(name):
    """Return the twin: a loss of torch.nn.functional, with our options."""

    def theirs(t, g):
        function = getattr(t.nn.functional, name)
        more = options_of(g)
        return function(g.x["y"], g.x["target"], reduction="none", **more)

    return theirs


def binary(t, g):
    options = options_of(g)
    weight = options.get("positive_weight")
    if not options.get("from_logits", True):
        y, target = g.x["y"], g.x["target"]
        each = t.nn.functional.binary_cross_entropy(y, target, reduction="none")
        return each if weight is None else each - (weight - 1.0) * target * y.log()
    return t.nn.functional.binary_cross_entropy_with_logits(
        g.x["y"],
        g.x["target"],
        reduction="none",
        pos_weight=None if weight is None else t.tensor(weight, dtype=g.x["y"].dtype),
    )


def poisson(t, g):
    options = options_of(g)
    return t.nn.functional.poisson_nll_loss(
        g.x["y"],
        g.x["target"],
        log_input=options.get("log_rate", True),
        full=options.get("full", False),
        reduction="none",
    )


def by_class(name):
    """Return the twin that takes classes as axis 1 and labels in int64."""

    def theirs(t, g):
        y, target = g.x["y"].movedim(-1, 1), g.x["target"]
        target = target.movedim(-1, 1) if target.is_floating_point() else target.long()
        options = options_of(g)
        weights = options.pop("class_weights", None)
        weights = None if weights is None else t.tensor(weights, dtype=y.dtype)
        function = getattr(t.nn.functional, name)
        return function(y, target, weights, reduction="none", **options)

    return theirs


def softmax(t, g):
    """PyTorch has no focal loss of many classes: its autograd gets the formula."""
    options = options_of(g)
    if "gamma" not in options:
        return by_class("cross_entropy")(t, g)
    y, target = g.x["y"], g.x["target"]
    classes = y.shape[-1]
    smoothing = options.get("label_smoothing", 0.0)
    weights = t.tensor(options.get("class_weights", (1.0,) * classes), dtype=y.dtype)
    identity = t.eye(classes, dtype=y.dtype)
    p = target if target.is_floating_point() else identity[target.long()]
    p = (1.0 - smoothing) * p + smoothing / classes
    q = y.softmax(-1)
    return -(weights * p * (1.0 - q) ** options["gamma"] * q.log()).sum(-1)


def margins(t, g):
    options = options_of(g)
    weights = options.get("class_weights")
    return t.nn.functional.multi_margin_loss(
        g.x["y"],
        g.x["target"].long(),
        options.get("power", 1),
        options.get("margin", 1.0),
        None if weights is None else t.tensor(weights, dtype=g.x["y"].dtype),
        reduction="none",
    )


def margins_of_labels(t, g):
    """PyTorch takes rows with lists of classes, each ending with -1."""
    y, target = g.x["y"], g.x["target"]
    classes = y.shape[-1]
    order = target.reshape(-1, classes).argsort(dim=-1, descending=True, stable=True)
    counts = target.reshape(-1, classes).sum(-1, keepdim=True)
    lists = t.where(t.arange(classes) < counts, order, -1)
    function = t.nn.functional.multilabel_margin_loss
    values = function(y.reshape(-1, classes), lists, reduction="none")
    return values.reshape(y.shape[:-1])


def soft_margins_of_labels(t, g):
    y, weights = g.x["y"], options_of(g).get("class_weights")
    weights = None if weights is None else t.tensor(weights, dtype=y.dtype)
    function = t.nn.functional.multilabel_soft_margin_loss
    return function(y, g.x["target"], weights, reduction="none")


def order(t, g):
    first, second = g.x["y"]["first"], g.x["y"]["second"]
    function = t.nn.functional.margin_ranking_loss
    return function(first, second, g.x["target"], reduction="none", **options_of(g))


def divergence(t, g):
    options = options_of(g)
    is_summed = not options.pop("per_element", False)
    function = t.nn.functional.kl_div
    terms = function(g.x["y"], g.x["target"], reduction="none", **options)
    return terms.sum(-1) if is_summed else terms


def ranking(t, g):
    """PyTorch's hinge of -t (y - 0)."""
    y = g.x["y"]
    other = t.zeros_like(y)
    return t.nn.functional.margin_ranking_loss(
        y, other, g.x["target"], 1.0, reduction="none"
    )


def gaussian(t, g):
    y = g.x["y"]
    mean, variance = y if isinstance(y, tuple) else (y["mean"], y["variance"])
    return t.nn.functional.gaussian_nll_loss(
        mean, g.x["target"], variance, reduction="none", **options_of(g)
    )


def ctc(t, g):
    """PyTorch takes log-probabilities with time first, and all lengths."""
    y, target = g.x["y"], g.x["target"]
    target = target if isinstance(target, dict) else {"labels": target}
    labels = target["labels"].long()
    times = target.get("input_lengths", t.full(y.shape[:1], y.shape[1]))
    lengths = target.get("label_lengths", t.full(y.shape[:1], labels.shape[1]))
    log_p = y.log_softmax(-1).movedim(1, 0)
    blank = options_of(g).get("blank", 0)
    function = t.nn.functional.ctc_loss
    return function(log_p, labels, times, lengths, blank, reduction="none")


def triplet(t, g):
    a, p, n = g.x["y"]
    function = t.nn.functional.triplet_margin_loss
    return function(a, p, n, eps=0.0, reduction="none", **options_of(g))


def dice(t, g):
    """PyTorch has no Dice loss: its autograd gets the formula."""
    options = options_of(g)
    y, target = g.x["y"], g.x["target"]
    classes = y.shape[-1]
    if not target.is_floating_point():
        target = t.eye(classes, dtype=y.dtype)[target.long()]
    activation = options.get("activation", "sigmoid")
    p = {"sigmoid": y.sigmoid(), "softmax": y.softmax(-1), None: y}[activation]
    places = tuple(range(1, y.ndim - 1))
    epsilon = options.get("epsilon", 1e-7)

    def total(x):
        return x.sum(places) if places else x

    ratio = (2 * total(p * target) + epsilon) / (total(p) + total(target) + epsilon)
    weights = t.tensor(options.get("class_weights", (1.0,) * classes), dtype=y.dtype)
    return ((1 - ratio) * weights).sum(-1) / weights.sum()


def contrast(t, g):
    """PyTorch's cross entropy of similarities."""
    options = options_of(g)
    y = g.x["y"]
    a, b = (y["first"], y["second"]) if isinstance(y, dict) else y
    if options.get("normalize", True):
        a, b = t.nn.functional.normalize(a), t.nn.functional.normalize(b)
    similarity = a @ b.T / options.get("temperature", 0.07)
    labels = t.arange(len(a))
    rows = t.nn.functional.cross_entropy(similarity, labels, reduction="none")
    if not options.get("symmetric", False):
        return rows
    columns = t.nn.functional.cross_entropy(similarity.T, labels, reduction="none")
    return (rows + columns) / 2


def cosine_distance(t, g):
    cosine = t.nn.functional.cosine_similarity
    return 1.0 - cosine(g.x["y"], g.x["target"], -1)


def pair(t, g):
    """By PyTorch's cosine: its cosine_embedding_loss adds 1e-12, which can be seen."""
    first, second = g.x["y"]["first"], g.x["y"]["second"]
    cosine = t.nn.functional.cosine_similarity(first, second, -1)
    margin = options_of(g)["margin"]
    apart = (cosine - margin).clamp(min=0.0)
    return t.where(g.x["target"] > 0, 1.0 - cosine, apart)


def logarithms(generator, shape):
    """Return log-probabilities as targets."""
    return log_probabilities(generator, shape["target"])


def labellings(generator, shape):
    """Return labels that are not blank (0), some repeated, and enough time steps."""
    _, time, classes = shape["y"]
    batch, length = shape["target"]["labels"]
    lengths = generator.integers(0, length + 1, batch)
    labels = generator.integers(1, classes, (batch, length))
    labels[..., 1] = labels[..., 0]
    times = generator.integers(length + 1, time + 1, batch)
    return {"labels": labels, "label_lengths": lengths, "input_lengths": times}


WEIGHTS = (0.5, 2.0, 0.0, 1.25)
FIVE = (0.5, 2.0, 0.0, 1.25, 1.0)
ONE = {"y": (5,), "target": (5,)}
LABEL, LABELS = {"y": (5,), "target": ()}, {"y": (3, 4), "target": (3,)}
ROW, ROWS = {"y": (4,), "target": (4,)}, {"y": (2, 4), "target": (2, 4)}
LENGTHS = {"labels": (3,), "label_lengths": (), "input_lengths": ()}

TWINS = {
    nn.binary_cross_entropy: binary,
    nn.cosine_distance: cosine_distance,
    nn.cosine_embedding: pair,
    nn.ctc: ctc,
    nn.dice: dice,
    nn.gaussian_nll: gaussian,
    nn.hinge: ranking,
    nn.hinge_embedding: each("hinge_embedding_loss"),
    nn.huber: each("huber_loss"),
    nn.info_nce: contrast,
    nn.kl_divergence: divergence,
    nn.log_cosh: lambda t, g: (g.x["y"] - g.x["target"]).cosh().log(),
    nn.margin_ranking: order,
    nn.mean_absolute_error: each("l1_loss"),
    nn.mean_squared_error: each("mse_loss"),
    nn.multi_class_margin: margins,
    nn.multi_label_margin: margins_of_labels,
    nn.multi_label_soft_margin: soft_margins_of_labels,
    nn.negative_log_likelihood: by_class("nll_loss"),
    nn.poisson_nll: poisson,
    # PyTorch's soft_margin_loss has no gradient of targets, for which the test asks
    nn.soft_margin: lambda t, g: t.nn.functional.soft_margin_loss(
        g.x["y"], g.x["target"].detach(), reduction="none"
    ),
    nn.softmax_cross_entropy: softmax,
    nn.squared_hinge: lambda t, g: ranking(t, g) ** 2,
    nn.triplet_margin: triplet,
}

LIMITS = {
    nn.ctc: {"thorough": True},
    nn.softmax_cross_entropy: {"thorough": True},
}


CASES = [
    Case(
        loss_of(nn.poisson_nll, log_rate=False, full=True),
        ONE,
        draw=drawn(counts, positive),
    ),
    Case(
        loss_of(nn.gaussian_nll, full=True),
        {"y": ((3,), (3,)), "target": (3,)},
        draw=drawn(numbers, positive),
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
        LABELS,
        draw=drawn(labels_or_ignored),
    ),
    Case(
        loss_of(nn.softmax_cross_entropy, class_weights=WEIGHTS),
        ROW,
        draw=drawn(distributions),
    ),
    Case(
        loss_of(nn.softmax_cross_entropy, labels=True, class_weights=FIVE, gamma=2.0),
        LABEL,
        draw=drawn(labels),
    ),
    Case(
        loss_of(nn.softmax_cross_entropy, gamma=0.5, label_smoothing=0.1),
        ROWS,
        draw=drawn(distributions),
        thorough=True,
    ),
    Case(
        loss_of(nn.binary_cross_entropy, positive_weight=WEIGHTS),
        ROWS,
        draw=drawn(probabilities),
    ),
    Case(
        loss_of(nn.multi_class_margin, labels=True, power=2, margin=0.5),
        LABEL,
        draw=drawn(labels),
    ),
    Case(
        loss_of(
            nn.multi_class_margin,
            labels=True,
            power=2,
            class_weights=(0.5, 2.0, 3.0, 1.25, 1.0),
        ),
        LABEL,
        draw=drawn(labels),
    ),
    Case(
        loss_of(nn.binary_cross_entropy, from_logits=False, positive_weight=3.0),
        ROWS,
        draw=drawn(probabilities, chances),
    ),
    Case(
        loss_of(nn.kl_divergence, log_target=True),
        ROWS,
        draw=drawn(logarithms, log_probabilities),
    ),
    Case(
        loss_of(nn.kl_divergence, per_element=True),
        ROW,
        draw=drawn(distributions, log_probabilities),
    ),
    Case(loss_of(nn.hinge_embedding, margin=0.25), ROWS, draw=drawn(signs)),
    Case(
        loss_of(nn.margin_ranking),
        {"y": {"first": (2, 3), "second": (2, 3)}, "target": (2, 3)},
        draw=drawn(signs),
    ),
    Case(
        loss_of(nn.multi_label_margin),
        {"y": (7,), "target": (7,)},
        draw=drawn(zeros_and_ones),
    ),
    Case(loss_of(nn.multi_label_soft_margin), ONE, draw=drawn(probabilities)),
    Case(
        loss_of(nn.triplet_margin, swap=True, margin=2.0),
        {"y": ((2, 3, 4),) * 3, "target": (0,)},
        draw=drawn(numbers),
    ),
    Case(
        loss_of(nn.info_nce),
        {"y": ((5,), (5,)), "target": (0,)},
        draw=drawn(numbers),
    ),
    Case(
        loss_of(nn.info_nce, normalize=False, temperature=2.0),
        {"y": ((3,), (3,)), "target": (0,)},
        draw=drawn(numbers),
    ),
    Case(
        loss_of(nn.dice),
        {"y": (5, 3, 1), "target": (5, 3, 1)},
        draw=drawn(zeros_and_ones),
    ),
    Case(
        loss_of(nn.dice, activation=None, class_weights=(0.0, 2.0, 1.0)),
        {"y": (7, 3), "target": (7, 3)},
        draw=drawn(probabilities, chances),
    ),
    Case(
        loss_of(nn.dice, labels=True, activation="softmax"),
        {"y": (5, 4), "target": (5,)},
        draw=drawn(labels),
    ),
    Case(loss_of(nn.dice), ROW, draw=drawn(probabilities)),
    Case(
        loss_of(nn.ctc, labels=True),
        {"y": (7, 4), "target": LENGTHS},
        draw=drawn(labellings),
    ),
]
