"""CuPy: what can be promised without a GPU, and what only one can prove.

Without a CUDA device CuPy imports but computes nothing. So the library's use of array
names and arguments is compared with what CuPy offers, and the adapter runs on a
stand-in that computes with NumPy and shows it. The tests that take the fixture `gpu`
need a CUDA device; with REQUIRE_GPU=1 a missing one is a failure instead of a skip.
"""

import ast
import ctypes
import inspect
import math
import os
import sys
import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace

import array_api_compat
import array_api_compat.numpy as numpy_namespace
import numpy as np
import operation_cases
import pytest
from cases import arrays_for, layer_cases, run

import agnostic_nn as nn
import agnostic_nn_backends
from agnostic_nn import ops, random
from agnostic_nn.core import arrays
from agnostic_nn.core.backend import Backend
from agnostic_nn.core.trees import leaves, named_leaves
from agnostic_nn.diagnostics.explain.notebooks import rounded_cross_entropy
from agnostic_nn.training import Trainer, generation, make_step

LIBRARY = Path(nn.__file__).parent
ADAPTER = Path(agnostic_nn_backends.__file__).parent / "cupy.py"

WORKLOADS = {  # name: (model, shape of one example, loss, optimizer)
    "classes": (
        nn.Sequential(
            nn.Dense(8, bias=False, initializer=nn.he_normal),
            nn.BatchNorm(),
            nn.ReLU(),
            nn.Residual(nn.Dense(8), nn.Dropout(0.25), nn.LayerNorm()),
            nn.GELU(),
            nn.GELU(approximate=True),
            nn.Dense(3),
        ),
        (4,),
        nn.softmax_cross_entropy,
        nn.ClipByGlobalNorm(nn.AdamW(nn.schedules.Cosine(1e-2, steps=20, warmup=2))),
    ),
    "numbers": (
        nn.Sequential(
            nn.Dense(6, initializer=nn.Orthogonal()),
            nn.LeakyReLU(),
            nn.ELU(),
            nn.Sigmoid(),
            nn.Tanh(),
            nn.SiLU(),
            nn.Softplus(),
            nn.Reshape((2, -1)),
            nn.Softmax(),
            nn.LogSoftmax(),
            nn.Flatten(),
        ),
        (4,),
        nn.mean_squared_error,
        nn.SGD(
            nn.schedules.StepDecay(0.1, every=2),
            momentum=0.9,
            nesterov=True,
            weight_decay=1e-3,
        ),
    ),
    "choices": (
        nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Dense(2)),
        (3,),
        nn.binary_cross_entropy,
        nn.Adam(nn.schedules.ExponentialDecay(1e-2, 0.5, every=10)),
    ),
}
FEW = [case for case in layer_cases() if not case.thorough]
each_case = pytest.mark.parametrize("case", FEW, ids=str)
each_workload = pytest.mark.parametrize("workload", WORKLOADS)


def examples(workload, dtype="float32"):
    """Six examples on the host and their targets; the sixth only fills the batch up."""
    model, shape, loss, _ = WORKLOADS[workload]
    generator = np.random.default_rng(0)
    _, _, out = model.init(random.key(0, xp=numpy_namespace), shape, np.float32)
    if model.input_kinds == "integral":
        x = generator.integers(0, 5, (6, *shape)).astype(np.int32)
    else:
        x = generator.standard_normal((6, *shape)).astype(dtype)
    if loss is nn.softmax_cross_entropy:
        target = generator.integers(0, out[-1], 6).astype(np.int32)
    else:
        target = generator.integers(0, 2, (6, *out)).astype(dtype)
    return x, target, np.array([1, 1, 1, 1, 1, 0], dtype)


def train(workload, backend, dtype="float32", steps=3):
    """Return the result of `steps` training steps as a list of NumPy arrays."""
    model, shape, loss, optimizer = WORKLOADS[workload]
    key = random.key(0, xp=numpy_namespace)
    params, state, _ = model.init(key, shape, getattr(numpy_namespace, dtype))
    carry = backend.asarray((params, state, optimizer.init(params)))
    batch = backend.asarray(examples(workload, dtype))
    step = backend.jit(make_step(model, loss, optimizer))
    values = []
    for _ in range(steps):
        carry, value, _ = step(carry, *batch)
        values.append(value)
    return [backend.to_numpy(leaf) for leaf in leaves((carry, tuple(values)))]


