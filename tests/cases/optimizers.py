"""Optimizers, each with a plain loop in float64, and PyTorch's and Optax's."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from unittest import mock

import numpy as np

import agnostic_nn as nn
from agnostic_nn import optimizers as ours
from agnostic_nn import schedules
from agnostic_nn.core.trees import named_leaves, tree_map

__all__ = [
    "OPTIMIZERS",
    "Beside",
    "by_hand",
    "optax_walk",
    "problem",
    "torch_walk",
    "walk",
]

STEPS = 24


@dataclass(frozen=True)
class Beside:
    """An optimizer, and those that should take the same steps, with their options.

    loop(p, grads) -> θ after each step of one leaf, in plain NumPy; `flat` for a leaf
    of fewer than two axes, where that makes a difference.
    torch(torch.optim, tensors), optax(optax): the same optimizer, or None where there
    is none. turned: PyTorch is given each matrix as (out, in). slack: by how much the
    others multiply a rounding.
    """

    optimizer: ours.Optimizer
    loop: Callable[[np.ndarray, list], Iterable]
    torch: Callable | None = None
    optax: Callable | None = None
    flat: Callable[[np.ndarray, list], Iterable] | None = None
    turned: bool = False
    slack: float = 1.0

    def __str__(self) -> str:
        return str(self.optimizer)


# --- plain loops ----------------------------------------------------------------------


def sgd(p, grads, rate, momentum=0.0, nesterov=False, decay=0.0):
    v = 0.0
    for t, g in enumerate(grads):
        g = g + decay * p
        v = momentum * v + g
        p = p - rate(t) * (g + momentum * v if nesterov else v)
        yield p


def dynamic_scale(p, grads, rate, scale, every):
    """The gradients are those of the scaled loss."""
    for t, g in enumerate(grads, start=1):
        p = p - rate * g / scale
        scale = 2 * scale if t % every == 0 else scale
        yield p


def lion(p, grads, rate, beta1=0.9, beta2=0.99, decay=0.0):
    m = 0.0
    for g in grads:
        p = p - rate * (np.sign(beta1 * m + (1 - beta1) * g) + decay * p)
        m = beta2 * m + (1 - beta2) * g
        yield p


def adagrad(p, grads, rate, initial=0.0, epsilon=1e-10, decay=0.0):
    total = initial
    for g in grads:
        g = g + decay * p
        total = total + g**2
        p = p - rate * g / (np.sqrt(total) + epsilon)
        yield p


def adadelta(p, grads, rate=1.0, rho=0.9, epsilon=1e-6):
    square = moved = 0.0
    for g in grads:
        square = rho * square + (1 - rho) * g**2
        d = np.sqrt(moved + epsilon) / np.sqrt(square + epsilon) * g
        moved = rho * moved + (1 - rho) * d**2
        p = p - rate * d
        yield p


def rmsprop(p, grads, rate, rho=0.99, epsilon=1e-8, momentum=0.0, centered=False):
    square = mean = b = 0.0
    for g in grads:
        square = rho * square + (1 - rho) * g**2
        mean = rho * mean + (1 - rho) * g
        variance = square - (mean**2 if centered else 0)
        b = momentum * b + g / (np.sqrt(variance) + epsilon)
        p = p - rate * b
        yield p


def adam(
    p, grads, rate, beta1=0.9, beta2=0.999, epsilon=1e-8, decay=0.0, amsgrad=False
):
    m = v = most = 0.0
    for t, g in enumerate(grads, start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        most = np.maximum(most, v) if amsgrad else v
        root = np.sqrt(most / (1 - beta2**t))
        p = p - rate(t - 1) * decay * p
        p = p - rate(t - 1) * (m / (1 - beta1**t)) / (root + epsilon)
        yield p


def adamax(p, grads, rate, beta1=0.9, beta2=0.999, epsilon=1e-8):
    m = u = 0.0
    for t, g in enumerate(grads, start=1):
        m = beta1 * m + (1 - beta1) * g
        u = np.maximum(beta2 * u, abs(g) + epsilon)
        p = p - rate / (1 - beta1**t) * m / u
        yield p


def nadam(p, grads, rate, beta1=0.9, beta2=0.999, epsilon=1e-8, psi=4e-3):
    def mu(t):
        return beta1 * (1 - 0.5 * 0.96 ** (t * psi))

    m = v = 0.0
    for t, g in enumerate(grads, start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        product = np.prod([mu(i) for i in range(1, t + 1)])
        n = (1 - mu(t)) / (1 - product) * g + mu(t + 1) / (1 - product * mu(t + 1)) * m
        p = p - rate * n / (np.sqrt(v / (1 - beta2**t)) + epsilon)
        yield p


def radam(p, grads, rate, beta1=0.9, beta2=0.999, epsilon=1e-8):
    m = v = 0.0
    longest = 2 / (1 - beta2) - 1
    for t, g in enumerate(grads, start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        step = m / (1 - beta1**t)
        length = longest - 2 * t * beta2**t / (1 - beta2**t)
        if length > 5:
            r = (length - 4) * (length - 2) * longest
            r = r / ((longest - 4) * (longest - 2) * length)
            step = step * np.sqrt(r * (1 - beta2**t)) / (np.sqrt(v) + epsilon)
        p = p - rate * step
        yield p


def lamb(p, grads, rate, beta1=0.9, beta2=0.999, epsilon=1e-6, decay=0.0):
    m = v = 0.0
    for t, g in enumerate(grads, start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        u = (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + epsilon) + decay * p
        p = p - rate * np.linalg.norm(p.ravel()) / np.linalg.norm(u.ravel()) * u
        yield p


def adafactor(
    p, grads, rate, power=0.8, limit=1.0, epsilon2=1e-3, decay=0.0, factored=True
):
    v = 0.0
    for t, g in enumerate(grads, start=1):
        v = (1 - t**-power) * v + t**-power * g**2
        whole = v
        if factored:  # the mean of running means is the running mean of means
            rows, columns = v.mean(-1, keepdims=True), v.mean(-2, keepdims=True)
            whole = rows @ columns / v.mean((-1, -2), keepdims=True)
        u = g / np.sqrt(whole)
        u = u / max(1.0, np.sqrt(np.mean(u**2)) / limit)
        size = max(epsilon2, np.sqrt(np.mean(p**2))) * min(rate, t**-0.5)
        p = p - rate * decay * p - size * u
        yield p


def muon(p, grads, rate, momentum=0.95, nesterov=True, decay=0.0, rms=False):
    """The polynomial, of singular values found by another road."""
    v = 0.0
    fan_in, fan_out = np.prod(p.shape[:-1]), p.shape[-1]
    factor = np.sqrt(max(1, fan_out / fan_in))
    if rms:
        factor = 0.2 * np.sqrt(max(fan_in, fan_out))
    for g in grads:
        v = momentum * v + g
        along = g + momentum * v if nesterov else v
        matrix = along.reshape(fan_in, fan_out)
        left, z, right = np.linalg.svd(matrix, full_matrices=False)
        z = z / np.sqrt(np.sum(z**2))
        for _ in range(5):
            z = 3.4445 * z - 4.7750 * z**3 + 2.0315 * z**5
        turned = ((left * z) @ right).reshape(p.shape)
        p = p - rate * (decay * p + factor * turned)
        yield p


# --- the table ------------------------------------------------------------------------


def steady(rate):
    return lambda t: rate


def pytorchs(name, **options):
    return lambda optim, tensors: [getattr(optim, name)(tensors, **options)]


def pytorchs_muon(adjust, **options):
    """PyTorch's takes matrices alone."""

    def both(optim, tensors):
        matrices = [p for p in tensors if p.ndim == 2]
        rest = [p for p in tensors if p.ndim < 2]
        muon = optim.Muon(matrices, lr=0.05, adjust_lr_fn=adjust, **options)
        return [muon, optim.AdamW(rest, lr=0.01, weight_decay=0.1)]

    return both


