"""Choice of a backend, errors if it cannot run, and conversion of arrays."""

import dataclasses
import inspect
import sys
from contextlib import suppress
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
from array_api_compat import device
from cases import named

import agnostic_nn as nn
from agnostic_nn.core import precisions
from agnostic_nn.core.backend import backend_of
from agnostic_nn.core.trees import tree_map
from agnostic_nn_backends import SHIPPED, Adapter, FullAdapter

INTEGERS = [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
DTYPES = ["bool", *INTEGERS, "float16", "float32", "float64", "complex64", "complex128"]
TOY = """
import array_api_compat.numpy as xp
version, compiles, double, vjp = "1.2.3", False, None, None
def devices(): return {"gpu:0": 0, "gpu:1": 1, "cpu:0": 2}
def describe(device): return f"unit {device}"
def has_float64(device): return False
def asarray(data, device): return xp.astype(data, xp.float32)
def to_numpy(array): return array
def jit(function, device, donate=()): return function
def synchronize(tree): return tree
"""


@pytest.fixture
def forget():
    """Adapters are loaded once; a test that changes what is there needs that undone."""
    loaded = import_module("agnostic_nn.core.backend")._load
    loaded.cache_clear()
    yield
    loaded.cache_clear()


@pytest.fixture
def shipped(backend):
    """The backend under test; tests that use it are skipped on an external adapter."""
    if backend.name not in SHIPPED:
        pytest.skip(f"{backend.name} is not a shipped backend, as this test requires")
    return backend


@pytest.fixture
def install(tmp_path, monkeypatch, forget):
    """A function that installs a package whose adapter has the given source."""
    modules = []

    def install(name, source):
        module = f"{name}_for_agnostic_nn"
        metadata = tmp_path / f"{name}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        )
        (metadata / "entry_points.txt").write_text(
            f"[agnostic_nn.backends]\n{name} = {module}\n"
        )
        (tmp_path / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        modules.append(module)

    yield install
    for module in modules:
        sys.modules.pop(module, None)


def refuse(name, *parts):
    """Asking for `name` is an error that says each of `parts`."""
    with pytest.raises(nn.BackendUnavailable) as caught:
        nn.backend(name)
    for part in parts:
        assert part in str(caught.value)


def test_numpy_is_the_default_and_the_environment_changes_it(monkeypatch, backend):
    monkeypatch.setenv("AGNOSTIC_NN_BACKEND", str(backend))
    assert nn.backend() == backend
    assert str(nn.backend("numpy")) == "numpy:cpu"
    monkeypatch.setenv("AGNOSTIC_NN_BACKEND", "nonsense")
    refuse(None, "no backend is called 'nonsense'")
    monkeypatch.setenv("AGNOSTIC_NN_BACKEND", "")
    assert str(nn.backend()) == "numpy:cpu"
    monkeypatch.delenv("AGNOSTIC_NN_BACKEND")
    assert str(nn.backend()) == "numpy:cpu"


def test_a_backend_is_the_same_under_its_full_name(backend):
    again = nn.backend(str(backend))
    assert again == backend
    assert hash(again) == hash(backend)
    assert str(again) == str(backend) == f"{backend.name}:{backend.device_name}"
    assert {backend: 1}[again] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        backend.name = "another"


def test_every_device_is_another_backend(backend):
    (status,) = (status for status in nn.backends() if status.name == backend.name)
    assert backend in status.devices
    assert nn.backend(backend.name) == status.devices[0]
    assert len(set(status.devices)) == len(status.devices)
    for listed in status.devices:
        assert nn.backend(str(listed)) == listed
        assert listed.hardware
        assert listed.version == status.version
    kind, _, number = status.devices[0].device_name.rpartition(":")
    if number == "0":
        assert nn.backend(f"{backend.name}:{kind}") == status.devices[0]


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("toy", "gpu:0"),
        ("toy:gpu", "gpu:0"),
        ("toy:gpu:1", "gpu:1"),
        ("toy:cpu", "cpu:0"),
    ],
)
def test_a_name_may_leave_out_the_device_or_its_number(install, name, device):
    install("toy", TOY)
    assert str(nn.backend(name)) == f"toy:{device}"


