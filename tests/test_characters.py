"""The character example, in small, memorizes a rhyme and continues prompts from it."""

import importlib.util
import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).parents[1] / "examples" / "characters.py"
RHYME = "one two three four five, once I caught a fish alive. "


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("characters", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def trained(backend, example):
    text = np.frombuffer((RHYME * 7).encode(), np.uint8).astype(np.int32)
    return example.train(
        backend, example.network(width=32, depth=1), text, epochs=6, window=32
    )


def test_a_rhyme_is_memorized_except_for_the_position_where_a_window_begins(trained):
    """Which of 53 positions it is takes 5.7 bits, once per window of 32 characters."""
    _, bits = trained
    assert bits < 2 * math.log2(53) / 32


@pytest.mark.parametrize("prompt", ["one two", "caught a fish"])
def test_it_continues_the_prompt(example, trained, prompt):
    trainer, _ = trained
    written = example.write(trainer, prompt, 32 - len(prompt), temperature=0.05)
    begin = RHYME.index(prompt)
    assert written == (RHYME * 2)[begin : begin + 32]


def test_the_sample_depends_only_on_the_seed(example, trained):
    trainer, _ = trained
    texts = [
        example.write(trainer, "o", 20, temperature=3.0, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_texts_of_one_length_share_the_compiled_functions(
    example, trained, monkeypatch
):
    trainer, _ = trained
    compiled = []
    jit = type(trainer.backend).jit

    def counting(self, function, *args, **kwargs):
        compiled.append(function)
        return jit(self, function, *args, **kwargs)

    monkeypatch.setattr(type(trainer.backend), "jit", counting)
    # a temperature that no other test has
    example.write(trainer, "one", 8, temperature=0.25)
    count = len(compiled)
    example.write(trainer, "two", 8, temperature=0.25)
    assert len(compiled) == count == (1 if trainer.backend.compiles else 2)


def test_the_text_is_the_ascii_part_of_contributing(example):
    text = example.read()
    assert text.dtype == np.int32
    assert "# Contributing" in bytes(text.tolist()).decode("ascii")


def test_an_unknown_backend_ends_it_with_one_clear_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(PATH), "--backend", "nowhere"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(PATH), run_name="__main__")
    assert caught.value.code == 2
    assert (
        "error: no backend is called 'nowhere'"
        in capsys.readouterr().err.splitlines()[-1]
    )
