"""The example that writes: in small it learns a rhyme by heart and goes on where it is begun."""

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
def learned(backend, example):
    text = np.frombuffer((RHYME * 7).encode(), np.uint8).astype(np.int32)
    return example.train(
        backend, example.network(width=32, depth=1), text, epochs=6, window=32
    )


def test_a_rhyme_is_known_by_heart_but_for_where_it_begins(learned):
    """Which of 53 places it is takes 5.7 bits to tell, once in a window of 32 characters."""
    _, bits = learned
    assert bits < 2 * math.log2(53) / 32


@pytest.mark.parametrize("prompt", ["one two", "caught a fish"])
def test_it_goes_on_where_the_prompt_ends(example, learned, prompt):
    trainer, _ = learned
    written = example.write(trainer, prompt, 32 - len(prompt), temperature=0.05)
    begin = RHYME.index(prompt)
    assert written == (RHYME * 2)[begin : begin + 32]


def test_what_is_drawn_depends_on_the_seed_and_nothing_else(example, learned):
    trainer, _ = learned
    texts = [
        example.write(trainer, "o", 20, temperature=3.0, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_texts_of_one_length_share_one_compiled_step(example, learned, monkeypatch):
    trainer, _ = learned
    example.decoding_step.cache_clear()
    compiled = []
    jit = type(trainer.backend).jit

    def counting(self, function, *args, **kwargs):
        compiled.append(function)
        return jit(self, function, *args, **kwargs)

    monkeypatch.setattr(type(trainer.backend), "jit", counting)
    for prompt in ("one", "two"):
        example.write(trainer, prompt, 8)
    assert len(compiled) == 1


def test_the_readme_is_read_as_it_stands_but_for_what_is_not_ascii(example):
    text = example.read()
    assert text.dtype == np.int32
    assert "# agnostic_nn\n\nNeural networks with hand-derived" in bytes(
        text.tolist()
    ).decode("ascii")


def test_an_unknown_backend_ends_it_with_one_clear_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(PATH), "--backend", "nowhere"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(PATH), run_name="__main__")
    assert ended.value.code == 2
    assert (
        "error: no backend is called 'nowhere'"
        in capsys.readouterr().err.splitlines()[-1]
    )
