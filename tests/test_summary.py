"""A summary counts every parameter and every byte once, where it belongs."""

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.summary import summarize

HOST = nn.backend("numpy").xp


def summary_of(model, shape, batch_size=10):
    params, state, _ = model.init(nn.random.key(0, xp=HOST), shape, HOST.float32)
    return summarize(model, params, state, shape, "float32", batch_size)


def cells(summary):
    """path, layer's class, output shape, parameters, frozen parameters, bytes kept"""
    return [
        (r.path, r.layer.split("(")[0], r.shape, r.parameters, r.frozen, r.bytes_kept)
        for r in summary.rows
    ]


DENSE = nn.Dense(4)  # of 4: 20 parameters; 10 rows of 4 float32 take 160 bytes
FOUND = [  # model, shape, rows
    (nn.Dense(4), (4,), [("", "Dense", (4,), 20, 0, 160)]),
    (nn.Sequential(), (4,), []),
    (
        nn.Residual(DENSE, shortcut=nn.Dense(4, bias=False)),
        (4,),
        [("0", "Dense", (4,), 20, 0, 160), ("1", "Dense", (4,), 16, 0, 0)],  # the same x
    ),
    (
        nn.Parallel(DENSE, nn.Tanh()),
        (4,),
        [("0", "Dense", (4,), 20, 0, 160), ("1", "Tanh", (4,), 0, 0, 0)],
    ),
    (
        nn.Parallel(DENSE, nn.Softmax(), join="multiply"),  # keeps both y, one of them Softmax too
        (4,),
        [
            ("", "Parallel", (4,), 0, 0, 160),
            ("0", "Dense", (4,), 20, 0, 160),
            ("1", "Softmax", (4,), 0, 0, 160),
        ],
    ),
    (
        nn.Parallel(DENSE, nn.Flatten(), join=None),
        (4,),
        [("0", "Dense", (4,), 20, 0, 160), ("1", "Flatten", (4,), 0, 0, 0)],
    ),
    (
        nn.Repeat(nn.Sequential(DENSE, nn.Tanh()), 3),
        (4,),
        [("0", "Dense", (4,), 60, 0, 480), ("1", "Tanh", (4,), 0, 0, 480)],
    ),
    (
        nn.Sequential(nn.Tanh(), nn.Recompute(nn.Sequential(DENSE, nn.Softmax(), DENSE))),
        (4,),
        [
            ("0", "Tanh", (4,), 0, 0, 160),
            ("1", "Recompute", (4,), 0, 0, 160),
            ("1.0", "Dense", (4,), 20, 0, 0),
            ("1.1", "Softmax", (4,), 0, 0, 0),
            ("1.2", "Dense", (4,), 20, 0, 0),
        ],
    ),
    (
        nn.Repeat(nn.Recompute(nn.Sequential(DENSE, nn.Softmax())), 3),
        (4,),
        [
            ("", "Recompute", (4,), 0, 0, 480),
            ("0", "Dense", (4,), 60, 0, 0),
            ("1", "Softmax", (4,), 0, 0, 0),
        ],
    ),
    (
        nn.Sequential(nn.Freeze(nn.Sequential(DENSE, nn.LayerNorm())), DENSE),
        (4,),
        [
            ("0.0", "Dense", (4,), 0, 20, 160),
            ("0.1", "LayerNorm", (4,), 0, 8, 200),
            ("1", "Dense", (4,), 20, 0, 160),
        ],
    ),
    (
        nn.Graph(
            e=(nn.Embedding(7, 4), "x"),  # ids are int32
            h=(DENSE, "e"),
            again=(nn.Shared("h"), "h"),
            logits=(nn.Shared("e", nn.Unembedding(7)), "again"),
        ),
        (),
        [
            ("e", "Embedding", (4,), 28, 0, 40),
            ("h", "Dense", (4,), 20, 0, 320),
            ("logits", "Unembedding", (7,), 0, 0, 160),
        ],
    ),
    (
        nn.Graph(
            a=(nn.Parallel(DENSE, nn.Dense(2), join=None), "one"),
            b=(nn.Concatenate(), "two", "a.1"),
            both=(nn.Sequential(nn.Dense(3), nn.Softmax()), "b"),
            outputs={"first": "a.0", "last": "both"},
        ),
        {"one": (4,), "two": (3,)},
        [
            ("a.0", "Dense", (4,), 20, 0, 160),
            ("a.1", "Dense", (2,), 10, 0, 0),
            ("b", "Concatenate", (5,), 0, 0, 0),
            ("both.0", "Dense", (3,), 18, 0, 200),
            ("both.1", "Softmax", (3,), 0, 0, 120),
        ],
    ),
]


@pytest.mark.parametrize(("model", "shape", "rows"), FOUND, ids=[str(row[0]) for row in FOUND])
def test_each_layer_stands_where_its_parameters_do_with_what_it_keeps(model, shape, rows):
    assert cells(summary_of(model, shape)) == rows


def test_the_sums_are_those_of_the_whole_model():
    summary = summary_of(FOUND[9][0], (4,))
    assert (summary.parameters, summary.frozen, summary.bytes_kept) == (20, 28, 520)
    text = str(summary)
    assert "frozen" in text
    assert text.splitlines()[-1].split() == ["total", "20", "28", "520"]
    assert "frozen" not in str(summary_of(nn.Dense(3), (4,)))


def test_several_outputs_are_shown_by_name():
    model = nn.Graph(
        a=(nn.Tanh(), "x"), b=(nn.Parallel(DENSE, nn.Tanh(), join=None), "a"), outputs=("a", "b")
    )
    assert [row.shape for row in summary_of(model, (4,)).rows] == [(4,), (4,), (4,)]
    layer = nn.Parallel(DENSE, nn.Softmax(), join=None)
    assert summary_of(nn.Recompute(layer), (4,)).rows[0].shape == ((4,), (4,))


def test_masks_let_everything_through():
    class Looks(nn.MultiHeadAttention):
        def forward(self, params, state, x, *, train=False):
            assert x["mask"].dtype == np.bool_
            assert np.all(x["mask"])
            return super().forward(params, state, x, train=train)

    found = summary_of(Looks(2), {"x": (3, 4), "mask": (3,)})
    assert found.rows[0].shape == (3, 4)


class Widths(nn.Sequential):
    """A block of one's own, made another way than Sequential is."""

    def __init__(self, *widths):
        super().__init__(*(nn.Dense(width) for width in widths))


def test_a_block_with_a_constructor_of_its_own_is_looked_into():
    assert [row.path for row in summary_of(Widths(4, 3), (4,)).rows] == ["0", "1"]