def optaxs(name, *arguments, **options):
    return lambda optax: getattr(optax, name)(*arguments, **options)


ADAM = {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3}
THEIRS = {"betas": (0.8, 0.95), "eps": 1e-3}
OPTAXS = {"b1": 0.8, "b2": 0.95, "eps": 1e-3}
ALL: tuple = ()  # leaves are spared

OPTIMIZERS = [
    Beside(
        nn.SGD(0.1),
        partial(sgd, rate=steady(0.1)),
        pytorchs("SGD", lr=0.1),
        optaxs("sgd", 0.1),
    ),
    Beside(
        nn.SGD(0.1, momentum=0.9, weight_decay=0.1, no_decay=ALL),
        partial(sgd, rate=steady(0.1), momentum=0.9, decay=0.1),
        pytorchs("SGD", lr=0.1, momentum=0.9, weight_decay=0.1),
    ),
    Beside(
        nn.SGD(0.1, momentum=0.8, nesterov=True),
        partial(sgd, rate=steady(0.1), momentum=0.8, nesterov=True),
        pytorchs("SGD", lr=0.1, momentum=0.8, nesterov=True),
        optaxs("sgd", 0.1, momentum=0.8, nesterov=True),
    ),
    Beside(
        nn.SGD(schedules.StepDecay(0.1, every=7, factor=0.5)),
        partial(sgd, rate=lambda t: 0.1 * 0.5 ** (t // 7)),
    ),
    Beside(
        nn.Lion(0.01, beta1=0.8, beta2=0.95, weight_decay=0.3, no_decay=ALL),
        partial(lion, rate=0.01, beta1=0.8, beta2=0.95, decay=0.3),
        optax=optaxs("lion", 0.01, b1=0.8, b2=0.95, weight_decay=0.3),
    ),
    Beside(
        nn.Adagrad(0.1, initial=0.2, epsilon=1e-3),
        partial(adagrad, rate=0.1, initial=0.2, epsilon=1e-3),
        pytorchs("Adagrad", lr=0.1, initial_accumulator_value=0.2, eps=1e-3),
    ),
    Beside(
        nn.DynamicScale(nn.SGD(0.1), 4.0, every=5),
        partial(dynamic_scale, rate=0.1, scale=4.0, every=5),
    ),
    Beside(
        nn.L2(nn.Adagrad(0.1), 0.2, no_decay=ALL),
        partial(adagrad, rate=0.1, decay=0.2),
        pytorchs("Adagrad", lr=0.1, weight_decay=0.2),
    ),
    Beside(
        nn.Adadelta(0.5, rho=0.8, epsilon=1e-4),
        partial(adadelta, rate=0.5, rho=0.8, epsilon=1e-4),
        pytorchs("Adadelta", lr=0.5, rho=0.8, eps=1e-4),
        optaxs("adadelta", 0.5, rho=0.8, eps=1e-4),
    ),
    Beside(
        nn.RMSprop(0.01, rho=0.9, epsilon=1e-3),
        partial(rmsprop, rate=0.01, rho=0.9, epsilon=1e-3),
        pytorchs("RMSprop", lr=0.01, alpha=0.9, eps=1e-3),
        optaxs("rmsprop", 0.01, decay=0.9, eps=1e-3, eps_in_sqrt=False),
    ),
    Beside(
        nn.RMSprop(0.01, rho=0.9, momentum=0.5, centered=True),
        partial(rmsprop, rate=0.01, rho=0.9, momentum=0.5, centered=True),
        pytorchs("RMSprop", lr=0.01, alpha=0.9, momentum=0.5, centered=True),
    ),
    Beside(
        nn.Adam(0.1),
        partial(adam, rate=steady(0.1)),
        pytorchs("Adam", lr=0.1),
        optaxs("adam", 0.1),
    ),
    Beside(
        nn.Adam(0.1, **ADAM, amsgrad=True),
        partial(adam, rate=steady(0.1), **ADAM, amsgrad=True),
        pytorchs("Adam", lr=0.1, **THEIRS, amsgrad=True),
    ),
    Beside(
        nn.Adam(0.1, beta1=0.0, beta2=0.0, epsilon=0.1),
        partial(adam, rate=steady(0.1), beta1=0.0, beta2=0.0, epsilon=0.1),
        pytorchs("Adam", lr=0.1, betas=(0.0, 0.0), eps=0.1),
    ),
    Beside(
        nn.AdamW(
            schedules.ExponentialDecay(0.1, 0.9), **ADAM, weight_decay=0.3, no_decay=ALL
        ),
        partial(adam, rate=lambda t: 0.1 * 0.9**t, **ADAM, decay=0.3),
    ),
    Beside(
        nn.AdamW(0.1, weight_decay=0.3, no_decay=ALL),
        partial(adam, rate=steady(0.1), decay=0.3),
        pytorchs("AdamW", lr=0.1, weight_decay=0.3),
        optaxs("adamw", 0.1, weight_decay=0.3),
    ),
    Beside(
        nn.Adamax(0.1, **ADAM),
        partial(adamax, rate=0.1, **ADAM),
        pytorchs("Adamax", lr=0.1, **THEIRS),
    ),
    Beside(
        nn.NAdam(0.1, **ADAM, momentum_decay=0.1),
        partial(nadam, rate=0.1, **ADAM, psi=0.1),
        pytorchs("NAdam", lr=0.1, **THEIRS, momentum_decay=0.1),
    ),
    Beside(
        nn.RAdam(0.1),
        partial(radam, rate=0.1),
        pytorchs("RAdam", lr=0.1),
        slack=8.0,  # ρ, 5 at first, is left of a difference of numbers near 2,000
    ),
    Beside(
        nn.RAdam(0.1, **ADAM),
        partial(radam, rate=0.1, **ADAM),
        pytorchs("RAdam", lr=0.1, **THEIRS),
    ),
    Beside(
        nn.RAdam(0.1, beta2=0.5),
        partial(radam, rate=0.1, beta2=0.5),
        pytorchs("RAdam", lr=0.1, betas=(0.9, 0.5)),
    ),
    Beside(
        nn.LAMB(0.1, **ADAM, weight_decay=0.3, no_decay=ALL),
        partial(lamb, rate=0.1, **ADAM, decay=0.3),
        optax=optaxs("lamb", 0.1, **OPTAXS, weight_decay=0.3),
    ),
    Beside(
        nn.Adafactor(
            0.3, power=0.7, limit=1.05, epsilon2=0.5, weight_decay=0.1, no_decay=ALL
        ),
        partial(
            adafactor,
            rate=0.3,
            power=0.7,
            limit=1.05,
            epsilon2=0.5,
            decay=0.1,
            factored=True,
        ),
        pytorchs(
            "Adafactor",
            lr=0.3,
            beta2_decay=-0.7,
            d=1.05,
            eps=(1e-30, 0.5),
            weight_decay=0.1,
        ),
        flat=partial(
            adafactor,
            rate=0.3,
            power=0.7,
            limit=1.05,
            epsilon2=0.5,
            decay=0.1,
            factored=False,
        ),
    ),
    Beside(
        nn.Muon(
            0.05,
            weight_decay=0.2,
            others=nn.AdamW(0.01, weight_decay=0.1, no_decay=ALL),
        ),
        partial(muon, rate=0.05, decay=0.2),
        pytorchs_muon("original", weight_decay=0.2),
        flat=partial(adam, rate=steady(0.01), decay=0.1),
        turned=True,
    ),
    Beside(
        nn.Muon(
            0.05,
            momentum=0.8,
            nesterov=False,
            match_adam=True,
            others=nn.AdamW(0.01, weight_decay=0.1, no_decay=ALL),
        ),
        partial(muon, rate=0.05, momentum=0.8, nesterov=False, rms=True),
        pytorchs_muon(
            "match_rms_adamw", weight_decay=0.0, momentum=0.8, nesterov=False
        ),
        flat=partial(adam, rate=steady(0.01), decay=0.1),
        turned=True,
    ),
]


# --- the same walk, by each -----------------------------------------------------------


def problem(dtype="float64"):
    """Return a tree to start from and the gradients of each step, some small."""
    generator = np.random.default_rng(0)

    def draw():
        layer = {
            "weight": generator.standard_normal((5, 3)),
            "bias": generator.standard_normal(3),
        }
        kernel = {"weight": generator.standard_normal((3, 2, 2, 4))}
        tree = (layer, {}, (kernel,), {"slope": generator.standard_normal(())})
        return tree_map(lambda leaf: np.asarray(leaf, dtype), tree)

    sizes = generator.uniform(0.05, 2.0, STEPS)

    def scaled(size):
        return tree_map(lambda g: np.asarray(size * g, dtype), draw())

    return draw(), [scaled(size) for size in sizes]


def walk(backend, optimizer, start, grads, update=None):
    """path -> the leaf after each step, on the host; and the moments at last."""
    params = backend.asarray(start)
    moments = backend.asarray(optimizer.init(start))
    update = update or backend.jit(optimizer.update)
    walked = []
    for g in grads:
        params, moments = update(params, backend.asarray(g), moments)
        walked.append(dict(named_leaves(backend.to_numpy(params))))
    result = {path: np.stack([step[path] for step in walked]) for path in walked[0]}
    return result, backend.to_numpy(moments)


def _columns(start, grads):
    """path -> the leaf at the start and its gradient at each step, in float64."""
    trees = [dict(named_leaves(tree)) for tree in (start, *grads)]
    return {path: [tree[path].astype("float64") for tree in trees] for path in trees[0]}


def by_hand(case, start, grads):
    """path -> the leaf after each step, by the plain loop."""
    result = {}
    for path, (p, *column) in _columns(start, grads).items():
        loop = case.flat if case.flat and p.ndim < 2 else case.loop
        result[path] = np.stack(list(loop(p, column)))
    return result


def torch_walk(torch, case, start, grads):
    """path -> the leaf after each step, by PyTorch."""

    def turned(leaf):
        wide = (
            leaf.reshape(-1, leaf.shape[-1]).T
            if case.turned and leaf.ndim >= 2
            else leaf
        )
        return torch.tensor(np.array(wide))

    columns = _columns(start, grads)
    tensors = {path: turned(p).requires_grad_() for path, (p, *_) in columns.items()}
    steppers = case.torch(torch.optim, list(tensors.values()))
    result = {path: [] for path in columns}
    # its Muon would round to bfloat16, and its NAdam a product to the default dtype
    patch = mock.patch.object(torch.Tensor, "bfloat16", lambda tensor: tensor.clone())
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with patch:
            for step in range(len(grads)):
                for path, p in tensors.items():
                    p.grad = turned(columns[path][step + 1])
                for stepper in steppers:
                    stepper.step()
                for path, p in tensors.items():
                    leaf, shape = p.detach().numpy().copy(), columns[path][0].shape
                    result[path].append(leaf.T.reshape(shape) if case.turned else leaf)
    finally:
        torch.set_default_dtype(default)
    return {path: np.stack(steps) for path, steps in result.items()}


def optax_walk(optax, case, start, grads):
    """Return path -> the leaf after each step, by Optax in float64."""
    from jax import numpy_dtype_promotion

    jax = nn.backend("jax")
    with jax.double(), numpy_dtype_promotion("standard"):
        theirs = case.optax(optax)
        params = jax.asarray(tree_map(lambda p: p.astype("float64"), start))
        moments = theirs.init(params)
        walked = []
        for g in grads:
            g = jax.asarray(tree_map(lambda g: g.astype("float64"), g))
            moved, moments = theirs.update(g, moments, params)
            params = optax.apply_updates(params, moved)
            walked.append(dict(named_leaves(jax.to_numpy(params))))
    return {path: np.stack([step[path] for step in walked]) for path in walked[0]}


def apart(actual, expected):
    """Return the worst error of all steps, relative to the largest number of a leaf."""
    assert actual.keys() == expected.keys()
    return max(
        np.max(abs(actual[path] - right)) / np.max(abs(right))
        for path, right in expected.items()
    )


def worst_errors(backends=("jax", "torch", "array_api_strict:device1")):
    """Name of each optimizer -> oracle -> worst error over all its cases, in float64.

    Oracles: "plain loop", "PyTorch", "Optax", and each backend against NumPy. One that
    has no such optimizer is missing.
    """
    import optax
    import torch

    start, grads = problem()
    table: dict[str, dict[str, float]] = {}
    for case in OPTIMIZERS:
        reference, _ = walk(nn.backend("numpy"), case.optimizer, start, grads)
        result = {"plain loop": apart(reference, by_hand(case, start, grads))}
        if case.torch:
            result["PyTorch"] = apart(reference, torch_walk(torch, case, start, grads))
        if case.optax:
            result["Optax"] = apart(reference, optax_walk(optax, case, start, grads))
        for name in backends:
            other = nn.backend(name)
            with nullcontext() if other.has_float64 else other.double():
                result[name] = apart(
                    walk(other, case.optimizer, start, grads)[0], reference
                )
        inner = getattr(case.optimizer, "optimizer", case.optimizer)
        row = table.setdefault(type(inner).__name__, {})
        for oracle, error in result.items():
            row[oracle] = max(error, row.get(oracle, 0.0))
    return table
