"""Programs: recorded functions as generated code, and when a call uses them.

`replayed(function)` behaves like the pure `function`. The package's docstring describes
how.
"""

from collections.abc import Callable
from functools import cache, wraps
from itertools import count, pairwise
from typing import Any

from agnostic_nn.core.atomic import settle

from .. import program_limit
from .codegen import define_function
from .commit import Commit
from .emit import emit
from .graph import Donation
from .plan import Plan
from .trace import Library, Node, Trace, Traced, leaves, map_leaves

__all__ = ["Program", "direct", "replayed"]


def direct(function: Callable[..., Any], library: Library) -> Callable[..., Any]:
    """Return `function` without replay; it returns writable arrays.

    It serves `nn.backend(..., replay=False)`: for debuggers, and to find out whether
    replay is at fault.
    """

    @wraps(function)
    def call(*args: Any) -> Any:
        return _map_arrays(library.as_array, function(*args), library)

    return call


def replayed(
    function: Callable[..., Any], library: Library, donated: tuple[int, ...] = ()
) -> Callable[..., Any]:
    """Return the pure `function` of trees of arrays, replayed where possible.

    donated: the positions of arguments whose memory the caller gives up.

    The first call with a kind of arguments (`_signature`) runs the function. The second
    call runs it too, and also builds a program and compares its result. Later calls run
    the program, or the function if it could not be traced or gave another result.

    A program holds the memory that the function needs. Those of the `program_limit()`
    kinds of arguments that were used last are kept.
    """
    limit = program_limit()
    # the kind that was used last is at the end;
    # by signature of the arguments: a program; True after the first call with them;
    # False if the function cannot be replayed with them
    programs: dict[Any, Program | bool] = {}
    latest: list[Program] = []  # the program of the last call, which is tried first
    call_directly = direct(function, library)

    # Who runs a program at the moment. A lock could not tell, after an exception,
    # whether it was acquired by this call or by another thread.
    holder: dict[int, object] = {}

    def into(outcome: list[Any], *args: Any) -> None:
        me = object()
        try:
            if holder.setdefault(0, me) is not me:  # another thread runs a program
                outcome.extend((None, call_directly(*args)))
            else:
                _run(outcome, args)
        finally:
            # no function is called before the holder is removed, so no exception can
            # intervene
            try:
                if holder[0] is me:
                    del holder[0]
            except KeyError:
                pass

    def _run(outcome: list[Any], args: tuple[Any, ...]) -> None:
        # The order in `programs` may be wrong for the latest one, which is not dropped.
        for program in latest:
            if program.fits(args):
                program.into(outcome, args)
                return
        try:
            signature = _signature(args, library)
            entry = programs.get(signature)
        except TypeError:  # an argument that is not an array is not hashable
            outcome.extend((None, call_directly(*args)))
            return
        if entry is not None:
            programs.pop(signature, None)
            programs[signature] = entry
        if isinstance(entry, Program) and entry.fits(args):
            latest[:] = [entry]
            entry.into(outcome, args)
            return
        if entry is True:
            programs[signature] = _build(outcome, call_directly, args, library, donated)
            return
        if entry is None:
            programs[signature] = True
            while len(programs) > limit:
                dropped = programs.pop(next(iter(programs)))
                latest[:] = [program for program in latest if program is not dropped]
        outcome.extend((None, call_directly(*args)))

    @wraps(function)
    def call(*args: Any) -> Any:
        outcome: list[Any] = []
        try:
            into(outcome, *args)
        except BaseException:
            settle(outcome)
            raise
        return outcome[1]

    call.into = into  # type: ignore[attr-defined]
    call.programs = programs  # type: ignore[attr-defined]
    return call