# --- names and arguments, compared with the real CuPy ---------------------------------


@pytest.fixture
def cupy():
    return pytest.importorskip("cupy", reason="CuPy is not installed")


def is_namespace(node):
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "namespace"
    return getattr(node, "id", getattr(node, "attr", None)) == "xp"


def name_in_namespace(node):
    """Return the name that `node` reads from a namespace, as "linalg.qr", or None."""
    if not isinstance(node, ast.Attribute):
        return None
    if is_namespace(node.value):
        return node.attr
    outer = name_in_namespace(node.value)
    return outer and f"{outer}.{node.attr}"


def nodes(kind):
    """Yield (file and line, node) for every node of that kind in the library."""
    for path in sorted(LIBRARY.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, kind):
                yield f"{path.name}:{node.lineno}", node


def names_used():
    return {
        name
        for _, node in nodes(ast.Attribute)
        if (name := name_in_namespace(node)) and name != "__name__"
    }


def test_a_namespace_is_called_xp():
    """The tests below, which read the source, look for this name."""
    for place, node in nodes(ast.Assign):
        targets, values = (
            part.elts if isinstance(part, ast.Tuple) else [part]
            for part in (node.targets[0], node.value)
        )
        for target, value in zip(targets, values, strict=False):
            if isinstance(value, ast.Call) and is_namespace(value):
                assert is_namespace(target), place


@pytest.mark.parametrize(
    ("library", "namespace"),
    [("CuPy", "array_api_compat.cupy"), ("array-api-strict", "array_api_strict")],
)
def test_every_name_that_we_use_is_there(library, namespace):
    xp = pytest.importorskip(namespace, reason=f"{library} is not installed")
    names = names_used()
    assert {"sum", "take", "float64"} <= names
    missing = []
    for name in names:
        try:
            attrgetter(name)(xp)
        except AttributeError:
            missing.append(name)
    assert not missing


def test_we_use_no_name_that_is_newer_than_the_standard_of_2024():
    newer = {"isin", "broadcast_shapes", "linalg.eig", "linalg.eigvals"}
    assert not names_used() & newer


def assert_binds(cupy, name, args, kwargs):
    """Raise TypeError unless CuPy's function `name` takes these arguments."""
    import array_api_compat.cupy as xp

    function = attrgetter(name)(xp)
    if isinstance(function, cupy.ufunc):
        if kwargs or len(args) != function.nin:
            raise TypeError(
                f"{name} takes {function.nin} arrays, got {len(args)} and {kwargs}"
            )
        return
    bound = inspect.signature(function).bind(*args, **kwargs)
    passed_on = bound.arguments.get("kwargs")
    if passed_on:  # array_api_compat asks nothing of what it does not know
        inspect.signature(attrgetter(name)(cupy)).bind_partial(**passed_on)


@pytest.mark.parametrize(
    ("name", "args", "kwargs"),
    [
        ("mean", [0], {"where": 0}),
        ("exp", [0], {"where": 0}),
        ("maximum", [0], {}),
        ("zeros", [0], {"like": 0}),
        ("reshape", [0, 0, 0], {}),
    ],
)
def test_a_call_that_cupy_would_refuse_is_noticed(cupy, name, args, kwargs):
    with pytest.raises(TypeError):
        assert_binds(cupy, name, args, kwargs)


def test_every_call_in_the_source_fits_cupys_signatures(cupy):
    count = 0
    for place, node in nodes(ast.Call):
        name = name_in_namespace(node.func)
        spread = [part for part in node.args if isinstance(part, ast.Starred)]
        if name is None or spread or any(word.arg is None for word in node.keywords):
            continue
        try:
            assert_binds(
                cupy, name, node.args, {word.arg: word.value for word in node.keywords}
            )
        except TypeError as error:
            raise AssertionError(
                f"{place}: CuPy refuses {ast.unparse(node)}: {error}"
            ) from error
        count += 1
    assert count > 100


