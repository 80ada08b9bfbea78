"""Display of results: tables as text and HTML, plots, and self-contained HTML pages."""

__all__ = ()
