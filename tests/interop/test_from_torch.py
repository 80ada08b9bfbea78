"""`from_torch`: outputs, gradients and training steps as those of the module."""

import copy

import numpy as np
import pytest
import torch
import torch_models
from torch import nn
from torch.nn import functional

import agnostic_nn
from agnostic_nn import interop
from agnostic_nn.core import random
from agnostic_nn.core.arrays import namespace

HOST = namespace(np.zeros(()))


def images(size=16):
    return torch.randn(3, 3, size, size, dtype=torch.float64)


def tokens():
    return torch.randint(0, 11, (3, 6))


MODELS = {
    "ResNet": (lambda: torch_models.ResNet(), lambda: images(32)),
    "MobileNet": (lambda: torch_models.MobileNet(), images),
    "UNet": (lambda: torch_models.UNet(), lambda: images(8)),
    "Encoder": (lambda: torch_models.Encoder(), tokens),
    "Encoder, time first": (lambda: torch_models.Encoder(batch_first=False), tokens),
    "GPT": (lambda: torch_models.GPT(), tokens),
    "GPT, written out": (lambda: torch_models.GPT(fused=False, depth=1), tokens),
    "LSTM": (lambda: torch_models.Classifier(), tokens),
}
# modules that are imported once, with their models
CACHE = {}


def imported(name):
    """Return a module in float64 with random running statistics, x and the model."""
    if name not in CACHE:
        torch.manual_seed(0)
        make, data = MODELS[name]
        module = make().double()
        for each in module.modules():
            if isinstance(each, nn.BatchNorm2d):
                nn.init.normal_(each.running_mean, std=0.3)
                nn.init.uniform_(each.running_var, 0.5, 1.5)
        x = data()
        CACHE[name] = module, x, interop.from_torch(module, x)
    module, x, model = CACHE[name]
    return copy.deepcopy(module), x, model


def start(model, x):
    """Return params and state in float64 on NumPy."""
    key = random.key(0, xp=HOST)
    return model.init(key, tuple(x.shape[1:]), np.dtype("float64"))[:2]


def close(actual, expected, tolerance=1e-10):
    expected = np.asarray(expected)
    scale = 1.0 + np.max(np.abs(expected), initial=0.0)
    np.testing.assert_allclose(np.asarray(actual), expected, atol=tolerance * scale)


def expected_gradients(module):
    """Return the gradients of all parameters by name.

    An LSTM of PyTorch has two biases that are added; ours has one. It is written as the
    first, with 0 as the second, as their sum is what counts.
    """
    gradients = {}
    for name, parameter in module.named_parameters():
        zero = ".bias_hh_" in name
        gradients[name] = parameter.grad * 0.0 if zero else parameter.grad
    return gradients


@pytest.mark.parametrize("name", MODELS)
def test_outputs_gradients_and_statistics_are_those_of_the_module(name):
    module, x, model = imported(name)
    params, state = start(model, x)
    module.eval()
    close(model.predict(params, state, x.numpy()), module(x).detach())
    module.train()
    leaf = x.clone().requires_grad_() if x.is_floating_point() else x
    y = module(leaf)
    dy = torch.randn_like(y)
    y.backward(dy)
    ours, state, cache = model.forward(params, state, x.numpy(), train=True)
    close(ours, y.detach())
    dx, grads = model.backward(params, cache, dy.numpy())
    if x.is_floating_point():
        close(dx, leaf.grad)
    gradients = interop.torch_state_dict(model, grads, state)
    expected = expected_gradients(module)
    assert expected.keys() <= gradients.keys()
    for parameter, gradient in expected.items():
        close(gradients[parameter], gradient)
    saved = interop.torch_state_dict(model, params, state)
    for buffer, value in module.named_buffers():
        if buffer.endswith(("running_mean", "running_var")):
            close(saved[buffer], value)


DTYPES = {"jax": "float32"}  # JAX has no float64 unless its settings are changed


def tolerance(trainer):
    return 1e-5 if trainer.dtype == "float32" else 1e-8


