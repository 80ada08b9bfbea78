"""After any exception a trainer holds the state of a whole number of steps, and goes on rightly.

`tests/campaigns/interrupts.py` fires thousands of exceptions at random times; here some
are planted at chosen places.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import contextmanager, suppress
from functools import cache
from operator import call

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core.arrays import float_bits, namespace
from agnostic_nn.core.atomic import StateLost
from agnostic_nn.core.trees import leaves, tree_map
from agnostic_nn.ops.precision import is_narrow
from agnostic_nn.training import batches
from agnostic_nn.training import trainer as trainer_module
from agnostic_nn.training.interrupts import DeferredInterrupts
from agnostic_nn_backends.replay import kernels
from agnostic_nn_backends.replay import program as replay
from agnostic_nn_backends.replay.commit import Commit
from agnostic_nn_backends.replay.program import Program

X = np.random.default_rng(0).standard_normal((32, 12), dtype=np.float32)
LABELS = np.arange(32) % 3
BATCH, BATCHES = 8, 4


class Shot(Exception):
    """An exception that comes from nowhere: of a kind that code could take for its own."""


def shoot():
    raise Shot


def make(backend, optimizer=None, role="shot at"):
    """A trainer that has taken no step; where a backend compiles, one that is compiled already."""
    if not backend.compiles:
        return new(backend, optimizer)
    trainer = compiled(backend, role)
    trainer._run = type(trainer._settled())()
    trainer.build((12,))
    return trainer


@cache
def compiled(backend, role):
    return advance(new(backend), 4)


def new(backend, optimizer=None):
    model = nn.Sequential(
        nn.Dense(20), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.1), nn.Dense(3)
    )
    optimizer = optimizer or nn.Adam(0.01)
    loss = nn.softmax_cross_entropy
    return nn.Trainer(model, loss, optimizer, backend=backend, shape=(12,))


def batch(number):
    rows = slice(number % BATCHES * BATCH, number % BATCHES * BATCH + BATCH)
    return X[rows], LABELS[rows]


def advance(trainer, steps=1):
    for _ in range(steps):
        trainer.step(*batch(trainer.steps))
    return trainer


def bits(trainer):
    """Parameters, state and moments, as bytes."""
    carry = trainer.backend.to_numpy((trainer.params, trainer.state, trainer.moments))
    return [leaf.tobytes() for leaf in leaves(carry)]


class Whole:
    """The states of an undisturbed run, by how many steps it has taken."""

    def __init__(self, backend, optimizer=None):
        self.trainer = make(backend, optimizer, role="undisturbed")
        self.states = [bits(self.trainer)]

    def expect(self, trainer):
        while len(self.states) <= trainer.steps:
            self.states.append(bits(advance(self.trainer)))
        assert bits(trainer) == self.states[trainer.steps], "the state is torn"


@pytest.fixture
def whole(backend):
    return Whole(backend)


@contextmanager
def at(number, action, within=None):
    """Call action() before the `number`-th bytecode instruction of this library in here.

    Handlers of signals and exceptions from other threads come between two instructions.
    Yields a list, whose length is how many instructions there were. within: code
    objects whose instructions alone count.
    """
    seen = []

    def local(frame, event, arg):
        frame.f_trace_opcodes = True
        if event == "opcode":
            seen.append(None)
            if len(seen) == number:
                sys.settrace(None)
                action()
        return local

    def start(frame, event, arg):
        name = frame.f_code.co_filename
        if within is not None:
            return local(frame, event, arg) if frame.f_code in within else None
        ours = "agnostic_nn" in name and os.sep + "tests" + os.sep not in name
        return local(frame, event, arg) if ours or name == "<string>" else None

    before = sys.gettrace()
    sys.settrace(start)
    try:
        yield seen
    finally:
        sys.settrace(before)


def places(backend, taken, count, call=advance):
    """Some instructions of a call by a trainer that has taken so many steps."""
    trainer = advance(make(backend), taken)
    with at(0, None) as seen:
        call(trainer)
    generator = random.Random(0)
    return sorted({1, *(generator.randrange(1, len(seen) + 1) for _ in range(count))})


@pytest.mark.parametrize("taken", [0, 1, 2, 6])
def test_an_exception_anywhere_in_a_step_leaves_a_whole_number_of_steps(
    backend, whole, taken
):
    few = taken < 3
    if few and backend.compiles:
        pytest.skip("compiling takes too long; the campaign shoots there, too")
    for place in places(backend, taken, 2 if few else 20):
        trainer = advance(make(backend), taken)
        with pytest.raises(Shot), at(place, shoot):
            advance(trainer)
        assert trainer.steps in (taken, taken + 1)
        whole.expect(trainer)
        whole.expect(advance(trainer, 2))


def fit(trainer, **options):
    options = {"batch_size": BATCH, "shuffle": False, "verbose": 0} | options
    trainer.fit(X, LABELS, **options)


def test_an_exception_anywhere_in_fit_leaves_a_whole_number_of_steps(
    backend, monkeypatch
):
    monkeypatch.setattr(
        "agnostic_nn.training.feed._MAX_MULTIPLICATIONS", 0
    )  # each step by a call of its own
    whole = Whole(backend)
    trainer = advance(make(backend), BATCHES)
    for place in places(backend, BATCHES, 8, fit):
        with pytest.raises(Shot), at(place, shoot):
            fit(trainer, epochs=9)
        whole.expect(trainer)
        run = trainer._settled()
        assert (run.epoch + 1) * BATCHES + run.open.batches_done == run.steps
    while trainer._settled().open.batches_done:
        fit(trainer)
    whole.expect(trainer)


def test_a_signal_handler_may_save_and_look_at_any_moment(backend, whole, tmp_path):
    trainer, path = advance(make(backend), 4), tmp_path / "saved"
    for place in places(backend, 4, 8):
        shown, steps = [], trainer.steps

        def look():
            trainer.save(path)
            shown.extend((trainer.steps, trainer.params))  # noqa: B023
            shown.append(tree_map(np.array, backend.to_numpy(shown[1])))  # noqa: B023

        with at(place, look):
            advance(trainer)
        assert trainer.steps == steps + 1
        whole.expect(trainer)
        saved = nn.Trainer.load(path, backend)
        assert saved.steps == shown[0]
        whole.expect(saved)
        whole.expect(advance(trainer))
        for one, other in zip(leaves(shown[1]), leaves(shown[2]), strict=True):
            np.testing.assert_array_equal(backend.to_numpy(one), other)


def test_what_a_signal_handler_restores_in_the_middle_of_a_step_is_whole(
    backend, whole
):
    trainer = advance(make(backend), 4)
    trainer.keep("four")
    for place in places(backend, 4, 8):

        def restore():
            trainer.restore("four")
            trainer.steps = 4

        with at(place, restore):
            advance(trainer)
        assert trainer.steps in (4, 5)
        whole.expect(trainer)
        restore()
        whole.expect(trainer)


# --- errors of the calls themselves ---------------------------------------------------


@pytest.fixture(params=["kernels", "no kernels", "no replay"])
def how(request, backend, monkeypatch):
    """The ways in which NumPy and PyTorch run a step."""
    if backend.name not in ("numpy", "torch") or "cpu" not in str(backend):
        pytest.skip(f"{backend} has its own way to run a step")
    if request.param == "kernels" and not kernels.available():
        pytest.skip("there is nothing to make kernels here")
    if request.param == "no kernels":
        monkeypatch.setattr(kernels, "available", lambda: False)
    return request.param


@pytest.fixture
def chosen(backend, how):
    """The backend, without replay if that is how."""
    return nn.backend(str(backend), replay=False) if how == "no replay" else backend


@pytest.mark.parametrize("taken", [0, 1, 2, 4])
def test_floating_point_errors_leave_a_whole_number_of_steps(chosen, how, taken):
    def make(backend):
        layers = nn.Dense(300), nn.ReLU(), nn.Dense(2)
        return nn.Trainer(
            nn.Sequential(*layers),
            nn.mean_squared_error,
            nn.Adam(),
            backend=backend,
            shape=(12,),
        )

    x, y = X[:4] * np.float32(1e-22), np.zeros((4, 2), np.float32)
    trainer, whole = make(chosen), make(chosen)
    for _ in range(taken):
        trainer.step(x, y)
    heard = 0
    for mode, kind in (("raise", FloatingPointError), ("warn", RuntimeWarning)):
        with warnings.catch_warnings(), np.errstate(all=mode):
            warnings.simplefilter("error")
            try:
                trainer.step(x, y)
            except kind:
                heard += 1
        while whole.steps < trainer.steps:
            whole.step(x, y)
        assert bits(trainer) == bits(whole)
    # kernels report none
    if chosen.name == "numpy" and (how != "kernels" or taken < 2):
        assert heard == 2


def test_floating_point_errors_of_a_commit_are_reported_as_the_user_has_set_it(
    backend, capsys
):
    if backend.name != "numpy":
        pytest.skip("only NumPy reports floating-point errors")
    from agnostic_nn_backends.numpy.tracing import library
    from agnostic_nn_backends.replay.program import replayed

    square = replayed(lambda old: (old * old,), library, (0,))
    heard = []

    def call(power, **state):
        with np.errstate(**state):
            (result,) = square(np.full(3, 10.0**power))
        np.testing.assert_array_equal(result, np.full(3, 10.0 ** (2 * power)))

    for _ in range(4):
        call(2, all="raise")
        call(-200, all="ignore")
        with pytest.raises(
            FloatingPointError, match="underflow encountered in multiply"
        ):
            call(-200, all="raise")
        with pytest.warns(RuntimeWarning, match="underflow encountered in multiply"):
            call(-200, all="warn")
        call(-200, all="call", call=lambda *said: heard.append(said))
        call(-200, all="print")
    assert heard[-1] == ("underflow", 4)
    assert "underflow encountered in multiply" in "".join(capsys.readouterr())


def programs(trainer):
    """The programs of a trainer's step."""
    function = trainer._step
    while not hasattr(getattr(function, "into", None), "__closure__"):
        function = (
            function._version.run
            if hasattr(function, "_version")
            else function.function
        )
    cells = {name: cell.cell_contents for name, cell in zip(
        function.into.__code__.co_freevars, function.into.__closure__, strict=True)}  # fmt: skip
    run = cells["_run"]
    cells = dict(zip(run.__code__.co_freevars, run.__closure__, strict=True))
    return [
        one
        for one in cells["programs"].cell_contents.values()
        if isinstance(one, Program)
    ]


