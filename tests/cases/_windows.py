"""Padding of convolutions and pooling, as PyTorch's `pad` takes it."""

from itertools import chain

__all__ = ["sides_of"]


def sides_of(layer, spatial):
    """Return the padding of a layer for spatial axes of these lengths.

    It begins with the last axis, and then come those of the channels and the batch.
    """
    if layer.padding == "valid":
        pairs = [(0, 0)] * layer.rank
    elif layer.padding == "same":
        dilation = getattr(layer, "dilation", (1,) * layer.rank)
        windows = zip(spatial, layer.window, layer.stride, dilation, strict=True)
        pairs = [_same(*window) for window in windows]
    else:
        pairs = layer.padding
    return tuple(chain(*reversed(pairs)))


def _same(length, window, stride, dilation):
    """Return the padding for ⌈length / stride⌉ outputs, as TensorFlow's "same"."""
    reach = dilation * (window - 1) + 1
    missing = max(reach - (length % stride or stride), 0)
    return missing // 2, missing - missing // 2