@pytest.mark.parametrize(
    ("name", "backends"),
    [
        ("ResNet", ("numpy", "torch:cpu")),
        ("GPT", ("numpy", "torch:cpu", "jax")),
        ("Encoder", ("numpy", "torch:cpu")),
    ],
)
def test_training_steps_follow_those_of_pytorch(name, backends):
    torch.manual_seed(1)
    module, x, model = imported(name)
    if x.is_floating_point():
        target = torch.randint(0, 5, (3,))
    elif name == "GPT":
        target = torch.randint(0, 11, (3, 6))
    else:
        target = torch.randint(0, 3, (3,))
    trainers = [
        agnostic_nn.Trainer(
            model,
            agnostic_nn.softmax_cross_entropy,
            agnostic_nn.SGD(0.05),
            backend=backend,
            dtype=DTYPES.get(backend, "float64"),
            seed=0,
        )
        for backend in backends
    ]
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    module.train()
    for _ in range(3):
        optimizer.zero_grad()
        y = module(x)
        loss = functional.cross_entropy(y.flatten(0, -2), target.flatten())
        loss.backward()
        optimizer.step()
        for trainer in trainers:
            ours = float(trainer.step(x.numpy(), target.numpy()))
            assert ours == pytest.approx(loss.item(), rel=tolerance(trainer))
    expected = module.state_dict()
    for trainer in trainers:
        backend = trainer.backend
        trained = backend.to_numpy((trainer.params, trainer.state))
        for key, value in interop.torch_state_dict(model, *trained).items():
            close(value, expected[key], 10.0 * tolerance(trainer))


def test_a_residual_network_is_transposed_once():
    _, _, model = imported("ResNet")
    kinds = [type(layer).__name__ for _, (layer, *_) in model.layer.nodes]
    assert kinds.count("Transpose") == 1
    names = [name for name, _ in model.layer.nodes]
    assert {"conv1", "layer2_0_downsample_1", "layer4_1_conv2", "fc"} <= set(names)
    assert dict(model.names)["layer1_0_conv1.weight"] == "layer1.0.conv1.weight"


def test_trained_weights_go_back_to_the_module():
    module, x, model = imported("GPT")
    trainer = agnostic_nn.Trainer(
        model,
        agnostic_nn.softmax_cross_entropy,
        agnostic_nn.SGD(0.1),
        backend="numpy",
        dtype="float64",
        seed=0,
    )
    trainer.step(x.numpy(), np.zeros((3, 6), "int64"))
    tensors = interop.torch_state_dict(model, trainer.params, trainer.state)
    before = module(x).detach()
    missing = module.load_state_dict(tensors, strict=False)
    assert not missing.unexpected_keys
    assert float((module(x).detach() - before).abs().max()) > 1e-3
    close(trainer.predict(x.numpy()), module(x).detach())


def test_a_checkpoint_is_loaded_without_the_module(tmp_path):
    _, x, model = imported("GPT")
    path = tmp_path / "gpt.safetensors"
    trainer = agnostic_nn.Trainer(
        model,
        agnostic_nn.softmax_cross_entropy,
        agnostic_nn.SGD(0.1),
        backend="numpy",
        seed=0,
    )
    trainer.build((6,))
    trainer.save(path)
    loaded = agnostic_nn.Trainer.load(path, backend="numpy")
    np.testing.assert_array_equal(loaded.predict(x.numpy()), trainer.predict(x.numpy()))


def test_the_module_is_not_changed():
    module = torch_models.MobileNet().eval()
    module.features[1].train()
    before = copy.deepcopy(module.state_dict())
    modes = [each.training for each in module.modules()]
    interop.from_torch(module, torch.randn(1, 3, 8, 8))
    assert modes == [each.training for each in module.modules()]
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_dropout_and_batch_statistics_are_kept_of_a_module_in_eval_mode():
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.3))
    model = interop.from_torch(module.eval(), torch.randn(2, 4))
    layers = [layer for _, (layer, _) in model.layer.nodes]
    assert layers[1:] == [agnostic_nn.BatchNorm(), agnostic_nn.Dropout(0.3)]


# --- single operators -----------------------------------------------------------------


class Function(nn.Module):
    """A module that computes f(x, *parameters)."""

    def __init__(self, function, *shapes):
        super().__init__()
        self.function = function
        for i, shape in enumerate(shapes):
            self.register_parameter(f"p{i}", nn.Parameter(torch.randn(shape)))

    def forward(self, x):
        return self.function(x, *self.parameters())


def changed_in_place(x):
    """Return a result that reads a tensor after its change, by its first name."""
    y = x * 2.0
    y.add_(x)
    return y * y


