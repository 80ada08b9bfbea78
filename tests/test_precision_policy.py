"""Trainers in half precision: `dtype=`, `precision=`, and the scale of the loss."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core.arrays import namespace
from agnostic_nn.core.precisions import HALVES, epsilon
from agnostic_nn.core.trees import leaves, named_leaves, tree_map
from agnostic_nn.diagnostics.representable import nearest
from agnostic_nn.training import checkpoint
from agnostic_nn.training.precision_policy import PrecisionPolicy
from agnostic_nn.training.steps import make_loop, make_step_with_terms

PURE = [(dtype, None) for dtype in HALVES]
MIXED = [("float32", f"mixed_{dtype}") for dtype in HALVES]
MODEL = nn.Sequential(nn.Dense(8), nn.BatchNorm(), nn.Tanh(), nn.Dense(2))
X = np.random.default_rng(0).standard_normal((70, 4)).astype("float32")
LABELS = (X[:, 0] > 0).astype("int64")


def half_of(dtype, precision):
    return dtype if precision is None else precision.removeprefix("mixed_")


@pytest.fixture(params=[*PURE, *MIXED], ids=lambda pair: pair[1] or pair[0])
def policy(request, backend, thorough):
    """Return the arguments of a trainer in half precision, if the backend has it."""
    dtype, precision = request.param
    if not thorough and request.param not in (PURE[1], MIXED[0]):
        pytest.skip("a pure and a mixed one, where each is compiled")
    half = half_of(dtype, precision)
    if not backend.has_dtype(half):
        pytest.skip(backend.lacks_dtype(half))
    return {"dtype": dtype, "precision": precision}


@pytest.fixture
def float16(backend):
    if not backend.has_dtype("float16"):
        pytest.skip(backend.lacks_dtype("float16"))
    return {"precision": "mixed_float16"}


def make(
    backend, optimizer=None, model=MODEL, loss=nn.softmax_cross_entropy, **options
):
    optimizer = optimizer or nn.SGD(0.1, momentum=0.9)
    return nn.Trainer(model, loss, optimizer, backend=backend, seed=3, **options)


def arrays(trainer):
    """Return all arrays of a trainer on the host, by name."""
    carry = trainer.params, trainer.state, trainer.moments
    return dict(named_leaves(trainer.backend.to_numpy(carry)))


def expect_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, leaf in expected.items():
        np.testing.assert_array_equal(actual[name], leaf, name)


def bits(leaf):
    xp = namespace(leaf)
    is_real = xp.isdtype(leaf.dtype, "real floating")
    return int(xp.finfo(leaf.dtype).bits) if is_real else 0


# --- training -------------------------------------------------------------------------


def test_training_in_half_precision_ends_like_float32(backend, policy, tmp_path):
    """It is also resumed in the middle of an epoch, and moved, bit for bit."""
    trainer = make(backend, **policy)
    trainer.fit(X, LABELS, batch_size=16, epochs=6, steps=27, verbose=0)
    trainer.save(tmp_path / "half")
    resumed = nn.Trainer.load(tmp_path / "half", backend)
    for each in (trainer, resumed):
        each.fit(X, LABELS, batch_size=16, epochs=2, verbose=0)
    expect_same(arrays(resumed), arrays(trainer))

    expected = {0, 32} if policy["precision"] else {0, 16}
    carry = trainer.params, trainer.state, trainer.moments
    assert {bits(leaf) for leaf in leaves(carry)} == expected
    wide = make("numpy")
    wide.fit(X, LABELS, batch_size=16, epochs=7, verbose=0)
    results = trainer.evaluate(X, LABELS)
    reference = wide.evaluate(X, LABELS)
    assert abs(results["loss"] - reference["loss"]) < 0.02
    y = trainer.predict(X)
    assert y.dtype == "float32"
    half = half_of(**policy)
    error = np.linalg.norm(y - wide.predict(X)) / np.linalg.norm(wide.predict(X))
    assert 0.0 < error < 16 * epsilon(half)


def test_weights_are_those_of_float32_rounded(backend, policy):
    half = make(backend, shape=(4,), **policy)
    wide = make(backend, shape=(4,))
    pairs = zip(arrays(half).items(), arrays(wide).items(), strict=False)
    for (_, leaf), (name, expected) in pairs:
        if not name.startswith("0.") or expected.dtype.kind != "f":
            continue
        allowed = 0.0 if policy["precision"] else epsilon(policy["dtype"])
        assert np.all(abs(leaf - expected) <= allowed * abs(expected)), name


@pytest.mark.parametrize(
    "optimizer",
    [
        nn.Average(nn.Adam(nn.schedules.Cosine(1e-2, 100)), decay=0.9),
        nn.ClipByGlobalNorm(nn.Scaled(nn.Accumulate(nn.AdamW(3e-2), 2))),
    ],
    ids=["average", "accumulate"],
)
def test_wrapped_optimizers_take_finite_steps(backend, policy, optimizer, thorough):
    if not thorough:
        pytest.skip("one program for each optimizer")
    trainer = make(backend, optimizer, **policy)
    trainer.fit(X, LABELS, batch_size=16, epochs=4, verbose=0, callbacks=[nn.RateLog()])
    has_average = isinstance(optimizer, nn.Average)
    result = trainer.evaluate(X, LABELS, averaged=has_average)
    assert result["loss"] < 0.6
    assert 0 < trainer.rate <= 3e-2
    assert trainer.summary().bytes_of_training > 0
    assert str(policy["precision"] or policy["dtype"]) in str(trainer)


def test_an_update_in_half_precision_is_rounded_once(backend, policy):
    if policy["precision"] is not None:
        pytest.skip("the parameters are float32")
    dtype = policy["dtype"]
    optimizer = PrecisionPolicy(**policy).optimizer(nn.Adam(0.1))
    generator = np.random.default_rng(0)
    p, g, m = (nearest(generator.standard_normal(500), dtype) for _ in range(3))
    moments = {"step": np.asarray(2, "int32"), "m": {"w": m}, "v": {"w": abs(m)}}
    expected, _ = nn.Adam(0.1).update({"w": p}, {"w": g}, moments)

    scale = 1.0
    if dtype == "float16":
        scale = 4.0
        counts = {"loss_scale": np.asarray(4, "int32"), "taken": np.asarray(0, "int32")}
        moments = counts | {"inner": moments}
    half = PrecisionPolicy(**policy).arrays(backend)
    arrays = {"w": p}, {"w": scale * g}, moments
    arrays = tree_map(lambda a: a.astype("float32") if a.ndim else a, arrays)
    new, _ = optimizer.update(*half.asarray(arrays))
    assert new["w"].dtype == getattr(backend.xp, dtype)
    is_same = half.to_numpy(new)["w"] == nearest(expected["w"], dtype)
    assert np.mean(is_same) > 0.99  # float32 may round the other way near a tie


def test_a_schedule_counts_steps_that_the_dtype_cannot_hold(backend, policy):
    """A step above 2¹⁶ would be infinite in float16."""
    if policy["precision"] is not None:
        pytest.skip("the parameters are float32")
    rates = nn.schedules.Linear(1.0, 1e-2, steps=200_000)
    model = nn.Dense(1, bias=False)
    trainer = make(backend, nn.SGD(rates), model, nn.mean_squared_error, **policy)
    trainer.build((1,))
    moments = dict(trainer.moments)
    own = moments.get("inner", moments)
    xp = backend.xp
    own = own | {"step": xp.full_like(own["step"], 100_000)}
    trainer.moments = moments | {"inner": own} if "inner" in moments else own
    assert abs(trainer.rate - 0.505) < 1e-4
    w = backend.to_numpy(trainer.params["weight"]).item()
    x = np.asarray([[0.5]], "float32")
    trainer.step(x, np.zeros((1, 1), "float32"))
    moved = backend.to_numpy(trainer.params["weight"]).item()
    expected = w - 0.505 * 2 * 0.5 * w * 0.5
    assert abs(moved - expected) < 3 * epsilon(policy["dtype"]) * abs(w)
    assert moved != w


def test_data_may_have_16_bits(backend, policy):
    trainer = make(backend, nn.SGD(0.1), shape=(4,), **policy)
    narrow = X.astype("float16")
    assert trainer.examples(narrow, LABELS)[:].x.dtype == "float32"
    on_device = backend.xp.astype(
        backend.asarray(X), getattr(backend.xp, half_of(**policy))
    )
    y = trainer.predict(on_device)
    assert y.dtype == backend.xp.float32
    plain = make(backend, shape=(4,))
    with pytest.raises(TypeError, match="x is float16, but the model computes in"):
        plain.predict(narrow)


def test_parameters_of_another_trainer_are_accepted(backend, policy):
    arguments = MODEL, nn.softmax_cross_entropy, nn.SGD(0.1)
    options = policy | {"backend": backend, "shape": (4,)}
    trainer = nn.Trainer(*arguments, seed=3, **options)
    other = nn.Trainer(*arguments, seed=4, **options)
    other.start_from(trainer.params, trainer.state)  # arrays of the backend
    np.testing.assert_array_equal(other.predict(X), trainer.predict(X))
    other.start_from(*backend.to_numpy((trainer.params, trainer.state)))
    np.testing.assert_array_equal(other.predict(X), trainer.predict(X))
    other.state = backend.to_numpy(trainer.state)
    dtypes = [str(leaf.dtype) for leaf in leaves(trainer.state)]
    assert [str(leaf.dtype) for leaf in leaves(other.state)] == dtypes


def test_another_backend_continues(backend, float16):
    optimizer = nn.DynamicScale(nn.SGD(0.1), 2.0**10)
    trainer = make(backend, optimizer, shape=(4,), **float16)
    moved = trainer.to("numpy")
    assert moved.precision == "mixed_float16"
    assert moved.loss_scale == trainer.loss_scale == 1024
    expect_same(arrays(moved), arrays(trainer))


# --- the scale of the loss ------------------------------------------------------------


@dataclass(frozen=True)
class Steep(nn.Layer):
    """y = x, with a gradient that is `slope` times as large as it should be."""

    slope: float

    def forward(self, params, state, x, *, train=False):
        return x, state, ()

    def backward(self, params, cache, dy):
        return dy * self.slope, {}


def steep(slope):
    return nn.Sequential(nn.Dense(1, bias=False), Steep(slope))


def straight(slope):
    """Return the loss slope · Σ y."""

    def loss(y, target, weights=None):
        xp = namespace(y)
        return xp.sum(y) * slope, xp.full_like(y, slope)

    return loss


halves = straight(0.5)


ONE = np.ones((1, 1), "float32")


def test_a_step_that_overflows_is_skipped_and_lowers_the_scale(backend, float16):
    """½ S slope is 2¹⁷, 2¹⁶ and 2¹⁵; float16 ends at 2¹⁶ - 32."""
    trainer = make(backend, nn.SGD(2.0**-12), steep(8.0), halves, metrics={}, **float16)
    trainer.build((1,))
    w = backend.to_numpy(trainer.params[0]["weight"]).item()
    for scale in (2.0**15, 2.0**14):
        assert trainer.loss_scale == scale
        trainer.step(ONE, ONE)
        assert backend.to_numpy(trainer.params[0]["weight"]).item() == w
    trainer.step(ONE, ONE)
    assert trainer.loss_scale == 2.0**13
    moved = backend.to_numpy(trainer.params[0]["weight"]).item()
    assert moved == np.float32(w) - np.float32(4.0 * 2.0**-12)
    assert trainer.steps == 3


@pytest.mark.parametrize("one_by_one", [False, True], ids=["loop", "single"])
def test_fit_goes_on_after_a_step_that_overflows(backend, float16, one_by_one):
    reports = []

    class Watch(nn.Callback):
        one_step_per_call = one_by_one

        def step(self, trainer, report):
            reports.append((report.number, report.loss, trainer.loss_scale))

    trainer = make(backend, nn.SGD(2.0**-12), steep(8.0), halves, metrics={}, **float16)
    x = np.ones((5, 1), "float32")
    history = trainer.fit(x, x, batch_size=1, epochs=1, verbose=0, callbacks=[Watch()])
    assert trainer.steps == len(reports) == 5
    assert trainer.loss_scale == 2.0**13
    if one_by_one:
        assert [scale for *_, scale in reports] == [2.0**14] + 4 * [2.0**13]
    losses = [loss for _, loss, _ in reports]
    # the first two steps moved nothing, and each other one moved w by 2⁻¹⁰
    np.testing.assert_allclose(
        np.diff(losses), [0, 0, -(2.0**-11), -(2.0**-11)], atol=3e-4
    )
    assert history.epochs[0]["loss"] == pytest.approx(np.mean(losses))


def test_the_scale_ends_fit_only_at_its_lower_bound(backend, float16):
    """Such gradients overflow with every scale, and the loss stays finite."""
    trainer = make(
        *(backend, nn.DynamicScale(nn.SGD(1.0), 4.0), steep(2.0**17), halves),
        metrics={},
        **float16,
    )
    x = np.ones((8, 1), "float32")
    with pytest.raises(nn.NonFiniteLoss, match="loss scale, 1, cannot be lowered"):
        trainer.fit(x, x, batch_size=1, verbose=0)
    assert trainer.steps == 2  # with 4 and 2
    assert trainer.loss_scale == 1.0


def test_a_loss_that_is_not_finite_ends_fit_and_leaves_the_scale(backend, float16):
    trainer = make(
        backend, model=steep(1.0), loss=halves, metrics={}, shape=(1,), **float16
    )
    before = arrays(trainer)
    bad = np.full((1, 1), 1e6, "float32")  # infinite in float16
    with pytest.raises(nn.NonFiniteLoss) as caught:
        trainer.fit(bad, ONE, verbose=0)
    assert "loss scale" not in str(caught.value)
    trainer.step(bad, ONE)
    expect_same(arrays(trainer), before)


def test_without_keep_finite_the_scale_still_skips_steps(backend, float16):
    trainer = make(
        *(backend, nn.DynamicScale(nn.SGD(1.0), 4.0), steep(2.0**17), halves),
        metrics={},
        keep_finite=False,
        **float16,
    )
    x = np.ones((8, 1), "float32")
    trainer.fit(x, x, batch_size=1, verbose=0)
    assert trainer.loss_scale == 1.0
    assert np.isfinite(backend.to_numpy(trainer.params[0]["weight"])).all()


def test_the_scale_doubles_after_so_many_steps_and_is_kept(backend, float16):
    optimizer = nn.DynamicScale(nn.SGD(1e-2), 2.0**22, every=2)
    loss = straight(2.0**-10)
    trainer = make(backend, optimizer, steep(1.0), loss, metrics={}, **float16)
    scales = []
    trainer.build((1,))
    for step in range(6):
        trainer.step(ONE, ONE)
        scales.append(trainer.loss_scale)
        if step == 0:
            trainer.keep("first")
    assert np.log2(scales).tolist() == [22, 23, 23, 24, 24, 24]
    trainer.restore("first")
    assert trainer.loss_scale == 2.0**22
    trainer.step(ONE, ONE)
    assert trainer.loss_scale == 2.0**23
    trainer.optimizer = nn.DynamicScale(nn.SGD(1e-3), every=2)
    assert trainer.loss_scale == 2.0**23


def test_small_gradients_reach_the_parameters(backend, policy):
    """2⁻²⁶ is lost in float16 without a scale."""
    loss = straight(2.0**-26)
    trainer = make(
        backend, nn.SGD(2.0**20), steep(1.0), loss, metrics={}, shape=(1,), **policy
    )
    w = backend.to_numpy(trainer.params[0]["weight"]).item()
    trainer.step(ONE, ONE)
    moved = backend.to_numpy(trainer.params[0]["weight"]).item()
    half = half_of(**policy)
    assert moved - w == pytest.approx(-(2.0**-6), rel=1e-3, abs=epsilon(half) * abs(w))
    assert moved != w


def test_wrappers_inside_get_the_gradient_without_the_scale(backend, float16):
    """The gradient is 1/2 · 2; ClipByValue(limit=1) leaves it."""
    model = steep(2.0)
    trainer = make(
        *(backend, nn.ClipByValue(nn.SGD(2.0**-4), 1.0), model, halves),
        metrics={},
        shape=(1,),
        **float16,
    )
    w = backend.to_numpy(trainer.params[0]["weight"]).item()
    trainer.step(ONE, ONE)
    moved = backend.to_numpy(trainer.params[0]["weight"]).item()
    assert moved == np.float32(w) - np.float32(2.0**-4)


def test_the_gradients_of_several_terms_are_scaled(backend, float16):
    """Both losses have other divisors; Accumulate keeps one sum for each."""
    heads = {"a": (nn.Dense(2), "x"), "b": (nn.Dense(2), "x")}
    model = nn.Graph(**heads, outputs={"a": "a", "b": "b"})
    ignoring = partial(nn.softmax_cross_entropy, ignore_index=0)
    loss = nn.Losses(a=nn.softmax_cross_entropy, b=ignoring)
    x = X[:8]
    target = {"a": LABELS[:8], "b": LABELS[:8]}

    def params(**options):
        optimizer = nn.Accumulate(nn.SGD(1.0), 2, terms=2)
        trainer = nn.Trainer(
            model, loss, optimizer, backend=backend, metrics={}, shape=(4,), **options
        )
        for _ in range(2):
            trainer.step(x, target)
        return trainer.backend.to_numpy(trainer.params)

    for (name, leaf), (_, expected) in zip(
        named_leaves(params(**float16)), named_leaves(params()), strict=True
    ):
        np.testing.assert_allclose(leaf, expected, atol=2e-3, err_msg=name)


def test_steps_that_are_not_due_leave_the_scale(backend, float16):
    """`fit` pads its last call of a loop with such steps."""
    optimizer = nn.DynamicScale(nn.SGD(1.0), 4.0)
    model = nn.MixedPrecision(steep(2.0**17), "float16", scale=1)
    step = make_step_with_terms(model, halves, optimizer)
    trainer = make(
        *(backend, optimizer, steep(1.0), halves), metrics={}, shape=(1,), **float16
    )
    carry = trainer.params, trainer.state, trainer.moments
    batches = backend.asarray((np.ones((2, 1, 1), "float32"),) * 2)
    due = backend.asarray(np.asarray([True, False]))
    loop = backend.jit(make_loop(step, True))
    with np.errstate(over="ignore"):
        carry, _, finites, *_ = loop(carry, due, (*batches, (), ()))
    assert backend.to_numpy(carry[2]["loss_scale"]).item() == 2
    assert backend.to_numpy(finites).tolist() == [True, True]


# --- refused arguments ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "half"}, "expected dtype .*'float16'.*got 'half'"),
        (
            {"precision": "float16"},
            "expected precision .*'mixed_float16', got 'float16'",
        ),
        (
            {"dtype": "float64", "precision": "mixed_bfloat16"},
            "expected dtype 'float32', that of the parameters, with "
            "precision='mixed_bfloat16', got 'float64'",
        ),
        (
            {"model": nn.Residual(nn.MixedPrecision(nn.Dense(4), "float16"))},
            "without MixedPrecision for mixed_float16, got one in float16",
        ),
        (
            {"model": nn.MixedPrecision(nn.Dense(4), "bfloat16")},
            "without MixedPrecision for mixed_float16, got one in bfloat16",
        ),
        (
            {"optimizer": nn.ClipByNorm(nn.DynamicScale(nn.SGD()))},
            "expected DynamicScale around all other optimizers, got ClipByNorm",
        ),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    arguments = {"model": nn.Dense(4), "optimizer": nn.SGD()}
    arguments |= {"precision": "mixed_float16"} if "dtype" not in options else {}
    arguments |= options
    model, optimizer = arguments.pop("model"), arguments.pop("optimizer")
    with pytest.raises(ValueError, match=message):
        nn.Trainer(model, nn.huber, optimizer, backend="numpy", **arguments)


@pytest.mark.parametrize("start", [0.5, 3.0, 2.0**25])
def test_the_scale_is_a_power_of_two_within_its_bounds(start):
    with pytest.raises(ValueError, match=f"start.*got {start}"):
        nn.DynamicScale(nn.SGD(), start)


def test_a_scale_inside_another_is_refused():
    with pytest.raises(ValueError, match="expected DynamicScale around all other"):
        nn.DynamicScale(nn.DynamicScale(nn.SGD()))


@pytest.mark.parametrize(("dtype", "precision"), [*PURE, *MIXED])
def test_a_backend_without_the_dtype_says_why(backend, dtype, precision):
    half = half_of(dtype, precision)
    if backend.has_dtype(half):
        pytest.skip(f"{backend} has {half}")
    with pytest.raises(ValueError, match=f"has no {half}: .* does not define it"):
        make(backend, dtype=dtype, precision=precision)


def test_numpy_says_why_ml_dtypes_does_not_help():
    with pytest.raises(ValueError, match=r"ml_dtypes is not enough, because numpy\.is"):
        make("numpy", dtype="bfloat16")


def test_layers_that_stay_in_float32_are_those_of_a_mixed_precision_around_all():
    x = np.asarray([[1.0 + 2.0**-12]], "float32")
    model = nn.Sequential(nn.Dense(1, bias=False), nn.Dense(1, bias=False))

    def output(*keep):
        mixed = nn.MixedPrecision(model, "float16", keep=keep)
        trainer = make(
            "numpy", model=mixed, loss=nn.huber, shape=(1,), precision="mixed_float16"
        )
        one = np.ones((1, 1), "float32")
        trainer.start_from(({"weight": one}, {"weight": one}))
        return trainer.predict(x).item()

    assert output() == 1.0
    assert output("0", "1") == x.item()


def test_the_precision_of_a_trainer_cannot_be_replaced():
    trainer = make("numpy", precision="mixed_float16")
    with pytest.raises(AttributeError, match="precision of a Trainer cannot be repl"):
        trainer.precision = None


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("precision", "mixed", "expected precision 'mixed_bfloat16' or"),
        ("precision", ["mixed_float16"], "expected precision as a text, got"),
        ("dtype", "float8", "expected dtype 'float16', 'bfloat16', 'float32' or"),
        ("dtype", None, "expected dtype as a text, got"),
        ("dtype", "float64", "expected dtype 'float32', that of the parameters"),
        ("precision", None, "does not fit the model: moments"),
    ],
)
def test_a_file_with_a_wrong_precision_is_refused(tmp_path, field, value, message):
    trainer = make("numpy", shape=(4,), precision="mixed_float16")
    trainer.save(tmp_path / "a")
    saved, description = checkpoint.read(tmp_path / "a")
    del description["format"]
    checkpoint.write(tmp_path / "b", saved, description | {field: value})
    with pytest.raises(nn.CheckpointError, match=message):
        nn.Trainer.load(tmp_path / "b", "numpy")


def test_a_file_without_a_precision_is_older_and_loads(tmp_path):
    trainer = make("numpy", shape=(4,))
    trainer.save(tmp_path / "a")
    saved, description = checkpoint.read(tmp_path / "a")
    del description["format"], description["precision"]
    checkpoint.write(tmp_path / "b", saved, description)
    assert nn.Trainer.load(tmp_path / "b", "numpy").precision is None
