"""Tools that check, compare, explain and measure networks, and the command line."""

__all__ = ()
