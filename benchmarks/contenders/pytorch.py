"""PyTorch: eager with fused optimizers, and with the model through `torch.compile`.

Weights are (out, in) and images channels first; in eager mode their memory format is
channels last, for which convolutions are faster. Labels are int64.
"""

from importlib.metadata import version

import numpy as np

from ..workloads import DECAY, EPOCH
from . import Contender, Unavailable

__all__ = ["NAMES", "make", "versions"]

NAMES = ("pytorch", "pytorch-compile", "pytorch cuda", "pytorch-compile cuda")


def make(name, workload):
    try:
        import torch
    except ImportError as error:
        raise Unavailable(f"PyTorch cannot be imported: {error}") from error
    if name.endswith("cuda") and not torch.cuda.is_available():
        raise Unavailable("PyTorch finds no GPU")
    models = {
        "mlp": _layers,
        "tiny": _layers,
        "cnn": _cnn,
        "lstm": _lstm,
        "transformer": _transformer,
        "wide": _wide,
    }
    model, theirs = models[workload.name](workload)
    model.load_state_dict(
        {k: torch.tensor(np.ascontiguousarray(a)) for k, a in theirs.items()}
    )
    device = "cuda" if name.endswith("cuda") else "cpu"
    return _PyTorch(model, workload, device, name.startswith("pytorch-compile"))


def versions():
    return {"torch": version("torch")}


class _PyTorch(Contender):
    def __init__(self, model, workload, device, compiled):
        import torch

        self.torch, self.workload, self.device = torch, workload, device
        self.channels_last = workload.name == "cnn" and not compiled
        model.to(device)
        if self.channels_last:
            model.to(memory_format=torch.channels_last)
        self.model = torch.compile(model) if compiled else model
        learned = [p for p in model.parameters() if p.requires_grad]
        if workload.rule == "adamw":
            groups = (
                {"params": [p for p in learned if p.ndim > 1], "weight_decay": DECAY},
                {"params": [p for p in learned if p.ndim == 1], "weight_decay": 0.0},
            )
            self.optimizer = torch.optim.AdamW(groups, workload.rate, fused=True)
        else:
            rule = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[workload.rule]
            self.optimizer = rule(learned, workload.rate, fused=True)
        self.batches = [self._placed(*batch) for batch in workload.batches()]
        self.examples = workload.examples(EPOCH) if workload.name == "tiny" else None
        self.row = self.batches[0][0][:1]
        self.value = None

    def _placed(self, x, target):
        x, target = (self.torch.from_numpy(a).to(self.device) for a in (x, target))
        if self.workload.name == "cnn":
            layout = self.torch.channels_last if self.channels_last else None
            x = x.permute(0, 3, 1, 2).contiguous(
                memory_format=layout or self.torch.contiguous_format
            )
        return x, target if target.is_floating_point() else target.long()

    def step(self, i):
        self._learn(*self.batches[i % len(self.batches)])

    def _learn(self, x, target):
        functional = self.torch.nn.functional
        self.optimizer.zero_grad(set_to_none=True)
        y = self.model(x)
        if target.is_floating_point():
            loss = functional.mse_loss(y, target)
        else:
            loss = functional.cross_entropy(y.flatten(0, -2), target.flatten())
        loss.backward()
        self.optimizer.step()
        self.value = loss.detach()

    def wait(self):
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def loss(self):
        return self.value.item()

    def epoch(self):
        # a sampler of whole batches, which its documentation
        # advises for fast bulk access
        data = self.torch.utils.data
        examples = data.TensorDataset(*self._placed(*self.examples))
        order = data.RandomSampler(examples)
        batches = data.BatchSampler(order, self.workload.batch, drop_last=False)
        for x, target in data.DataLoader(examples, sampler=batches, batch_size=None):
            self._learn(x, target)
        self.wait()

    def predict(self):
        with self.torch.inference_mode():
            self.model(self.row)
        self.wait()


