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