class Recorder:
    """NumPy's namespace, which writes down every call."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        known = getattr(numpy_namespace, name)
        return known if isinstance(known, type) else partial(self._call, name, known)

    def _call(self, name, function, *args, **kwargs):
        self.calls.append((name, args, kwargs))
        return function(*args, **kwargs)


@contextmanager
def standard_only():
    """NumPy without the native versions that its adapter brings."""
    kinds = (np.ndarray, np.generic, np.bool_, bool)
    dispatched = [
        f for m in (ops, random) for f in vars(m).values() if hasattr(f, "dispatch")
    ]
    native = {
        (f, k): f.dispatch(k) for f in dispatched for k in kinds if k in f.registry
    }
    for function, kind in native:
        function.register(kind, function.dispatch(object))
    try:
        yield
    finally:
        for (function, kind), version in native.items():
            function.register(kind, version)


@pytest.fixture
def recorded(monkeypatch):
    """Record every call of an array function in training, and in all cases."""
    recorder = Recorder()
    for kind in {np.ndarray, *np.sctypeDict.values()}:
        monkeypatch.setitem(arrays._NAMESPACES, kind, recorder)
    with standard_only():
        for workload in WORKLOADS:
            train(workload, nn.backend("numpy"))
            x, target, _ = examples(workload)
            WORKLOADS[workload][0].check(x)
            nn.binary_accuracy(target, target)
        for case in FEW:
            compute(case, arrays_for(case))
        use_what_no_case_does(recorder)
    return recorder.calls


def compute(case, arrays):
    """A case while training and while predicting."""
    return {
        mode: run(case.layer, arrays, train=mode == "train")
        for mode in ("train", "predict")
    }


def use_what_no_case_does(xp):
    key, dtype, y = random.key(0, xp=xp), np.float32, np.ones((2, 3), np.float32)
    for initializer in (nn.lecun_uniform, nn.Constant(1.0), nn.TruncatedNormal()):
        initializer(key, (2, 3), dtype)
    random.normal(key, (3,), np.float64)
    random.bernoulli(key, 1.0, (3,))
    random.permutation(random.fold(key, 1), 5)
    nn.schedules.Constant(0.1)(y)
    nn.softmax_cross_entropy(y, y / 3, label_smoothing=0.1)
    nn.accuracy(y, y)
    ops.indexing.add_sorted(y, np.asarray([1, 0]), 2)
    ops.all_finite.dispatch(object)(y, y)
    rounded_cross_entropy(y, y)
    nn.penalties.Orthogonality(0.1)(y)
    sampling = generation._Sampling.of(1.0, 2, 0.9, None)
    generation._draw(sampling, y, y[:, 0])
    arrays.first_true(y > 2)
    operation_cases.run_all(key)


def test_every_recorded_call_fits_cupys_signatures(cupy, recorded):
    for name, args, kwargs in recorded:
        assert_binds(cupy, name, args, kwargs)


def test_every_array_function_that_we_use_was_recorded(recorded):
    functions = {
        n for n in names_used() if not isinstance(getattr(numpy_namespace, n), type)
    }
    missing = functions - {name for name, _, _ in recorded}
    assert not missing, f"let the fixture `recorded` call what uses {sorted(missing)}"


def names_of_cupy_in_the_adapter():
    for node in ast.walk(ast.parse(ADAPTER.read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("cupy."):
            yield ast.unparse(node).removeprefix("cupy.")


def test_cupy_has_what_the_adapter_takes_from_it(cupy):
    names = [name for name in names_of_cupy_in_the_adapter() if "(" not in name]
    assert "cuda.runtime.getDeviceCount" in names
    for name in names:
        attrgetter(name)(cupy)


def test_the_adapter_of_cupy_imports_without_a_gpu(cupy):
    result = next(status for status in nn.backends() if status.name == "cupy")
    assert result.version == cupy.__version__
    if not cuda_devices():
        assert "finds no device" in result.reason


# --- the adapter on a stand-in that computes with NumPy -------------------------------


class Device:
    """cupy.cuda.Device, for two GPUs that are not there."""

    entered = [0]  # noqa: RUF012 the current device is the process's, as in CUDA
    waited = []  # noqa: RUF012

    def __init__(self, device=None):
        self.id = (
            Device.entered[-1] if device is None else getattr(device, "id", device)
        )

    def __enter__(self):
        Device.entered.append(self.id)
        return self

    def __exit__(self, *_):
        Device.entered.pop()

    def __eq__(self, other):
        return self.id == other.id

    @property
    def compute_capability(self):
        return "80"

    def synchronize(self):
        Device.waited.append(self.id)


def on_current_device(function, *args, **kwargs):
    """Let NumPy compute what CuPy would, from arrays that lie on the current device."""
    here = Device()

    def lowered(value):
        if isinstance(value, CupyArray):
            if value.device != here:
                raise ValueError(
                    f"array on device {value.device.id}, current device {here.id}"
                )
            return value._host
        if isinstance(value, np.ndarray):
            raise TypeError(f"Unsupported type {type(value)}")
        if isinstance(value, tuple | list):
            return type(value)(lowered(part) for part in value)
        return value

    words = {word: lowered(value) for word, value in kwargs.items()}
    result = function(*lowered(args), **words)
    return (
        CupyArray(result, here)
        if isinstance(result, np.ndarray | np.generic)
        else result
    )


class CupyArray(np.lib.mixins.NDArrayOperatorsMixin):
    """The part of cupy.ndarray that the library may use."""

    def __init__(self, host, device):
        self._host, self.device = np.asarray(host), device
        self.shape, self.dtype = self._host.shape, self._host.dtype
        self.ndim, self.size = self._host.ndim, self._host.size

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_ufunc__(self, ufunc, method, *args, **kwargs):
        return on_current_device(getattr(ufunc, method), *args, **kwargs)

    @property
    def T(self):
        return CupyArray(self._host.T, self.device)

    def __getitem__(self, index):
        return CupyArray(self._host[index], self.device)

    def __float__(self):
        return float(self._host)

    def __bool__(self):
        return bool(self._host)

    def get(self):
        return self._host.copy()


class CupyNamespace:
    """array_api_compat.cupy: only `asarray` uses `device`, others the current one."""

    def __getattr__(self, name):
        known = getattr(numpy_namespace, name)
        if isinstance(known, type) or not callable(known):
            return known
        return lambda *args, device=None, **words: on_current_device(
            known, *args, **words
        )

    def asarray(self, data, /, *, dtype=None, device=None):
        with Device(device):
            return on_current_device(np.asarray, data, dtype=dtype)


class Products:
    """cupy._core._routines_linalg: how the whole process multiplies."""

    COMPUTE_TYPE_DEFAULT, COMPUTE_TYPE_TF32 = 1, 7

    def __init__(self):
        self.types = {np.dtype(np.float32): 1, np.dtype(np.float64): 1}

    def get_compute_type(self, dtype):
        return self.types[np.dtype(dtype)]

    def set_compute_type(self, dtype, compute_type):
        self.types[np.dtype(dtype)] = compute_type


# one for all: namespaces are cached by the type of the array
NAMESPACE = CupyNamespace()
CUPY = SimpleNamespace(
    _core=SimpleNamespace(_routines_linalg=Products()),
    __version__="0",
    ndarray=CupyArray,
    # with CUPY_ENABLE_UMP=1 the GPU reads the host's own memory
    array=lambda data: CupyArray(data, Device()),
    asnumpy=CupyArray.get,
    zeros=lambda shape, dtype: CupyArray(np.zeros(shape, dtype), Device()),
    add=SimpleNamespace(at=partial(on_current_device, np.add.at)),
    cuda=SimpleNamespace(
        Device=Device,
        runtime=SimpleNamespace(
            getDeviceCount=lambda: 2,
            getDeviceProperties=lambda number: {"name": f"stand-in {number}".encode()},
        ),
    ),
)


def native_erf(x):
    return on_current_device(ops.erf.dispatch(np.ndarray), x)


def native_erfc(x):
    return on_current_device(ops.erfc.dispatch(np.ndarray), x)


@pytest.fixture
def stand_in(monkeypatch):
    """The adapter, loaded again on stand-ins for CuPy, on each of two devices."""
    warnings.warn("NO GPU CODE RAN: NumPy stood in for CuPy", stacklevel=1)
    nn.backend("numpy")
    monkeypatch.setitem(sys.modules, "cupy", CUPY)
    functions = SimpleNamespace(erf=native_erf, erfc=native_erfc)
    monkeypatch.setitem(sys.modules, "cupyx.scipy.special", functions)
    monkeypatch.setitem(sys.modules, "array_api_compat.cupy", NAMESPACE)
    monkeypatch.setattr(array_api_compat, "cupy", NAMESPACE, raising=False)
    monkeypatch.setattr(Device, "waited", [])
    spec = spec_from_file_location("adapter_on_a_stand_in", ADAPTER)
    adapter = module_from_spec(spec)
    # registers itself for CupyArray, a type that no array outside this file has
    spec.loader.exec_module(adapter)
    return [
        Backend("cupy", name, device, adapter)
        for name, device in adapter.devices().items()
    ]


loudly = pytest.mark.filterwarnings("default:NO GPU CODE RAN")


@loudly
def test_the_adapter_names_each_gpu_by_its_number(stand_in):
    assert [str(backend) for backend in stand_in] == ["cupy:0", "cupy:1"]
    assert [backend.hardware for backend in stand_in] == ["stand-in 0", "stand-in 1"]


@loudly
def test_cupy_has_the_dtypes_that_its_namespace_has(stand_in):
    for backend in stand_in:
        assert backend.has_dtype("float16")
        assert "does not define it" in backend.lacks_dtype("bfloat16")


@loudly
def test_the_adapter_moves_arrays_to_the_chosen_gpu_and_back(stand_in):
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    for number, backend in enumerate(stand_in):
        for host, array in zip(
            (rows, rows.T), backend.asarray((rows, rows.T)), strict=True
        ):
            assert (array.device.id, array.dtype, array.shape) == (
                number,
                host.dtype,
                host.shape,
            )
            assert not np.shares_memory(array._host, host)
            np.testing.assert_array_equal(backend.to_numpy(array), host)
    assert Device().id == 0


@loudly
def test_the_adapter_computes_on_the_chosen_gpu_and_leaves_it_again(stand_in):
    def failing():
        devices.append(Device().id)
        raise ArithmeticError

    for number, backend in enumerate(stand_in):
        devices = []
        with pytest.raises(ArithmeticError):
            backend.jit(failing)()
        assert devices == [number]
        assert Device().id == 0
    x = stand_in[1].asarray(np.ones(2))
    with pytest.raises(ValueError, match="array on device 1, current device 0"):
        x + x


@loudly
def test_the_adapter_waits_for_the_gpus_that_a_tree_lies_on(stand_in):
    zero, one = (backend.asarray(np.ones(2)) for backend in stand_in)
    tree = {"a": (one,)}
    assert stand_in[1].synchronize(tree) is tree
    assert Device.waited == [1]
    stand_in[0].synchronize((zero, one))
    assert Device.waited == [1, 0, 1]


@loudly
def test_the_adapter_brings_its_own_erf_and_scatter_add(stand_in):
    x = np.linspace(-3.0, 3.0, 7)
    updates, index = np.ones((5, 2)), np.array([0, 2, 2, 0, 2], np.int32)
    for backend in stand_in:
        adapter = backend.adapter
        assert ops.erf.dispatch(CupyArray) is native_erf
        assert ops.scatter_add.dispatch(CupyArray).__module__ == adapter.__name__
        result = backend.to_numpy(backend.jit(ops.erf)(backend.asarray(x)))
        np.testing.assert_array_equal(result, ops.erf(x))
        add = backend.jit(lambda updates, index: ops.scatter_add(updates, index, 4))
        result = backend.to_numpy(add(backend.asarray(updates), backend.asarray(index)))
        np.testing.assert_array_equal(result, [[2, 2], [0, 0], [3, 3], [0, 0]])


@loudly
def test_the_adapter_sets_the_compute_type_for_as_long_as_a_call_takes(
    stand_in, monkeypatch
):
    products = CUPY._core._routines_linalg
    before = dict(products.types)

    def look(x):
        settings.append((dict(products.types), Device().id))
        return x

    for chosen, reference in {"strict": 1, "fast": 7}.items():
        for user in (1, 7, 2):
            monkeypatch.setitem(products.types, np.dtype(np.float32), user)
            # a look at settings that the policy changes
            # is not pure: no guard, every call runs
            backend, settings = replace(stand_in[1], precision=chosen, replay=False), []
            backend.jit(look)(backend.asarray(np.ones(2, np.float32)))
            with pytest.raises(ZeroDivisionError), backend.applied():
                look(1 / len(settings[1:]))
            with backend.applied():
                look(None)
            assert settings == [(before | {np.dtype(np.float32): reference}, 1)] * 2
            assert products.get_compute_type("float32") == user
    assert Device().id == 0


@loudly
def test_an_older_gpu_has_no_tensorfloat(stand_in, monkeypatch):
    monkeypatch.setattr(Device, "compute_capability", "75")
    with replace(stand_in[0], precision="fast").applied():
        assert CUPY._core._routines_linalg.get_compute_type("float32") == 1


@loudly
def test_the_adapter_adds_nothing_in_memory_if_it_has_to_be_deterministic(
    stand_in, monkeypatch
):
    def atomic(*_):
        raise AssertionError("in whatever order threads get there")

    expected = train("choices", stand_in[1])
    certain = replace(stand_in[1], deterministic=True)
    monkeypatch.setattr(CUPY.add, "at", atomic)
    for result, reference in zip(train("choices", certain), expected, strict=True):
        np.testing.assert_allclose(result, reference, rtol=1e-5, atol=1e-6)
    arguments = stand_in[0].asarray((np.ones((3, 2)), np.array([0, 1, 0])))
    with pytest.raises(AssertionError, match="in whatever order"):
        ops.scatter_add(*arguments, 2)  # by no backend, and so under no policy
    with pytest.raises(AssertionError, match="in whatever order"):
        train("choices", stand_in[1])


def test_the_compute_type_of_the_real_cupy_is_set_and_comes_back(cupy):
    """float32 needs no GPU to be asked for, TensorFloat-32 does."""
    from agnostic_nn_backends.cupy import policy

    class Nowhere(nullcontext):
        compute_capability = "75"

    products = cupy._core._routines_linalg
    before = products.get_compute_type(np.float32)
    products.set_compute_type(np.float32, products.COMPUTE_TYPE_PEDANTIC)
    try:
        for precision in ("strict", "fast"):
            with policy(Nowhere(), precision, True):
                assert (
                    products.get_compute_type(np.float32)
                    == products.COMPUTE_TYPE_DEFAULT
                )
            assert (
                products.get_compute_type(np.float32) == products.COMPUTE_TYPE_PEDANTIC
            )
    finally:
        products.set_compute_type(np.float32, before)
    assert (
        products.compute_type_to_str(products.COMPUTE_TYPE_TF32) == "COMPUTE_TYPE_TF32"
    )


@loudly
@each_workload
def test_training_on_the_stand_in_gives_numpys_numbers(stand_in, workload):
    """NumPy computes both, by different functions; no array leaves its device."""
    expected = train(workload, nn.backend("numpy"))
    for backend in stand_in:
        for result, reference in zip(train(workload, backend), expected, strict=True):
            np.testing.assert_allclose(result, reference, rtol=1e-5, atol=1e-6)
            assert result.dtype == reference.dtype


@loudly
@each_case
def test_a_case_on_the_stand_in_gives_numpys_numbers(stand_in, case):
    """To rounding, for NumPy's adapter brings native versions that CuPy's may lack."""
    backend = stand_in[1]
    result = backend.jit(partial(compute, case))(backend.asarray(arrays_for(case)))
    assert {leaf.device.id for leaf in leaves(result)} <= {1}
    expected = compute(case, arrays_for(case))
    for name, leaf in named_leaves(expected):
        got = dict(named_leaves(result))[name].get()
        scale = np.max(np.abs(leaf), initial=1.0)
        atol = 16 * np.finfo(np.float32).eps * scale
        np.testing.assert_allclose(got, leaf, rtol=0, atol=atol, err_msg=name)


@loudly
def test_a_trainer_runs_on_either_gpu(stand_in):
    model, _, loss, optimizer = WORKLOADS["classes"]
    x, target, _ = examples("classes")
    for backend in stand_in:
        trainer = Trainer(model, loss, optimizer, backend=backend)
        trainer.fit(x, target, batch_size=4, verbose=0)
        assert all(leaf.device == backend.device for leaf in leaves(trainer.params))
        trainer.evaluate(x, target, batch_size=4)
        assert (
            trainer.predict(backend.asarray(x), batch_size=4).device == backend.device
        )


def test_the_stand_in_has_nothing_that_cupys_arrays_lack(cupy):
    names = {*vars(CupyArray), *vars(CupyArray(0, None))} - {
        "_host",
        "__dict__",
        "__weakref__",
    }
    assert {"shape", "dtype", "__getitem__"} <= names
    assert names <= set(dir(cupy.ndarray))


# --- on a GPU -------------------------------------------------------------------------


def cuda_devices():
    """Return the number of CUDA devices, without importing an array library."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def skip_or_fail(missing):
    """Fail where REQUIRE_GPU=1, else skip."""
    if os.environ.get("REQUIRE_GPU") == "1":
        pytest.fail(f"REQUIRE_GPU=1, but there is no {missing}", pytrace=False)
    pytest.skip(f"no {missing}")


