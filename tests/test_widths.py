"""Reports fit into a terminal of 80 columns, also those of deep models."""

from dataclasses import replace

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.diagnostics.summary import _four_digits
from agnostic_nn.display.tables import TERMINAL_WIDTH, table

BLOCK = nn.TransformerBlock(nn.MultiHeadAttention(2), 16, dropout=0.1)
DEEP = nn.Sequential(
    nn.Dense(8),
    nn.Sequential(nn.Repeat(nn.Sequential(BLOCK), 2), nn.Residual(nn.Dense(8))),
    nn.Flatten(),
    nn.Dense(3),
)
X = np.random.default_rng(0).standard_normal((4, 5, 3)).astype("float32")
LABELS = np.array([0, 1, 2, 1])
BATCH = (DEEP, nn.softmax_cross_entropy, nn.Adam(), X, LABELS)


def widest(text):
    """Return the longest line of a text."""
    return max(text.splitlines(), key=len)


def test_words_and_headings_are_broken_but_no_number():
    columns = ["path", "layer", "the heading of numbers", "another"]
    rows = [["1.2." * 12, "one two three four", 123456789.0, 1], ["", "", None, 2**40]]
    text = table(columns, rows, width=60)
    assert len(widest(text)) <= 60
    assert "1,099,511,627,776" in text
    assert "1.235e+08" in text
    assert "of numbers" not in text
    assert "  1.2.1.2.1.2.  one two" in text  # broken after a dot
    assert len(widest(table(columns, rows))) > 90


def test_a_cell_is_not_broken_at_the_point_of_a_number():
    lines = table(["verdict"], [["agrees to step 56 (0.28)"]], width=26).splitlines()
    assert [line.strip() for line in lines[-2:]] == ["agrees to step 56", "(0.28)"]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_profile_fits_into_a_terminal():
    text = str(nn.profile(*BATCH, backend="numpy", steps=1))
    assert len(widest(text)) <= TERMINAL_WIDTH, widest(text)
    assert "1.0.0.attention_ " in text  # broken where it can be read
    assert "MultiHeadAttention" in text


@pytest.fixture(scope="module")
def bisection():
    return nn.bisect(*BATCH, "numpy", "numpy@float64", steps=0)


@pytest.mark.parametrize("differs", [False, True], ids=["agrees", "differs"])
def test_the_tables_of_bisect_fit_into_a_terminal(differs, bisection):
    result = bisection
    if differs:
        wrong = [replace(f, deviations=(1.0, 0.0)) for f in result.findings]
        result = replace(result, findings=tuple(wrong))
    verdict, *lines = str(result).splitlines()
    assert verdict.startswith("Differs" if differs else "Agrees")
    lines = [line for line in lines if line != result.title]
    longest = max(lines, key=len)
    assert len(longest) <= TERMINAL_WIDTH, longest
    for part in ("TransformerBlock", "MultiHeadAttention", "LayerNorm"):
        assert differs or part in result.to_text(verbose=True)
        assert part[:-2] not in "\n".join(lines).replace(part, "")
    assert 3 < len(lines) < 70


def test_a_table_that_is_narrow_enough_stays_as_it_is():
    columns, rows = ["backend", "deviation /\ntolerance"], [["numpy:cpu", 0.5]]
    assert table(columns, rows, width=TERMINAL_WIDTH) == table(columns, rows)
    assert "deviation /" in table(columns, [["numpy:cpu " * 3, 0.5]], width=38)


def test_the_table_of_explain_fits_into_a_terminal():
    text = str(nn.explain(*BATCH[:2], X, LABELS, backend="numpy"))
    table = text[: text.index("\nforward\n")]
    assert len(widest(table)) <= TERMINAL_WIDTH, widest(table)
    assert "(4, 5, 16)" in table
    assert "\n  MultiHeadAttention\n" in table  # below its path


def test_a_summary_fits_into_a_terminal_without_losing_small_numbers():
    trainer = nn.Trainer(*BATCH[:3], backend="numpy")
    trainer.step(X, LABELS)
    summary = trainer.summary()
    text = str(summary)
    assert len(widest(text)) <= TERMINAL_WIDTH, widest(text)
    assert "Repeat(" not in text
    assert f" {summary.flops_forward / 1e3:.4g} k " in text
    assert f"{summary.parameters:,}" in text
    assert text.index("bytes freed") > text.index("total")
    verbose = summary.to_text(verbose=True)
    assert len(widest(verbose)) > TERMINAL_WIDTH
    assert f"{summary.flops_forward:,}" in verbose
    assert "Repeat(count=2)" in verbose


def test_large_numbers_have_four_digits_and_a_unit():
    numbers = (99_999, 123_456, 1_234_567, 2_000_000_000, 12_345_678_901_234_567)
    expected = ["99999", "123.5 k", "1.235 M", "2 G", "1.235e+04 T"]
    assert [str(_four_digits(number)) for number in numbers] == expected
    assert _four_digits(None) is None
