"""A summary counts every parameter, byte and operation once, where it belongs."""

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core.trees import leaves
from agnostic_nn.diagnostics.summary import summarize
from agnostic_nn.layers.base import outline

HOST = nn.backend("numpy").xp


def summary_of(model, shape, batch_size=10):
    params, state, _ = model.init(nn.random.key(0, xp=HOST), shape, HOST.float32)
    return summarize(model, params, state, shape, "float32", batch_size)


def cells(summary):
    """Return path, class, output shape, parameters, frozen ones and bytes saved."""
    rows = []
    for row in summary.rows:
        layer = row.layer.partition("(")[0]
        counts = row.parameters, row.frozen, row.bytes_kept
        rows.append((row.path, layer, row.shape, *counts))
    return rows


DENSE = nn.Dense(4)  # of 4: 20 parameters; 10 rows of 4 float32 take 160 bytes
ROWS = [  # model, shape, rows
    (nn.Dense(4), (4,), [("", "Dense", (4,), 20, 0, 160)]),
    (nn.Sequential(), (4,), []),
    (
        nn.Residual(DENSE, shortcut=nn.Dense(4, bias=False)),
        (4,),
        [
            ("", "Residual", (4,), 0, 0, 0),
            ("0", "Dense", (4,), 20, 0, 160),
            ("1", "Dense", (4,), 16, 0, 0),  # the same x
        ],
    ),
    (
        nn.Parallel(DENSE, nn.Tanh()),
        (4,),
        [
            ("", "Parallel", (4,), 0, 0, 0),
            ("0", "Dense", (4,), 20, 0, 160),
            ("1", "Tanh", (4,), 0, 0, 0),
        ],
    ),
    (
        # saves both y; one of them is also saved by Softmax
        nn.Parallel(DENSE, nn.Softmax(), join="multiply"),
        (4,),
        [
            ("", "Parallel", (4,), 0, 0, 160),
            ("0", "Dense", (4,), 20, 0, 160),
            ("1", "Softmax", (4,), 0, 0, 160),
        ],
    ),
    (
        nn.Repeat(nn.Sequential(DENSE, nn.Tanh()), 3),
        (4,),
        [
            ("", "Repeat", (4,), 0, 0, 0),
            ("0", "Dense", (4,), 60, 0, 480),
            ("1", "Tanh", (4,), 0, 0, 480),
        ],
    ),
    (
        nn.Sequential(
            nn.Tanh(), nn.Recompute(nn.Sequential(DENSE, nn.Softmax(), DENSE))
        ),
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
            ("", "Repeat", (4,), 0, 0, 0),
            ("", "Recompute", (4,), 0, 0, 480),
            ("0", "Dense", (4,), 60, 0, 0),
            ("1", "Softmax", (4,), 0, 0, 0),
        ],
    ),
    (
        nn.Sequential(nn.Freeze(nn.Sequential(DENSE, nn.LayerNorm())), DENSE),
        (4,),
        [
            ("0", "Freeze", (4,), 0, 0, 0),
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
            ("", "Graph", (7,), 0, 0, 0),
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
            ("a", "Parallel", ((4,), (2,)), 0, 0, 0),
            ("a.0", "Dense", (4,), 20, 0, 160),
            ("a.1", "Dense", (2,), 10, 0, 0),
            ("b", "Concatenate", (5,), 0, 0, 0),
            ("both", "Sequential", (3,), 0, 0, 0),
            ("both.0", "Dense", (3,), 18, 0, 200),
            ("both.1", "Softmax", (3,), 0, 0, 120),
        ],
    ),
]


@pytest.mark.parametrize(
    ("model", "shape", "rows"), ROWS, ids=[str(row[0]) for row in ROWS]
)
def test_each_layer_has_a_row_with_its_parameters_and_the_bytes_that_it_saves(
    model, shape, rows
):
    assert cells(summary_of(model, shape)) == rows


def saved_by_numpy(model, shape):
    """Return the bytes of the arrays in a cache, without parameters and state."""
    params, state, _ = model.init(nn.random.key(0, xp=HOST), shape, HOST.float32)
    x = np.zeros((10, *shape), "float32")
    _, _, cache = model.forward(params, state, x, train=True)

    def memory(array):
        while isinstance(array.base, np.ndarray):
            array = array.base
        return array

    constant = {id(memory(leaf)) for leaf in leaves((params, state))}
    result = {id(memory(leaf)): memory(leaf) for leaf in leaves(cache)}
    return sum(leaf.nbytes for name, leaf in result.items() if name not in constant)


