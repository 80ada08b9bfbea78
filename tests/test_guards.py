"""Compiled and replayed functions follow the Python values that custom code reads."""

import functools
import random
import sys
import types
import warnings
from collections import deque
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from cases._adapters import members

import agnostic_nn as nn
from agnostic_nn.core.guards import Guarded, guarded, names_of

# --- each place of a value ------------------------------------------------------------
# Each function below returns a function of x, and `change()`, which changes its factor
# from 2 to 3.

FACTOR = 2.0
BOX = [2.0]
SETTINGS = types.SimpleNamespace(inner=types.SimpleNamespace(factor=2.0))
CONTEXT = ContextVar("factor", default=2.0)


def a_closure():
    factor = 2.0

    def change():
        nonlocal factor
        factor = 3.0

    return lambda x: x * factor, change


def a_closure_of_a_nested_function():
    factor = 2.0

    def function(x):
        def inner():
            return x * factor

        return inner()

    def change():
        nonlocal factor
        factor = 3.0

    return function, change


def a_global():
    def change():
        globals()["FACTOR"] = 3.0

    globals()["FACTOR"] = 2.0
    return lambda x: x * FACTOR, change


def helper(x):
    return x * FACTOR


def a_global_read_by_another_function():
    return lambda x: helper(x), a_global()[1]


def an_entry_of_a_global_list():
    BOX[:] = [2.0]
    return lambda x: x * BOX[0], lambda: BOX.__setitem__(0, 3.0)


def an_attribute_chain():
    SETTINGS.inner.factor = 2.0
    return lambda x: x * SETTINGS.inner.factor, lambda: setattr(
        SETTINGS.inner, "factor", 3.0
    )


def an_object_in_an_attribute():
    settings = types.SimpleNamespace(inner=types.SimpleNamespace(factor=2.0))
    other = types.SimpleNamespace(factor=3.0)
    return lambda x: x * settings.inner.factor, lambda: setattr(
        settings, "inner", other
    )


def a_module():
    config = types.ModuleType("config_of_a_user")
    config.factor = 2.0
    return lambda x: x * config.factor, lambda: setattr(config, "factor", 3.0)


def a_module_imported_inside():
    config = sys.modules["config_of_a_user"] = types.ModuleType("config_of_a_user")
    config.factor = 2.0

    def function(x):
        import config_of_a_user

        return x * config_of_a_user.factor

    return function, lambda: setattr(config, "factor", 3.0)


def a_name_imported_inside():
    package = sys.modules["package_of_a_user"] = types.ModuleType("package_of_a_user")
    package.config = sys.modules["package_of_a_user.config"] = types.ModuleType(
        "config"
    )
    package.config.factor = 2.0

    def function(x):
        from package_of_a_user.config import factor

        return x * factor

    return function, lambda: setattr(package.config, "factor", 3.0)


def a_default():
    def function(x, factor=2.0):
        return x * factor

    return function, lambda: setattr(function, "__defaults__", (3.0,))


def an_entry_of_a_default():
    def function(x, factors=[2.0]):  # noqa: B006
        return x * factors[0]

    return function, lambda: function.__defaults__[0].__setitem__(0, 3.0)


def a_keyword_default():
    def function(x, *, factor=2.0):
        return x * factor

    return function, lambda: function.__kwdefaults__.update(factor=3.0)


def another_code():
    def function(x):
        return x * 2.0

    def other(x):
        return x * 3.0

    return function, lambda: setattr(function, "__code__", other.__code__)


def an_attribute_of_a_function():
    def function(x):
        return x * function.factor

    function.factor = 2.0
    return function, lambda: setattr(function, "factor", 3.0)


def an_option_of_a_partial():
    def function(x, factor):
        return x * factor

    arguments = functools.partial(function, factor=2.0)
    return lambda x: arguments(x), lambda: arguments.keywords.update(factor=3.0)


def an_entry_of_an_argument_of_a_partial():
    factors = [2.0]
    arguments = functools.partial(lambda factors, x: x * factors[0], factors)
    return arguments, lambda: factors.__setitem__(0, 3.0)


def an_attribute_of_self():
    class Scale:
        def __init__(self):
            self.factor = 2.0

        def __call__(self, x):
            return x * self.factor

    scale = Scale()
    return scale, lambda: setattr(scale, "factor", 3.0)


