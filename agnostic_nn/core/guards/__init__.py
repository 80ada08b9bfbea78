"""Guards: compile a function again when values that user code reads have changed.

The Python code of a compiled or replayed function runs only when it is compiled, so the
values that it reads then become constants. `guarded(function, ...)` finds the values
that user-defined functions and methods read. Before each call it checks whether they
are still the same, and compiles the function again if not.

    names       the names that code reads, from its bytecode, and the code's package
    values      the comparison of two values
    snapshot    values recorded by path, and generated code that compares them
    watching    the search for all values that user code reads, without running it
    guarding    the function that is compiled again

This library's own code is pure, so a function without any user code is not guarded.

Guards do not notice changes of what Python code reads from outside (time, files, the
environment, other processes), through code of installed packages, or through C.
"""

from .guarding import Guarded, guarded, reads
from .names import Names, names_of
from .watching import Watch

__all__ = ["Guarded", "Names", "Watch", "guarded", "names_of", "reads"]
