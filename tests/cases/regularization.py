"""Layers that are noisy while training."""

import agnostic_nn as nn

from . import Case

OWN_MASK, OWN_NOISE = "PyTorch draws other masks", "PyTorch draws other noise"

TWINS = {
    nn.AlphaDropout: OWN_MASK,
    nn.FeatureAlphaDropout: OWN_MASK,
    nn.DropPath: OWN_NOISE,
    nn.Dropout: OWN_MASK,
    nn.GaussianNoise: OWN_NOISE,
    nn.SpatialDropout: OWN_NOISE,
}

CASES = [
    Case(nn.Dropout(0.0), (5,), lambda t, g: g.x),
    Case(nn.Dropout(0.3), (3, 3), thorough=True),
    Case(nn.AlphaDropout(0.0), (5,), lambda t, g: g.x),
    Case(nn.SpatialDropout(0.3), (4,), thorough=True),
]
