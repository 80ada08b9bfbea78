"""Time this library against what users would pick instead; write tables, JSON and plots."""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from agnostic_nn.diagnostics.compare.environment import environment

from .contenders import names
from .report import text, write
from .running import REFERENCE, ROOT, entries, measure
from .workloads import WORKLOADS

__all__ = ["main"]

SCALING = {"batch": (8, 32, 128, 512, 2048), "width": (64, 256, 1024, 2048)}
SCALED = (
    *(REFERENCE, "agnostic_nn jax", "agnostic_nn torch"),
    *("products", "pytorch", "equinox"),
)


def main(arguments):
    options = _parser().parse_args(arguments)
    chosen = entries(options.contenders, options.before)
    runs = [
        {"threads": threads, "workloads": {}, "scaling": {}}
        for threads in options.threads
    ]
    results = {
        "command": shlex.join(["python", "-m", "benchmarks", *arguments]),
        "settings": {
            "rounds": options.rounds,
            "seconds": options.seconds,
            "clock": options.clock,
        },
        "environment": _environment(options.before),
        "runs": runs,
    }
    for run in runs:
        settings = {"threads": run["threads"], "clock": options.clock}
        settings |= {"seconds": options.seconds, "told": _told}
        for name in options.workloads:
            result = measure(name, chosen, rounds=options.rounds, **settings)
            run["workloads"][name] = result
            for contender in result["contenders"].values():
                results["environment"]["versions"] |= contender["versions"]
            write(results, options.out)
        few = [entry for entry in chosen if entry.contender in SCALED]
        for size, values in SCALING.items() if options.scaling else ():
            curve = run["scaling"][size] = {}
            for value in values:
                sized = settings | {"rounds": min(options.rounds, 5), size: value}
                curve[str(value)] = measure("mlp", few, **sized)
                write(results, options.out)
    print(text(results))
    print("\n".join(map(str, write(results, options.out))))


def _parser():
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    several = {"nargs": "+", "metavar": "NAME"}
    for name, there in (("--workloads", list(WORKLOADS)), ("--contenders", names())):
        add(
            name, **several, choices=there, default=there, help=f"of {'; '.join(there)}"
        )
    add("--threads", nargs="+", choices=("1", "all"), default=["1", "all"])
    add(
        "--clock",
        choices=("wall", "processor"),
        default="wall",
        help="of one thread on a machine that has other work to do trust the processor's",
    )
    add(
        "--rounds",
        type=int,
        default=9,
        help="how often each is asked (default: %(default)s)",
    )
    add(
        "--seconds",
        type=float,
        default=0.3,
        help="how long each time (default: %(default)s)",
    )
    add("--scaling", action="store_true", help="also mlp by batch and by width")
    add(
        "--before",
        type=Path,
        metavar="PATH",
        help="another checkout, timed beside this one",
    )
    add(
        "--out",
        type=Path,
        metavar="DIR",
        default=ROOT / "report" / "benchmarks",
        help="where all goes (default: report/benchmarks; docs shows what --out docs made)",
    )
    return parser


def _environment(before):
    result = environment()
    result.pop("variables")  # each worker is given its own
    result["commit"] = _commit(ROOT)
    if before is not None:
        result["commit before"] = _commit(before)
    return result


def _commit(checkout):
    """Return the commit of the source there, with a + if files were changed since."""
    command = [
        "git",
        "-C",
        str(checkout),
        "describe",
        "--always",
        "--abbrev=10",
        "--dirty=+",
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


def _told(line):
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