def test_an_installed_package_can_bring_a_backend(install):
    install("toy", TOY)
    toy = nn.backend("toy:gpu:1")
    assert (toy.version, toy.hardware, toy.has_float64) == ("1.2.3", "unit 1", False)
    assert toy in [device for status in nn.backends() for device in status.devices]
    with pytest.raises(
        TypeError, match="toy:gpu:1 would turn float64 into float32; cast it first"
    ):
        toy.asarray(np.ones(2))
    with pytest.raises(nn.BackendUnavailable, match="toy:gpu:1 has no float64"):
        toy.double()


def test_a_package_cannot_take_the_place_of_a_shipped_backend(install, shipped):
    install(shipped.name, "raise RuntimeError('not me')")
    assert nn.backend(str(shipped)).adapter is shipped.adapter
    assert [status.name for status in nn.backends()].count(shipped.name) == 1


def test_an_unknown_name_is_refused_with_those_there_are(install):
    install("toy", TOY)
    for name in ("nonsense", "nonsense:cpu", ":cpu", "NumPy"):
        library = name.partition(":")[0]
        refuse(name, f"no backend is called {library!r}; there are ", "toy", *SHIPPED)


def test_invalid_names_are_refused():
    with pytest.raises(
        TypeError, match="the name of a backend, such as 'numpy', got <module"
    ):
        nn.backend(np)


@pytest.mark.parametrize("device", ["tpu", "gpu:2", "gpu:00", "cpu:0:0"])
def test_an_unknown_device_is_refused_with_those_there_are(install, device):
    install("toy", TOY)
    refuse(f"toy:{device}", f"toy has no device {device!r}; it has gpu:0, gpu:1, cpu:0")


def test_an_unknown_device_of_this_backend_is_refused(backend):
    refuse(
        f"{backend.name}:nonsense:9",
        "no device 'nonsense:9'; it has ",
        backend.device_name,
    )


IMPORTS = {  # shipped backend: the package of its library that is imported first
    "jax": "jax",
    "torch": "torch",
    "cupy": "cupy",
    "dpnp": "dpctl",
    "array_api_strict": "array_api_strict",
}


@pytest.mark.parametrize("name", [name for name in SHIPPED if name != "numpy"])
def test_a_missing_package_is_named_with_what_to_install(monkeypatch, forget, name):
    monkeypatch.setitem(sys.modules, IMPORTS[name], None)
    monkeypatch.delitem(sys.modules, f"agnostic_nn_backends.{name}", raising=False)
    module, extra = SHIPPED[name]
    assert module == f"agnostic_nn_backends.{name}"
    for options in (name, f"{name}:cpu:0"):
        text = f"{name} needs the package {IMPORTS[name]!r}, which is not installed"
        refuse(options, f"{text}: pip install '{extra}'")
    (status,) = (status for status in nn.backends() if status.name == name)
    assert (status.version, status.devices) == (None, ())
    assert text in status.reason


TROUBLE = {  # fault, source of the adapter, message, whether the version is known
    "missing": (
        "import no_such_package",
        "toy needs the package 'no_such_package'",
        False,
    ),
    "broken": (
        "raise OSError('libtoy.so: no such file')",
        "does not import: libtoy.so",
        False,
    ),
    "incomplete": (
        TOY + "\ndel vjp, describe",
        "toy_for_agnostic_nn lacks describe, vjp",
        False,
    ),
    "driver": (
        TOY + "\ndef devices(): raise OSError('no driver')",
        "no device: no driver",
        True,
    ),
    "nothing": (
        TOY + "\ndef devices(): return {}",
        "toy finds no device on this machine",
        True,
    ),
}


@pytest.mark.parametrize(("source", "reason", "known"), TROUBLE.values(), ids=TROUBLE)
def test_a_library_that_cannot_run_says_why_and_nothing_falls_back(
    install, source, reason, known
):
    install("toy", source)
    refuse("toy", reason)
    refuse("toy:gpu:0", reason)
    (status,) = (status for status in nn.backends() if status.name == "toy")
    assert reason in status.reason
    assert status.devices == ()
    assert (status.version is not None) == known


def test_a_library_installed_later_is_found(install):
    refuse("toy", "no backend is called")
    install("toy", TOY)
    assert nn.backend("toy").name == "toy"


def test_all_six_backends_are_listed_with_devices_or_a_reason(backend):
    result = {status.name: status for status in nn.backends()}
    assert list(SHIPPED) == [
        "numpy",
        "jax",
        "torch",
        "cupy",
        "dpnp",
        "array_api_strict",
    ]
    assert list(result)[:6] == list(SHIPPED)
    for status in result.values():
        assert bool(status.devices) == (status.reason is None)
        assert status.reason is None or status.name in status.reason
    assert backend in result[backend.name].devices