SAVING = [
    (
        nn.Sequential(nn.Conv2D(4, 3), nn.BatchNorm(), nn.ReLU(), nn.AveragePool2D(2)),
        (8, 8, 2),
    ),
    (
        nn.Sequential(
            nn.Dense(16), nn.Dropout(0.5), nn.GELU(), nn.LayerNorm(), nn.Dense(2)
        ),
        (8,),
    ),
    (nn.Sequential(nn.GRU(8), nn.RNN(4, sequence=False), nn.Softmax()), (6, 3)),
    (nn.Repeat(nn.Residual(nn.LayerNorm(), nn.Dense(8), nn.Tanh()), 3), (8,)),
    (nn.MultiHeadAttention(4, causal=True), (64, 8)),
    (nn.MultiHeadAttention(2), (5, 4)),  # few scores, which are all saved
    (nn.LSTM(8, depth=2, bidirectional=True), (6, 3)),
    (nn.LSTM(4, sequence=False), (5, 2)),
    (nn.MaxPool2D(2), (4, 6, 3)),  # windows that do not overlap, then some that do
    (nn.MaxPool2D(3, 2, padding="same"), (5, 7, 3)),
    (nn.MaxPool2D(17), (17, 17, 1)),
]


@pytest.mark.parametrize(
    ("model", "shape"), SAVING, ids=[str(row[0]) for row in SAVING]
)
def test_the_bytes_saved_are_those_of_numpy(model, shape):
    summary = summary_of(model, shape)
    assert summary.bytes_kept == saved_by_numpy(model, shape)
    assert "Bytes saved for backward are those of NumPy" in str(summary)


def flops(summary):
    """Return path, operations forward and operations backward of each row."""
    return [(r.path, r.flops_forward, r.flops_backward) for r in summary.rows]


# Dense from 4 to 4 for 10 rows: a product is 320, a bias 40. Backward has a bias and
# two products, or one in a first layer. Softmax has max, -, exp, sum and /; backward
# has a product, a sum, - and a product.
OPERATIONS = [
    (DENSE, [("", 360, 360)]),
    (
        nn.Sequential(DENSE, nn.Softmax(), DENSE),
        [("0", 360, 360), ("1", 200, 160), ("2", 360, 680)],
    ),
    (
        nn.Sequential(DENSE, nn.Recompute(nn.Sequential(DENSE, nn.Softmax()))),
        [
            ("0", 360, 360),
            ("1", 0, 0),
            ("1.0", 360, 680 + 360),
            ("1.1", 200, 160 + 200),
        ],
    ),
    (
        nn.Repeat(nn.Residual(DENSE), 3),
        [("", 0, 0), ("", 3 * 40, 3 * 40), ("0", 3 * 360, 3 * 680)],
    ),
    (
        nn.Sequential(nn.Freeze(DENSE), DENSE),
        [("0", 0, 0), ("0", 360, 0), ("1", 360, 360)],
    ),
    (
        nn.Graph(h=(DENSE, "x"), y=(nn.Shared("h"), "h")),
        [("", 0, 20), ("h", 2 * 360, 2 * 680)],  # two gradients of 20 parameters add up
    ),
]


@pytest.mark.parametrize(
    ("model", "rows"), OPERATIONS, ids=[str(row[0]) for row in OPERATIONS]
)
def test_operations_count_for_the_layer_that_calls_them(model, rows):
    summary = summary_of(model, (4,))
    assert flops(summary) == rows
    assert summary.flops_forward == sum(row[1] for row in rows)
    assert summary.flops_backward == sum(row[2] for row in rows)


