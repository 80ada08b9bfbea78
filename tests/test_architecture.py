"""The house rule: look down, never up, never sideways, never out of the window.

A file imports only from lower floors, the core imports no array library, and only what
is listed here comes from outside. Each check takes the root of a tree and returns its
complaints, so that it can be shown to complain about a tree with something planted.
"""

import ast
import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import agnostic_nn as nn
from agnostic_nn_backends import SHIPPED

ROOT = Path(__file__).parents[1]
FLOORS = (
    {"atomic", "guards.names", "guards.values"},
    {"arrays", "guards.snapshot", "tables", "trees"},
    {"guards.watching", "spans", "special.precision"},
    {"guards.guarding", "special.elementwise", "special.padding", "special.reductions"},
    {"guards", "special", "random"},
    {"initializers", "metrics", "policies", "layers.base", "losses.base", "optimizers.base"},
    {"layers", "losses", "optimizers", "schedules"},
    {"layers.attention", "optimizers.muon"},
    {"blocks.base"},
    {"blocks.sequential"},
    {"blocks.residual"},
    {"blocks", "registry"},
    {  # from here up NumPy and the standard library may be used
        *("bisecting.noise", "checking.inputs", "files", "ledger.ledger", "pages"),
        "training.tensors",
        *("training.config", "training.interrupts", "training.progress"),
    },
    {
        *("checking.checking", "checking.specimens", "ledger.arrays"),
        *("training.callbacks", "training.checkpoint", "training.data", "training.history"),
    },
    {"checking", "ledger.native", "training.context", "training.intake", "training.steps"},
    {"ledger", "loading", "training.feeding", "training.memory", "training.means"},
    {"summary", "training.outlines"},
    {"training.saved"},
    {"bisecting.pieces", "training.trainer"},
    {"training"},
    {
        *("bisecting.bisecting", "profiling"),
        *("compare.deviation", "compare.environment", "compare.report", "compare.workloads"),
        *("conformance.findings", "conformance.library"),
        *("explaining.formulas", "explaining.numbers", "explaining.walk"),
    },
    {
        *("bisecting", "compare.own", "compare.page", "compare.roundings"),
        *("conformance.trials", "explaining.flow"),
    },
    {"compare.probes", "conformance.judging", "explaining.findings"},
    {"compare.running"},
    {"compare.drift"},
    {"compare.judging"},
    {"compare.controls"},
    {"compare.comparing", "conformance.trying", "explaining.telling"},
    {"compare.merging", "explaining.drawing"},
    {"compare", "conformance", "explaining.explaining"},
    {"explaining.notebooks"},
    {"explaining"},
    {"commands.arguments"},
    {"commands"},
    {"cli"},
)
HOST = 12  # the lowest floor of those that work on the host
STDLIB = set(sys.stdlib_module_names)
CORE = {
    "array_api_compat",
    "collections",
    "dataclasses",
    "functools",
    "html",
    "inspect",
    "io",
    "itertools",
    "math",
    "typing",
}
ALSO = {  # what single files of the core may import besides
    "guards.guarding": {"warnings"},
    "guards.names": {"dis", "os", "sys", "types"},
    "guards.snapshot": {"types"},
    "guards.values": {"pickle", "types"},
    "guards.watching": {"builtins", "contextvars", "sys", "types"},
    "registry": {"agnostic_nn_backends", "contextlib", "importlib", "os", "types"},
}
WORKSHOPS = {  # of adapters, and the library that each is for, if for one only
    "attention": "numpy",
    "commit": None,
    "exponential": None,
    "groups": None,
    "kernels": "llvmlite",
    "numpy_calls": "numpy",
    "plan": None,
    "recurrence": "numpy",
    "replay": None,
    "tape": None,
    "torch_calls": "torch",
    "writing": None,
}
INSIDE_FUNCTIONS = {  # what is slow to import or optional, and its only home
    "training.callbacks": {"tensorboardX"},
    "registry": {"numpy"},
    "compare.workloads": {"mlxtend", "sklearn"},
    "pages": {"matplotlib"},
    "policies": {"numpy"},
    "training.progress": {"IPython", "rich"},
    "tables": {"rich"},
}
LIBRARIES = {  # of each adapter
    "numpy": {"numpy", "scipy"},
    "jax": {"jax", "numpy"},
    "torch": {"torch", "numpy"},
    "cupy": {"cupy", "cupyx", "numpy"},
    "dpnp": {"dpnp", "dpctl", "numpy"},
    "array_api_strict": {"array_api_strict", "numpy"},
}
HEAVY = {
    *("jinja2", "latex2mathml", "matplotlib", "rich", "safetensors", "sklearn", "tensorboardX"),
}.union(*LIBRARIES.values())