def self_of_a_bound_method():
    class Scale:
        factor = 2.0

        def apply(self, x):
            return self.inner(x)

        def inner(self, x):
            return x * self.factor

    scale = Scale()
    return scale.apply, lambda: setattr(scale, "factor", 3.0)


def an_attribute_of_a_class():
    class Scale:
        factor = 2.0

        def __call__(self, x):
            return x * self.factor

    return Scale(), lambda: setattr(Scale, "factor", 3.0)


def a_method_that_is_replaced():
    class Scale:
        def factor(self):
            return 2.0

        def __call__(self, x):
            return x * self.factor()

    return Scale(), lambda: setattr(Scale, "factor", lambda self: 3.0)


def a_property():
    class Scale:
        base = 1.0

        @property
        def factor(self):
            return self.base + 1.0

        def __call__(self, x):
            return x * self.factor

    scale = Scale()
    return scale, lambda: setattr(scale, "base", 2.0)


def a_slot():
    class Scale:
        __slots__ = ("factor",)

        def __call__(self, x):
            return x * self.factor

    scale = Scale()
    scale.factor = 2.0
    return scale, lambda: setattr(scale, "factor", 3.0)


def a_field_read_by_name():
    @dataclass
    class Scale:
        factor: float = 2.0

        def __call__(self, x):
            return x * getattr(self, "".join(["fac", "tor"]))

    scale = Scale()
    return scale, lambda: setattr(scale, "factor", 3.0)


def an_entry_of_a_frozen_field():
    @dataclass(frozen=True)
    class Scale:
        factors: list = field(default_factory=lambda: [2.0])

        def __call__(self, x):
            return x * self.factors[0]

    scale = Scale()
    return scale, lambda: scale.factors.__setitem__(0, 3.0)


def a_dict():
    options = {"factor": 2.0}
    return lambda x: x * options["factor"], lambda: options.update(factor=3.0)


def a_dict_in_a_tuple_in_a_list():
    options = [({"factor": 2.0},)]
    return lambda x: x * options[0][0]["factor"], lambda: options[0][0].update(
        factor=3.0
    )


def a_set():
    members = {1}
    return lambda x: x * (1.0 + len(members)), lambda: members.add(2)


def a_deque():
    queue = deque([2.0])
    return lambda x: x * queue[-1], lambda: queue.append(3.0)


def a_context_variable():
    CONTEXT.set(2.0)
    return lambda x: x * CONTEXT.get(), lambda: CONTEXT.set(3.0)


def an_array():
    factor = np.asarray([2.0], np.float32)
    return lambda x: x * float(factor[0]), lambda: factor.__setitem__(0, 3.0)


def a_large_array():
    factor = np.full(500_000, 2.0, np.float32)
    return lambda x: x * float(factor[-1]), lambda: factor.__setitem__(-1, 3.0)


def a_wrapped_function():
    plain, change = a_closure()

    @functools.wraps(plain)
    def function(x):
        return plain(x)

    return function, change


PLACES = [
    function
    for name, function in list(globals().items())
    if name.startswith(("a_", "an_"))
]
PLACES += [another_code, self_of_a_bound_method]


def frozen(function):
    """Return a function that always returns its first result, as if compiled."""
    results = []

    def run(x):
        if not results:
            results.append(function(x))
        return results[0]

    return run


def host_guarded(function):
    return guarded(function, frozen, np.asarray, frozenset(["numpy"]))


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_a_changed_value_is_used_wherever_it_is_read(place):
    function, change = place()
    run = host_guarded(function)
    for _ in range(2):
        assert run(1.0) == 2.0
    version = run._version
    assert run(1.0) == 2.0
    assert run._version is version
    change()
    for _ in range(2):
        assert run(1.0) == 3.0


FEW = (a_closure, a_global, an_attribute_chain, a_default, a_dict, an_array)


@pytest.mark.parametrize("place", FEW, ids=lambda place: place.__name__)
def test_every_backend_uses_changed_values(place, backend):
    function, change = place()
    run = backend.jit(function)
    x = backend.asarray(np.asarray([1.0, 10.0], np.float32))
    for _ in range(4):  # NumPy and PyTorch replay from the third call on
        assert backend.to_numpy(run(x)).tolist() == [2.0, 20.0]
    change()
    for _ in range(4):
        assert backend.to_numpy(run(x)).tolist() == [3.0, 30.0]