@pytest.fixture
def gpu(cupy):
    if not cuda_devices():
        skip_or_fail("CUDA device")
    return nn.backend("cupy:0")


@pytest.mark.parametrize(
    ("init", "counted", "devices"), [(0, 0, 2), (100, 0, 0), (0, 3, 0), (OSError, 0, 0)]
)
def test_the_driver_is_asked_for_devices(monkeypatch, init, counted, devices):
    def count(pointer):
        pointer._obj.value = 2
        return counted

    def load(name):
        if init is OSError:
            raise OSError(name)
        return SimpleNamespace(cuInit=lambda flags: init, cuDeviceGetCount=count)

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert cuda_devices() == devices


@pytest.mark.parametrize(
    ("required", "outcome"),
    [
        ("", pytest.skip.Exception),
        ("0", pytest.skip.Exception),
        ("1", pytest.fail.Exception),
    ],
)
def test_a_required_gpu_that_is_missing_is_a_failure(monkeypatch, required, outcome):
    monkeypatch.setenv("REQUIRE_GPU", required)
    with pytest.raises(outcome, match="no CUDA device"):
        skip_or_fail("CUDA device")


@each_workload
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_gpu_trains_like_numpy(gpu, workload, dtype):
    """CPUs stay within one unit of 1 + |value|; functions of CUDA may err by a few."""
    expected = train(workload, nn.backend("numpy"), dtype)
    tolerance = 64 * float(np.finfo(dtype).eps)
    for result, reference in zip(train(workload, gpu, dtype), expected, strict=True):
        assert result.dtype == reference.dtype
        np.testing.assert_allclose(result, reference, rtol=tolerance, atol=tolerance)