class Failing:
    """A function that raises MemoryError the first `times` that it is called."""

    def __init__(self, function, times=1):
        self.function, self.times = function, times
        self.__name__ = getattr(function, "__name__", "")

    def __call__(self, *args, **kwargs):
        self.times -= 1
        if self.times >= 0:
            raise MemoryError("planted")
        return self.function(*args, **kwargs)


@pytest.mark.parametrize(
    "optimizer", [nn.Adam(0.01), nn.SGD(0.1), nn.LAMB(0.01)], ids=repr
)
def test_memory_that_runs_out_in_any_call_leaves_a_whole_number_of_steps(
    backend, how, optimizer
):
    if how == "no replay":
        pytest.skip("there is no program")
    trainer = advance(make(backend, optimizer), 4)
    whole = Whole(backend, optimizer)
    (program,) = programs(trainer)
    names = [name for name in program.env if name[0] in "fk" and name[1:].isdecimal()]
    assert len(names) > 20
    raised = set()
    for name in names:
        function, steps = program.env[name], trainer.steps
        program.env[name] = Failing(function)
        try:
            advance(trainer)
        except MemoryError:
            raised.add(trainer.steps - steps)
        program.env[name] = function
        whole.expect(trainer)
    assert raised == {0, 1}, (
        "before a commit the step is not taken, in it it is completed"
    )
    whole.expect(advance(trainer, 2))


