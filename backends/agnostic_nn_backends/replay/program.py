"""Replay: do to new arrays what a function did to others, without the Python in between.

`replayed(function)` is the pure `function`. The second time that it meets arrays of some
shapes, its calls are written down on a `Trace`; from then on a `Program` makes them:

- calls that no result needs are left out;
- each result lies in memory that the program has and later ones take over;
- what becomes of an argument that the caller gives up lies where that lay;
- elementwise calls that follow one another on large arrays are made block by block, so that
  what passes between them stays in the cache.

They are the same calls with the same numbers, so the results are the same to the last bit.
That is looked at once, before a program is trusted: a function that cannot be written down,
or whose program gives anything else, is called as it is.
"""

from collections.abc import Callable
from functools import cache, wraps
from itertools import pairwise
from typing import Any

from agnostic_nn.core.atomic import settle

from .commit import Commit
from .plan import Plan
from .trace import Library, Node, Trace, Traced, leaves, mapped

__all__ = ["Program", "plain", "replayed"]

KINDS = 8  # of arguments that are remembered


def plain(function: Callable, library: Library) -> Callable:
    """The `function` itself, called as it is, with results that can be written to.

    For a debugger, and to tell whether a replay is wrong: `nn.backend(..., replay=False)`.
    """

    @wraps(function)
    def call(*args: Any) -> Any:
        return _each(library.as_array, function(*args), library)

    return call


def replayed(function: Callable, library: Library, donated: tuple[int, ...] = ()) -> Callable:
    """The pure `function` of trees of arrays, replayed where it can be.

    donated: positions of arguments whose memory the caller gives up.
    """
    known: dict[Any, Program | bool] = {}  # by kind of arguments; True: met once, False: cannot be
    latest: list[Program] = []
    direct = plain(function, library)

    holder: dict[int, object] = {}  # who runs a program now; a lock would not say whose it is

    def into(outcome: list, *args: Any) -> None:
        me = object()
        try:
            if holder.setdefault(0, me) is not me:  # another thread is at it
                outcome.extend((None, direct(*args)))
            else:
                _run(outcome, args)
        finally:
            # no call comes before it is given back, so no exception can come either
            try:
                if holder[0] is me:
                    del holder[0]
            except KeyError:
                pass

    def _run(outcome: list, args: tuple) -> None:
        for program in latest:
            if program.fits(args):
                return program.into(outcome, args)
        try:
            found = known.get(kind := _kind(args, library))
        except TypeError:  # an argument is no array, and does not hash
            outcome.extend((None, direct(*args)))
            return None
        if isinstance(found, Program) and found.fits(args):
            latest[:] = [found]
            return found.into(outcome, args)
        if found is True:
            known[kind] = _made(outcome, direct, args, library, donated)
            return None
        if found is None:
            known[kind] = True
            if len(known) > KINDS:
                known.pop(next(iter(known)))
        outcome.extend((None, direct(*args)))
        return None

    @wraps(function)
    def call(*args: Any) -> Any:
        outcome: list = []
        try:
            into(outcome, *args)
        except BaseException:
            settle(outcome)
            raise
        return outcome[1]

    call.into = into  # type: ignore[attr-defined]
    return call


def _made(
    outcome: list, function: Callable, args: tuple, library: Library, donated: tuple[int, ...]
) -> Any:
    """Call the function; return a program that was seen to do the same, or else False."""
    program = _traced(function, args, library, donated)
    result = function(*args)
    if program is None:
        outcome.extend((None, result))
        return False
    # what was given up is not needed any more, unless the result still shows it: so it can be
    # written to, and a trial takes no memory of its own
    given_up = [library.byte_range(leaf) for i in donated for leaf in _arrays(args[i], library)]

    def kept(leaf: Any) -> Any:
        if not isinstance(leaf, library.array_type):
            return leaf
        start, end = library.byte_range(leaf)
        seen = any(start < last and first < end for first, last in given_up)
        return library.copy(leaf) if seen else leaf

    result = _each(kept, result, library)
    outcome.extend((None, result))  # from here on the arguments may be lost
    try:
        with library.ignore_errors():
            if program.fits(args) and _equal(result, replay := program(args), library):
                outcome[1] = replay
                return program
    except Exception as error:
        if not _comes_again(error, lambda: program(args)):
            raise
    return False