def test_the_list_of_backends_displays_as_a_table(backend):
    statuses = nn.backends()
    (line,) = [
        line
        for line in repr(statuses).splitlines()
        if line.split()[:1] == [str(backend)]
    ]
    assert backend.version in line
    assert backend.hardware in line
    assert str(backend) in statuses._repr_html_()
    for status in statuses:
        if status.reason is not None:
            assert " ".join(status.reason.split()) in repr(statuses)


def test_several_backends_live_side_by_side(backend, draw):
    x = draw(3)
    handles = [backend, nn.backend("numpy"), nn.backend(backend.name)]
    arrays = [handle.asarray(x) for handle in handles]
    doubled = [
        handle.to_numpy(array + array)
        for handle, array in zip(handles, arrays, strict=True)
    ]
    for result in doubled:
        np.testing.assert_array_equal(result, 2 * x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dtype_is_kept_or_refused(backend, dtype):
    """JAX without x64 would narrow to 32 bits; each device lacks some dtype."""
    data = np.asarray([0, 1, 100], dtype)
    narrowed = (
        dtype in ("int64", "uint64", "float64", "complex128")
        and not backend.has_float64
    )
    if narrowed or not hasattr(backend.xp, dtype):
        with pytest.raises((TypeError, ValueError), match=dtype):
            backend.asarray(data)
        return
    array = backend.asarray(data)
    assert array.dtype == getattr(backend.xp, dtype)
    result = backend.to_numpy(array)
    assert result.dtype == data.dtype
    np.testing.assert_array_equal(result, data)


def test_a_number_too_large_for_32_bits_is_never_cut(backend):
    large = np.asarray([2**40, -(2**40)])
    if backend.has_float64:
        np.testing.assert_array_equal(backend.to_numpy(backend.asarray(large)), large)
    else:
        with pytest.raises(
            TypeError, match="would turn int64 into int32; cast it first"
        ):
            backend.asarray(large)


@pytest.mark.parametrize("data", [["a", "b"], [object()], [[1, 2], [3]]], ids=named)
def test_arrays_that_are_not_numeric_are_refused(backend, data):
    with pytest.raises((TypeError, ValueError)):
        backend.asarray(data)


def test_nested_lists_numbers_and_trees_become_arrays(backend, widest):
    array = np.asarray([1, 0], widest)
    result = backend.to_numpy(backend.asarray({"a": (array, {}), "b": [[True, False]]}))
    np.testing.assert_array_equal(result["a"][0], array)
    assert result["a"][1] == {}
    assert result["b"].dtype == bool
    np.testing.assert_array_equal(result["b"], [[True, False]])


LAYOUTS = {  # name: a view of numbers shaped (4, 6)
    "as it is": lambda x: x,
    "transposed": lambda x: x.T,
    "reversed": lambda x: x[::-1],
    "reversed twice": lambda x: x[::-1, ::-1],
    "every other": lambda x: x[::2, 1::3],
    "broadcast": lambda x: np.broadcast_to(x[:1], (3, 6)),
    "in Fortran's order": np.asfortranarray,
    "without axes": lambda x: x[2, 3, ...],
    "empty": lambda x: x[:, :0],
    "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype),
    "misaligned": lambda x: np.frombuffer(b"?" + x.tobytes(), x.dtype, offset=1),
}


def test_none_in_a_tree_stays_none(backend):
    """`backward` returns None for what has no gradient, such as integer inputs."""
    tree = {"x": None, "y": (np.ones(2, "float32"), None)}
    there = backend.synchronize(backend.asarray(tree))
    assert there["x"] is None
    result = backend.to_numpy(there)
    assert result["x"] is None
    assert result["y"][1] is None
    np.testing.assert_array_equal(result["y"][0], [1.0, 1.0])


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_of_the_host_comes_back_as_it_was(backend, draw, layout):
    data = layout(draw(4, 6))
    before = data.copy()
    array = backend.asarray(data)
    assert tuple(array.shape) == data.shape
    result = backend.to_numpy(array)
    assert isinstance(result, np.ndarray)
    assert result.dtype == data.dtype
    np.testing.assert_array_equal(result, before)
    np.testing.assert_array_equal(data, before)


def test_every_layout_of_a_device_comes_to_the_host(backend, draw):
    data = draw(4, 6)
    x, xp = backend.asarray(data), backend.xp
    views = {
        "transposed": (xp.matrix_transpose(x), data.T),
        "reversed": (xp.flip(x, axis=0), data[::-1]),
        "every other": (x[::2, 1::3], data[::2, 1::3]),
        "broadcast": (
            xp.broadcast_to(x[:1, :], (3, 6)),
            np.broadcast_to(data[:1], (3, 6)),
        ),
        "without axes": (xp.sum(x), np.sum(data)),
        "empty": (x[:, :0], data[:, :0]),
    }
    for name, (array, expected) in views.items():
        result = backend.to_numpy(array)
        assert isinstance(result, np.ndarray), name
        np.testing.assert_allclose(result, expected, rtol=1e-6, err_msg=name)


def aligned(size, dtype):
    """Memory that begins at a multiple of 64 bytes, which JAX would use as its own."""
    memory = np.zeros(size * np.dtype(dtype).itemsize + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size * np.dtype(dtype).itemsize].view(dtype)


@pytest.mark.parametrize("size", [1, 64, 4096, 1_000_000])
def test_an_array_never_shares_memory_with_the_host(backend, size):
    """JAX may read host memory after `device_put` has returned."""
    for _ in range(3):
        data = aligned(size, np.float32)
        array = backend.asarray(data)
        data[:] = 1.0
        assert not np.any(backend.to_numpy(backend.synchronize(array)))


def test_arrays_are_where_the_backend_is(backend, draw):
    here = device(backend.xp.zeros(2, device=backend.device))
    assert device(backend.asarray(draw(2))) == here
    assert device(backend.jit(lambda x: x + 1.0)(backend.asarray(draw(2)))) == here


def test_double_makes_float64_available_for_a_while(backend):
    before = backend.has_float64
    with backend.double():
        assert backend.has_float64
        array = backend.asarray(np.asarray([1e-300]))
        assert backend.to_numpy(array)[0] == 1e-300
    assert backend.has_float64 == before


def test_jit_takes_and_returns_trees_and_may_be_given_its_arguments(backend, draw):
    x = draw(1000)
    tree = backend.asarray({"a": x, "b": (x, {})})

    def halve(tree, factor):
        return tree_map(lambda leaf: leaf * factor, tree), factor

    factor = backend.asarray(np.asarray(0.5, x.dtype))
    halved, same = backend.synchronize(backend.jit(halve, donate=(0,))(tree, factor))
    assert float(same) == 0.5
    result = backend.to_numpy(halved)
    assert list(result) == ["a", "b"]
    np.testing.assert_array_equal(result["b"][0], x / 2)


def test_synchronize_returns_what_it_waited_for(backend, draw):
    x = draw(2)
    waited = backend.synchronize({"a": backend.asarray(x), "b": ()})
    assert list(waited) == ["a", "b"]
    np.testing.assert_array_equal(backend.to_numpy(waited["a"]), x)


def test_the_adapters_own_derivative_is_right_where_there_is_one(backend, widest):
    if backend.adapter.vjp is None:
        pytest.skip(f"{backend.name} has no automatic differentiation")
    x = backend.asarray(np.asarray([1.0, 2.0, 3.0], widest))
    y, pullback = backend.adapter.vjp(lambda x: x * x * x, x)
    (dx,) = pullback(backend.xp.ones_like(y))
    np.testing.assert_allclose(backend.to_numpy(dx), [3, 12, 27], rtol=1e-6)


# --- the contract of adapters ---------------------------------------------------------


def members(protocol):
    return {
        name: member
        for name, member in vars(protocol).items()
        if not name.startswith("_")
    }


def test_the_adapter_has_all_members_with_their_parameters(backend):
    for name, member in (members(Adapter) | members(FullAdapter)).items():
        attribute = getattr(backend.adapter, name)
        if isinstance(member, property):
            continue
        assert callable(attribute), name
        parameters = list(inspect.signature(member).parameters)[1:]  # without self
        with suppress(ValueError):  # some functions written in C tell no signature
            inspect.signature(attribute).bind(*parameters)


MYPY = """
[mypy]
follow_imports = silent
ignore_missing_imports = True
[mypy-numpy.*,scipy.*,jax.*,torch.*,cupy.*,dpnp.*,array_api_compat.*,array_api_strict.*]
follow_imports = skip
"""


def type_errors(module, folder, protocol="FullAdapter"):
    """Return mypy's output for a module used as an adapter, without array libraries."""
    api = pytest.importorskip("mypy.api", reason="mypy is not installed")
    config = folder / "mypy.ini"
    config.write_text(MYPY)
    lines = [
        "import agnostic_nn_backends as b",
        f"import {module} as m",
        f"adapter: b.{protocol} = m",
    ]
    options = [f"--config-file={config}", f"--cache-dir={folder / 'cache'}"]
    out, _, _ = api.run([*options, "--command", "\n".join(lines)])
    return out


def test_the_adapter_has_the_types_of_the_protocol(shipped, tmp_path):
    assert "Success" in type_errors(SHIPPED[shipped.name][0], tmp_path)


def test_a_module_that_is_not_an_adapter_is_noticed_by_its_type(
    monkeypatch, tmp_path, backend
):
    if backend.name != "numpy":
        pytest.skip("the same on every backend")
    (tmp_path / "toy_adapter.py").write_text(
        TOY.replace("has_float64(device): return", "has_float64(device) -> str: return")
    )
    monkeypatch.setenv("MYPYPATH", str(tmp_path))
    assert "has_float64" in type_errors("toy_adapter", tmp_path, "Adapter")


HALVES_OF = {
    "numpy": ("float16",),
    "jax": ("float16", "bfloat16"),
    "torch": ("float16", "bfloat16"),
    "array_api_strict": (),
}


@pytest.mark.parametrize("library", HALVES_OF)
def test_the_half_dtypes_of_each_library_are_known(library):
    try:
        backend = nn.backend(library)
    except nn.BackendUnavailable as error:
        pytest.skip(str(error))
    for dtype in ("float16", "bfloat16"):
        message = backend.lacks_dtype(dtype)
        assert backend.has_dtype(dtype) is (dtype in HALVES_OF[library])
        if message:
            assert message.startswith(
                f"{backend} has no {dtype}: {library} {backend.version} does not "
                "define it; "
            )


def test_the_wider_dtypes_follow_the_settings(backend):
    assert backend.has_dtype("float32")
    assert backend.has_dtype("float64") is backend.has_float64
    if not backend.has_float64:
        assert backend.lacks_dtype("float64") == backend.lacks_float64


def test_an_unknown_dtype_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"float16, bfloat16, .*got 'float8'"):
        nn.backend("numpy").has_dtype("float8")