@each_case
def test_a_gpu_computes_each_case_like_numpy(gpu, case):
    result = gpu.to_numpy(
        gpu.jit(partial(compute, case))(gpu.asarray(arrays_for(case)))
    )
    for (name, leaf), reference in zip(
        named_leaves(result), leaves(compute(case, arrays_for(case))), strict=True
    ):
        atol = 64 * np.finfo(np.float32).eps * np.max(np.abs(reference), initial=1.0)
        np.testing.assert_allclose(leaf, reference, rtol=0, atol=atol, err_msg=name)


def test_a_gpu_draws_the_words_that_numpy_draws(gpu):
    def drawn(backend):
        @backend.jit
        def draw(key):
            keys = random.split(random.fold(key, 7), 2)
            return (
                random.words(keys[0, :], 1001),
                random.permutation(keys[1, :], 100),
                random.bernoulli(key, 0.3, (50, 3)),
                random.uniform(key, (1001,), backend.xp.float32),
                random.uniform(key, (1001,), backend.xp.float64),
            )

        key = random.key(2**64 - 3, xp=backend.xp, device=backend.device)
        return backend.to_numpy(draw(key))

    for result, reference in zip(drawn(gpu), drawn(nn.backend("numpy")), strict=True):
        assert result.dtype == reference.dtype
        np.testing.assert_array_equal(result, reference)


