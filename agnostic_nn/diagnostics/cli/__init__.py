"""Commands: what `agnostic-nn` can be asked to do, a file each.

Such a file has `add(commands)`, which says what can be asked, and a function that does it and
returns the exit status. It imports what is slow to import only there.
"""

from . import backends, bisect, check, compare, conformance, explain, profile

__all__ = ["backends", "bisect", "check", "compare", "conformance", "explain", "profile"]
