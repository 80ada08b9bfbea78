"""Rules of the source tree: levels of imports, `__all__`, docstrings and adapters.

A module imports only from lower levels, and only listed packages from outside. Layers,
losses and optimizers import no array library. Each check takes the root of a source
tree and yields its complaints, so that tests can plant a fault and see it reported.
"""

import ast
import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_origin

import pytest

import agnostic_nn as nn
from agnostic_nn_backends import SHIPPED

ROOT = Path(__file__).parents[1]
LEVELS = (
    {
        "core.atomic",
        "core.errors",
        "core.fields",
        "core.guards.names",
        "core.guards.values",
    },
    {
        *("core.arrays", "core.guards.snapshot", "core.precisions", "core.trees"),
        "display.tables",
    },
    {"core.guards.watching", "core.windows", "ops.precision"},
    {"core.guards.guarding", "ops.elementwise", "ops.padding", "ops.reductions"},
    {"ops.attention"},
    {"core.guards", "core.random", "ops"},
    {
        *("core.policies", "initializers", "metrics"),
        *("layers.base", "layers.shapes", "losses.base", "optimizers.base"),
    },
    {"penalties"},
    {
        *("interop.parameters", "interop.torch_layers"),
        *("layers", "losses", "optimizers", "schedules"),
    },
    {"layers.attention", "optimizers.muon"},
    {
        *("interop.operations.broadcasting", "interop.operations.reductions"),
        "interop.operations.unary",
    },
    {
        *("interop.operations.comparisons", "interop.operations.indexing"),
        "interop.operations.products",
    },
    {"interop.operations"},
    {"blocks.base"},
    {"blocks.repeat", "blocks.sequential"},
    {"blocks.residual"},
    {"blocks", "core.backend"},
    {  # from here on NumPy and the standard library may be imported
        *("core.files", "display.pages"),
        *("diagnostics.conformance.causes", "diagnostics.conformance.sources"),
        "diagnostics.cost.counter",
        *("diagnostics.draws", "diagnostics.gradcheck.inputs"),
        *("diagnostics.gradcheck.report", "diagnostics.representable"),
        *("diagnostics.observe.arrays", "diagnostics.observe.layers"),
        *(
            "training.config",
            "training.interrupts",
            "training.pickling",
            "training.progress",
        ),
        *("training.precision_policy", "training.rates"),
        *("training.safetensors_format", "training.sources", "training.splits"),
    },
    {"diagnostics.gradcheck.cases", "diagnostics.observe", "training.inputs"},
    {
        *(
            "diagnostics.bisect.noise",
            "diagnostics.compare.conversion",
            "diagnostics.compare.rounding",
            "diagnostics.cost.arrays",
        ),
        *("diagnostics.examples", "diagnostics.gradcheck.oracles"),
        *("training.batches", "training.checkpoint"),
        *("training.context", "training.history"),
    },
    {
        *("diagnostics.compare.schema", "diagnostics.cost.native"),
        *("diagnostics.gradcheck.dtypes", "diagnostics.gradcheck.inside"),
        "training.steps",
    },
    {
        *("diagnostics.cost", "diagnostics.gradcheck.checks"),
        "training.mean_loss",
    },
    {
        "diagnostics.gradcheck",
        "training.buckets",
        "training.epoch_means",
        "training.input_shapes",
    },
    {"training.run", "training.step_report"},
    {"training.advance", "training.callbacks", "training.validation"},
    {"training.callback_memory"},
    {"training.feed"},
    {"training.epochs", "training.evaluation"},
    {"diagnostics.summary", "training.abstract_init"},
    {"training.checkpoint_fields"},
    {"training.saving"},
    {"diagnostics.bisect.stages", "training.trainer"},
    {"sklearn.arrays", "training.generation"},
    {
        "interop.conventions",
        "interop.data",
        "interop.drawing",
        "interop.extras",
        "interop.pretrained",
    },
    {"interop.onnx_recorder"},
    {"interop.onnx_graph"},
    {"interop.onnx_jobs"},
    {"interop.onnx_check"},
    {"interop.onnx_export"},
    {"interop.building", "interop.jax_bridge", "interop.torch_bridge"},
    {"interop.keras_bridge"},
    {"interop.torch_operators"},
    {"interop.torch_import"},
    {"interop.flattening", "interop.units", "interop.weight_files"},
    {"interop.matching"},
    {"interop.weights"},
    {"interop.onnx_reader"},
    {"interop.onnx_reader.call", "interop.onnx_reader.model"},
    {"interop.onnx_reader.elementwise", "interop.onnx_reader.shapes"},
    {"interop.onnx_reader.layers"},
    {"interop.onnx_reader.reader"},
    {"interop.onnx_reader.from_onnx"},
    {"diagnostics.loading"},
    {"sklearn.parameters", "sklearn.targets"},
    {"diagnostics.bisect.halves", "diagnostics.compare.report.names", "training"},
    {"sklearn.base"},
    {"sklearn.estimators"},
    {
        *("diagnostics.bisect.search", "diagnostics.profile"),
        "diagnostics.compare.report.how_to_read",
        "diagnostics.compare.report.axes",
        "diagnostics.compare.report.repeats",
        "diagnostics.compare.run_progress",
        *("diagnostics.compare.deviation", "diagnostics.compare.environment"),
        "diagnostics.compare.workloads",
        *("diagnostics.conformance.library", "diagnostics.conformance.results"),
        *("diagnostics.explain.formulas", "diagnostics.explain.latex"),
        *("diagnostics.explain.numbers", "diagnostics.explain.walk"),
    },
    {
        *("diagnostics.bisect", "diagnostics.compare.emulation"),
        *("diagnostics.compare.report.headline", "diagnostics.compare.report.plots"),
        "diagnostics.compare.report.sentences",
        "diagnostics.compare.report.tables",
        *("diagnostics.compare.data_file", "diagnostics.conformance.trials"),
        "diagnostics.explain.docstrings",
    },
    {
        *("diagnostics.compare.probes", "diagnostics.compare.user_model"),
        "diagnostics.conformance.verdicts",
        *("diagnostics.compare.report.half", "diagnostics.compare.report.merged"),
        "diagnostics.explain.flow",
    },
    {
        "diagnostics.compare.report.half_plots",
        "diagnostics.compare.report.markdown",
        "diagnostics.compare.report.terminal",
        *("diagnostics.compare.running", "diagnostics.explain.nonfinite"),
    },
    {
        *("diagnostics.compare.choice", "diagnostics.compare.drift"),
        *("diagnostics.compare.report.files", "diagnostics.explain.remarks"),
        "diagnostics.compare.repeated_parts",
    },
    {
        "diagnostics.compare.folders",
        *("diagnostics.compare.plan", "diagnostics.compare.report.html"),
        "diagnostics.compare.verdicts",
    },
    {
        *("diagnostics.compare.controls", "diagnostics.compare.repeat"),
        "diagnostics.compare.report",
    },
    {"diagnostics.compare.half"},
    {"diagnostics.compare.results"},
    {
        *("diagnostics.compare.comparison", "diagnostics.conformance.runner"),
        "diagnostics.explain.text",
    },
    {
        *("diagnostics.compare.api", "diagnostics.compare.github"),
        *("diagnostics.compare.junit", "diagnostics.compare.merge"),
        "diagnostics.explain.html",
    },
    {
        "diagnostics.compare",
        "diagnostics.conformance",
        "diagnostics.explain.explanation",
    },
    {"diagnostics.explain.notebooks"},
    {"diagnostics.explain"},
    {"diagnostics.cli.arguments"},
    {"diagnostics.cli"},
    {"diagnostics.cli.main"},
)
# the first level whose modules may import NumPy and the standard library
HOST = next(level for level, names in enumerate(LEVELS) if "core.files" in names)
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
ALSO = {  # what single modules of the core may import in addition
    "core.guards.guarding": {"warnings"},
    "core.guards.names": {"dis", "os", "sys", "types"},
    "core.guards.snapshot": {"types"},
    "core.guards.values": {"pickle", "types"},
    "core.guards.watching": {"builtins", "contextvars", "sys", "types"},
    "core.backend": {
        *("agnostic_nn_backends", "contextlib", "importlib", "os", "sys", "types"),
    },
    "display.tables": {"re"},
    "layers.resizing": {"fractions"},
}
# files of backends that are not adapters: the library that each may import, if any
HELPERS = {
    "exponential": None,
    "numpy.attention": "numpy",
    "numpy.decoding": "numpy",
    "numpy.lstm": "numpy",
    "numpy.tracing": "numpy",
    "replay": None,
    "replay.allocate": None,
    "replay.codegen": None,
    "replay.commit": None,
    "replay.emit": None,
    "replay.fuse": None,
    "replay.graph": None,
    "replay.kernels": "llvmlite",
    "replay.plan": None,
    "replay.program": None,
    "replay.schedule": None,
    "replay.trace": None,
    "torch.tracing": "torch",
}
# packages that are optional or slow to import, by the modules that may import them
# inside functions
INSIDE_FUNCTIONS = {
    "training.callbacks": {"tensorboardX"},
    "core.backend": {"numpy"},
    "diagnostics.compare.workloads": {"mlxtend", "sklearn"},
    "display.pages": {"matplotlib"},
    "core.policies": {"numpy"},
    "training.history": {"matplotlib", "pandas"},
    "training.progress": {"IPython", "rich"},
    "display.tables": {"rich"},
}
# bridges to other libraries: imported when used, so they may import these on top
BRIDGES: dict[str, set[str]] = {
    "interop.jax_bridge": {"jax"},
    "interop.keras_bridge": {"keras"},
    "interop.torch_bridge": {"torch"},
    "interop.onnx_reader.model": {"google", "onnx"},
    "interop.onnx_reader.reader": {"onnx"},
    "interop.torch_import": {"torch"},
    "sklearn.estimators": {"sklearn"},
    "sklearn.base": {"sklearn"},
}
LIBRARIES = {  # what each adapter may import
    "numpy": {"numpy", "scipy"},
    "jax": {"jax", "numpy"},
    "torch": {"torch", "numpy"},
    "cupy": {"cupy", "cupyx", "numpy"},
    "dpnp": {"dpnp", "dpctl", "numpy"},
    "array_api_strict": {"array_api_strict", "numpy"},
}
HEAVY = {
    *(
        "jinja2",
        "latex2mathml",
        "matplotlib",
        "rich",
        "safetensors",
        "sklearn",
        "tensorboardX",
    ),
}.union(*LIBRARIES.values())


