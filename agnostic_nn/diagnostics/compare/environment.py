"""The machine, the library versions and the settings that a report was made with."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from ...core.backend import backend
from .schema import Environment

__all__ = ["environment"]

PACKAGES = ("agnostic-nn", "numpy", "scikit-learn", "llvmlite")
# Environment variables that choose threads, precision, devices, CPU instructions or
# algorithms.
VARIABLES = (
    "AGNOSTIC_NN_DETERMINISTIC",
    "AGNOSTIC_NN_KERNELS",
    "AGNOSTIC_NN_PRECISION",
    "AGNOSTIC_NN_PROGRAMS",
    "AGNOSTIC_NN_REPLAY",
    "ATEN_CPU_CAPABILITY",
    "BLIS_ARCH_TYPE",
    "BLIS_NUM_THREADS",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_VISIBLE_DEVICES",
    "CUPY_ACCELERATORS",
    "CUPY_ENABLE_UMP",
    "CUPY_TF32",
    "DNNL_CPU_ISA_HINTS",
    "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "GLIBC_TUNABLES",
    "GOTO_NUM_THREADS",
    "HIP_VISIBLE_DEVICES",
    "HSA_OVERRIDE_GFX_VERSION",
    "JAX_DEFAULT_DTYPE_BITS",
    "JAX_DEFAULT_MATMUL_PRECISION",
    "JAX_DISABLE_JIT",
    "JAX_ENABLE_X64",
    "JAX_PLATFORMS",
    "KMP_AFFINITY",
    "KMP_DETERMINISTIC_REDUCTION",
    "LD_PRELOAD",
    "LIBTPU_INIT_ARGS",
    "MKL_CBWR",
    "MKL_DEBUG_CPU_TYPE",
    "MKL_DOMAIN_NUM_THREADS",
    "MKL_DYNAMIC",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_NUM_THREADS",
    "MKL_THREADING_LAYER",
    "NPROC",
    "NPY_DISABLE_CPU_FEATURES",
    "NPY_ENABLE_CPU_FEATURES",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_DYNAMIC",
    "OMP_NUM_THREADS",
    "OMP_SCHEDULE",
    "OMP_THREAD_LIMIT",
    "ONEAPI_DEVICE_SELECTOR",
    "ONEDNN_CPU_ISA_HINTS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_DEFAULT_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "SYCL_DEVICE_FILTER",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "VECLIB_MAXIMUM_THREADS",
    "XLA_FLAGS",
)


def environment() -> Environment:
    """Return the date, the machine, the versions and the settings."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    packages = {name: _version(name) for name in PACKAGES}
    return Environment(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        platform=platform.platform(),
        processor=backend("numpy").hardware,
        cores=os.cpu_count(),
        usable_cores=len(affinity(0)) if affinity else os.cpu_count(),
        blas=_blas(),
        versions={"python": platform.python_version(), **packages},
        variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _blas() -> str | None:
    """Return name and version of the BLAS library that NumPy was built with."""
    config: Any = np.show_config(mode="dicts")
    blas = config.get("Build Dependencies", {}).get("blas", {})
    return " ".join(blas[key] for key in ("name", "version") if key in blas) or None