parse = functools.cache(ast.parse)


def parsed(root, folder):
    """Path and syntax tree of each file under `folder`."""
    for path in sorted((root / folder).rglob("*.py")):
        yield path.relative_to(root), parse(path.read_text(encoding="utf-8"))


def module_of(path):
    """The dotted name of a file, without that of the package."""
    return ".".join(path.with_suffix("").parts[1:])


def imports(path, tree):
    """Each absolute dotted name that is imported, and whether it is inside a function."""
    functions = (f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef))
    inside = {node for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.parts[: len(path.parts) - node.level] if node.level else ()
            module = (*package, *([node.module] if node.module else []))
            yield from ((".".join((*module, alias.name)), node in inside) for alias in node.names)


def standing(module):
    """The floor of a module, and the longest part of its name that is on one."""
    parts = module.split(".")
    for name in (".".join(parts[:n]) for n in range(len(parts), 0, -1)):
        for height, names in enumerate(FLOORS):
            if name in names:
                return height, name
    return None, module


def misplaced(root):
    """Imports that go up, sideways or out of the window."""
    for path, tree in parsed(root, "agnostic_nn"):
        module = module_of(path)
        height, _ = standing(module)
        door = path.name == "__init__.py"
        if height is None and not door:
            yield f"{module} stands on no floor: add it to FLOORS, above all that it imports"
            continue
        for name, lazy in imports(path, tree):
            top, _, inner = name.partition(".")
            if door:
                fine = top in STDLIB | {"agnostic_nn"}
            elif top == "agnostic_nn":
                below, inner = standing(inner)
                name = inner
                fine = below is not None and below < height
            elif height < HOST:
                fine = top in CORE | ALSO.get(module, set())
            else:
                fine = top in STDLIB | {"numpy"}
            if not fine and not (lazy and top in INSIDE_FUNCTIONS.get(module, ())):
                yield f"{module} must not import {name}"


def operands(node):
    """What is compared, matched, imported by name, or looked for at an end of a string."""
    found = []
    if isinstance(node, ast.Compare):
        found = [node.left, *node.comparators]
    elif isinstance(node, ast.MatchValue):
        found = [node.value]
    elif isinstance(node, ast.Call):
        called = ast.unparse(node.func).split(".")[-1]
        if called in ("__import__", "endswith", "import_module", "startswith"):
            found = node.args
    for operand in found:
        yield from getattr(operand, "elts", [operand])


def deciding(root):
    """Places that decide by the name of a library."""
    libraries = set().union(*LIBRARIES.values())
    for path, tree in parsed(root, "agnostic_nn"):
        for node in ast.walk(tree):
            texts = (str(x.value) for x in operands(node) if isinstance(x, ast.Constant))
            words = {word for text in texts for word in re.split(r"\W+", text)}
            for word in sorted(words & libraries):
                yield f"{module_of(path)} decides by the name {word!r}"


def at_import(body):
    """The statements that run when a file is imported."""
    for node in body:
        yield node
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            for part in ("body", "handlers", "orelse"):
                yield from at_import(getattr(node, part, ()))


def listed(tree):
    """The names in `__all__`, or None."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return None


def defined(tree):
    """The names of classes, functions and ready-made values; not of constants and aliases."""
    for node in at_import(tree.body):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            yield node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = (n.id for target in targets for n in ast.walk(target) if hasattr(n, "id"))
            yield from (name for name in names if name.islower())


def imported(tree, least_level=0):
    """The names that a file takes from others."""
    for node in at_import(tree.body):
        kind = isinstance(node, (ast.Import, ast.ImportFrom))
        if kind and getattr(node, "level", 0) >= least_level:
            yield from (alias.asname or alias.name for alias in node.names)


def bound(tree):
    """All names that a file gives to anything at its top."""
    simple = (n for n in at_import(tree.body) if not isinstance(n, (ast.ClassDef, ast.FunctionDef)))
    nodes = (n for statement in simple for n in ast.walk(statement))
    stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return stored | {*defined(tree), *imported(tree)}


def unlisted(root):
    """Files whose `__all__` is not what they define, and doors whose is not what they open."""
    for path, tree in parsed(root, "agnostic_nn"):
        names = listed(tree)
        if names is None:
            yield f"{path} has no __all__"
            continue
        public = {name for name in defined(tree) if not name.startswith("_")}
        if path.name == "__init__.py":
            public |= set(imported(tree, least_level=1))
        missing, unknown = public - set(names), set(names) - bound(tree)
        yield from (f"{path}: {name} is not in __all__" for name in sorted(missing))
        yield from (f"{path}: {name} is only in __all__" for name in sorted(unknown))


def undocumented(root):
    """Files, public classes and public functions without a docstring."""
    for path, tree in (*parsed(root, "agnostic_nn"), *parsed(root, "backends")):
        if not ast.get_docstring(tree):
            yield f"{path} does not say what it is for"
        for node in tree.body if path.parts[0] == "agnostic_nn" else ():
            public = isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name[0] != "_"
            if public and not ast.get_docstring(node):
                yield f"{path} does not say what {node.name} is"


def unlike(root):
    """Adapters with other names than documented, imports of others, or effects on import."""
    adapters = {path.stem: (path, tree) for path, tree in parsed(root, "backends")}
    _, door = adapters.pop("__init__")
    for workshop, library in WORKSHOPS.items():
        path, tree = adapters.pop(workshop)
        ours = ("agnostic_nn.atomic", "agnostic_nn.special", "backends.agnostic_nn_backends")
        ours = (*ours, library, f"array_api_compat.{library}") if library else ours
        for name, _ in imports(path, tree):
            if name.partition(".")[0] not in STDLIB and not name.startswith(ours):
                yield f"{path} must not import {name}"
    documented = re.findall(r"^    (\w+)  +\S", ast.get_docstring(door, clean=False), re.MULTILINE)
    for library, (path, tree) in adapters.items():
        if listed(tree) is None or sorted(listed(tree)) != sorted(documented):
            yield f"{path} lists {listed(tree)}, documented are {documented}"
        missing = set(documented) - bound(tree)
        yield from (f"{path} has no {name}" for name in sorted(missing))
        ours = ("agnostic_nn.atomic", "agnostic_nn.special", "agnostic_nn.random")
        ours = (*ours, "agnostic_nn.spans")
        ours = (*ours, f"array_api_compat.{library}", "backends.agnostic_nn_backends.processor")
        ours = (*ours, *(f"backends.agnostic_nn_backends.{name}" for name in WORKSHOPS))
        own = STDLIB | LIBRARIES.get(library, {library, "numpy"})
        for name, _ in imports(path, tree):
            if name.partition(".")[0] not in own and not name.startswith(ours):
                yield f"{path} must not import {name}"
        for node in at_import(tree.body):
            called = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
            registers = called and ast.unparse(node.value.func).endswith(".register")
            places = node.targets if isinstance(node, ast.Assign) else ()
            changes = any(not isinstance(place, ast.Name) for place in places)
            if changes or (called and not registers):
                yield f"{path} changes something on import: {ast.unparse(node)}"


CHECKS = (misplaced, deciding, unlisted, undocumented, unlike)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_house_keeps_its_rules(check):
    assert list(check(ROOT)) == []


DATA = "training/data"
PLANTED = [  # check, file, what is added to it, complaint
    (misplaced, "losses/margin", "import numpy as np", "margin must not import numpy"),
    (misplaced, "losses/margin", "import scipy.special", "margin must not import scipy.special"),
    (misplaced, "losses/margin", "from ..optimizers import f", "margin must not import optimizers"),
    (misplaced, "losses/margin", "from .. import optimizers", "margin must not import optimizers"),
    (
        misplaced,
        "losses/margin",
        "import agnostic_nn.training.trainer",
        "margin must not import training",
    ),
    (misplaced, "losses/margin", "from agnostic_nn import Dense", "margin must not import Dense"),
    (misplaced, "losses/margin", "import backends", "margin must not import backends"),
    (misplaced, "losses/margin", "import importlib", "margin must not import importlib"),
    (misplaced, "losses/margin", "def f():\n    import jax", "margin must not import jax"),
    (misplaced, "special", "from .layers import Dense", "special must not import layers"),
    (misplaced, "layers/dense", "from .dropout import D", "layers.dense must not import layers"),
    (misplaced, "layers/dense", "from ..losses import f", "layers.dense must not import losses"),
    (misplaced, "layers/__init__", "import torch", "layers.__init__ must not import torch"),
    (misplaced, "registry", "import numpy", "registry must not import numpy"),
    (misplaced, "registry", "import jax", "registry must not import jax"),
    (misplaced, DATA, "import cupy", "data must not import cupy"),
    (misplaced, DATA, "from .trainer import Trainer", "data must not import training"),
    (misplaced, "tables", "import rich", "tables must not import rich"),
    (misplaced, DATA, "def f():\n    import rich", "data must not import rich"),
    (misplaced, "newcomer", "import math", "newcomer stands on no floor: add it to FLOORS"),
    (
        deciding,
        "losses/margin",
        "def f(xp): return 'jax' in xp.__name__",
        "margin decides by the name 'jax'",
    ),
    (
        deciding,
        DATA,
        "def f(b): return b.name == 'cupy'",
        "data decides by the name 'cupy'",
    ),
    (
        deciding,
        DATA,
        "def f(b): return b in ('a', 'torch:cpu')",
        "data decides by the name 'torch'",
    ),
    (
        deciding,
        DATA,
        "def f(b): return str(b).startswith('dpnp')",
        "decides by the name 'dpnp'",
    ),
    (deciding, DATA, "m = __import__('jax.numpy')", "data decides by the name 'jax'"),
    (
        deciding,
        DATA,
        "match 1:\n    case 'numpy': pass",
        "data decides by the name 'numpy'",
    ),
    (unlisted, "losses/margin", "def gap(): pass", "margin.py: gap is not in __all__"),
    (unlisted, "losses/margin", "gentle: float = 3.0", "margin.py: gentle is not in __all__"),
    (unlisted, "losses/margin", "__all__ = ['gone']", "margin.py: gone is only in __all__"),
    (unlisted, "newcomer", "import math", "newcomer.py has no __all__"),
    (unlisted, "layers/__init__", "from .dense import Sparse", "Sparse is not in __all__"),
    (undocumented, "losses/margin", "def gap(): pass", "margin.py does not say what gap is"),
    (undocumented, "losses/margin", "class Gap: pass", "margin.py does not say what Gap is"),
    (undocumented, "newcomer", "import math", "newcomer.py does not say what it is for"),
    (
        unlike,
        "/torch",
        "__all__ = ['xp']",
        "torch.py lists ['xp'], documented are ['xp', 'version'",
    ),
    (unlike, "/newcomer", "__all__ = ['xp']\nimport a as xp", "newcomer.py has no devices"),
    (unlike, "/torch", "import jax", "torch.py must not import jax"),
    (unlike, "/torch", "import array_api_compat.cupy", "must not import array_api_compat.cupy"),
    (
        unlike,
        "/torch",
        "from agnostic_nn.trees import leaves",
        "not import agnostic_nn.trees.leaves",
    ),
    (unlike, "/jax", "jax.config.update('jax_enable_x64', True)", "changes something on import"),
    (unlike, "/jax", "import os\nos.environ['A'] = '1'", "changes something on import"),
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The adapters, and of the library what something is planted in: all of it takes long."""
    root = tmp_path_factory.mktemp("house")
    shutil.copytree(ROOT / "backends", root / "backends")
    for path in {place(file) for _, file, *_ in PLANTED if not file.startswith("/")}:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / path).exists():
            shutil.copy(ROOT / path, root / path)
    return root