parse = functools.cache(ast.parse)


def parsed(root, folder):
    """Yield path and syntax tree of each file under `folder`."""
    for path in sorted((root / folder).rglob("*.py")):
        yield path.relative_to(root), parse(path.read_text(encoding="utf-8"))


def module_of(path):
    """Return the dotted name of a file, without that of the package."""
    return ".".join(path.with_suffix("").parts[1:])


def imports(path, tree):
    """Yield each imported absolute name, and whether it is inside a function."""
    functions = (f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef))
    inside = {node for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.parts[: len(path.parts) - node.level] if node.level else ()
            module = (*package, *([node.module] if node.module else []))
            yield from (
                (".".join((*module, alias.name)), node in inside)
                for alias in node.names
            )


def level_of(module):
    """Return the level of a module, and the longest prefix of its name with a level."""
    parts = module.split(".")
    for name in (".".join(parts[:n]) for n in range(len(parts), 0, -1)):
        for level, names in enumerate(LEVELS):
            if name in names:
                return level, name
    return None, module


def misplaced(root):
    """Yield imports from the same or a higher level, and unlisted ones from outside."""
    for path, tree in parsed(root, "agnostic_nn"):
        module = module_of(path)
        level, _ = level_of(module)
        is_package = path.name == "__init__.py"
        if level is None and not is_package:
            yield f"{module} has no level: add it to LEVELS, after all that it imports"
            continue
        for name, is_lazy in imports(path, tree):
            top, _, inner = name.partition(".")
            if is_package:
                allowed = top in STDLIB | {"agnostic_nn"}
            elif top == "agnostic_nn":
                level_below, name = level_of(inner)
                allowed = level_below is not None and level_below < level
            elif level < HOST:
                allowed = top in CORE | ALSO.get(module, set())
            else:
                allowed = top in STDLIB | {"numpy"} | BRIDGES.get(module, set())
            if not allowed and not (
                is_lazy and top in INSIDE_FUNCTIONS.get(module, ())
            ):
                yield f"{module} must not import {name}"


def operands(node):
    """Yield values that are compared, matched, or passed to an import or a search."""
    result = []
    if isinstance(node, ast.Compare):
        result = [node.left, *node.comparators]
    elif isinstance(node, ast.MatchValue):
        result = [node.value]
    elif isinstance(node, ast.Call):
        called = ast.unparse(node.func).split(".")[-1]
        if called in ("__import__", "endswith", "import_module", "startswith"):
            result = node.args
    for operand in result:
        yield from getattr(operand, "elts", [operand])


def branching(root):
    """Yield places that branch on the name of a library."""
    libraries = set().union(*LIBRARIES.values())
    for path, tree in parsed(root, "agnostic_nn"):
        for node in ast.walk(tree):
            texts = (
                str(x.value) for x in operands(node) if isinstance(x, ast.Constant)
            )
            words = {word for text in texts for word in re.split(r"\W+", text)}
            for word in sorted(words & libraries):
                yield f"{module_of(path)} branches on the name {word!r}"


def at_import(body):
    """Yield the statements that run when a file is imported."""
    for node in body:
        yield node
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            for part in ("body", "handlers", "orelse"):
                yield from at_import(getattr(node, part, ()))


def listed(tree):
    """Return the names in `__all__`, or None."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return None


def defined(tree):
    """Yield the names of classes, functions and lower-case values."""
    for node in at_import(tree.body):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            yield node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = (
                n.id for target in targets for n in ast.walk(target) if hasattr(n, "id")
            )
            yield from (name for name in names if name.islower())


def imported(tree, min_level=0):
    """Yield the names that a file imports."""
    for node in at_import(tree.body):
        kind = isinstance(node, (ast.Import, ast.ImportFrom))
        if kind and getattr(node, "level", 0) >= min_level:
            yield from (alias.asname or alias.name for alias in node.names)


def bound(tree):
    """Return all names that a file defines or imports at its top level."""
    simple = (
        n
        for n in at_import(tree.body)
        if not isinstance(n, (ast.ClassDef, ast.FunctionDef))
    )
    nodes = (n for statement in simple for n in ast.walk(statement))
    stored = {
        n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }
    return stored | {*defined(tree), *imported(tree)}


def joined(tree):
    """Yield the files of a package whose `__all__` it adds to its own."""
    for node in tree.body:
        if isinstance(node, ast.AugAssign) and ast.unparse(node.target) == "__all__":
            yield ast.unparse(node.value).removesuffix(".__all__")


def exported(path, tree, trees):
    """Return the names that a package lists, and those imported from its files."""
    lists = {
        file.stem: listed(inner) or []
        for file, inner in trees.items()
        if file.parent == path.parent
    }
    names = [*listed(tree), *(name for file in joined(tree) for name in lists[file])]
    public = set(imported(tree, min_level=1)) - {"*"} - {*joined(tree)}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            public.update(lists[node.module])
    return names, public


def unlisted(root):
    """Yield differences between `__all__` and the definitions of a file or package."""
    trees = dict(parsed(root, "agnostic_nn"))
    for path, tree in trees.items():
        if path == Path("agnostic_nn", "__init__.py"):
            # it joins the lists of its packages; another test covers it
            continue
        names = listed(tree)
        if names is None:
            yield f"{path} has no __all__"
            continue
        public = {name for name in defined(tree) if not name.startswith("_")}
        known = bound(tree)
        if path.name == "__init__.py":
            names, inner = exported(path, tree, trees)
            public |= inner
            known |= inner
        missing, unknown = public - set(names), set(names) - known
        yield from (f"{path}: {name} is not in __all__" for name in sorted(missing))
        yield from (f"{path}: {name} is only in __all__" for name in sorted(unknown))


def untyped(root):
    """Yield names that mypy does not see: it follows a star, but not a joined list."""
    trees = dict(parsed(root, "agnostic_nn"))
    top = Path("agnostic_nn", "__init__.py")
    starred = {
        node.module
        for node in ast.walk(trees[top])
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
    }
    for package in sorted(starred):
        tree = trees.get(Path("agnostic_nn", package, "__init__.py"))
        for file in joined(tree) if tree else ():
            if f"{package}.{file}" not in starred:
                yield f"{top} lacks `from .{package}.{file} import *`, for mypy"


def undocumented(root):
    """Yield files, public classes and public functions without a docstring."""
    for path, tree in (*parsed(root, "agnostic_nn"), *parsed(root, "backends")):
        if not ast.get_docstring(tree):
            yield f"{path} has no docstring"
        for node in tree.body if path.parts[0] == "agnostic_nn" else ():
            public = (
                isinstance(node, (ast.ClassDef, ast.FunctionDef))
                and node.name[0] != "_"
            )
            if public and not ast.get_docstring(node):
                yield f"{path} has no docstring of {node.name}"


def is_def(node):
    """Return whether a statement defines a function."""
    return isinstance(node, ast.FunctionDef)


def adapter_files(root):
    """Return path and syntax tree of each file of the backends, by its name."""
    files = {}
    for path, tree in parsed(root, "backends"):
        name = ".".join(path.with_suffix("").parts[2:])
        files[name.removesuffix(".__init__") if "." in name else name] = path, tree
    return files


def adapters(root):
    """Yield undocumented or missing names, imports and side effects of adapters."""
    files = adapter_files(root)
    _, package = files.pop("__init__")
    for helper, library in HELPERS.items():
        path, tree = files.pop(helper)
        ours = (
            "agnostic_nn.core.atomic",
            "agnostic_nn.ops",
            "backends.agnostic_nn_backends",
        )
        ours = (*ours, library, f"array_api_compat.{library}") if library else ours
        for name, _ in imports(path, tree):
            if name.partition(".")[0] not in STDLIB and not name.startswith(ours):
                yield f"{path} must not import {name}"
    protocols = [node for node in package.body if isinstance(node, ast.ClassDef)]
    documented = {
        member.name for each in protocols for member in each.body if is_def(member)
    }
    for library, (path, tree) in files.items():
        public = {name for name in defined(tree) if not name.startswith("_")} - {
            "__all__"
        }
        for name in sorted(public - documented):
            yield f"{path} defines {name}, which Adapter and FullAdapter do not have"
        missing = documented - bound(tree)
        yield from (f"{path} has no {name}" for name in sorted(missing))
        ours = (
            "agnostic_nn.core.atomic",
            "agnostic_nn.core.random",
            "agnostic_nn.core.windows",
        )
        ours = (*ours, "agnostic_nn.ops", f"array_api_compat.{library}")
        ours = (*ours, "backends.agnostic_nn_backends.processor")
        ours = (*ours, "backends.agnostic_nn_backends.program_limit")
        ours = (*ours, *(f"backends.agnostic_nn_backends.{name}" for name in HELPERS))
        libraries = STDLIB | LIBRARIES.get(library, {library, "numpy"})
        for name, _ in imports(path, tree):
            if name.partition(".")[0] not in libraries and not name.startswith(ours):
                yield f"{path} must not import {name}"
        for node in at_import(tree.body):
            called = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
            registers = called and ast.unparse(node.value.func).endswith(".register")
            places = node.targets if isinstance(node, ast.Assign) else ()
            changes = any(not isinstance(place, ast.Name) for place in places)
            if changes or (called and not registers):
                yield f"{path} changes something on import: {ast.unparse(node)}"


CHECKS = (misplaced, branching, unlisted, untyped, undocumented, adapters)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_source_tree_follows_the_rules(check):
    assert list(check(ROOT)) == []


INPUTS = "training/inputs"
PLANTED = [  # check, file, code that is added to it, complaint
    (misplaced, "losses/margin", "import numpy as np", "margin must not import numpy"),
    (
        misplaced,
        "losses/margin",
        "import scipy.special",
        "margin must not import scipy.special",
    ),
    (
        misplaced,
        "losses/margin",
        "from ..optimizers import f",
        "margin must not import optimizers",
    ),
    (
        misplaced,
        "losses/margin",
        "from .. import optimizers",
        "margin must not import optimizers",
    ),
    (
        misplaced,
        "losses/margin",
        "import agnostic_nn.training.trainer",
        "margin must not import training",
    ),
    (
        misplaced,
        "losses/margin",
        "from agnostic_nn import Dense",
        "margin must not import Dense",
    ),
    (misplaced, "losses/margin", "import backends", "margin must not import backends"),
    (
        misplaced,
        "losses/margin",
        "import importlib",
        "margin must not import importlib",
    ),
    (
        misplaced,
        "losses/margin",
        "def f():\n    import jax",
        "margin must not import jax",
    ),
    (
        misplaced,
        "ops/padding",
        "from ..layers import Dense",
        "ops.padding must not import layers",
    ),
    (
        misplaced,
        "layers/dense",
        "from .dropout import D",
        "layers.dense must not import layers",
    ),
    (
        misplaced,
        "layers/dense",
        "from ..losses import f",
        "layers.dense must not import losses",
    ),
    (
        misplaced,
        "layers/__init__",
        "import torch",
        "layers.__init__ must not import torch",
    ),
    (misplaced, "core/backend", "import numpy", "core.backend must not import numpy"),
    (misplaced, "core/backend", "import jax", "core.backend must not import jax"),
    (misplaced, INPUTS, "import cupy", "inputs must not import cupy"),
    (
        misplaced,
        INPUTS,
        "from .trainer import Trainer",
        "inputs must not import training",
    ),
    (misplaced, "display/tables", "import rich", "tables must not import rich"),
    (misplaced, INPUTS, "def f():\n    import rich", "inputs must not import rich"),
    (misplaced, "newcomer", "import math", "newcomer has no level: add it to LEVELS"),
    (
        branching,
        "losses/margin",
        "def f(xp): return 'jax' in xp.__name__",
        "margin branches on the name 'jax'",
    ),
    (
        branching,
        INPUTS,
        "def f(b): return b.name == 'cupy'",
        "inputs branches on the name 'cupy'",
    ),
    (
        branching,
        INPUTS,
        "def f(b): return b in ('a', 'torch:cpu')",
        "inputs branches on the name 'torch'",
    ),
    (
        branching,
        INPUTS,
        "def f(b): return str(b).startswith('dpnp')",
        "branches on the name 'dpnp'",
    ),
    (
        branching,
        INPUTS,
        "m = __import__('jax.numpy')",
        "inputs branches on the name 'jax'",
    ),
    (
        branching,
        INPUTS,
        "match 1:\n    case 'numpy': pass",
        "inputs branches on the name 'numpy'",
    ),
    (unlisted, "losses/margin", "def gap(): pass", "margin.py: gap is not in __all__"),
    (
        unlisted,
        "losses/margin",
        "gentle: float = 3.0",
        "margin.py: gentle is not in __all__",
    ),
    (
        unlisted,
        "losses/margin",
        "__all__ = ['gone']",
        "margin.py: gone is only in __all__",
    ),
    (unlisted, "newcomer", "import math", "newcomer.py has no __all__"),
    (
        unlisted,
        "layers/__init__",
        "from .dense import Sparse",
        "Sparse is not in __all__",
    ),
    (
        unlisted,
        "layers/__init__",
        "from .base import *",
        "outline is not in __all__",
    ),
    (
        unlisted,
        "layers/__init__",
        "__all__ += base.__all__",
        "outline is only in __all__",
    ),
    (
        untyped,
        "layers/__init__",
        "__all__ += base.__all__",
        "lacks `from .layers.base import *`, for mypy",
    ),
    (
        undocumented,
        "losses/margin",
        "def gap(): pass",
        "margin.py has no docstring of gap",
    ),
    (
        undocumented,
        "losses/margin",
        "class Gap: pass",
        "margin.py has no docstring of Gap",
    ),
    (
        undocumented,
        "newcomer",
        "import math",
        "newcomer.py has no docstring",
    ),
    (
        adapters,
        "/torch/__init__",
        "def bonus(): pass",
        "torch/__init__.py defines bonus, which Adapter and FullAdapter do not have",
    ),
    (
        adapters,
        "/newcomer",
        "__all__ = ['xp']\nimport a as xp",
        "newcomer.py has no devices",
    ),
    (
        adapters,
        "/torch/__init__",
        "import jax",
        "torch/__init__.py must not import jax",
    ),
    (
        adapters,
        "/torch/__init__",
        "import array_api_compat.cupy",
        "must not import array_api_compat.cupy",
    ),
    (
        adapters,
        "/torch/__init__",
        "from agnostic_nn.core.trees import leaves",
        "not import agnostic_nn.core.trees.leaves",
    ),
    (
        adapters,
        "/jax",
        "jax.config.update('jax_enable_x64', True)",
        "changes something on import",
    ),
    (
        adapters,
        "/jax",
        "import os\nos.environ['A'] = '1'",
        "changes something on import",
    ),
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Copy the adapters, and the files of the library in which a fault is planted."""
    root = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "backends", root / "backends")
    # a package joins the lists of its files
    shutil.copytree(ROOT / "agnostic_nn/layers", root / "agnostic_nn/layers")
    shutil.copy(ROOT / "agnostic_nn/__init__.py", root / "agnostic_nn")
    for path in {place(file) for _, file, *_ in PLANTED if not file.startswith("/")}:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / path).exists():
            shutil.copy(ROOT / path, root / path)
    return root


