"""The page of proofs is compared with what is computed, apart from rounding."""

import os
import re

import accuracy
import proofs
import public_names
import pytest
from faults import campaign
from proofs import MADE_WITH, PAGE, differences, updated

import agnostic_nn as nn
from agnostic_nn.diagnostics.examples import LAYERS, LOSSES

SOUND = PAGE.read_text(encoding="utf-8")
(DENSE,) = (
    line
    for line in SOUND.splitlines()
    if line.startswith("| Dense | ") and "pass" in line
)
ERROR = DENSE.split(" | ")[1]


def edited(number):
    return DENSE, DENSE.replace(ERROR, number)


ALIKE = {
    "the same": ("", ""),
    "another rounding": edited(f"{float(ERROR) * 3:.1e}"),
    "less than noise": ("0.0e+00 | passed", "9.9e-13 | passed"),
    "other versions": (MADE_WITH, f"{MADE_WITH}antique "),
}
UNLIKE = {
    "a larger error": edited("1.1e-10"),
    "no number": edited("nan"),
    "a missing row": (f"{DENSE}\n", ""),
    "a page cut short": (SOUND.splitlines(keepends=True)[-1], ""),
    "a row too many": (DENSE, f"{DENSE}\n{DENSE}"),
    "another verdict": (DENSE, DENSE.replace("passed", "failed")),
    "another name": (DENSE, DENSE.replace("Dense", "Sparse")),
    "a missing column": (DENSE, DENSE.replace(" | passed", "")),
    "a case fewer": ("| Dense | 6 |", "| Dense | 5 |"),
    "other words": ("central difference", "difference"),
}


def test_an_update_of_the_page_changes_only_lines_that_differ():
    noise = SOUND.replace(*edited(f"{float(ERROR) * 3:.1e}"))
    assert updated(SOUND, noise) == SOUND
    worse = noise.replace("| Flatten | ", "| Flatter | ")
    assert updated(SOUND, worse) == SOUND.replace("| Flatten | ", "| Flatter | ")
    assert updated("", SOUND) == SOUND


@pytest.mark.parametrize(("before", "after"), ALIKE.values(), ids=ALIKE)
def test_roundings_and_versions_make_no_difference(before, after):
    assert (
        list(differences(SOUND.replace(before, after) if before else SOUND, SOUND))
        == []
    )


@pytest.mark.parametrize(("before", "after"), UNLIKE.values(), ids=UNLIKE)
def test_anything_else_does(before, after):
    assert before in SOUND
    assert list(differences(SOUND.replace(before, after, 1), SOUND))
    assert list(differences(SOUND, SOUND.replace(before, after, 1)))


def test_every_layer_and_loss_is_on_the_page():
    passed = {
        line.split()[1] for line in SOUND.splitlines() if line.endswith(" | passed |")
    }
    assert passed == {case.name for case in (*LAYERS, *LOSSES)}, (
        "nox -s proofs -- --write"
    )


@pytest.fixture
def write(monkeypatch, tmp_path):
    """The programs that write pages, with pages that cost nothing to make."""
    for module in (proofs, accuracy):
        page = tmp_path / module.PAGE.name
        page.write_text("old", encoding="utf-8")
        monkeypatch.setattr(module, "PAGE", page)
    monkeypatch.setattr(proofs, "BACKENDS", ())
    monkeypatch.setattr(proofs, "checked", lambda: "ε new")
    monkeypatch.setattr(proofs, "torch_rows", list)
    monkeypatch.setattr(proofs, "optimizers", lambda: iter([("", "x")]))
    monkeypatch.setattr(accuracy, "page", lambda: ("ε new", []))
    for name in ("NAMES", "CONFORMANCE"):
        page = tmp_path / "others" / name
        page.parent.mkdir(exist_ok=True)
        page.write_text(getattr(public_names, name).read_text("utf-8"), "utf-8")
        monkeypatch.setattr(public_names, name, page)
    return proofs, accuracy


def test_a_page_is_written_on_demand_only_and_as_a_whole(write, monkeypatch, capsys):
    for module in write:
        folder = module.PAGE.parent
        module.main([])
        with pytest.raises(SystemExit):
            module.main(["--wirte"])
        with monkeypatch.context() as patch:
            # as on a full disk
            patch.setattr(os, "fsync", lambda number: os.lseek(-1, 0, 0))
            with pytest.raises(OSError, match="Bad file descriptor"):
                module.main(["--write"])
        assert module.PAGE.read_text(encoding="utf-8") == "old"
        assert module.main(["--write"]) == 0
        assert "ε new" in module.PAGE.read_text(encoding="utf-8")
        assert len(list(folder.iterdir())) == 3  # no new file is left over


def test_new_names_are_written_where_they_are_listed(write):
    table, page = public_names.NAMES, public_names.CONFORMANCE
    public_names.write()
    before = table.read_text("utf-8"), page.read_text("utf-8")
    public_names.write()
    assert (table.read_text("utf-8"), page.read_text("utf-8")) == before

    for names in ("`Mish`, ", "`hinge`, ", "`Lion`, "):
        assert names in before[0]
    lacking = re.sub("`(Mish|hinge|Lion)`, ", "", before[0])
    table.write_text(lacking, "utf-8")
    page.write_text(before[1].replace("`tanh`, ", ""), "utf-8")
    public_names.write()
    assert page.read_text("utf-8") == before[1]
    text = table.read_text("utf-8")
    assert public_names.missing_names(text) == []
    for name, row in (
        ("Mish", "activations"),
        ("hinge", "classification losses"),
        ("Lion", "optimizers"),
    ):
        assert re.search(rf"^\| {row} \|.*, `{name}`", text, re.MULTILINE)


def test_a_name_without_a_row_is_refused(monkeypatch):
    monkeypatch.setattr(nn, "__all__", ["Dense", "Mish"])
    with pytest.raises(
        SystemExit, match=r"reference/README\.md: add Dense, the first name of"
    ):
        public_names.with_missing_names("| `Mish` |")


def test_a_part_of_the_campaign_is_not_published(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["campaign", "--share=0.1", "--write"])
    with pytest.raises(SystemExit):
        campaign.main()
    assert "--write needs the whole campaign" in capsys.readouterr().err
