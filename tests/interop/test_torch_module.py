"""A layer inside PyTorch: a module whose gradient is the layer's own backward."""

import copy
import io
import pickle
import warnings

import numpy as np
import pytest
import torch

import agnostic_nn as nn
from agnostic_nn import interop
from agnostic_nn.core.trees import leaves, named_leaves, tree_map
from agnostic_nn.diagnostics.examples import LAYERS
from agnostic_nn.diagnostics.gradcheck.inputs import batched, draw_for
from agnostic_nn.training import checkpoint

BACKEND = nn.backend("torch:cpu")
MLP = nn.Sequential(nn.Dense(4), nn.Tanh(), nn.Dense(2))


def batch_for(example, dtype="float64"):
    """Return x of an example as tensors; real numbers require gradients."""
    draw = example.draw or (lambda g, s: draw_for(example.layer, g, s))
    x = draw(np.random.default_rng(0), batched(example.shape, 3))

    def tensor(leaf):
        is_real = leaf.dtype.kind == "f"
        leaf = torch.tensor(leaf.astype(dtype) if is_real else leaf)
        return leaf.requires_grad_(is_real)

    return tree_map(tensor, x)


def real(tree):
    return [leaf for leaf in leaves(tree) if leaf.is_floating_point()]


def weighted_sum(y):
    """Return Σ w y for fixed numbers w, which all gradients depend on."""
    total = 0.0
    for leaf in real(y):
        count = leaf.numel()
        w = torch.cos(torch.arange(count, dtype=leaf.dtype)).reshape(leaf.shape)
        total = total + (w * leaf).sum()
    return total


def gradients(total, tensors):
    result = torch.autograd.grad(total, tensors, allow_unused=True)
    return [
        torch.zeros_like(t) if g is None else g
        for t, g in zip(tensors, result, strict=True)
    ]


IDS = [f"{i} {example.name}" for i, example in enumerate(LAYERS)]


@pytest.mark.parametrize("example", LAYERS, ids=IDS)
@pytest.mark.parametrize("train", [True, False])
def test_outputs_state_and_gradients_are_those_of_the_layer(example, train):
    """The expected gradient is that of PyTorch, which follows the same operations."""
    layer = example.layer
    module = interop.torch_module(layer, shape=example.shape, dtype="float64")
    module.train(train)
    state = module.state.tree()
    params = tree_map(
        lambda leaf: leaf.detach().clone().requires_grad_(True), module.params.tree()
    )
    x = batch_for(example)
    expected, next_state, _ = layer.forward(params, state, x, train=train)
    y = module(x)
    pairs = zip(leaves((y, state)), leaves((expected, state)), strict=True)
    for ours, theirs in pairs:
        assert torch.equal(ours, theirs)
    after = next_state if train else state
    for ours, theirs in zip(leaves(module.state.tree()), leaves(after), strict=True):
        assert torch.equal(ours, theirs)
    tensors = [*real(x), *real(module.params.tree())]
    others = [*real(x), *real(params)]
    if not tensors or not weighted_sum(expected).requires_grad:
        return
    ours = gradients(weighted_sum(y), tensors)
    theirs = gradients(weighted_sum(expected), others)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


# --- as any module of PyTorch ---------------------------------------------------------


def mlp(**options):
    return interop.torch_module(MLP, **({"shape": (3,)} | options))


