"""How results are shown: tables as text and HTML, plots, and pages that need no network."""

__all__ = ()