def _traced(
    function: Callable, args: tuple, library: Library, donated: tuple[int, ...]
) -> "Program | None":
    """A program that does what the function does, or None if a tape cannot hold it."""

    def trace() -> Program:
        return Program(function, args, library, donated)

    try:
        return trace()
    except Exception as error:  # the function itself shows what is wrong
        if _comes_again(error, trace):
            return None
        raise


def _comes_again(error: Exception, action: Callable) -> bool:
    """Whether an error is of the action; one of a signal handler or another thread is not."""
    try:
        action()
    except Exception as other:
        return type(error) is type(other)
    return False


def _arrays(tree: Any, library: Library) -> list:
    return [leaf for leaf in leaves(tree) if isinstance(leaf, library.array_type)]


@cache
def _prepare(library: Library) -> None:
    library.prepare()


def _each(function: Callable, tree: Any, library: Library) -> Any:
    """`tree` with function(array) for each array in it."""
    return mapped(
        lambda leaf: function(leaf) if isinstance(leaf, library.value_types) else leaf, tree
    )


def _equal(one: Any, other: Any, library: Library) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            _equal(v, other[k], library) for k, v in one.items()
        )
    if isinstance(one, tuple | list):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(_equal(*pair, library) for pair in pairs)
    if isinstance(one, library.value_types):
        alike = one.dtype == other.dtype and one.shape == other.shape
        return alike and library.equal(one, other)
    return one is other or one == other


def _kind(tree: Any, library: Library) -> Any:
    """What a program depends on: nesting, layouts and dtypes, and the values of all but arrays."""
    if isinstance(tree, dict):
        return tuple([(k, _kind(v, library)) for k, v in tree.items()])
    if isinstance(tree, tuple | list):
        return (type(tree), *[_kind(v, library) for v in tree])
    return library.layout(tree) if isinstance(tree, library.value_types) else (type(tree), tree)


class Program:
    """What `function` does to trees of arrays like `args`, as a straight line of calls."""

    def __init__(
        self, function: Callable, args: tuple, library: Library, donated: tuple[int, ...]
    ) -> None:
        _prepare(library)
        self.library = library
        with Trace(library) as tape:
            traced = _each(lambda a: tape.note(None, (), {}, a), args, library)
            # an array that no argument has a part in is a constant, noted like the others
            self.result = _each(
                lambda a: tape.note(library.copy, (a,), {}, a), function(*traced), library
            )
        given, self.result = (mapped(_node, tree) for tree in (traced, self.result))
        inputs = _nodes(given)
        self.given_up = _matched(self.result, given, donated)
        pairs, wanted = [], []
        for path, part in _parts(self.result):
            if path in self.given_up:
                pairs += zip(_nodes(given[self.given_up[path]]), _nodes(part), strict=True)
            else:
                wanted += _nodes(part)
        self.lent = {i for i, node in enumerate(inputs) if any(node is old for old, _ in pairs)}
        self.look = _looker(args, library)
        self.layouts = [library.layout(node.value) for node in inputs]
        self.bound: list[Any] = [None] * len(inputs)
        plan = Plan(tape, inputs, wanted, pairs)
        self.run, self.binders, self.env = plan.written()
        self.release, self.is_parallel = plan.release, plan.is_parallel
        self.together, self.heard = library.error_collector()
        self.copied_results = {n.number for n in wanted if plan.is_elsewhere(n)}
        exec(f"def result_of(args): return {self._said(self.result)}", self.env)
        self.result_of = self.env.pop("result_of")

    def fits(self, args: tuple) -> bool:
        """Whether this is a program for such arguments; if so they are bound to it."""
        try:
            found = self.look(args)
        except (TypeError, LookupError):
            return False
        if found is None:
            return False
        bound = self.bound
        changed = [i for i, leaf in enumerate(found) if leaf is not bound[i]]
        if not changed:
            return True
        if any(self._layout(found[i]) != self.layouts[i] for i in changed):
            return False
        if self.lent and not self.lent.isdisjoint(changed) and not self._apart(found):
            return False
        for i in changed:
            bound[i] = None  # an exception may come before all names are bound
            self.binders[i](found[i])
            bound[i] = found[i]
        return True

    def _layout(self, leaf: Any) -> Any:
        return self.library.layout(leaf) if isinstance(leaf, self.library.value_types) else None

    def _apart(self, found: tuple) -> bool:
        """Whether what is given up can be written to, and nothing else lies there."""
        if any(not self.library.is_writable(found[i]) for i in self.lent):
            return False
        spans = sorted(
            (*self.library.byte_range(one), i in self.lent)
            for i, one in enumerate(found)
            if isinstance(one, self.library.array_type)
        )
        return not any(b[0] < a[1] and (a[2] or b[2]) for a, b in pairwise(spans))

    def __call__(self, args: tuple) -> Any:
        outcome: list = []
        self.into(outcome, args)
        return outcome[1]

    def into(self, outcome: list, args: tuple) -> None:
        """Make the calls and put the result into `outcome`, as `agnostic_nn.core.atomic` says."""
        calls = self.run()
        result = self.result_of(args)
        if not calls:
            outcome.extend((None, result))
            return
        self.heard.clear()
        Commit(outcome, calls, result, self.together, self.env, self.is_parallel).run()
        self.release()
        if self.heard:
            self.library.report_errors(self.heard)

    def _said(self, tree: Any, path: tuple | None = ()) -> str:
        """The code that makes a result, in which arguments that were given up stand as they are."""
        if path in self.given_up:
            return f"args[{self.given_up[path]}]"
        if isinstance(tree, dict):
            return f"{{{', '.join(f'{k!r}: {self._said(v, None)}' for k, v in tree.items())}}}"
        if isinstance(tree, tuple | list):
            inside = (
                (i,) if path == () and isinstance(tree, tuple) else None for i in range(len(tree))
            )
            said = "".join(f"{self._said(*pair)}, " for pair in zip(tree, inside, strict=True))
            return f"({said})" if isinstance(tree, tuple) else f"[{said}]"
        if isinstance(tree, Node):
            name = f"e{tree.number}"
            return f"copy({name})" if tree.number in self.copied_results else name
        name = f"c{len(self.env)}"
        self.env[name] = tree
        return name


