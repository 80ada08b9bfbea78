"""Layers that are noisy while training."""

import agnostic_nn as nn

from . import Case

OWN_NOISE = "PyTorch draws other noise"


CASES = [
    Case(nn.SpatialDropout(0.3), (3, 2, 4), OWN_NOISE),
    Case(nn.SpatialDropout(0.3), (4,), OWN_NOISE, thorough=True),
    Case(nn.DropPath(0.3), (3, 2), OWN_NOISE),
    Case(nn.GaussianNoise(0.5), (2, 3), OWN_NOISE),
]