def test_a_training_loop_of_pytorch_equals_that_of_the_trainer():
    x = np.random.default_rng(0).standard_normal((40, 3), dtype=np.float32)
    target = np.stack([x[:, 0] * x[:, 1], x[:, 2]], axis=1)
    model = nn.Sequential(nn.Dense(8), nn.BatchNorm(), nn.Dropout(0.2), nn.Dense(2))
    trainer = nn.Trainer(
        model, nn.mean_squared_error, nn.SGD(0.1), backend=BACKEND, seed=3, shape=(3,)
    )
    module = interop.torch_module(model, shape=(3,), seed=3)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for _ in range(5):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(
            module(torch.tensor(x)), torch.tensor(target)
        )
        loss.backward()
        optimizer.step()
        expected = trainer.step(x, target)
        torch.testing.assert_close(loss.detach(), expected)
    ours = dict(named_leaves((trainer.params, trainer.state)))
    theirs = dict(named_leaves((module.params.tree(), module.state.tree())))
    assert ours.keys() == theirs.keys()
    for name, leaf in ours.items():
        torch.testing.assert_close(theirs[name].detach(), leaf, msg=name)
    module.eval()
    outputs = module(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(outputs, trainer.predict(x), rtol=1e-4, atol=1e-6)


def test_names_are_those_of_a_checkpoint(tmp_path):
    model = nn.Sequential(nn.Dense(4), nn.BatchNorm(), nn.Dropout(0.2))
    trainer = nn.Trainer(model, nn.mean_squared_error, nn.SGD(0.1), shape=(3,))
    trainer.save(tmp_path / "a")
    arrays, _ = checkpoint.read(tmp_path / "a")
    module = interop.torch_module(model, trainer.params, trainer.state)
    saved = {name: a for name, a in arrays.items() if not name.startswith("moments")}
    state_dict = module.state_dict()
    assert state_dict.keys() == saved.keys()
    for name, array in saved.items():
        np.testing.assert_array_equal(state_dict[name].numpy(), array)
    names = [name for name, _ in module.named_parameters()]
    assert "params.0.weight" in names
    assert not any(name.startswith("state") for name in names)


def test_weights_of_any_library_are_copied():
    numpy_params = {"weight": np.ones((3, 2), "f4"), "bias": np.zeros(2, "f4")}
    for name in ("numpy", "torch:cpu", "jax"):
        params = nn.backend(name).asarray(numpy_params)
        module = interop.torch_module(nn.Dense(2), params, {})
        with torch.no_grad():
            module.params.weight.fill_(7.0)
        assert nn.backend(name).to_numpy(params)["weight"].max() == 1.0
    numpy_params["weight"].flags.writeable = False
    interop.torch_module(nn.Dense(2), numpy_params, {})(torch.ones(1, 3))


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": lambda module: torch.load(saved(module), weights_only=False),
}


def saved(thing):
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize("how", COPIES)
def test_copies_draw_the_same_masks_and_are_independent(how):
    model = nn.Sequential(nn.LSTM(3), nn.Dropout(0.5), nn.BatchNorm(), nn.Dense(2))
    module = interop.torch_module(model, shape=(None, 3))
    x = torch.ones(4, 5, 3)
    module(x)
    copied = COPIES[how](module)
    assert torch.equal(copied(x), module(x))
    assert torch.equal(copied(x), module(x)), "the next masks"
    with torch.no_grad():
        next(copied.parameters()).add_(1.0)
    assert not torch.equal(copied(x), module(x))


def test_a_state_dict_restores_weights_state_and_keys():
    model = nn.Sequential(nn.Dense(8), nn.Dropout(0.5), nn.BatchNorm())
    module, other = (
        interop.torch_module(model, shape=(3,), seed=seed) for seed in (0, 1)
    )
    x = torch.ones(5, 3)
    module(x)
    weights = torch.load(saved(module.state_dict()), weights_only=True)
    other.load_state_dict(weights)
    assert torch.equal(other(x), module(x))


def test_train_and_eval_choose_the_mode_and_only_training_changes_the_state():
    module = interop.torch_module(
        nn.Sequential(nn.BatchNorm(), nn.Dropout(0.5)), shape=(3,)
    )
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    first, second = module(x), module(x)
    assert not torch.equal(first, second)
    module.eval()
    before = [leaf.clone() for leaf in leaves(module.state.tree())]
    with torch.no_grad():
        without = module(x)
    assert torch.equal(module(x), without)
    after = leaves(module.state.tree())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_other_dtypes_and_autocast():
    module = mlp().to(torch.float64)
    assert module(torch.ones(2, 3, dtype=torch.float64)).dtype == torch.float64
    with pytest.raises(TypeError, match=r"x is torch.float32, but the parameters"):
        module(torch.ones(2, 3))
    module = mlp()
    expected = module(torch.ones(2, 3))
    x = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.float32
    assert torch.equal(y, expected)
    y.sum().backward()
    assert x.grad.dtype == torch.bfloat16