def test_a_dtype_that_computes_nothing_or_nonsense_is_lacking(monkeypatch):
    numpy = nn.backend("numpy")

    def failing(function, device, donate=()):
        raise RuntimeError("no kernel\nfor float16")

    # the namespace is that of NumPy, where the adapter only wraps its functions
    def broken(jit):
        names = {name: getattr(numpy.adapter, name) for name in vars(numpy.adapter)}
        return dataclasses.replace(
            numpy, adapter=SimpleNamespace(**(names | {"jit": jit}))
        )

    assert broken(failing).lacks_dtype("float16") == (
        "numpy:cpu cannot compute in float16: no kernel for float16"
    )
    nonsense = broken(lambda function, device, donate=(): lambda x: function(x) * 2)
    assert nonsense.lacks_dtype("float16") == (
        "numpy:cpu cannot compute in float16: the square of [[1.0, 1.0], [0.0, 2.0]] "
        "is [[2.0, 6.0], [0.0, 8.0]]"
    )
    assert not nonsense.has_dtype("float16")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_constants_of_a_dtype_are_those_of_numpy(dtype):
    expected = np.finfo(dtype)
    assert precisions.epsilon(dtype) == expected.eps
    assert precisions.largest(dtype) == expected.max
    assert precisions.tiny(dtype) == expected.tiny


def test_the_constants_of_bfloat16_are_those_of_the_libraries():
    torch = pytest.importorskip("torch")
    expected = torch.finfo(torch.bfloat16)
    assert precisions.epsilon("bfloat16") == expected.eps == 2.0**-7
    assert precisions.largest("bfloat16") == expected.max
    assert precisions.tiny("bfloat16") == expected.tiny


def test_the_backend_of_an_array_is_that_of_its_library_and_device(backend):
    assert backend_of(backend.asarray(np.zeros(3, np.float32))) == backend
    assert backend_of(np.zeros(3)) == nn.backend("numpy")
    with pytest.raises(TypeError, match="expected an array"):
        backend_of([1.0])