def place(file):
    """Return the path of a file named as in PLANTED."""
    folder = "backends/agnostic_nn_backends" if file.startswith("/") else "agnostic_nn"
    return Path(folder, f"{file.strip('/')}.py")


@pytest.mark.parametrize(
    ("check", "file", "source", "complaint"), PLANTED, ids=[case[3] for case in PLANTED]
)
def test_a_broken_rule_is_reported(copy, check, file, source, complaint):
    path = copy / place(file)
    before = path.read_text(encoding="utf-8") if path.exists() else None
    sound = (before or "").replace(
        "__all__ = ", "_all = " if "__all__ = " in source else "__all__ = "
    )
    path.write_text(f"{sound}\n{source}\n", encoding="utf-8")
    try:
        assert sum(complaint in each for each in check(copy)) == 1
    finally:
        path.unlink() if before is None else path.write_text(before, encoding="utf-8")


def test_shipped_adapters_are_listed():
    assert set(adapter_files(ROOT)) - {"__init__"} == set(SHIPPED) | set(HELPERS)
    assert set(LIBRARIES) == set(SHIPPED)


def test_every_public_name_exists_and_has_a_docstring():
    assert len(nn.__all__) == len(set(nn.__all__))
    for name in nn.__all__:
        value = getattr(nn, name)
        # the type `Loss` has no docstring
        assert value.__doc__ or get_origin(value), name
        assert name in dir(nn)
    with pytest.raises(AttributeError, match="no attribute 'Convolution'"):
        nn.Convolution  # noqa: B018


def loaded(code):
    """Return the heavy packages that a new process has loaded after running `code`."""
    show = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    command = [sys.executable, "-P", "-c", f"{code}\n{show}"]
    result = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return HEAVY & set(result.split())


def test_importing_the_library_loads_no_array_library():
    assert loaded("import agnostic_nn") == set()
    assert loaded("import agnostic_nn, rich") == {"rich"}
    assert loaded("import agnostic_nn as nn; nn.backend('numpy:cpu')") <= {
        "numpy",
        "scipy",
    }