FREED = [  # model; for each row the bytes freed by recomputing, extra operations
    # both save their x
    (nn.Sequential(DENSE, nn.Tanh()), [(0, 360), (0, 40)]),
    (nn.Sequential(DENSE, nn.Softmax(), DENSE), [(0, 360), (0, 200), (0, 360)]),
    # y or x, which is as much
    (nn.Sequential(DENSE, nn.Softmax()), [(0, 360), (0, 200)]),
    (nn.Residual(DENSE, nn.Tanh(), DENSE), [(320, 800), (0, 360), (0, 40), (0, 360)]),
    (  # x is freed as well; y of Softmax is saved by Softmax and by the last layer
        nn.Parallel(DENSE, nn.Sequential(nn.Softmax(), DENSE)),
        [(160, 960), (0, 360), (160, 560), (0, 200), (0, 360)],
    ),
    (  # of three x and three y, one x remains
        nn.Repeat(nn.Sequential(DENSE, nn.Tanh()), 3),
        [(800, 1200), (0, 1080), (0, 120)],
    ),
    (
        nn.Sequential(DENSE, nn.Recompute(nn.Residual(DENSE, nn.Tanh()))),
        [(0, 360), (0, 440)],
    ),
]


@pytest.mark.parametrize(("model", "rows"), FREED, ids=[str(row[0]) for row in FREED])
def test_recompute_frees_the_predicted_bytes(model, rows):
    result = summary_of(model, (4,))
    report = [(row.recompute_saves, row.recompute_flops) for row in result.rows]
    assert report[: len(rows)] == rows
    again = summary_of(nn.Recompute(model), (4,))
    whole = isinstance(model, nn.Residual | nn.Repeat)
    if whole:
        assert result.bytes_kept - again.bytes_kept == rows[0][0]
        assert again.flops_backward - result.flops_backward >= rows[0][1]


def test_a_transformer_block_has_rows_for_its_layers():
    block = nn.TransformerBlock(nn.MultiHeadAttention(2, causal=True), 8, dropout=0.1)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Repeat(block, 3), nn.Dense(9))
    result = summary_of(model, (5,))
    assert [(row.depth, row.path, row.layer) for row in result.rows] == [
        (0, "0", "Embedding(num_embeddings=9, width=4)"),
        (0, "1", "Repeat(count=3)"),
        (1, "1", "TransformerBlock(hidden=8, dropout=0.1)"),
        (2, "1.attention_norm", "LayerNorm()"),
        (2, "1.attention", "MultiHeadAttention(heads=2, causal=True)"),
        (2, "1.attention_dropout", "Dropout(rate=0.1)"),
        (2, "1.feed_norm", "LayerNorm()"),
        (2, "1.feed", "Sequential"),
        (3, "1.feed.0", "Dense(width=8)"),
        (3, "1.feed.1", "GELU()"),
        (3, "1.feed.2", "Dense(width=4)"),
        (2, "1.feed_dropout", "Dropout(rate=0.1)"),
        (0, "2", "Dense(width=9)"),
    ]
    params, _, _ = model.init(nn.random.key(0, xp=HOST), (5,), HOST.float32)
    assert result.parameters == sum(leaf.size for leaf in leaves(params))
    assert "\u00a0\u00a0\u00a0\u00a0LayerNorm()" in result.to_text(verbose=True)


def test_a_transformer_block_mapped_to_its_own_layers_is_the_same():
    block = nn.TransformerBlock(nn.MultiHeadAttention(2), 8)
    names = []
    same = block.map_layers(lambda name, layer: names.append(name) or layer)
    x = np.random.default_rng(0).standard_normal((2, 5, 4)).astype("float32")
    params, state, _ = block.init(nn.random.key(0, xp=HOST), (5, 4), HOST.float32)
    y, _, cache = block.forward(params, state, x)
    same_y, _, same_cache = same.forward(params, state, x)
    np.testing.assert_array_equal(y, same_y)
    dx, _ = block.backward(params, cache, y)
    np.testing.assert_array_equal(dx, same.backward(params, same_cache, y)[0])
    assert names == ["attention", "attention_norm", "feed", "feed_norm"]  # once each
    assert same == block


OUTLINES = [
    (nn.Dense(3), "Dense(width=3)"),
    (nn.Dense(3, bias=False), "Dense(width=3, bias=False)"),
    (nn.Conv1D(3, 2, stride=2), "Conv1D(width=3, window=(2,), stride=(2,))"),
    (nn.Softmax(), "Softmax()"),
    (nn.Lambda(abs), "Lambda(abs)"),
]


@pytest.mark.parametrize(("layer", "text"), OUTLINES, ids=[row[1] for row in OUTLINES])
def test_outlines_leave_out_defaults(layer, text):
    assert outline(layer) == text