def _build(
    outcome: list[Any],
    function: Callable[..., Any],
    args: tuple[Any, ...],
    library: Library,
    donated: tuple[int, ...],
) -> "Program | bool":
    """Call the function, put its result into `outcome`, and return a program, or False.

    The program is verified by one run, whose result has to equal that of the function.
    """
    program = _trace(function, args, library, donated)
    result = function(*args)
    if program is None:
        outcome.extend((None, result))
        return False
    # This run writes to the donated arguments, which nothing needs any more, so that it
    # takes no additional memory. Parts of the result that share their memory have to be
    # copied before.
    donated_arrays = [leaf for i in donated for leaf in _arrays(args[i], library)]
    donated_ranges = [library.byte_range(array) for array in donated_arrays]

    def without_donated(leaf: Any) -> Any:
        if not isinstance(leaf, library.array_type):
            return leaf
        start, end = library.byte_range(leaf)
        is_donated = any(start < last and first < end for first, last in donated_ranges)
        return library.copy(leaf) if is_donated else leaf

    result = _map_arrays(without_donated, result, library)
    outcome.extend((None, result))  # from here on the arguments may be lost
    try:
        with library.ignore_errors():
            if not program.fits(args):
                return False
            replay = program(args)
            if _equal(result, replay, library):
                outcome[1] = replay
                return program
    except Exception as error:
        if not _is_reproducible(error, lambda: program(args)):
            raise
    return False


def _trace(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    library: Library,
    donated: tuple[int, ...],
) -> "Program | None":
    """Return a program for the function, or None if it cannot be traced."""

    def trace() -> Program:
        return Program(function, args, library, donated)

    try:
        return trace()
    except Exception as error:
        # an error of the function itself will show when the function is called
        if _is_reproducible(error, trace):
            return None
        raise


def _is_reproducible(error: Exception, action: Callable[[], Any]) -> bool:
    """Return whether the action raises such an error again.

    An error from a signal handler or another thread does not come again; it must not be
    lost.
    """
    try:
        action()
    except Exception as second_error:
        return type(error) is type(second_error)
    return False


def _arrays(tree: Any, library: Library) -> list[Any]:
    return [leaf for leaf in leaves(tree) if isinstance(leaf, library.array_type)]


@cache
def _prepare_once(library: Any) -> None:
    library.prepare()


def _map_arrays(function: Callable[..., Any], tree: Any, library: Library) -> Any:
    """Return `tree` with function(array) for each array."""
    value_types = library.value_types

    def convert(leaf: Any) -> Any:
        return function(leaf) if isinstance(leaf, value_types) else leaf

    return map_leaves(convert, tree)


def _equal(tree: Any, other: Any, library: Library) -> bool:
    """Return whether two results have the same structure, dtypes, shapes and values."""
    if isinstance(tree, dict):
        return tree.keys() == other.keys() and all(
            _equal(branch, other[name], library) for name, branch in tree.items()
        )
    if isinstance(tree, tuple | list):
        pairs = zip(tree, other, strict=False)
        return len(tree) == len(other) and all(_equal(*pair, library) for pair in pairs)
    if isinstance(tree, library.value_types):
        is_alike = tree.dtype == other.dtype and tree.shape == other.shape
        return is_alike and library.equal(tree, other)
    return bool(tree is other or tree == other)


def _signature(tree: Any, library: Library) -> Any:
    """Return what a program depends on.

    That is the structure of the arguments, the layouts of the arrays among their leaves
    and the values of all other leaves.
    """
    if isinstance(tree, dict):
        branches = [(name, _signature(v, library)) for name, v in tree.items()]
        return tuple(branches)
    if isinstance(tree, tuple | list):
        return (type(tree), *[_signature(v, library) for v in tree])
    if isinstance(tree, library.value_types):
        return library.layout(tree)
    return type(tree), tree


