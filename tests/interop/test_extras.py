"""Optional libraries are imported lazily, and errors name the extra."""

import subprocess
import sys

import pytest

from agnostic_nn.interop.extras import import_extra


def test_a_missing_library_is_named_with_its_extra():
    with pytest.raises(ImportError, match=r"from_x needs the package nowhere_here"):
        import_extra("nowhere_here.inside", extra="x", purpose="from_x")


def test_importing_the_package_imports_no_other_library():
    program = (
        "import sys; before = set(sys.modules); import agnostic_nn.interop; "
        "others = {'torch', 'jax', 'keras', 'onnx', 'sklearn', 'pandas'}; "
        "print(sorted(others & set(sys.modules) - before))"
    )
    arguments = [sys.executable, "-c", program]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "package"),
    [
        *(("from_torch", "torch"), ("torch_module", "torch"), ("from_onnx", "onnx")),
        *(("jax_function", "jax"), ("keras_layer", "keras"), ("export_onnx", "ndonnx")),
    ],
)
def test_a_bridge_without_its_library_names_the_extra(name, package):
    program = (
        "import importlib.abc, sys\n"
        "class Missing(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name.partition('.')[0] == {package!r}:\n"
        "            raise ModuleNotFoundError(f'no module {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from agnostic_nn import interop\n"
        "try:\n"
        f"    interop.{name}\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    arguments = [sys.executable, "-c", program]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True)
    extra = {"ndonnx": "onnx"}.get(package, package)
    assert f"needs the package {package}" in result.stdout
    assert f"pip install 'agnostic-nn[{extra}]'" in result.stdout


def test_keras_without_tensorflow_names_the_variable(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    program = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "from agnostic_nn import interop\n"
        "try:\n"
        "    interop.keras_layer\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    arguments = [sys.executable, "-c", program]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert "KERAS_BACKEND to torch or jax" in result.stdout
