"""Text of generated code: calls as lines of Python, and functions made of such lines.

The result of node n has the name e{n}. Values that cannot be written as literals get a
name in `env`, the namespace of the generated functions.
"""

from collections.abc import Callable
from typing import Any

from .trace import Library, Node

__all__ = ["argument_code", "call_code", "define_function", "rename", "to_deferred"]


def call_code(node: Node, library: Library, env: dict[str, Any], out: str = "") -> str:
    """Return a line that makes a call.

    The result is written to the array with the name `out`, or assigned if `out` is "".
    """
    n = node.number
    env[f"f{n}"] = node.function
    args = [argument_code(arg, env) for arg in node.args]
    args += [f"{name}={argument_code(arg, env)}" for name, arg in node.kwargs.items()]
    if not out:
        return f"e{n} = f{n}({', '.join(args)})"
    if library.out_is_positional(node.function):
        return f"f{n}({', '.join([*args, out])})"
    return f"f{n}({', '.join([*args, f'out={out}'])})"


def argument_code(argument: Any, env: dict[str, Any]) -> str:
    """Return the expression of an argument of a call."""
    if isinstance(argument, Node):
        return f"e{argument.number}"
    if argument is None or isinstance(argument, bool | int):
        return repr(argument)
    if isinstance(argument, list):
        return f"[{', '.join(argument_code(item, env) for item in argument)}]"
    if isinstance(argument, tuple):
        return f"({''.join(argument_code(item, env) + ', ' for item in argument)})"
    if isinstance(argument, dict):
        items = (f"{k!r}: {argument_code(v, env)}" for k, v in argument.items())
        return f"{{{', '.join(items)}}}"
    name = f"c{len(env)}"
    env[name] = argument
    return name


def rename(code: str, names: dict[int, str]) -> str:
    """Return a call in which the arguments e{n} have the names names[n]."""
    for n, name in names.items():
        for before in "( ":
            for after in ",)":
                code = code.replace(f"{before}e{n}{after}", f"{before}{name}{after}")
    return code


def to_deferred(lines: list[str]) -> tuple[list[str], str]:
    """Turn lines that make calls into callables that make them later.

    `lines` ends with one call whose result is not assigned, or with a loop of such
    calls. Returns the lines before it, and the code of one or more entries of a list of
    callables: "partial(f7, e3, e5, e7)" for the call "f7(e3, e5, e7)".
    """
    last = len(lines) - 1
    start = next((k for k, line in enumerate(lines) if line.startswith("for ")), last)
    before = lines[:start]
    loop = lines[start:]
    if len(loop) == 1:
        return before, _deferred_call(loop[0])
    head, *body = loop
    calls = ", ".join(_deferred_call(line.strip()) for line in body)
    return before, f"*[step for {head[4:-1]} for step in ({calls},)]"


def _deferred_call(call: str) -> str:
    name, _, rest = call.partition("(")
    if name == "run_parallel":
        return f"ParallelCall({rest}"
    return f"partial({name}, {rest}"


def define_function(
    name: str, parameters: str, lines: list[str], env: dict[str, Any]
) -> Callable[..., Any]:
    """Define a function of these lines, whose names are looked up in `env`.

    The functions of a program share results e{n}, addresses a{n} and lists of blocks
    l{n}, so these are assigned in `env`. Names of loop variables and of copies (m{k})
    are local.
    """
    shared = [line for line in lines if line.startswith(("a", "e", "l"))]
    assigned = sorted({line.split(" = ")[0] for line in shared})
    head = [f"global {', '.join(assigned)}"] if assigned else []
    body = "".join(f"\n    {line}" for line in (*head, *(lines or ["pass"])))
    exec(f"def {name}({parameters}):{body}", env)
    function: Callable[..., Any] = env.pop(name)
    return function