def test_a_gpu_finds_the_largest_among_infinities(gpu):
    """CuPy 13 did not; a mask of -inf before a softmax needs it."""
    inf = math.inf
    x = np.array(
        [[-inf, 1.0, -inf], [-inf, -inf, 2.0], [inf, 0.0, -inf], [-inf, -inf, -inf]]
    )
    for axis in (0, 1):
        for name in ("max", "min", "argmax"):
            result = gpu.to_numpy(getattr(gpu.xp, name)(gpu.asarray(x), axis=axis))
            np.testing.assert_array_equal(result, getattr(np, name)(x, axis=axis))
    assert float(gpu.xp.max(gpu.asarray(x[:2]))) == 2.0
    result = gpu.to_numpy(nn.ops.log_softmax(gpu.asarray(x[:2])))
    np.testing.assert_array_equal(result, [[-inf, 0.0, -inf], [-inf, -inf, 0.0]])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("integer", ["int32", "int64"])
def test_a_gpu_adds_up_repeated_indices(gpu, dtype, integer):
    """Small integers, so that the order of the additions cannot matter."""
    generator = np.random.default_rng(0)
    index = generator.integers(0, 3, 5000).astype(integer)
    updates = generator.integers(-8, 9, (5000, 2)).astype(dtype)
    expected = np.zeros((4, 2), dtype)
    np.add.at(expected, index, updates)
    result = ops.scatter_add(gpu.asarray(updates), gpu.asarray(index), 4)
    np.testing.assert_array_equal(gpu.to_numpy(result), expected)


