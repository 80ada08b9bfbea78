"""Time this library and others at the same trainings; write tables, JSON and plots."""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from agnostic_nn.diagnostics.compare.conversion import to_json
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
        settings |= {"seconds": options.seconds, "report": _report}
        for name in options.workloads:
            result = measure(name, chosen, rounds=options.rounds, **settings)
            run["workloads"][name] = result
            for contender in result["contenders"].values():
                results["environment"]["versions"] |= contender["versions"]
            write(results, options.out)
        scaled = [entry for entry in chosen if entry.contender in SCALED]
        for size, values in SCALING.items() if options.scaling else ():
            curve = run["scaling"][size] = {}
            for value in values:
                sized = settings | {"rounds": min(options.rounds, 5), size: value}
                curve[str(value)] = measure("mlp", scaled, **sized)
                write(results, options.out)
    print(text(results))
    print("\n".join(map(str, write(results, options.out))))


def _parser():
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    several = {"nargs": "+", "metavar": "NAME"}
    for name, choices in (("--workloads", list(WORKLOADS)), ("--contenders", names())):
        text = f"of {'; '.join(choices)}"
        add(name, **several, choices=choices, default=choices, help=text)
    add("--threads", nargs="+", choices=("1", "all"), default=["1", "all"])
    add(
        "--clock",
        choices=("wall", "processor"),
        default="wall",
        help="clock for one thread; on a busy machine use the processor's",
    )
    add(
        "--rounds",
        type=int,
        default=9,
        help="how often each contender runs (default: %(default)s)",
    )
    add(
        "--seconds",
        type=float,
        default=0.3,
        help="how long it runs each time (default: %(default)s)",
    )
    add("--scaling", action="store_true", help="also measure mlp by batch and by width")
    add(
        "--before",
        type=Path,
        metavar="PATH",
        help="also measure an older checkout of this library",
    )
    add(
        "--out",
        type=Path,
        metavar="DIR",
        default=ROOT / "report" / "benchmarks",
        help="output folder (default: report/benchmarks; --out docs writes the page)",
    )
    return parser


def _environment(before):
    result = to_json(environment())
    result.pop("variables")  # each worker has its own
    result["commit"] = _commit(ROOT)
    if before is not None:
        result["commit before"] = _commit(before)
    return result


def _commit(checkout):
    """Return the commit of a checkout, with a + if files were changed since."""
    command = ["git", "-C", str(checkout)]
    command += ["describe", "--always", "--abbrev=10", "--dirty=+"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


def _report(line):
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
