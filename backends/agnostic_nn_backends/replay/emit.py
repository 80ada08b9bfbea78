"""Code generation: the functions that a `Program` runs, from its `Plan`.

All functions share one namespace, `env`. Its names are a letter and a number:

    e{n}        the result of node n, and f{n} its function
    k{n}        a kernel, n being the first of its nodes
    a{n}        the address of e{n}, for kernels
    c{i}        a value that cannot be written as a literal
    x{n}        memory for one block of an intermediate result of a fused group
    l{n}_{m}    e{n} in blocks of rows, for the group that begins with node m; lx{n}
                those of x{n}. The loop over blocks calls each of them b{n}.
    m{k}        a copy of a new value, made before the commit
    g{i}        a leaf among the arguments that is not an array (`flatten` only)

The functions are:

- `prepare()`, run once: makes views of constants and buffers.
- `bind(array)`, one for each argument: assigns the argument and makes its views. It
  runs only when a call has another array there than the call before.
- `run()`: makes the calls up to the commit and returns the calls of the commit, as
  callables without arguments; none if the condition of the early return is false.
- `release()`: deletes references to results that only the commit read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from . import kernels
from .codegen import call_code, define_function, to_deferred
from .fuse import Group
from .plan import Plan
from .schedule import Step
from .trace import Node

__all__ = ["Code", "emit"]


@dataclass
class Code:
    """The generated functions and their namespace; see the docstring of the module.

    is_parallel: whether the commit has kernels that several threads share.
    """

    run: Callable[[], Any]
    binders: list[Callable[[Any], None]]
    release: Callable[[], None]
    is_parallel: bool
    env: dict[str, Any]


def emit(plan: Plan) -> Code:
    """Generate the code of a plan."""
    graph = plan.graph
    library = plan.library
    env: dict[str, Any] = {
        "deferred_copy": library.deferred_copy,
        "partial": partial,
        "copy": library.copy,
        "split": library.split_rows,
        "address": library.address,
        "run_parallel": kernels.run_parallel,
        "ParallelCall": kernels.ParallelCall,
    }
    prepare_lines: list[str] = []
    bind_lines: list[list[str]] = [[f"e{node.number} = array"] for node in graph.inputs]
    lines_of_owner = _bind_memory(plan, env, prepare_lines, bind_lines)
    body, late, release_lines = _emit_steps(plan, env, lines_of_owner)
    _emit_copies(plan, body, late)
    run = define_function("run", "", [*body, f"return [{', '.join(late)}]"], env)
    define_function("prepare", "", prepare_lines, env)()
    release = define_function("release", "", release_lines, env)
    is_parallel = any(call.startswith("ParallelCall(") for call in late)
    binders = [define_function("bind", "array", lines, env) for lines in bind_lines]
    return Code(run, binders, release, is_parallel, env)


def _bind_memory(
    plan: Plan,
    env: dict[str, Any],
    prepare_lines: list[str],
    bind_lines: list[list[str]],
) -> dict[int, list[str]]:
    """Name all arrays that stay in place, and return the lines that bind each of them.

    These lines are those of `prepare` or of the `bind` of an argument. Other code that
    depends only on the place of the array, such as its address, is added to the same
    lines.
    """
    graph = plan.graph
    library = plan.library
    allocation = plan.allocation
    for n in graph.constants:
        env[f"e{n}"] = graph.nodes[n].value
    buffers = [library.allocate(size) for size in allocation.buffer_sizes]
    lines_of_owner: dict[int, list[str]] = {}
    for n in sorted((*graph.constants, *graph.input_index, *graph.order)):
        node = graph.nodes[n]
        slot = allocation.slot(n)
        if n in graph.input_index:
            lines_of_owner[n] = bind_lines[graph.input_index[n]]
        elif n in graph.constants:
            lines_of_owner[n] = prepare_lines
        elif slot is not None:
            kind, index = slot
            if kind == "input":
                lines_of_owner[n] = bind_lines[index]
                lines_of_owner[n].append(f"e{n} = array")
            else:
                lines_of_owner[n] = prepare_lines
                env[f"e{n}"] = library.array_in(node.value, buffers[index])
        elif n in plan.aliases.views:
            owner = plan.aliases.owner(n)
            lines_of_owner[owner].append(call_code(node, library, env))
    return lines_of_owner


def _emit_steps(
    plan: Plan, env: dict[str, Any], lines_of_owner: dict[int, list[str]]
) -> tuple[list[str], list[str], list[str]]:
    """Return the lines of `run`, the entries of its list, and lines of `release`."""
    schedule = plan.schedule
    early_return = plan.graph.early_return
    return_line = ""
    if early_return is not None:
        return_line = f"if not e{early_return.condition}: return ()"
    body: list[str] = []
    late: list[str] = []
    release_lines: list[str] = []
    for s, step in enumerate(schedule.steps):
        if s == schedule.return_step:
            body.append(return_line)
        lines = _step_lines(plan, step, env, lines_of_owner)
        released = [f"e{n} = None" for n in plan.liveness.released_after.get(s, ())]
        if s < schedule.commit_step:
            body += [*lines, *released]
            continue
        before, calls = to_deferred(lines)
        body += before
        late.append(calls)
        release_lines += released
    if schedule.return_step == len(schedule.steps):
        body.append(return_line)
    return body, late, release_lines


def _step_lines(
    plan: Plan, step: Step, env: dict[str, Any], lines_of_owner: dict[int, list[str]]
) -> list[str]:
    if len(step.nodes) == 1:
        (node,) = step.nodes
        has_slot = plan.allocation.slot(node.number) is not None
        out = f"e{node.number}" if has_slot else ""
        return [call_code(node, plan.library, env, out)]

    def binding_lines(n: int) -> list[str] | None:
        if not plan.aliases.is_bound(n):
            return None
        return lines_of_owner[plan.aliases.owner(n)]

    return Group(plan, step.nodes).lines(env, binding_lines)


def _emit_copies(plan: Plan, body: list[str], late: list[str]) -> None:
    """Add copies for new values that are not computed in the memory of their input."""

    def is_copied(old: Node, new: Node) -> bool:
        in_place = ("input", plan.graph.input_index[old.number])
        return new is not old and plan.location(new.number) != in_place

    copied = [(old, new) for old, new in plan.graph.donations if is_copied(old, new)]
    donated = {old.number for old, _ in plan.graph.donations}
    sources = {}
    for k, (_, new) in enumerate(copied):
        sources[k] = f"e{new.number}"
        # the commit may overwrite the memory that `new` shows before `new` is copied
        if plan.aliases.roots[new.number] & donated:
            sources[k] = f"m{k}"
            body.append(f"m{k} = copy(e{new.number})")
    for k, (old, _) in enumerate(copied):
        late.append(f"deferred_copy(e{old.number}, {sources[k]})")