def test_a_commit_that_cannot_be_completed_is_an_error_until_the_state_is_replaced(
    backend, how
):
    if how == "no replay":
        pytest.skip("there is no program")
    trainer = advance(make(backend), 4)
    trainer.keep("four")
    (program,) = programs(trainer)
    names = [name for name in program.env if name[0] in "fk" and name[1:].isdecimal()]
    lost = 0
    for name in names:
        function = program.env[name]
        program.env[name] = Failing(function, times=2)
        with suppress(MemoryError, StateLost):
            advance(trainer, 3)
        program.env[name] = function
        if trainer._settled().lost:
            lost += 1
            text = r"the parameters are lost: .*MemoryError: planted.* Trainer\.load"
            for use in (advance, bits, lambda trainer: trainer.predict(X)):
                with pytest.raises(StateLost, match=text):
                    use(trainer)
        trainer.restore("four")
        trainer.steps = 4
        if lost == 2:
            break
    assert lost == 2
    Whole(backend).expect(advance(trainer))


def test_an_error_in_a_thread_that_shares_a_kernel_leaves_a_whole_number_of_steps(
    backend, how, monkeypatch
):
    if how != "kernels":
        pytest.skip("only kernels are shared by threads")
    from importlib import import_module

    library = import_module(f"agnostic_nn_backends.{backend.name}.tracing").library
    monkeypatch.setattr(kernels, "MIN_ELEMENTS_PER_THREAD", 1)
    monkeypatch.setattr(type(library), "num_threads", lambda self: 3)
    trainer, whole = advance(make(backend), 4), Whole(backend)
    (program,) = programs(trainer)
    assert program.is_parallel
    for name in [name for name in program.env if name[0] == "k"]:
        function = program.env[name]
        program.env[name] = Failing(function)
        with pytest.raises(MemoryError):
            advance(trainer)
        program.env[name] = function
        whole.expect(trainer)
    waits = []

    def interrupted(self, timeout=None):
        if not waits:
            waits.append(1)
            raise Shot
        return wait(self, timeout)

    wait = threading.Event.wait
    monkeypatch.setattr(threading.Event, "wait", interrupted)
    with pytest.raises(Shot):
        advance(trainer)
    whole.expect(trainer)
    whole.expect(advance(trainer, 2))