def test_a_strict_gpu_multiplies_in_float32_and_a_fast_one_as_it_can(gpu):
    for names in nn.backend("cupy:0", precision="strict").probe().values():
        assert set(names.values()) == {"float32"}
    able = int(gpu.device.compute_capability) >= 80
    for names in nn.backend("cupy:0", precision="fast").probe().values():
        assert names["matmul"] == ("TensorFloat-32" if able else "float32")


def test_a_deterministic_gpu_gives_the_same_bits_again(gpu):
    """Many numbers are added to each row; atomic additions have a random order."""
    certain = nn.backend("cupy:0", deterministic=True)
    generator = np.random.default_rng(0)
    updates = gpu.asarray(generator.standard_normal((100_000, 16)).astype(np.float32))
    index = gpu.asarray(generator.integers(0, 5, 100_000).astype(np.int32))
    add = certain.jit(lambda updates, index: ops.scatter_add(updates, index, 5))
    first, *others = (gpu.to_numpy(add(updates, index)).tobytes() for _ in range(10))
    assert set(others) == {first}
    for workload in WORKLOADS:
        first, second = (
            [leaf.tobytes() for leaf in train(workload, certain, steps=20)]
            for _ in range(2)
        )
        assert first == second


def test_a_gpus_erf_is_that_of_the_c_library(gpu):
    x = np.linspace(-7.0, 7.0, 1001)
    result = gpu.to_numpy(ops.erf(gpu.asarray(x)))
    np.testing.assert_allclose(
        result, [math.erf(value) for value in x], rtol=4 * np.finfo(float).eps
    )


def test_a_gpu_shares_nothing_with_the_host(gpu):
    host = np.zeros((1000, 1000), np.float32)
    array = gpu.asarray(host)
    host += 1.0
    assert float(gpu.xp.sum(array)) == 0.0


@each_workload
def test_a_second_gpu_is_used_for_all_of_a_step(gpu, workload):
    if cuda_devices() < 2:
        pytest.skip("no second CUDA device")
    second = nn.backend("cupy:1")
    expected = train(workload, gpu)
    # CuPy warns of arrays that are read from another
    # device, and warnings are errors here
    for result, reference in zip(train(workload, second), expected, strict=True):
        np.testing.assert_allclose(result, reference, rtol=1e-5, atol=1e-5)