def test_equal_values_do_not_cause_a_compilation():
    box, text, shape = [1.0, float("nan")], "a", (2, [3])
    run = host_guarded(lambda x: (x, box[0], text, shape))
    run(1.0)
    version = run._version
    box[:] = [1.0, float("nan")]
    text, shape = "".join(["a"]), (int("2"), [3])
    run(1.0)
    assert run._version is version
    box[0] = 1
    assert run(1.0)[1] == 1
    assert run._version is not version
    box[0] = 0.0
    run(1.0)
    box[0] = -0.0
    assert str(run(1.0)[1]) == "-0.0"


# --- functions that change what they read ---------------------------------------------


GENERATOR = np.random.default_rng(0)


class Counter:
    calls = 0

    def __call__(self, x):
        self.calls += 1
        return x * self.calls


def generator():
    drawn = np.random.default_rng(0)
    return lambda x: x * float(drawn.normal())


def bound_draw():
    draw = np.random.default_rng(0).normal
    return lambda x: x * float(draw())


def hidden_state():
    return lambda x: x * float(np.random.normal())  # noqa: NPY002


def pythons_generator():
    return lambda x: x * random.random()


def pythons_own_generator():
    drawn = random.Random(0)
    return lambda x: x * drawn.gauss(0, 1)


def counter_in_a_closure():
    calls = 0

    def function(x):
        nonlocal calls
        calls += 1
        return x * calls

    return function


def list_that_grows():
    items = []

    def function(x):
        items.append(1)
        return x * len(items)

    return function


def iterator():
    values = iter([1.0, 2.0, 3.0])
    return lambda x: x * next(values)


def generator_object():
    values = (float(i) for i in range(9))
    return lambda x: x * next(values)


SELF_CHANGING = {  # function: what the error names
    generator: "drawn (a closure variable of generator",
    lambda: lambda x: x * float(GENERATOR.normal()): "GENERATOR (a global of",
    bound_draw: "draw (a closure variable of bound_draw",
    hidden_state: "np.random.normal",
    pythons_generator: "random.random",
    pythons_own_generator: "drawn (a closure",
    Counter: "Counter.calls",
    counter_in_a_closure: "calls (a closure variable of counter_in_a_closure.<locals>",
    list_that_grows: "items (a closure variable of list_that_grows.<locals>.function)",
    iterator: "values (a closure variable of iterator.<locals>.<lambda>), an iterator",
    generator_object: "an iterator (generator)",
}


@pytest.mark.parametrize(
    ("make", "name"), SELF_CHANGING.items(), ids=SELF_CHANGING.values()
)
def test_a_function_that_changes_what_it_reads_is_refused_on_every_backend(
    make, name, backend
):
    run = backend.jit(make())
    x = backend.asarray(np.ones(2, np.float32))
    for _ in range(3):
        with pytest.raises(TypeError) as caught:
            run(x)
        assert name.split(" (")[0] in str(caught.value)
        assert name in str(caught.value)
        assert "replay=False" in str(caught.value)


def test_without_replay_python_code_runs_at_each_call(backend):
    eager = replace(backend, replay=False)
    x = backend.asarray(np.ones(2, np.float32))
    run = eager.jit(Counter())
    assert [float(run(x)[0]) for _ in range(4)] == [1.0, 2.0, 3.0, 4.0]
    assert not eager.compiles


def test_a_cache_that_a_function_fills_is_not_a_change(backend):
    memo, table = {}, None

    def function(x):
        nonlocal table
        if table is None:
            table = 2.0
        if x.shape not in memo:
            memo[x.shape] = table
        return x * memo[x.shape]

    run = backend.jit(function)
    for length in (2, 3, 2, 3, 2):
        x = backend.asarray(np.ones(length, np.float32))
        assert backend.to_numpy(run(x)).tolist() == [2.0] * length
    memo[(2,)] = 5.0
    x = backend.asarray(np.ones(2, np.float32))
    assert backend.to_numpy(run(x)).tolist() == [5.0, 5.0]


def test_values_that_are_only_written_are_not_compared():
    log, by_name, lists, count = [], {}, {"x": []}, Counter()

    def function(x):
        log.append(x)
        by_name["x"] = x
        lists["x"].append(x)
        count.last = x
        return x

    run = host_guarded(function)
    assert (run(1.0), run(1.0)) == (1.0, 1.0)
    assert log == [1.0]  # side effects happen only when Python code runs


