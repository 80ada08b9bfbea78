"""Environment: the machine and the settings that a measurement was made with."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from ..registry import backend

__all__ = ["environment"]

PACKAGES = ("agnostic-nn", "numpy", "scikit-learn", "llvmlite")
VARIABLES = (  # by which threads, precision, devices and ways to compute are chosen
    "AGNOSTIC_NN_DETERMINISTIC",
    "AGNOSTIC_NN_KERNELS",
    "AGNOSTIC_NN_PRECISION",
    "AGNOSTIC_NN_REPLAY",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_VISIBLE_DEVICES",
    "CUPY_ENABLE_UMP",
    "CUPY_TF32",
    "JAX_DEFAULT_MATMUL_PRECISION",
    "JAX_ENABLE_X64",
    "JAX_PLATFORMS",
    "MKL_CBWR",
    "MKL_NUM_THREADS",
    "NPROC",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "OPENBLAS_NUM_THREADS",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "XLA_FLAGS",
)


def environment() -> dict[str, Any]:
    """Data for JSON: when and where this runs, on what, and how it is set up."""
    usable = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "processor": backend("numpy").hardware,
        "cores": os.cpu_count(),
        "usable_cores": len(usable(0)) if usable else os.cpu_count(),
        "blas": _blas(),
        "versions": {"python": platform.python_version(), **{n: _version(n) for n in PACKAGES}},
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _blas() -> str | None:
    """The library that multiplies NumPy's matrices, as NumPy was built."""
    config: Any = np.show_config(mode="dicts")
    found = config.get("Build Dependencies", {}).get("blas", {})
    return " ".join(found[k] for k in ("name", "version") if k in found) or None