MASK = torch.rand(4, 4) > 0.4
MASK[:, 0] = True
BIAS = torch.randn(2, 4, 4)
F = functional
FUNCTIONS = {  # x is (batch, 6, 4), and positive for the second value "positive"
    "arithmetic": lambda x: 2.0 - (x * 3.0 - 1.0) / 4.0 + x / (1.0 + x * x),
    "powers": lambda x: x**2 + (x * x + 1.0) ** 0.5 + (x * x + 1.0).rsqrt() + x**3,
    "functions": lambda x: x.exp() + x.abs().sqrt() + (x * x + 1).log() - x.neg().sin(),
    "activations": lambda x: F.elu(x) + F.selu(x) + F.leaky_relu(x) + F.hardswish(x),
    "more activations": lambda x: F.softplus(x) + F.mish(x) + F.celu(x) + F.silu(x),
    "gated": lambda x: F.glu(x, 1) * F.glu(x, -1).mean((1, 2), keepdim=True),
    "clamp": lambda x: x.clamp(-0.5, 0.7) + x.clamp(min=0.1) + F.relu6(x * 4),
    "reductions": lambda x: (
        x.mean(1, keepdim=True) + x.sum(-1, keepdim=True) + x.amax(1, keepdim=True)
    ),
    "variance": lambda x: (x - x.mean(-1, keepdim=True)) / x.var(-1, keepdim=True),
    "norm": lambda x: F.normalize(x, dim=-1) + x.std(1, keepdim=True),
    "softmax": lambda x: x.softmax(1) * x.log_softmax(-1),
    "slices": lambda x: torch.cat([x[:, 1:3], x[:, -1:], x[:, ::2]], 1).flip(1),
    "split": lambda x: torch.stack(x.chunk(3, 1), -1) @ torch.ones(3, 5).to(x),
    "unbind": lambda x: torch.stack(
        [a * b for a in x.unbind(1)[:2] for b in [x[:, 2]]], 1
    ),
    "permutations": lambda x: x.permute(2, 0, 1).reshape(4, -1, 3, 2).transpose(0, 1),
    "expand": lambda x: x.unsqueeze(2).expand(-1, -1, 3, -1) * x.mean(1)[:, None, None],
    "repeat": lambda x: x.repeat(1, 2, 1) + x.repeat_interleave(2, 1),
    "einsum": lambda x: torch.einsum("bik,bjk->bij", x, x),
    "einsum of permuted": lambda x: torch.einsum("bik,bij->bkj", x, x.tanh()),
    "bmm": lambda x: torch.bmm(x, x.transpose(1, 2)),
    "attention of heads in the batch": lambda x: torch.bmm(
        x.view(-1, 6, 2, 2).transpose(1, 2).reshape(-1, 6, 2),
        x.view(-1, 6, 2, 2).permute(0, 2, 3, 1).reshape(-1, 2, 6),
    ).view(-1, 2, 6, 6),
    "where": lambda x: torch.where(x > 0.2, x, x * x) + x.masked_fill(x < 0, 0.5),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1), value=0.5),
    "pad of a sequence": lambda x: F.pad(x, (2, 1), mode="reflect"),
    "cumsum": lambda x: x.cumsum(1),
    "index": lambda x: x[:, torch.tensor([0, 2, 2])] * 2,
    "detach": lambda x: x * x.detach(),
    "in place": lambda x: (x * 2.0).add_(x).mul_(3.0).clamp_(min=0.1),
    "in place, by another name": changed_in_place,
    "constants": lambda x: x + torch.arange(4) * torch.linspace(0, 1, 6)[:, None],
    "addition of a batch of constants": lambda x: torch.zeros(x.shape[0], 6, 4) + x,
    "integers": lambda x: x * (x > 0).to(x.dtype) + x.argmax(-1, keepdim=True),
    "maximum": lambda x: torch.maximum(x, x.flip(1)) - torch.minimum(x, x * 2),
    "masked attention": lambda x: F.scaled_dot_product_attention(
        x[:, None, :4], x[:, None, :4], x[:, None, 2:], attn_mask=MASK, scale=0.3
    ),
    "biased attention": lambda x: F.scaled_dot_product_attention(
        *[x[:, i : i + 4].view(-1, 4, 2, 2).transpose(1, 2) for i in range(3)],
        attn_mask=BIAS.to(x.dtype),
    ),
    "attention with a mask of the data": lambda x: F.scaled_dot_product_attention(
        x[:, None], x[:, None], x[:, None], attn_mask=(x[:, None, None, :, 0] < 9)
    ),
    "attention with a bias of the data": lambda x: F.scaled_dot_product_attention(
        x[:, None], x[:, None], x[:, None], attn_mask=x[:, None, None, :, 0]
    ),
}
PARAMETERS = {
    "scale and shift": (lambda x, a, b: x * a + b, (4,), (6, 1)),
    "a matrix": (lambda x, w: x @ w, (4, 5)),
    "a matrix in two places": (lambda x, w: (x @ w) @ w.T, (4, 5)),
    "a computed weight": (
        lambda x, g, v: F.linear(x, g * v / v.norm(dim=1, keepdim=True)),
        (5, 1),
        (5, 4),
    ),
    "a token": (lambda x, t: torch.cat([t.repeat(x.shape[0], 1, 1), x], 1), (1, 1, 4)),
    "positions": (lambda x, p: x + p[:, : x.shape[1]], (1, 9, 4)),
    "a channel": (lambda x, a: x.view(-1, 6, 2, 2) * a.view(1, -1, 1, 1), (6,)),
    "a layer scale in an image": (
        lambda x, a: F.avg_pool2d(x.view(-1, 6, 2, 2), 2) * a[:, None, None],
        (6,),
    ),
}