def test_comparing_values_runs_no_custom_code():
    class Strict:
        factor = 2.0

        def __getattr__(self, name):
            raise RuntimeError(name)

        @property
        def shape(self):
            raise RuntimeError("shape")

        dtype = ndim = __wrapped__ = shape

        def __call__(self, x):
            return x * self.factor

    strict = Strict()
    run = host_guarded(lambda x: strict(x))
    assert run(1.0) == 2.0
    Strict.factor = 3.0
    assert run(1.0) == 3.0


def test_a_value_that_keeps_changing_gives_one_warning(backend):
    scale = 0.0
    run = backend.jit(lambda x: x * scale)
    x = backend.asarray(np.ones(1, np.float32))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for scale in range(14):
            assert float(run(x)[0]) == scale
    assert [w.category for w in caught] == [RuntimeWarning]
    message = str(caught[0].message)
    assert "scale (a closure variable" in message
    assert "schedule" in message
    assert "context" in message


# --- functions with and without guards ------------------------------------------------


def test_functions_of_the_library_have_no_guard(backend):
    loss = nn.Losses(a=nn.huber, b=nn.mean_squared_error, weights={"a": 2.0})
    optimizer = nn.ClipByGlobalNorm(nn.Adam(nn.schedules.Cosine(1e-3, 100)), 1.0)
    model = nn.Sequential(
        nn.Dense(4), nn.GELU(), nn.Residual(nn.Dense(4)), nn.Lambda(abs)
    )
    trainer = nn.Trainer(
        nn.Dense(3), nn.softmax_cross_entropy, nn.Adam(), backend=backend
    )
    for function in (
        nn.make_step(model, nn.mean_squared_error, optimizer),
        nn.make_step(nn.Parallel(nn.Dense(2), nn.Dense(1)), loss, optimizer),
        model.predict,
    ):
        assert not isinstance(backend.jit(function), Guarded)
    for compiled in (
        trainer._step,
        trainer._steps,
        trainer._measured_step,
        trainer._measured_steps,
        trainer._evaluate_batch,
        trainer._predict,
    ):
        assert not isinstance(compiled, Guarded)


def test_custom_code_in_any_part_of_a_step_is_guarded(backend):
    class Custom(nn.Layer):
        def forward(self, params, state, x, *, train=False):
            return x * FACTOR, state, ()

    def loss(y, target, weights=None):
        return nn.mean_squared_error(y, target, weights)

    def rate(t):
        return 0.1 / (1.0 + t)

    for model, loss_function, optimizer in (
        (
            nn.Sequential(nn.Dense(2), nn.Residual(Custom())),
            nn.mean_squared_error,
            nn.Adam(),
        ),
        (nn.Lambda(lambda x: x * FACTOR), nn.mean_squared_error, nn.Adam()),
        (nn.Dense(2), loss, nn.Adam()),
        (nn.Dense(2), nn.Losses(a=loss), nn.Adam()),
        (nn.Dense(2), functools.partial(nn.huber, delta=2.0), nn.Adam()),
        (nn.Dense(2), nn.mean_squared_error, nn.ClipByNorm(nn.Adam(rate), 1.0)),
    ):
        assert isinstance(
            backend.jit(nn.make_step(model, loss_function, optimizer)), Guarded
        )


def test_names_of_a_function_are_those_that_its_code_reads():
    def function(x):
        log.append(x)  # noqa: F821
        table[x] = config.inner.value  # noqa: F821
        x.last = 1

        def inner():
            import package.module

            return package.module.entry, other  # noqa: F821

        return inner

    names = names_of(function.__code__)
    assert names.variables == {"config", "other"}
    assert names.attributes - {"append", "module"} == {"inner", "value", "entry"}
    assert names.modules == {"package.module"}


# --- in training ----------------------------------------------------------------------


