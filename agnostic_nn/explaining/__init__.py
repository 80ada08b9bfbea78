"""Explain: the chain rule of a batch, to read: formulas, shapes, numbers and a drawing."""

from .explaining import Explanation, explain

__all__ = ["Explanation", "explain"]
