"""LoRA: a trained TransformerBlock is adapted to another task by few numbers.

    W' = W + s A B        dA = s G Bᵀ        dB = s Aᵀ G        G = dL/dW'

W (fan_in, fan_out) is constant, and A (fan_in, r) and B (r, fan_out) are trained (Hu et
al., arXiv:2106.09685). The block first learns the mean of a sequence up to each time;
then only the adapters of its attention and feed-forward weights learn the same means of
mirrored and permuted numbers. Merged into W, they cost nothing in prediction.
"""

import numpy as np

import agnostic_nn as nn
from agnostic_nn.core.trees import leaves

TIME, WIDTH = 6, 8
BLOCK = nn.TransformerBlock(nn.MultiHeadAttention(2, causal=True), hidden=32)


def compute(backend, count=512, epochs=(20, 20), rank=2):
    """Return losses of the new task, and the numbers trained with LoRA and without."""
    random = np.random.default_rng(0)
    x = random.standard_normal((count, TIME, WIDTH)).astype("float32")
    means = np.cumsum(x, axis=1) / np.arange(1, TIME + 1, dtype="float32")[:, None]
    other = -means[..., ::-1]

    def trainer_of(model):
        shape = (TIME, WIDTH)
        loss, optimizer = nn.mean_squared_error, nn.Adam(1e-2)
        return nn.Trainer(model, loss, optimizer, backend=backend, shape=shape)

    base = trainer_of(BLOCK)
    base.fit(x, means, epochs=epochs[0], batch_size=64, verbose=0)
    model = nn.LoRA(BLOCK, rank)
    adapted = trainer_of(model)
    adapted.state = model.around(base.params, base.state)
    before = adapted.evaluate(x, other)["loss"]
    adapted.fit(x, other, epochs=epochs[1], batch_size=64, verbose=0)
    params, state = backend.to_numpy((adapted.params, adapted.state))
    merged, _ = model.merged(params, state)
    base.start_from(merged, moments=base.moments)
    return {
        "loss before": before,
        "adapted": adapted.evaluate(x, other)["loss"],
        "merged": base.evaluate(x, other)["loss"],
        "numbers trained": sum(leaf.size for leaf in leaves(params) if len(leaf)),
        "of": sum(leaf.size for leaf in leaves(merged)),
    }


if __name__ == "__main__":
    from table import main

    main(compute)
