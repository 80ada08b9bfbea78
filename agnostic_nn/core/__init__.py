"""The foundation: arrays and their libraries, trees of arrays, random numbers, backends."""

__all__ = ()
