"""Execute the notebooks in examples/ and write them as pages with their output.

    python tests/notebooks.py docs/notebooks

`nox -s docs` runs this before it builds the site. A cell that raises an exception ends
it. The folder is not part of the repository.
"""

import shutil
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

EXAMPLES = Path(__file__).parents[1] / "examples"


def main(folder: str) -> None:
    """Write one page for each notebook, with its images in a folder next to it."""
    pages = Path(folder)
    shutil.rmtree(pages, ignore_errors=True)
    pages.mkdir(parents=True)
    for path in sorted(EXAMPLES.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        with_output = NotebookClient(notebook, timeout=300).execute()
        for cell in with_output.cells:
            for output in cell.get("outputs", ()):
                html = output.get("data", {}).get("text/html")
                if html:  # a blank line would end the block of HTML in Markdown
                    lines = [line.lstrip() for line in html.splitlines()]
                    output["data"]["text/html"] = "\n".join(filter(None, lines))
        resources = {"unique_key": path.stem, "output_files_dir": f"{path.stem}_files"}
        text, written = MarkdownExporter().from_notebook_node(with_output, resources)
        (pages / f"{path.stem}.md").write_text(text, encoding="utf-8")
        for name, data in written["outputs"].items():
            image = pages / name
            image.parent.mkdir(exist_ok=True)
            image.write_bytes(data)


if __name__ == "__main__":
    main(sys.argv[1])