def test_memory_that_a_compiled_step_took_and_lost_is_reported(backend, monkeypatch):
    trainer = advance(make(backend), 4)
    if backend.name != "jax":
        pytest.skip("only JAX gives memory up before there is a result")
    trainer.keep("four")

    class Broken:
        """A compiled function that fails after it has taken the memory of its first argument."""

        def __init__(self, function):
            self._cache_size = function._cache_size

        def __call__(self, carry, *_):
            for leaf in leaves(carry):
                leaf.delete()
            raise MemoryError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(trainer._step, "function", Broken(trainer._step.function))
        with pytest.raises(MemoryError):
            advance(trainer)
    for use in (advance, bits, lambda trainer: trainer.predict(X)):
        with pytest.raises(StateLost, match=r"MemoryError: planted.* Trainer\.load"):
            use(trainer)
    assert trainer.steps == 4
    trainer.restore("four")
    Whole(backend).expect(advance(trainer))


# --- signals --------------------------------------------------------------------------


PRESSES = """
import os, random, signal, threading, time
from agnostic_nn.training.interrupts import DeferredInterrupts

presses, heard, awaited = 200, 0, -1

def press():
    generator = random.Random(0)
    for number in range(presses):
        while awaited < number:  # until the main thread is where it catches the next one
            time.sleep(1e-5)
        time.sleep(generator.random() * 1e-4)
        os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=press, daemon=True).start()
while heard < presses:
    try:
        awaited = heard
        while True:
            with DeferredInterrupts():
                pass
    except KeyboardInterrupt:
        heard += 1
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""


def test_no_ctrl_c_is_lost_where_it_is_held_back():
    # in a process of its own: a stray Ctrl-C would
    # end the one that tests; a lost one never ends
    subprocess.run([sys.executable, "-c", PRESSES], timeout=120, check=True)


def test_a_handler_of_the_user_is_never_replaced():
    heard = []

    def handler(*_):
        heard.append(1)

    before, replace = signal.signal(signal.SIGINT, handler), signal.signal
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signal, "signal", lambda *_: pytest.fail("replaced for a moment"))
        with DeferredInterrupts() as held:
            signal.raise_signal(signal.SIGINT)
    replace(signal.SIGINT, before)
    assert heard == [1]
    assert not held.requested


def test_a_ctrl_c_held_back_is_not_lost_to_another_exception():
    def press_and_raise():
        with DeferredInterrupts():
            signal.raise_signal(signal.SIGINT)
            raise Shot

    with pytest.raises(KeyboardInterrupt) as caught:
        press_and_raise()
    assert isinstance(caught.value.__cause__, Shot)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_step_leaves_signals_alone(backend, monkeypatch):
    trainer = advance(make(backend), 4)
    monkeypatch.setattr(
        signal, "signal", lambda *_: pytest.fail("a step needs no handler")
    )
    advance(trainer)


def test_an_exception_while_batches_are_prepared_ahead_ends_their_thread(backend):
    before = threading.active_count()
    for place in (1, 40, 90, 120, 150):
        for action in (shoot, None):
            with at(place if action else 0, action):
                try:
                    with batches.prefetched(iter(range(100)), 2) as items:
                        assert [next(items) for _ in range(3)] == [0, 1, 2]
                except Shot:
                    pass
    until = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() == before


# --- what planted bugs have shown to be missing ---------------------------------------


def test_what_a_signal_handler_changes_in_a_step_stays_changed(
    backend, whole, monkeypatch
):
    """The step that it interrupts still writes to its memory, and its result comes too late."""
    trainer = advance(make(backend), 4)
    trainer.keep("four")
    call = trainer_module.into

    def restore():
        trainer.restore("four")

    def count():
        trainer.steps = 4

    for action in (count, restore):

        def interrupted(*args):
            action()  # noqa: B023
            call(*args)

        with monkeypatch.context() as patch:
            patch.setattr(trainer_module, "into", interrupted)
            advance(trainer)
        assert trainer.steps == 4
        whole.expect(trainer)
    whole.expect(advance(trainer, 2))


def test_a_program_is_used_again_after_an_exception(backend, how, monkeypatch):
    if how == "no replay":
        pytest.skip("there is no program")
    trainer = advance(make(backend), 4)
    (program,) = programs(trainer)
    monkeypatch.setattr(program, "result_of", Failing(program.result_of))
    with pytest.raises(MemoryError):
        advance(trainer)
    used, into = [], Program.into
    monkeypatch.setattr(
        Program, "into", lambda self, *args: (used.append(self), into(self, *args))
    )
    advance(trainer)
    assert used == [program]


def test_an_epoch_is_counted_and_closed_by_one_change(backend, monkeypatch):
    monkeypatch.setattr(
        "agnostic_nn.training.feed._MAX_MULTIPLICATIONS", 0
    )  # each step by a call of its own
    trainer = make(backend)
    change, changes = trainer._change, []

    def checked(**parts):
        run = change(**parts)
        assert run.epoch * BATCHES + run.open.batches_done == run.steps
        changes.append(parts)
        return run

    monkeypatch.setattr(trainer, "_change", checked)
    fit(trainer, epochs=2)
    assert [parts["epoch"] for parts in changes if "epoch" in parts] == [1, 2]


def test_a_commit_that_another_thread_makes_is_waited_for(monkeypatch):
    begun, may_end, written, outcome = threading.Event(), threading.Event(), [], []

    def write():
        begun.set()
        may_end.wait()
        written.append("all")

    def interrupted(timeout=None):
        begun.wait()
        raise Shot

    commit = Commit(outcome, [write], "result", call, None, in_worker=True)
    with monkeypatch.context() as patch:
        patch.setattr(commit.worker.done, "wait", interrupted)
        with pytest.raises(Shot):
            commit.run()
    threading.Timer(0.05, may_end.set).start()
    commit.finish()
    assert (written, outcome[1:]) == (["all"], ["result"])


def test_an_exception_while_a_program_is_tried_leaves_a_whole_number_of_steps(
    backend, how, monkeypatch
):
    """The trial writes to the memory of the parameters, of which the step is already taken."""
    if how == "no replay":
        pytest.skip("there is no program")
    trainer, whole = advance(make(backend), 1), Whole(backend)
    with monkeypatch.context() as patch:
        patch.setattr(replay, "_equal", lambda *_: shoot())
        with pytest.raises(Shot):
            advance(trainer)
    assert trainer.steps == 2
    whole.expect(trainer)
    whole.expect(advance(trainer, 2))


def test_arguments_that_an_exception_kept_from_a_program_are_bound_at_the_next_call():
    from agnostic_nn_backends.numpy.tracing import library

    one, other = np.ones(5), np.arange(5.0)
    program = Program(lambda x: (x * 2.0 + 1.0,), (one,), library, ())
    assert program.fits((one,))
    program.binders[:] = [Failing(bind) for bind in program.binders]
    with pytest.raises(MemoryError):
        program.fits((other,))
    assert program.fits((other,))
    np.testing.assert_array_equal(program((other,))[0], other * 2.0 + 1.0)


def test_a_second_ctrl_c_is_not_held_back():
    seen = []

    def press_twice():
        with DeferredInterrupts() as held:
            signal.raise_signal(signal.SIGINT)
            seen.append(held.requested)
            signal.raise_signal(signal.SIGINT)
            seen.append("still running")

    with pytest.raises(KeyboardInterrupt):
        press_twice()
    assert seen == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_exception_at_any_place_of_a_commit_leaves_a_whole_number_of_steps(
    backend, whole
):
    """Every instruction of the functions that give memory up and take the result."""
    trainer = advance(make(backend), 4)
    own = getattr(type(trainer._step), "into", None)  # that of a backend that compiles
    functions = Commit.__init__, Commit.run, Program.into, *([own] if own else [])
    codes = {each.__code__ for each in functions}
    with at(0, None, codes) as seen:
        advance(trainer)
    if not seen:
        pytest.skip(f"{backend} neither compiles nor replays")
    for place in range(1, len(seen) + 1):
        steps = advance(trainer).steps  # so that the next call is one of the usual kind
        with pytest.raises(Shot), at(place, shoot, codes):
            advance(trainer)
        assert trainer.steps - steps in (0, 1)
        whole.expect(trainer)


def test_memory_is_not_given_up_to_a_call_that_may_compile(backend, monkeypatch):
    """Compilation runs Python, in which an exception may come at any moment."""
    if backend.name != "jax":
        pytest.skip("only JAX compiles")
    trainer = advance(make(backend), 4)

    class Broken:
        """A compiled function that takes the memory of its first argument and fails."""

        def __init__(self, function):
            self._cache_size, self.clear_cache = function._cache_size, lambda: None

        def __call__(self, carry, *_):
            for leaf in leaves(carry):
                leaf.delete()
            raise Shot

    with monkeypatch.context() as patch:
        # as after a change of the parameters
        patch.setattr(trainer._step, "latest", frozenset())
        patch.setattr(trainer._step, "function", Broken(trainer._step.function))
        with pytest.raises(Shot):
            advance(trainer)
    assert trainer.steps == 4
    Whole(backend).expect(advance(trainer))


@pytest.mark.parametrize("place", [1, 2, 5])
def test_jax_computes_again_after_an_exception_while_it_traced(
    backend, monkeypatch, place
):
    """As a signal handler raises it: JAX's own Python code has not restored what it traces."""
    if backend.name != "jax":
        pytest.skip("only JAX traces")
    core = pytest.importorskip("jax.extend.core")
    set_current_trace, take_current_trace = (
        core.set_current_trace,
        core.take_current_trace,
    )

    def current():
        with take_current_trace() as trace:
            return trace

    trainer, calls, before = new(backend), [], current()
    trainer.build((12,))
    restore = set_current_trace.__exit__

    def cut_short(self, *error):
        calls.append(1)
        if len(calls) == place:
            raise Shot
        return restore(self, *error)

    with monkeypatch.context() as patch:
        patch.setattr(set_current_trace, "__exit__", cut_short)
        with pytest.raises(Shot):
            advance(trainer)
    assert trainer.steps == 0
    assert current() is before
    Whole(backend).expect(advance(trainer))


