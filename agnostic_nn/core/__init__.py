"""The basis of the library: arrays, trees of arrays, argument checks, random numbers, backends."""

__all__ = ()