def test_totals_are_those_of_the_whole_model():
    summary = summary_of(ROWS[8][0], (4,))
    assert (summary.parameters, summary.frozen, summary.bytes_kept) == (20, 28, 520)
    text = str(summary)
    assert "frozen" in text
    last = ["total", "20", "28", "1,040", "360", "520"]
    assert last in [line.split() for line in text.splitlines()]
    assert "frozen" not in str(summary_of(nn.Dense(3), (4,)))


def test_columns_about_recomputation_are_shown_if_it_frees_bytes():
    dense = str(summary_of(DENSE, (4,)))
    assert "Recompute" not in dense
    lines = [line.split() for line in dense.splitlines()]
    assert ["total", "20", "360", "360", "160"] in lines
    residual = nn.Residual(DENSE, nn.Tanh(), DENSE)
    assert "Recompute: bytes freed" in str(summary_of(residual, (4,)))
    cells = [line.split() for line in str(summary_of(residual, (4,))).splitlines()]
    assert ["320", "800"] in [words[-2:] for words in cells]


def test_several_outputs_are_shown_by_name():
    model = nn.Graph(
        a=(nn.Tanh(), "x"),
        b=(nn.Parallel(DENSE, nn.Tanh(), join=None), "a"),
        outputs=("a", "b"),
    )
    shapes = {row.path: row.shape for row in summary_of(model, (4,)).rows}
    assert (shapes["a"], shapes["b.0"], shapes["b.1"]) == ((4,), (4,), (4,))
    layer = nn.Parallel(DENSE, nn.Softmax(), join=None)
    assert summary_of(nn.Recompute(layer), (4,)).rows[0].shape == ((4,), (4,))


def test_masks_are_boolean():
    class Looks(nn.MultiHeadAttention):
        def forward(self, params, state, x, *, train=False):
            assert x["mask"].dtype == np.bool_
            return super().forward(params, state, x, train=train)

    result = summary_of(Looks(2), {"x": (3, 4), "mask": (3,)})
    assert result.rows[0].shape == (3, 4)


class Widths(nn.Sequential):
    """A custom block, constructed in another way than Sequential."""

    def __init__(self, *widths):
        super().__init__(*(nn.Dense(width) for width in widths))


def test_a_block_with_another_constructor_has_rows_for_its_layers():
    assert [row.path for row in summary_of(Widths(4, 3), (4,)).rows] == ["0", "1"]


def test_a_huge_model_is_summarized_without_computing():
    model = nn.Sequential(nn.Dense(10**6), nn.ReLU(), nn.Dense(1))

    def large(*shape):
        return np.broadcast_to(np.float32(0), shape)

    params = (
        {"weight": large(10**6, 10**6), "bias": large(10**6)},
        {},
        {"weight": large(10**6, 1), "bias": large(1)},
    )
    result = summarize(model, params, ({}, {}, {}), (10**6,), "float32", 10**6)
    assert result.parameters == 10**12 + 2 * 10**6 + 1
    assert result.rows[0].flops_forward == 2 * 10**18 + 10**12


def test_the_memory_of_training_is_printed_below_the_table(backend):
    arguments = DENSE, nn.mean_squared_error, nn.Adam()
    trainer = nn.Trainer(*arguments, backend=backend, shape=(4,))
    summary = trainer.summary(10)
    # at least x, y, target and dy; parameters, m and v, before and after; gradients
    assert summary.bytes_of_training > 4 * 160 + 7 * 80
    assert f"on NumPy: {summary.bytes_of_training:,} bytes." in str(summary)
    assert trainer.summary(1000).bytes_of_training > 10 * summary.bytes_of_training


def test_an_error_names_the_layer():
    class Summed(nn.Layer):
        def forward(self, params, state, x, *, train=False):
            return x / x.sum(), state, ()

    model = nn.Sequential(nn.Dense(3), nn.Residual(Summed()))
    trainer = nn.Trainer(
        model, nn.mean_squared_error, nn.SGD(0.1), backend="numpy", shape=(3,)
    )
    with pytest.raises(AttributeError, match="has no sum") as raised:
        trainer.summary()
    assert raised.value.__notes__ == ["in 1.0, Summed()"]