def test_an_exception_while_data_are_moved_is_not_dropped(backend):
    """NumPy drops exceptions of the Python code that it runs to compare a dtype with no dtype."""
    one = np.ones(2, np.float32)
    expect_exceptions_to_come_out(lambda: backend.asarray(one))


def test_an_exception_while_a_dtype_is_looked_at_is_not_dropped(backend):
    """The functions that compute float16 and float32 differently look at the dtype of x."""
    one = backend.asarray(np.ones(2, np.float32))
    xp = namespace(one)
    expect_exceptions_to_come_out(lambda: float_bits(one.dtype, xp))
    expect_exceptions_to_come_out(lambda: is_narrow(one))


def expect_exceptions_to_come_out(function):
    """Raise at each call of a Python function that `function` makes, and expect the exception."""
    function()
    calls = []

    def count(frame, event, argument):
        if event == "call":
            calls.append(frame.f_code)

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    for place in range(len(calls)):
        left = [place]

        def shoot(frame, event, argument, left=left):
            if event == "call":
                left[0] -= 1
                if left[0] < 0:
                    sys.setprofile(None)
                    raise Shot

        def shot_at(action=shoot):
            sys.setprofile(action)
            function()

        try:
            with pytest.raises(Shot):
                shot_at()
        finally:
            sys.setprofile(None)
    function()