class Program:
    """The operations of `function` on arguments like `args`, as generated code.

    A program is bound to arrays: `fits` assigns the arguments to names in `env`, and a
    call runs with them. See `emit` for the generated functions.

    result: the result of the function as a tree with nodes instead of arrays.
    replaces: for the path of a part of the result, the position of the donated argument
        that it replaces.
    donated: the indices of the arrays that are donated.
    layouts, bound: for each array among the arguments the layout that it has to have,
        and the array that is bound at the moment.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        library: Library,
        donated: tuple[int, ...],
    ) -> None:
        _prepare_once(library)
        self.library = library
        with Trace(library) as trace:

            def traced_input(array: Any) -> Traced:
                return trace.add(None, (), {}, array)

            def traced_copy(array: Any) -> Traced:
                return trace.add(library.copy, (array,), {}, array)

            traced_args = _map_arrays(traced_input, args, library)
            for i in donated:
                nodes = _nodes(map_leaves(_to_node, traced_args[i]))
                trace.donated.update(node.number for node in nodes)
            traced_result = function(*traced_args)
            # an array that does not depend on an argument is not traced: record a copy
            traced_result = _map_arrays(traced_copy, traced_result, library)
        arg_nodes = map_leaves(_to_node, traced_args)
        self.result = map_leaves(_to_node, traced_result)
        inputs = _nodes(arg_nodes)
        self.replaces = _match_donations(self.result, arg_nodes, donated)
        donations: list[Donation] = []
        outputs: list[Node] = []
        for path, part in _parts(self.result):
            if path in self.replaces:
                old_nodes = _nodes(arg_nodes[self.replaces[path]])
                donations += zip(old_nodes, _nodes(part), strict=True)
            else:
                outputs += _nodes(part)
        old_numbers = {old.number for old, _ in donations}
        self.donated = {
            i for i, node in enumerate(inputs) if node.number in old_numbers
        }
        self.flatten = _make_flatten(args, library)
        self.layouts = [library.layout(node.value) for node in inputs]
        self.bound: list[Any] = [None] * len(inputs)
        plan = Plan(trace, inputs, outputs, donations)
        code = emit(plan)
        self.run = code.run
        self.binders = code.binders
        self.env = code.env
        self.release = code.release
        self.is_parallel = code.is_parallel
        self.call_function, self.errors = library.error_collector()
        self.copied_results = {n.number for n in outputs if plan.shows_bound_memory(n)}
        line = f"return {self._result_code(self.result)}"
        self.result_of = define_function("result_of", "args", [line], self.env)

    def fits(self, args: tuple[Any, ...]) -> bool:
        """Return whether the program is valid for these arguments; if so, bind them."""
        try:
            arrays = self.flatten(args)
        except (TypeError, ValueError, LookupError):
            return False
        if arrays is None:
            return False
        bound = self.bound
        changed = [i for i, leaf in enumerate(arrays) if leaf is not bound[i]]
        if not changed:
            return True
        if any(self._layout(arrays[i]) != self.layouts[i] for i in changed):
            return False
        has_new_memory = not self.donated.isdisjoint(changed)
        if has_new_memory and not self._can_write(arrays):
            return False
        for i in changed:
            bound[i] = None  # an exception may come before all names are assigned
            self.binders[i](arrays[i])
            bound[i] = arrays[i]
        return True

    def _layout(self, leaf: Any) -> tuple[Any, ...] | None:
        is_array = isinstance(leaf, self.library.value_types)
        return self.library.layout(leaf) if is_array else None

    def _can_write(self, arrays: tuple[Any, ...]) -> bool:
        """Return whether donated arrays are writable and overlap no other argument."""
        if any(not self.library.is_writable(arrays[i]) for i in self.donated):
            return False
        ranges = sorted(
            (*self.library.byte_range(array), i in self.donated)
            for i, array in enumerate(arrays)
            if isinstance(array, self.library.array_type)
        )
        # sorted by their start, so that only neighbours need to be compared
        return not any(
            start < last_end and (is_donated or last_is_donated)
            for (_, last_end, last_is_donated), (start, _, is_donated) in pairwise(
                ranges
            )
        )

    def __call__(self, args: tuple[Any, ...]) -> Any:
        outcome: list[Any] = []
        self.into(outcome, args)
        return outcome[1]

    def into(self, outcome: list[Any], args: tuple[Any, ...]) -> None:
        """Run, and put the result into `outcome`: see `agnostic_nn.core.atomic`."""
        calls = self.run()
        result = self.result_of(args)
        if not calls:
            outcome.extend((None, result))
            return
        self.errors.clear()
        commit = Commit(
            outcome, calls, result, self.call_function, self.env, self.is_parallel
        )
        commit.run()
        self.release()
        if self.errors:
            self.library.report_errors(self.errors)

    def _result_code(self, tree: Any, path: tuple[int, ...] | None = ()) -> str:
        """Return the expression of the result, or of the part of it at `path`.

        A part that replaces a donated argument is that argument, in whose memory it is.
        """
        if path in self.replaces:
            return f"args[{self.replaces[path]}]"
        if isinstance(tree, dict):
            items = (f"{k!r}: {self._result_code(v, None)}" for k, v in tree.items())
            return f"{{{', '.join(items)}}}"
        if isinstance(tree, tuple | list):
            has_parts = path == () and isinstance(tree, tuple)
            codes = [
                self._result_code(branch, (i,) if has_parts else None)
                for i, branch in enumerate(tree)
            ]
            inner = "".join(f"{code}, " for code in codes)
            return f"({inner})" if isinstance(tree, tuple) else f"[{inner}]"
        if isinstance(tree, Node):
            name = f"e{tree.number}"
            return f"copy({name})" if tree.number in self.copied_results else name
        name = f"c{len(self.env)}"
        self.env[name] = tree
        return name


def _to_node(leaf: Any) -> Any:
    return leaf.node if isinstance(leaf, Traced) else leaf


def _nodes(tree: Any) -> list[Node]:
    return [leaf for leaf in leaves(tree) if isinstance(leaf, Node)]


def _parts(result: Any) -> list[tuple[tuple[int, ...], Any]]:
    """Return (path, part) for each part of a result: each entry of a tuple, or all."""
    if not isinstance(result, tuple):
        return [((), result)]
    return [((i,), part) for i, part in enumerate(result)]


def _match_donations(
    result: Any, args: tuple[Any, ...], donated: tuple[int, ...]
) -> dict[tuple[int, ...], int]:
    """Match each donated argument with the first part of the result that is like it."""
    matches: dict[tuple[int, ...], int] = {}
    for position in donated:
        structure = _structure(args[position])
        for path, part in _parts(result):
            if path not in matches and _structure(part) == structure:
                matches[path] = position
                break
    return matches


def _structure(tree: Any) -> Any:
    """Return the nesting of a tree, and the shapes and dtypes of its arrays."""
    if isinstance(tree, dict):
        return tuple([(k, _structure(v)) for k, v in tree.items()])
    if isinstance(tree, tuple | list):
        return (type(tree), *map(_structure, tree))
    if not isinstance(tree, Node):
        return ("no array", tree)
    return tree.value.shape, tree.value.dtype


def _make_flatten(
    args: tuple[Any, ...], library: Library
) -> Callable[[tuple[Any, ...]], tuple[Any, ...] | None]:
    """Generate flatten(args): the tuple of the arrays in arguments of this structure.

    For another structure it returns None or raises TypeError, ValueError or
    LookupError. It returns None too if a leaf that is not an array is another object.
    It runs at each call, so it is generated code without loops:

        t0, t1 = args
        if len(t0) != 1: return None
        t2 = t0["weight"]
        if t1 is not g1: return None
        return (t2, )
    """
    lines: list[str] = []
    arrays: list[str] = []
    env: dict[str, Any] = {}
    names = (f"t{n}" for n in count())

    def visit(tree: Any, name: str) -> None:
        if isinstance(tree, dict):
            branches = {next(names): key for key in tree}
            lines.append(f"if len({name}) != {len(tree)}: return None")
            lines.extend(f"{b} = {name}[{key!r}]" for b, key in branches.items())
        elif isinstance(tree, tuple | list):
            branches = {next(names): i for i in range(len(tree))}
            # unpacking raises ValueError for another length
            lines.append(f"[{', '.join(branches)}] = {name}")
        else:
            if isinstance(tree, library.value_types):
                arrays.append(name)
            else:
                env[f"g{name}"] = tree
                lines.append(f"if {name} is not g{name}: return None")
            return
        for branch, key in branches.items():
            visit(tree[key], branch)

    visit(args, "args")
    result = "".join(f"{name}, " for name in arrays)
    lines.append(f"return ({result})")
    return define_function("flatten", "args", lines, env)