def place(file):
    """Where a file is, named as in PLANTED."""
    folder = "backends/agnostic_nn_backends" if file.startswith("/") else "agnostic_nn"
    return Path(folder, f"{file.strip('/')}.py")


@pytest.mark.parametrize(
    ("check", "file", "source", "complaint"), PLANTED, ids=[case[3] for case in PLANTED]
)
def test_a_broken_rule_is_noticed(copy, check, file, source, complaint):
    path = copy / place(file)
    before = path.read_text(encoding="utf-8") if path.exists() else None
    sound = (before or "").replace("__all__ = ", "_all = " if "__all__" in source else "__all__ = ")
    path.write_text(f"{sound}\n{source}\n", encoding="utf-8")
    try:
        assert sum(complaint in said for said in check(copy)) == 1
    finally:
        path.unlink() if before is None else path.write_text(before, encoding="utf-8")


def test_each_adapter_is_in_the_list_of_those_shipped():
    folder = ROOT / "backends" / "agnostic_nn_backends"
    found = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert found == set(SHIPPED) | set(WORKSHOPS)
    assert set(LIBRARIES) == set(SHIPPED)


def test_every_name_behind_the_front_door_is_there_and_documented():
    for name in nn.__all__:
        assert getattr(nn, name).__doc__, name
        assert name in dir(nn)
    with pytest.raises(AttributeError, match="no attribute 'Convolution'"):
        nn.Convolution  # noqa: B018


def loaded(code):
    """Which heavy packages a fresh process has loaded after running `code`."""
    show = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    command = [sys.executable, "-P", "-c", f"{code}\n{show}"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return HEAVY & set(found.split())


def test_importing_the_library_loads_no_array_library():
    assert loaded("import agnostic_nn") == set()
    assert loaded("import agnostic_nn, rich") == {"rich"}
    assert loaded("import agnostic_nn as nn; nn.backend('numpy:cpu')") <= {"numpy", "scipy"}