def compare(module, x):
    """Compare outputs and gradients of a module and of its import."""
    module = module.double()
    model = interop.from_torch(module, x)
    x = x[:2]  # another batch size than that of the example
    params, state = start(model, x)
    leaf = x.clone().requires_grad_()
    y = module(leaf)
    dy = torch.randn_like(y)
    y.backward(dy)
    ours, _, cache = model.forward(params, state, x.numpy(), train=True)
    close(ours, y.detach())
    dx, grads = model.backward(params, cache, dy.numpy())
    close(dx, leaf.grad)
    gradients = interop.torch_state_dict(model, grads, state)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            close(gradients[name], parameter.grad)
    return model


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_those_of_pytorch(name):
    torch.manual_seed(0)
    x = torch.randn(3, 6, 4, dtype=torch.float64)
    compare(Function(FUNCTIONS[name]), x)


class PaddedEncoder(nn.Module):
    """A layer of an encoder that gets a mask of padding."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)

    def forward(self, x):
        return self.layer(x, src_key_padding_mask=x[:, :, 0] > 0.7)


class CrossAttention(nn.Module):
    """Attention to another sequence, which returns its weights too."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        y, weights = self.attention(x, x[:, :4], x[:, :4] * 2.0)
        return y + weights


def frozen():
    module = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    return module.requires_grad_(False)