def _layers(workload):
    """Return an idiomatic model, and our weights by its parameter names."""
    from torch import nn

    numbers = workload.parameters()
    first, second, last = (nn.Linear(*numbers[f"{i}.weight"].shape) for i in (0, 2, 4))
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)
    return model, {name: a.T for name, a in numbers.items()}


def _wide(workload):
    from torch import nn

    numbers = workload.parameters()
    return nn.Linear(*numbers["weight"].shape), {
        name: a.T for name, a in numbers.items()
    }


def _cnn(workload):
    from torch import nn

    numbers = workload.parameters()
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1568, 10),
    )
    theirs = {
        name: a.transpose(3, 2, 0, 1) if a.ndim == 4 else a
        for name, a in numbers.items()
    }
    rows = theirs["7.weight"].reshape(7, 7, 32, 10)
    return model, theirs | {"7.weight": rows.transpose(3, 2, 0, 1).reshape(10, -1)}


def _lstm(workload):
    from torch import nn

    class Reader(nn.Module):
        def __init__(self, fan_in, width, classes):
            super().__init__()
            self.lstm = nn.LSTM(fan_in, width, batch_first=True)
            self.lstm.bias_hh_l0.requires_grad_(False)  # our LSTM has one bias
            self.dense = nn.Linear(width, classes)

        def forward(self, x):
            _, (h, _) = self.lstm(x)
            return self.dense(h[-1])

    numbers = workload.parameters()
    cell = {
        name.split(".")[-1]: a for name, a in numbers.items() if name.startswith("0.")
    }
    theirs = {
        "lstm.weight_ih_l0": cell["weight"].T,
        "lstm.weight_hh_l0": cell["recurrent"].T,
        "lstm.bias_ih_l0": cell["bias"],
        "lstm.bias_hh_l0": np.zeros_like(cell["bias"]),
        "dense.weight": numbers["1.weight"].T,
        "dense.bias": numbers["1.bias"],
    }
    return Reader(
        len(cell["weight"]), len(cell["recurrent"]), len(numbers["1.bias"])
    ), theirs


def _transformer(workload):
    import torch
    from torch import nn

    class Positions(nn.Module):
        def __init__(self, length, width):
            super().__init__()
            self.weight = nn.Parameter(torch.empty(length, width))

        def forward(self, x):
            return x + self.weight[: x.shape[1]]

    class Block(nn.Module):
        def __init__(self, width, hidden):
            super().__init__()
            self.attention_norm, self.feed_norm = (
                nn.LayerNorm(width),
                nn.LayerNorm(width),
            )
            self.inputs, self.output = (
                nn.Linear(width, 3 * width),
                nn.Linear(width, width),
            )
            self.feed = nn.Sequential(
                nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
            )

        def forward(self, x):
            inputs = self.inputs(self.attention_norm(x)).unflatten(-1, (3, heads, -1))
            query, key, value = inputs.permute(2, 0, 3, 1, 4).unbind()
            y = nn.functional.scaled_dot_product_attention(
                query, key, value, is_causal=True
            )
            x = x + self.output(y.transpose(1, 2).flatten(2))
            return x + self.feed(self.feed_norm(x))

    numbers = workload.parameters()
    heads = workload.model.layers[2].attention.heads
    count, width = numbers["0.weight"].shape
    hidden = len(numbers["2.feed.0.bias"])
    model = nn.Sequential(
        nn.Embedding(count, width),
        Positions(*numbers["1.weight"].shape),
        Block(width, hidden),
        Block(width, hidden),
        nn.LayerNorm(width),
        nn.Linear(width, count),
    )
    theirs = {}
    for name, a in numbers.items():
        tables = ("0.weight", "1.weight")
        theirs[name.replace("scale", "weight")] = a if name in tables else a.T
    for i in (2, 3):
        for kind in ("weight", "bias"):
            parts = [
                theirs.pop(f"{i}.attention.{n}.{kind}")
                for n in ("query", "key", "value")
            ]
            theirs[f"{i}.inputs.{kind}"] = np.concatenate(parts)
            theirs[f"{i}.output.{kind}"] = theirs.pop(f"{i}.attention.output.{kind}")
    return model, theirs
