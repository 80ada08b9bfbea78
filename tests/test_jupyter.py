"""Output in a real Jupyter kernel, in which rich behaves differently."""

import os

import pytest

CELLS = {
    "fit": """
import numpy as np
import agnostic_nn as nn

x = np.random.default_rng(0).standard_normal((64, 3)).astype("float32")
model = nn.Sequential(nn.Dense(4), nn.ReLU(), nn.Dense(2))
trainer = nn.Trainer(model, nn.mean_squared_error, nn.Adam(), backend="numpy")
history = trainer.fit(x, x[:, :2], epochs=3)
""",
    "quiet": "quiet = trainer.fit(x, x[:, :2], epochs=1, verbose=0)",
    "print": 'print(history)\nprint("after the table")',
    "summary": "print(trainer.summary())",
    "history": "history",
    "backends": "nn.backends()",
    "plot": "history.plot()",
    "plot and more": "figure = history.plot()\nprint(1)",
    "plot again": "figure",
    "show": "import matplotlib.pyplot as plt\nhistory.plot()\nplt.show()",
    "open": "plt.get_fignums()",
}


@pytest.fixture(scope="module")
def outputs():
    """Return the outputs of each cell, by its name."""
    if os.environ.get("AGNOSTIC_NN_BACKEND", "numpy") != "numpy":
        pytest.skip(
            "the output of a kernel does not depend on the backend: the numpy session "
            "tests it"
        )
    reason = "needs a Jupyter kernel: pip install nbclient ipykernel"
    nbclient = pytest.importorskip("nbclient", reason=reason)
    nbformat = pytest.importorskip("nbformat", reason=reason)
    pytest.importorskip("ipykernel", reason=reason)
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS.values()]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    return {
        name: cell.outputs for name, cell in zip(CELLS, notebook.cells, strict=True)
    }


def streams(outputs):
    return "".join(output.text for output in outputs if output.output_type == "stream")


def test_fit_shows_its_progress_without_ipywidgets_and_without_a_warning(outputs):
    (bars,) = outputs["fit"]  # one output that is updated in place
    assert bars.output_type == "display_data"
    lines = bars.data["text/plain"].splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["epoch", f"{n}/3"] for n in (1, 2, 3)
    ]
    assert all("2/2" in line and "loss" in line for line in lines)


def test_a_quiet_fit_shows_nothing(outputs):
    assert outputs["quiet"] == []


def test_printed_tables_stay_where_they_were_printed(outputs):
    assert [output.output_type for output in outputs["print"]] == ["stream"]
    text = streams(outputs["print"])
    assert "epoch" in text
    assert "loss" in text
    assert text.rstrip().endswith("after the table")
    assert "Dense" in streams(outputs["summary"])


def test_results_display_as_html(outputs):
    (history,) = outputs["history"]
    assert "<table" in history.data["text/html"]
    (table,) = outputs["backends"]
    assert "numpy:cpu" in table.data["text/html"]
    assert "numpy:cpu" in table.data["text/plain"]


@pytest.mark.parametrize("name", ["plot", "plot and more", "plot again", "show"])
def test_a_plot_appears_once(outputs, name):
    images = [
        output
        for output in outputs[name]
        if output.output_type != "stream" and "image/png" in output.data
    ]
    assert len(images) == 1
    (numbers,) = outputs["open"]
    assert numbers.data["text/plain"] == "[]"