def _node(leaf: Any) -> Any:
    return leaf.node if isinstance(leaf, Traced) else leaf


def _nodes(tree: Any) -> list[Node]:
    return [leaf for leaf in leaves(tree) if isinstance(leaf, Node)]


def _parts(result: Any) -> list[tuple[tuple, Any]]:
    """The parts of a result, with their paths: itself, or the entries of a tuple."""
    if not isinstance(result, tuple):
        return [((), result)]
    return [((i,), part) for i, part in enumerate(result)]


def _matched(result: Any, given: tuple, donated: tuple[int, ...]) -> dict[tuple, int]:
    """Which part of the result becomes of which argument that is given up: one nested alike."""
    found: dict[tuple, int] = {}
    for position in donated:
        for path, part in _parts(result):
            if path not in found and _outline(part) == _outline(given[position]):
                found[path] = position
                break
    return found


def _outline(tree: Any) -> Any:
    if isinstance(tree, dict):
        return tuple([(k, _outline(v)) for k, v in tree.items()])
    if isinstance(tree, tuple | list):
        return (type(tree), *map(_outline, tree))
    if not isinstance(tree, Node):
        return ("no array", tree)
    return tree.value.shape, tree.value.dtype


def _looker(args: tuple, library: Library) -> Callable:
    """A function of such arguments to the arrays in them, or None if they are nested otherwise."""
    lengths: list[str] = []
    found: list[str] = []
    given: dict[str, Any] = {}

    def look(tree: Any, said: str) -> None:
        if isinstance(tree, dict | tuple | list):
            lengths.append(f"len({said}) == {len(tree)}")
            for k, branch in tree.items() if isinstance(tree, dict) else enumerate(tree):
                look(branch, f"{said}[{k!r}]")
        elif isinstance(tree, library.value_types):
            found.append(said)
        else:
            given[f"g{len(given)}"] = tree
            lengths.append(f"{said} is g{len(given) - 1}")

    look(args, "args")
    tests = " and ".join(lengths)
    exec(
        f"def look(args): return ({''.join(f'{one}, ' for one in found)}) if {tests} else None",
        given,
    )
    return given["look"]
