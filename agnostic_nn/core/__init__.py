"""The base of the library: arrays, trees, argument checks, random numbers, backends."""

__all__ = ()