def test_parts_may_be_frozen_and_weights_shared_by_two_calls():
    module = mlp(dtype="float64")
    x = torch.randn(4, 3, dtype=torch.float64)
    module.params.get_submodule("0").requires_grad_(False)
    module(x).sum().backward()
    grads = {name: p.grad for name, p in module.named_parameters()}
    assert grads["params.0.weight"] is None
    assert grads["params.2.weight"] is not None
    module.zero_grad()
    module(x).sum().backward()
    single = grads["params.2.weight"].clone()
    module.zero_grad()
    (module(x) + module(x)).sum().backward()
    torch.testing.assert_close(module.params.get_parameter("2.weight").grad, 2 * single)


def test_memory_of_the_graph_is_freed_without_the_collector():
    import gc
    import weakref

    module = interop.torch_module(nn.Sequential(nn.Dense(4), nn.Tanh()), shape=(3,))
    gc.collect()
    gc.disable()
    try:
        y = module(torch.ones(2, 3))
        freed = weakref.ref(y)
        del y
        assert freed() is None
    finally:
        gc.enable()


def test_changing_a_tensor_in_place_before_backward_is_an_error():
    module = mlp()
    y = module(torch.ones(2, 3))
    with torch.no_grad():
        module.params.get_parameter("2.weight").add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_gradients_by_integers_and_unused_outputs():
    layer = nn.MaxPool1D(2, return_indices=True)
    module = interop.torch_module(layer, shape=(4, 2), dtype="float64")
    x = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    y = module(x)
    (values,) = real(y)
    (indices,) = [leaf for leaf in leaves(y) if leaf is not values]
    assert not indices.requires_grad
    values.sum().backward()
    assert x.grad.sum() == values.numel()
    tokens = torch.tensor([[1, 2]])
    embedding = interop.torch_module(nn.Embedding(3, width=2), shape=(2,))
    embedding(tokens).sum().backward()
    assert embedding.params.weight.grad.sum() == 4.0


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (MLP, (3,)),
        (
            nn.Sequential(nn.Conv2D(4, 3), nn.BatchNorm(), nn.GlobalAveragePool()),
            (6, 6, 2),
        ),
    ],
    ids=["mlp", "convolution"],
)
def test_predictions_are_exported(layer, shape):
    module = interop.torch_module(layer, shape=shape).eval()
    x = torch.randn(4, *shape)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: batch},))
    other = torch.randn(7, *shape)
    torch.testing.assert_close(program.module()(other), module(other))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_torch_compile_leaves_the_module_to_this_library():
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), mlp())
    compiled = torch.compile(module, backend="eager")
    x = torch.randn(4, 3)
    torch.testing.assert_close(compiled(x), module(x))
    grads = []
    for each in (compiled, module):
        module.zero_grad()
        each(x).square().sum().backward()
        grads.append([p.grad.clone() for p in module.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_gradcheck_of_pytorch_agrees():
    module = mlp(dtype="float64")
    x = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    params = dict(module.named_parameters())

    def function(x, *values):
        named = dict(zip(params, values, strict=True))
        return torch.func.functional_call(module, named, x)

    assert torch.autograd.gradcheck(function, (x, *params.values()))


# --- errors ---------------------------------------------------------------------------


def test_wrong_arguments_and_inputs_are_named():
    with pytest.raises(TypeError, match="torch_module takes a layer, got"):
        interop.torch_module(torch.nn.Linear(2, 2), shape=(3,))
    with pytest.raises(ValueError, match="expected shape, the shape of one example"):
        interop.torch_module(nn.Dense(2))
    wrong = {"weight": np.ones((4, 2)), "bias": np.ones(2)}
    with pytest.raises(ValueError, match=r"params.weight of shape \(3, 2\), got \(4"):
        interop.torch_module(nn.Dense(2), wrong, {}, shape=(3,))
    with pytest.raises(ValueError, match="params is a dict of 'bias', expected"):
        interop.torch_module(nn.Dense(2), {"bias": np.ones(2)}, {}, shape=(3,))
    module = mlp()
    with pytest.raises(ValueError, match=r"expected x \(batch, 3\), got x \(2, 4\)"):
        module(torch.ones(2, 4))
    with pytest.raises(TypeError, match=r"expected x to be a torch.Tensor, got nd"):
        module(np.ones((2, 3), "f4"))
    both = nn.Graph(sum=(nn.Add(), ("a", "b")), outputs="sum")
    module = interop.torch_module(both, shape={"a": (3,), "b": (3,)})
    assert torch.equal(
        module({"a": torch.ones(1, 3), "b": torch.ones(1, 3)})[0, 0], torch.tensor(2.0)
    )
    message = r"expected x.a \(batch, 3\), x.b \(batch, 3\), got x.a \(1, 3\)"
    with pytest.raises(ValueError, match=message):
        module({"a": torch.ones(1, 3)})


# --- second derivatives always raise --------------------------------------------------


class Residual(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


def first_gradient(module, x):
    y = module(x)
    (first,) = torch.autograd.grad((y * y).sum(), x, create_graph=True)
    return y, first


def penalty(module, x):
    _, first = first_gradient(module, x)
    ((first.norm(dim=1) - 1.0) ** 2).mean().backward()


def only_the_input(module, x):
    """`autograd.grad` runs only paths to x, and there is one around the module."""
    _, first = first_gradient(module, x)
    torch.autograd.grad((first * first).sum() + (x * x).sum(), x)


def only_the_weights(module, x):
    _, first = first_gradient(module, x)
    weight = next(module.parameters())
    torch.autograd.grad((first * first).sum() + (weight * weight).sum(), weight)


def of_the_weights(module, x):
    y = module(x)
    weights = list(module.parameters())
    grads = torch.autograd.grad((y * y).sum(), weights, create_graph=True)
    total = sum((g * g).sum() for g in grads) + sum((w * w).sum() for w in weights)
    torch.autograd.grad(total, weights[0])


def unused_is_allowed(module, x):
    y, first = first_gradient(module, x)
    torch.autograd.grad(first.sum() + y.sum(), x, allow_unused=True)


def accumulated(module, x):
    y = module(x)
    (y * y).sum().backward(create_graph=True)
    (x.grad**2).sum().backward()


def by_slopes(module, x):
    """The gradient is a function of dy, too."""
    scale = torch.ones((), dtype=x.dtype, requires_grad=True)
    y = module(x)
    (first,) = torch.autograd.grad((scale * y).sum(), x, create_graph=True)
    torch.autograd.grad((first * first).sum() + scale, scale)


def by_hessian(module, x):
    torch.autograd.functional.hessian(lambda x: (module(x) ** 2).sum(), x)


def by_hvp(module, x):
    torch.autograd.functional.hvp(lambda x: (module(x) ** 2).sum(), x, x)


def by_func_hessian(module, x):
    torch.func.hessian(lambda x: (module(x) ** 2).sum())(x)


def by_forward_mode(module, x):
    torch.func.jvp(module, (x,), (x,))


def by_vmap(module, x):
    torch.func.vmap(torch.func.grad(lambda row: module(row[None]).sum()))(x)


TRAPS = [
    penalty,
    only_the_input,
    only_the_weights,
    of_the_weights,
    unused_is_allowed,
    accumulated,
    by_slopes,
    by_hessian,
    by_hvp,
    by_func_hessian,
    by_forward_mode,
    by_vmap,
]


@pytest.mark.parametrize("trap", TRAPS, ids=[trap.__name__ for trap in TRAPS])
@pytest.mark.parametrize("around", [torch.nn.Identity, Residual])
@pytest.mark.parametrize("train", [True, False])
def test_a_second_derivative_raises(trap, around, train):
    inner = mlp(dtype="float64") if around is torch.nn.Identity else square()
    module = inner if around is torch.nn.Identity else around(inner)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    module.train(train)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using backward.. with create_graph=True")
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
        with pytest.raises(RuntimeError) as raised:
            trap(module, x)
    text = str(raised.value)
    assert "second_order.md" in text or "torch.func" in text or "functorch" in text, (
        text
    )


def square():
    layer = nn.Sequential(nn.Dense(5), nn.Tanh(), nn.Dense(3))
    return interop.torch_module(layer, shape=(3,), dtype="float64")


def test_a_layer_without_parameters_raises_too():
    module = interop.torch_module(nn.Tanh(), shape=(3,))
    x = torch.ones(2, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"second_order\.md"):
        only_the_input(module, x)


def test_a_first_derivative_with_create_graph_is_right():
    module = mlp(dtype="float64")
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    _, first = first_gradient(module, x)
    params = module.params.tree()
    plain = MLP.forward(params, module.state.tree(), x)[0]
    (expected,) = torch.autograd.grad((plain * plain).sum(), x)
    torch.testing.assert_close(first, expected)