MODULES = {  # x is (batch, 6, 4)
    "padding": PaddedEncoder,
    "cross-attention": CrossAttention,
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),
    "frozen": frozen,
    "sequences": lambda: nn.Sequential(
        nn.Conv1d(6, 6, 3, padding=1, padding_mode="circular"),
        nn.InstanceNorm1d(6, affine=True),
        nn.PReLU(6),
        nn.AdaptiveMaxPool1d(2),
    ),
    "images": lambda: nn.Sequential(
        nn.Unflatten(1, (6, 1)),
        nn.ConvTranspose2d(6, 8, (2, 3), stride=2, output_padding=1, groups=2),
        nn.LayerNorm([3, 10]),
        nn.PixelShuffle(2),
        nn.Upsample(scale_factor=2),
        nn.RMSNorm(40),
    ),
    "the batch norm of a frozen backbone": lambda: nn.Sequential(
        nn.Linear(4, 5), nn.Unflatten(1, (6, 1)), nn.BatchNorm2d(6).eval()
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_those_of_pytorch(name):
    torch.manual_seed(0)
    x = torch.randn(3, 6, 4, dtype=torch.float64)
    module = MODULES[name]()
    trained = {n for n, p in module.named_parameters() if p.requires_grad}
    model = compare(module, x)
    assert {name for _, name in model.names if "running" not in name} >= trained


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_outside_of_layers_are_trained(name):
    torch.manual_seed(0)
    function, *shapes = PARAMETERS[name]
    x = torch.randn(3, 6, 4, dtype=torch.float64)
    compare(Function(function, *shapes), x)


def test_several_inputs_and_outputs_have_their_names():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(7, 4)

        def forward(self, x, ids, keep=None):
            y = x + self.table(ids)
            return {"y": y.masked_fill(~keep, 0.0), "sum": y.sum(-1), "none": None}

    module = Pair()
    x = torch.randn(3, 5, 4)
    inputs = {
        "x": x,
        "ids": torch.randint(0, 7, (3, 5)),
        "keep": torch.rand(3, 5, 1) > 0.5,
    }
    model = interop.from_torch(module, inputs)
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    shapes = {name: array.shape[1:] for name, array in arrays.items()}
    key = random.key(0, xp=HOST)
    params, state, _ = model.init(key, shapes, np.dtype("float32"))
    ours = model.predict(params, state, arrays)
    theirs = module(**inputs)
    close(ours["y"], theirs["y"].detach(), 1e-6)
    close(ours["sum"], theirs["sum"].detach(), 1e-5)
    # by position, with the names of the parameters of `forward`
    again = interop.from_torch(module, tuple(inputs.values()))
    assert again.layer.inputs == model.layer.inputs


# --- errors ---------------------------------------------------------------------------


def refusal(module, *example):
    with pytest.raises(ValueError, match=r"\w") as error:
        interop.from_torch(module, example)
    return str(error.value)


def test_all_operators_that_cannot_be_converted_are_named():
    class Unusual(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Sequential(nn.Linear(4, 4), nn.RReLU())

        def forward(self, x):
            return torch.sort(self.part(x), dim=1)[0] + x.mean()

    text = refusal(Unusual(), torch.randn(3, 4))
    assert "Unusual has 3 operators that cannot be converted" in text
    assert "part.1, " in text
    assert "aten.rrelu" in text
    assert "test_from_torch.py:" in text
    assert "aten.sort" in text
    assert "aten.mean.default: it reduces the batch axis too" in text


REFUSED = {
    "a fixed batch size": (lambda x: x.view(3, 2, 12), "only for a batch of 3"),
    "a branch": (lambda x: x if x.sum() > 0 else -x, "torch.export cannot trace"),
    "a change of a view": (
        lambda x: torch.Tensor.add_((y := x * 1.0)[:, 0], 1.0).sum(-1) + y.sum((1, 2)),
        "it changes, in place, a tensor that others see too",
    ),
    "a part of the batch": (lambda x: x[1:] * 2, "1, not a multiple of the batch"),
    "an example": (lambda x: x - x[0], "it selects an example of the batch"),
    "nested outputs": (lambda x: (x * 2, (x, x)), "expected a tuple or a dict of"),
    "a sum of the batch": (lambda x: x - x.mean(0), "it works along the batch axis"),
    "a joined batch": (lambda x: torch.cat([x, x]), "joins examples along the batch"),
    "time first": (lambda x: x.transpose(0, 1), "an output has its batch at axis 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_functions_without_a_counterpart_are_refused(name):
    function, message = REFUSED[name]
    assert message in refusal(Function(function), torch.randn(3, 6, 4))


def test_buffers_that_change_are_refused():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x):
            self.count.add_(1.0)
            return x * self.count

    assert "it changes the buffer count" in refusal(Counter(), torch.randn(3, 4))


def test_parameters_of_which_some_are_frozen_are_refused():
    module = nn.Sequential(nn.Linear(4, 3))
    module[0].bias.requires_grad_(False)
    assert "its bias does not require a gradient" in refusal(module, torch.randn(3, 4))


@pytest.mark.parametrize(
    ("module", "example", "message"),
    [
        (3, np.zeros((2, 3)), r"expected a torch\.nn\.Module, got int"),
        (nn.ReLU(), "image", "expected example 0 as a tensor or an array, got str"),
    ],
)
def test_other_arguments_are_refused(module, example, message):
    with pytest.raises(TypeError, match=message):
        interop.from_torch(module, example)


def test_compare_explain_and_profile_take_an_imported_module():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    model = interop.from_torch(module, torch.randn(2, 1, 6, 6))
    generator = np.random.default_rng(0)
    x = generator.standard_normal((32, 1, 6, 6)).astype("float32")
    target = generator.integers(0, 3, 32)
    names = ["numpy", "torch:cpu"]
    loss = agnostic_nn.softmax_cross_entropy
    optimizer = agnostic_nn.SGD(0.05)
    options = {"epochs": 1, "batch_size": 16, "sizes": ()}
    result = agnostic_nn.compare(
        model, x, target, loss, optimizer, backends=names, **options
    )
    assert "Both backends agree with the float64 reference" in str(result)
    explanation = str(agnostic_nn.explain(model, loss, x[:4], target[:4]))
    profile = str(agnostic_nn.profile(model, loss, optimizer, x, target, steps=1))
    for text in (explanation, profile):
        assert "Conv2D" in text
        assert "Dense" in text
