"""One trainer takes batches of different lengths, where the model does not fix them."""

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.training import checkpoint, checkpoint_fields

MODEL = nn.Sequential(nn.Dense(2), nn.Tanh(), nn.GlobalAveragePool())


def trainer(backend, model=MODEL, **options):
    options = {"metrics": {}, "backend": backend} | options  # fewer to compile
    optimizer = nn.SGD(0.1, momentum=0.9)
    return nn.Trainer(model, nn.softmax_cross_entropy, optimizer, **options)


def batches(*lengths, rows=4, width=3):
    generator = np.random.default_rng(len(lengths))

    def batch(length):
        x = generator.standard_normal((rows, length, width)).astype("float32")
        return x, generator.integers(0, 2, rows)

    return [batch(length) for length in lengths]


def arrays_of(trainer):
    tree = trainer.backend.to_numpy((trainer.params, trainer.state, trainer.moments))
    return list(nn.core.trees.leaves(tree))


def assert_same_bits(one, other):
    for a, b in zip(arrays_of(one), arrays_of(other), strict=True):
        assert a.tobytes() == b.tobytes()


def test_many_lengths_train_as_each_batch_in_a_program_of_its_length(backend):
    """Bit for bit: a trainer that `to` returns has no program of an earlier batch."""
    data = batches(3, 5, 3)
    together = trainer(backend, shape=(None, 3))
    history = together.fit(batches=data, epochs=1, verbose=0)
    apart = trainer(backend, shape=(None, 3))
    losses = []
    for batch in data:
        apart = apart.to(backend)
        losses.append(apart.fit(batches=[batch], verbose=0).epochs[0]["loss"])
    assert_same_bits(together, apart)
    assert history.epochs[0]["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    numpy = trainer("numpy", shape=(None, 3))
    numpy.fit(batches=data, verbose=0)
    for a, b in zip(arrays_of(together), arrays_of(numpy), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_a_short_batch_is_filled_up_to_others_of_its_length_only(backend):
    """Filling up 3 sequences to the 8 of a batch of shorter ones would cost time."""
    (long, labels), *_ = batches(5, rows=3)
    data = [*batches(3, 3, rows=8), (long, labels), (long[:2], labels[:2])]
    learner = trainer(backend)
    learner.fit(batches=data, verbose=0)
    assert sorted(learner._longest_batches.values()) == [3, 8]
    alone = trainer(backend)
    for x, target in data:
        alone.step(x, target)
    for a, b in zip(arrays_of(learner), arrays_of(alone), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_predict_and_evaluate_take_other_lengths_than_training(backend):
    learner = trainer(backend)
    learner.step(*batches(4)[0])
    (x, labels), *_ = batches(6)
    y = learner.predict(x)
    # the model is a mean over steps, so that the sequence may come twice
    np.testing.assert_allclose(
        learner.predict(np.concatenate([x, x], axis=1)), y, atol=1e-6
    )
    value, _ = nn.softmax_cross_entropy(y, labels.astype("int32"))
    assert learner.evaluate(x, labels)["loss"] == pytest.approx(float(value), rel=1e-5)
    assert learner.shape == (4, 3), "that of the first data"


def test_training_continues_from_a_file_in_the_middle_of_batches(backend, tmp_path):
    data = batches(3, 5, 3, 5)
    data[2] = tuple(part[:2] for part in data[2])  # filled up as before the file
    whole = trainer(backend, shape=(None, 3))
    whole.fit(batches=data, verbose=0)
    first = trainer(backend, shape=(None, 3))
    first.fit(batches=data, steps=2, verbose=0)
    first.save(tmp_path / "first.safetensors")
    loaded = nn.Trainer.load(tmp_path / "first.safetensors", backend)
    assert loaded.shape == (None, 3)
    loaded.fit(batches=data, verbose=0)
    assert (loaded.epoch, loaded.steps) == (1, 4)
    assert_same_bits(whole, loaded)
    assert loaded._longest_batches == whole._longest_batches


# --- which lengths a model takes ------------------------------------------------------

FIXED = nn.Sequential(nn.Flatten(), nn.Dense(2))


def test_a_length_that_the_parameters_depend_on_is_fixed():
    learner = trainer("numpy", FIXED)
    (x, labels), *_ = batches(5)
    learner.step(x, labels)
    message = (
        r"the model takes x of shape \(examples, 5, 3\), got \(4, 6, 3\): with that, "
        r"1\.weight would be \(18, 2\) instead of \(15, 2\)"
    )
    (longer, labels), *_ = batches(6)
    for call in (learner.step, learner.evaluate, learner.fit):
        with pytest.raises(ValueError, match=message):
            call(longer, labels)
    with pytest.raises(ValueError, match=message):
        learner.predict(longer)
    (wider, labels), *_ = batches(5, width=4)
    with pytest.raises(ValueError, match=r"\(20, 2\) instead of \(15, 2\)"):
        learner.step(wider, labels)


def test_a_layer_says_why_it_takes_no_longer_sequence():
    model = nn.Sequential(nn.PositionEmbedding(5), nn.GlobalAveragePool(), nn.Dense(2))
    learner = trainer("numpy", model)
    learner.step(*batches(4)[0])
    learner.step(*batches(5)[0])
    with pytest.raises(ValueError, match=r"got \(4, 6, 3\): there are 5 positions, go"):
        learner.step(*batches(6)[0])


def test_a_shape_that_the_user_chose_holds():
    learner = trainer("numpy", shape=(4, 3))
    learner.step(*batches(4)[0])
    with pytest.raises(ValueError, match=r"\(examples, 4, 3\), got \(4, 5, 3\)$"):
        learner.step(*batches(5)[0])
    learner = trainer("numpy", shape=(None, 3))
    for length in (4, 5):
        learner.step(*batches(length)[0])
    with pytest.raises(ValueError, match=r"\(examples, None, 3\), got \(4, 5, 4\)$"):
        learner.step(*batches(5, width=4)[0])


def test_the_number_of_axes_is_that_of_the_first_data():
    """`Dense` takes any number of axes, and yet one more is probably a mistake."""
    learner = trainer("numpy", nn.Dense(2))
    learner.build((3,))
    with pytest.raises(ValueError, match=r"\(examples, 3\), got \(4, 5, 3\)$"):
        learner.predict(batches(5)[0][0])
    learner = nn.Trainer(nn.Dense(2), nn.mean_squared_error, nn.SGD(0.1))
    learner.step(np.zeros((2, 3), "float32"), np.zeros((2, 2), "float32"))
    with pytest.raises(ValueError, match=r"x\[None\], of shape \(1, 3\)"):
        learner.predict(np.zeros(3, "float32"))


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (FIXED, (None, 3), r"1\.weight would be \(384, 2\) instead of \(192, 2\) for"),
        (MODEL, (5, None), r"0\.weight would be \(128, 2\) instead of \(64, 2\) for"),
        (nn.PositionEmbedding(1), (None, 3), "the model takes one. Give the lengths"),
        (nn.Reshape((2, 11)), (None,), "the model takes none. Give the lengths"),
        (MODEL, (-1, 3), "integer of at least 0, got -1"),
    ],
)
def test_a_shape_is_free_only_where_the_model_is(model, shape, message):
    with pytest.raises(ValueError, match=message):
        trainer("numpy", model, shape=shape)


def test_inputs_with_names_have_lengths_that_agree():
    model = nn.Graph(
        mean=(nn.MaskedAveragePool(), {"x": "x", "mask": "mask"}),
        y=(nn.Dense(2), "mean"),
    )
    shape = {"x": (None, 3), "mask": (None,)}
    learner = trainer("numpy", model, shape=shape)
    assert (learner.shape, learner.out_shape) == (shape, (2,))
    for length in (4, 6):
        x, labels = batches(length)[0]
        mask = np.ones((4, length), bool)
        learner.step({"x": x, "mask": mask}, labels)
    with pytest.raises(ValueError, match=r"x\.mask of shape \(examples, None\), got"):
        learner.step({"x": x, "mask": mask[..., None]}, labels)
    with pytest.raises(ValueError, match="the model takes x"):
        learner.step({"x": x, "mask": mask[:, 1:]}, labels)


def test_lengths_of_outputs_follow_those_of_inputs():
    model = nn.Sequential(nn.Conv1D(2, 3), nn.Flatten())
    learner = nn.Trainer(
        model, nn.mean_squared_error, nn.SGD(0.1), backend="numpy", shape=(None, 3)
    )
    assert learner.out_shape == (None,)
    x, _ = batches(5)[0]
    count = learner.predict(x).shape[1]
    learner.step(x, np.zeros((4, count), "float32"))
    with pytest.raises(ValueError, match=rf"expected targets \(batch, {count}\)"):
        learner.step(x, np.zeros((4, count + 1), "float32"))


class NeedsNumbers(nn.Dense):
    """A layer whose `init` looks at numbers, so that it needs real arrays."""

    def init(self, key, shape, dtype):
        params, state, shape = super().init(key, shape, dtype)
        assert float(nn.core.arrays.namespace(key).sum(params["weight"])) != 0
        return params, state, shape


def test_a_custom_layer_that_needs_real_arrays_has_lengths_too():
    model = nn.Sequential(NeedsNumbers(4), nn.GlobalAveragePool(), nn.Dense(2))
    learner = trainer("numpy", model)
    for length in (4, 5):
        learner.step(*batches(length)[0])
    with pytest.raises(ValueError, match=r"0\.weight would be \(2, 4\) instead"):
        learner.step(*batches(5, width=2)[0])


def test_a_file_tells_which_lengths_may_differ(tmp_path):
    path = tmp_path / "first.safetensors"
    learner = trainer("numpy")
    learner.step(*batches(4)[0])
    learner.save(path)
    assert nn.Trainer.load(path).predict(batches(7)[0][0]).shape == (4, 2)
    with checkpoint.opened(path) as file:
        fields = dict(file.description)
    del fields["limits"]  # a file from before lengths could differ
    assert checkpoint_fields._saved(fields).limits == (4, 3)
    for wrong in ([4], [None, 2], [4.0, 3], {"x": [4, 3]}, "43", [[None], 3]):
        with pytest.raises(ValueError, match="expected"):
            checkpoint_fields._saved(fields | {"limits": wrong})
    for wrong in ([], {"x": -1}, {"x": True}, {"x": None}):
        with pytest.raises(ValueError, match="expected"):
            checkpoint_fields._saved(fields | {"longest": wrong})
