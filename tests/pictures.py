"""Draw docs/compare.png: the page of a comparison in which one backend is wrong.

    python tests/pictures.py

PyTorch's matrix products round their factors to the ten bits of TensorFloat-32, as
GPUs may do by default. Chromium takes the picture of the page.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

import array_api_compat.torch as xp
import torch

import agnostic_nn as nn
from agnostic_nn.diagnostics.compare import page, run_comparison, summary

PICTURE = Path(__file__).parents[1] / "docs" / "compare.png"


def to_ten_bits(x: torch.Tensor) -> torch.Tensor:
    """Round float32 to the ten bits behind the point that TensorFloat-32 has."""
    if x.dtype != torch.float32:
        return x
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def with_rounded_factors(product):
    """Return a matrix product like `product` that rounds its factors first."""

    def rounded(a, b, *rest, **options):
        return product(to_ten_bits(a), to_ten_bits(b), *rest, **options)

    return rounded


def main() -> None:
    """Run the comparison, print its summary, and write the picture."""
    torch.Tensor.__matmul__ = with_rounded_factors(torch.Tensor.__matmul__)
    for owner in (torch, xp):
        for name in ("matmul", "tensordot"):
            setattr(owner, name, with_rounded_factors(getattr(owner, name)))
    # without replay, every step calls what was replaced
    wrong = nn.backend("torch:cpu", replay=False)
    report = run_comparison("digits-mlp", ["numpy", "jax", wrong])
    print(summary(report))
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("expected chromium or google-chrome on the PATH")
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "report.html"
        written.write_text(page(report), encoding="utf-8")
        options = "--headless --no-sandbox --disable-gpu --hide-scrollbars"
        shot = (f"--screenshot={PICTURE}", "--window-size=1000,748", written.as_uri())
        subprocess.run([browser, *options.split(), *shot], check=True)


if __name__ == "__main__":
    main()
