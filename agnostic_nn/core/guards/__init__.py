"""Guards: compile a function again when Python values that user code reads have changed.

A compiled or replayed function runs its Python only now and then, so a number that Python read
is frozen in it. `guarded(function, ...)` finds out which values the user's own functions and
methods read, looks before each call whether they are still the same, and compiles again if not.

    names       the names that code reads, from its bytecode, and whose code it is
    values      how two values are compared
    snapshot    values by path, and generated code that tells whether they are still the same
    watching    the search for all values that user code reads, which runs nothing
    guarding    the function that is compiled again

This library's own code is pure: a function that consists of it alone has no guard.

Not seen: what Python reads from elsewhere (time, files, the environment, other processes), through
code of installed packages, or through C.
"""

from .guarding import Guarded, guarded, reads
from .names import Names, names_of
from .watching import Watch

__all__ = ["Guarded", "Names", "Watch", "guarded", "names_of", "reads"]