def test_every_part_of_training_uses_a_changed_value(backend):
    beta = [1.0]

    def loss(y, target, weights=None):
        value, dy = nn.mean_squared_error(y, target, weights)
        return beta[0] * value, beta[0] * dy

    def scaled(y, target):
        return beta[0] * (y - target)[:, 0] ** 2

    class Scale(nn.Layer):
        def forward(self, params, state, x, *, train=False):
            return beta[0] * x, state, ()

        def backward(self, params, cache, dy):
            return beta[0] * dy, {}

    model = nn.Sequential(Scale(), nn.Dense(1, bias=False))
    trainer = nn.Trainer(
        model, loss, nn.SGD(1e-12), backend=backend, shape=(2,), metrics={"m": scaled}
    )
    x, target = np.ones((8, 2), "float32"), np.zeros((8, 1), "float32")
    first = trainer.evaluate(x, target)
    y = trainer.predict(x)
    fitted = trainer.fit(
        *(x, target),
        epochs=3,
        batch_size=4,
        verbose=0,
        callbacks=[lambda *_: beta.append(1)],
    )
    assert fitted["loss"] == pytest.approx([first["loss"]] * 3, rel=1e-5)
    beta[0] = 2.0
    assert trainer.evaluate(x, target)["loss"] == pytest.approx(
        8 * first["loss"], rel=1e-5
    )
    assert trainer.evaluate(x, target)["m"] == pytest.approx(8 * first["m"], rel=1e-5)
    np.testing.assert_allclose(trainer.predict(x), 2 * y, rtol=1e-5)
    assert trainer.fit(x, target, verbose=0)["loss"][0] == pytest.approx(
        8 * first["loss"], 1e-5
    )


def test_a_loss_may_read_the_steps_and_parameters_of_a_trainer(backend):

    def loss(y, target, weights=None):
        value, dy = nn.mean_squared_error(y, target, weights)
        return value * float(trainer.steps), dy * float(trainer.steps)

    trainer = nn.Trainer(nn.Dense(1), loss, nn.SGD(1e-12), backend=backend, shape=(2,))
    x, target = np.ones((12, 2), "float32"), np.zeros((12, 1), "float32")
    # from the third call on a step may be replayed
    count = 2 if backend.compiles else 5
    losses = [float(trainer.step(x, target)) for _ in range(count)]
    np.testing.assert_allclose(losses, losses[1] * np.arange(count), rtol=1e-5)
    # steps in one compiled loop would all use the number of the first
    mean = trainer.fit(x, target, batch_size=6, verbose=0, shuffle=False)["loss"][0]
    assert mean == pytest.approx(losses[1] * (count + 0.5), rel=1e-5)


def test_model_loss_and_other_settings_of_a_trainer_cannot_be_replaced(backend):
    trainer = nn.Trainer(nn.Dense(1), nn.huber, nn.SGD(0.1), backend=backend)
    for name in (
        "model",
        "loss",
        "metrics",
        "backend",
        "dtype",
        "seed",
        "keep_finite",
    ):
        with pytest.raises(
            AttributeError, match=f"the {name} of a Trainer cannot be replaced"
        ):
            setattr(trainer, name, getattr(trainer, name))


def test_a_refused_step_does_not_change_the_trainer(backend):
    drawn = np.random.default_rng(0)

    def loss(y, target, weights=None):
        value, dy = nn.mean_squared_error(y, target, weights)
        return value, dy + 0.0 * float(drawn.normal())

    trainer = nn.Trainer(nn.Dense(1), loss, nn.SGD(0.1), backend=backend, shape=(2,))
    before = backend.to_numpy(trainer.params)
    x, target = np.ones((4, 2), "float32"), np.zeros((4, 1), "float32")
    for act in (
        lambda: trainer.step(x, target),
        lambda: trainer.fit(x, target, verbose=0),
    ):
        with pytest.raises(TypeError, match="drawn"):
            act()
        assert trainer.steps == 0
        np.testing.assert_array_equal(
            backend.to_numpy(trainer.params)["weight"], before["weight"]
        )


def test_a_draw_from_the_hidden_generator_of_the_library_is_refused(backend):
    draw = getattr(backend.xp, "rand", None)  # of PyTorch
    if draw is None:
        pytest.skip(f"{backend.name} has no such generator")
    xp = backend.xp
    run = backend.jit(lambda x: x * xp.rand(2))
    with pytest.raises(TypeError, match="it draws from rand"):
        run(backend.asarray(np.ones(2, np.float32)))


def test_arrays_are_compared_on_an_adapter_that_compiles_but_lacks_eager():
    host = nn.backend("numpy")
    names = members(host.adapter, compiles=True)
    del names["eager"]
    backend = replace(host, name="custom", adapter=types.SimpleNamespace(**names))
    factor = np.ones(3)
    # the factor is a constant of the compiled function
    function = backend.jit(lambda x: x * float(factor[0]))
    x = np.arange(3.0)
    for _ in range(3):
        np.testing.assert_array_equal(function(x), x)
    factor[:] = 2.0
    np.testing.assert_array_equal(function(x), 2.0 * x)
