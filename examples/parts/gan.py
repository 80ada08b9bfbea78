"""A GAN: a generator learns a distribution from a discriminator that learns too.

    discriminator D    L_D = -mean log σ(D(x)) - mean log(1 - σ(D(G(z))))
    generator G        L_G = -mean log σ(D(G(z)))

x are real numbers with mean 3 and deviation 0.5, and z is normal noise (Goodfellow et
al., arXiv:1406.2661, with the loss of section 3 for a generator that does not
saturate). Each network has a `Trainer`. The generator's loss runs `forward` and
`backward` of the discriminator, with the parameters that it receives as its context, so
dL_G/dG(z) is the dx of the discriminator.
"""

import numpy as np

import agnostic_nn as nn

GENERATOR = nn.Dense(1)
DISCRIMINATOR = nn.Sequential(nn.Dense(16), nn.LeakyReLU(), nn.Dense(1))


def fooling(numbers, target, weights=None, *, context):
    """L_G of the numbers G(z); context holds the params and the state of D."""
    params, state = context["params"], context["state"]
    logits, _, cache = DISCRIMINATOR.forward(params, state, numbers, train=True)
    value, dlogits = nn.binary_cross_entropy(logits, target, weights)
    dnumbers, _ = DISCRIMINATOR.backward(params, cache, dlogits)
    return value, dnumbers


def compute(backend, rounds=800, size=64):
    """Return the mean of generated numbers before and after, and their deviation."""
    random = np.random.default_rng(0)
    judge = nn.Trainer(
        DISCRIMINATOR,
        nn.binary_cross_entropy,
        nn.Adam(1e-2, beta1=0.5),
        backend=backend,
        shape=(1,),
        seed=1,
        metrics={},
    )
    maker = nn.Trainer(
        GENERATOR,
        fooling,
        nn.Average(nn.Adam(1e-2, beta1=0.5), decay=0.95),
        backend=backend,
        shape=(2,),
        context=lambda: {"params": judge.params, "state": judge.state},
    )

    def noise(count=size):
        return random.standard_normal((count, 2)).astype("float32")

    ones = np.ones((size, 1), "float32")
    both = np.concatenate([ones, 0.0 * ones])
    first = float(maker.predict(noise()).mean())
    for _ in range(rounds):
        real = random.normal(3.0, 0.5, (size, 1)).astype("float32")
        judge.step(np.concatenate([real, maker.predict(noise())]), both)
        maker.step(noise(), ones)
    numbers = maker.predict(noise(), averaged=True)
    return {
        "mean before": first,
        "mean after": float(numbers.mean()),
        "deviation": float(numbers.std()),
    }


if __name__ == "__main__":
    from table import main

    main(compute)
