"""Writing: calls of a tape as lines of Python, and functions of such lines.

Node number n is the name e{n} in all of them; what else a line needs is in its `env`.
"""

from collections.abc import Callable
from typing import Any

from .trace import Library, Node

__all__ = ["called", "delayed", "function", "renamed", "said"]


def called(node: Node, library: Library, env: dict[str, Any], out: str = "") -> str:
    """One call; with `out` into an array that is there, or else naming the result."""
    n = node.number
    env[f"f{n}"] = node.function
    given = [said(one, env) for one in node.args]
    given += [f"{name}={said(one, env)}" for name, one in node.kwargs.items()]
    if not out:
        return f"e{n} = f{n}({', '.join(given)})"
    if library.out_is_positional(node.function):
        return f"f{n}({', '.join([*given, out])})"
    return f"f{n}({', '.join([*given, f'out={out}'])})"


def said(argument: Any, env: dict[str, Any]) -> str:
    """An argument of a call."""
    if isinstance(argument, Node):
        return f"e{argument.number}"
    if argument is None or isinstance(argument, bool | int):
        return repr(argument)
    if isinstance(argument, list):
        return f"[{', '.join(said(one, env) for one in argument)}]"
    if isinstance(argument, tuple):
        return f"({''.join(said(one, env) + ', ' for one in argument)})"
    if isinstance(argument, dict):
        return f"{{{', '.join(f'{k!r}: {said(v, env)}' for k, v in argument.items())}}}"
    name = f"c{len(env)}"
    env[name] = argument
    return name


def renamed(code: str, names: dict[int, str]) -> str:
    """A call with other names for some of its arguments."""
    for number, name in names.items():
        for before in "( ":
            for after in ",)":
                code = code.replace(f"{before}e{number}{after}", f"{before}{name}{after}")
    return code


def delayed(lines: list[str]) -> tuple[list[str], str]:
    """Lines that make calls as those to run before, and the calls as entries of a list.

    The lines are one call of which no result is named, or a loop of such; others before it
    name what it needs.
    """
    start = next((k for k, line in enumerate(lines) if line.startswith("for ")), len(lines) - 1)
    before, loop = lines[:start], lines[start:]
    if len(loop) == 1:
        return before, _partial(loop[0])
    head, *steps = loop
    calls = ", ".join(_partial(step.strip()) for step in steps)
    return before, f"*[step for {head[4:-1]} for step in ({calls},)]"


def _partial(call: str) -> str:
    name, _, rest = call.partition("(")
    return f"ParallelCall({rest}" if name == "run_parallel" else f"partial({name}, {rest}"


def function(name: str, arguments: str, lines: list[str], env: dict[str, Any]) -> Callable:
    """A function of such lines; what it assigns that others read is global to all of them."""
    assigned = sorted({line.split(" = ")[0] for line in lines if line.startswith(("a", "e", "l"))})
    head = [f"global {', '.join(assigned)}"] if assigned else []
    body = "".join(f"\n    {line}" for line in (*head, *(lines or ["pass"])))
    exec(f"def {name}({arguments}):{body}", env)
    return env.pop(name)
