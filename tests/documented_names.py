"""Check that every public name has a section in the reference of the built site.

    python tests/documented_names.py site/objects.inv

`nox -s docs` runs this after it has built the site. The file lists the sections in the
format of Sphinx: four lines of text, then compressed lines that begin with the name.
"""

import sys
import zlib
from pathlib import Path

import agnostic_nn as nn


def documented(inventory: bytes) -> set[str]:
    """Return the last components of all names in an objects.inv."""
    *_, compressed = inventory.split(b"\n", 4)
    lines = zlib.decompress(compressed).decode().splitlines()
    return {line.split()[0].rpartition(".")[2] for line in lines}


def main(path: str) -> int:
    """Print the public names that are missing, and return how many there are."""
    modules = {"arrays", "ops", "penalties", "random", "schedules", "trees"}
    missing = set(nn.__all__) - modules - documented(Path(path).read_bytes())
    for name in sorted(missing):
        print(f"{name} has no section: add its module to a page in docs/reference")
    return len(missing)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
