"""After any exception a trainer holds the state of a whole number of steps.

`tests/campaigns/interrupts.py` raises thousands of exceptions at random times; here
they are raised at chosen instructions.
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
from agnostic_nn.training import advance as advance_module
from agnostic_nn.training import batches
from agnostic_nn.training.interrupts import DeferredInterrupts
from agnostic_nn_backends.replay import kernels
from agnostic_nn_backends.replay import program as replay
from agnostic_nn_backends.replay.commit import Commit
from agnostic_nn_backends.replay.program import Program

X = np.random.default_rng(0).standard_normal((32, 12), dtype=np.float32)
LABELS = np.arange(32) % 3
BATCH, BATCHES = 8, 4


class Shot(Exception):
    """An exception that is raised at an arbitrary moment."""


def shoot():
    raise Shot


def make(backend, optimizer=None, role="interrupted"):
    """Return a trainer before its first step, compiled if the backend compiles."""
    if not backend.compiles:
        return new(backend, optimizer)
    trainer = compiled(backend, role)
    trainer._current.run = type(trainer._current.settled())()
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
    """Return the bytes of parameters, state and moments."""
    carry = trainer.backend.to_numpy((trainer.params, trainer.state, trainer.moments))
    return [leaf.tobytes() for leaf in leaves(carry)]


class Reference:
    """The states of an undisturbed run, by the number of steps."""

    def __init__(self, backend, optimizer=None):
        self.trainer = make(backend, optimizer, role="undisturbed")
        self.states = [bits(self.trainer)]

    def expect(self, trainer):
        while len(self.states) <= trainer.steps:
            self.states.append(bits(advance(self.trainer)))
        assert bits(trainer) == self.states[trainer.steps], (
            "not the state of a whole number of steps"
        )


@pytest.fixture
def reference(backend):
    return Reference(backend)


@contextmanager
def at(number, action, within=None):
    """Call `action` before the `number`-th bytecode instruction of this library.

    Signal handlers and exceptions of other threads run between two instructions. Yields
    a list whose length is the number of instructions so far. within: code objects, if
    only their instructions count.
    """
    executed = []

    def local(frame, event, arg):
        frame.f_trace_opcodes = True
        if event == "opcode":
            executed.append(None)
            if len(executed) == number:
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
        yield executed
    finally:
        sys.settrace(before)


def sample(backend, taken, count, call=advance):
    """Return numbers of some instructions of a call, after `taken` steps."""
    trainer = advance(make(backend), taken)
    with at(0, None) as executed:
        call(trainer)
    generator, last = random.Random(0), len(executed)
    return sorted({1, *(generator.randrange(1, last + 1) for _ in range(count))})


@pytest.mark.parametrize("taken", [0, 1, 2, 6])
def test_an_exception_anywhere_in_a_step_leaves_a_whole_number_of_steps(
    backend, reference, taken
):
    is_early = taken < 3
    if is_early and backend.compiles:
        pytest.skip("compiling takes too long; the campaign tests it, too")
    for number in sample(backend, taken, 2 if is_early else 20):
        trainer = advance(make(backend), taken)
        with pytest.raises(Shot), at(number, shoot):
            advance(trainer)
        assert trainer.steps in (taken, taken + 1)
        reference.expect(trainer)
        reference.expect(advance(trainer, 2))


def fit(trainer, **options):
    options = {"batch_size": BATCH, "shuffle": False, "verbose": 0} | options
    trainer.fit(X, LABELS, **options)


def test_an_exception_anywhere_in_fit_leaves_a_whole_number_of_steps(
    backend, monkeypatch
):
    monkeypatch.setattr(
        "agnostic_nn.training.feed._MAX_MULTIPLICATIONS", 0
    )  # one call per step
    reference = Reference(backend)
    trainer = advance(make(backend), BATCHES)
    for number in sample(backend, BATCHES, 8, fit):
        with pytest.raises(Shot), at(number, shoot):
            fit(trainer, epochs=9)
        reference.expect(trainer)
        run = trainer._current.settled()
        assert (run.epoch + 1) * BATCHES + run.open.batches_done == run.steps
    while trainer._current.settled().open.batches_done:
        fit(trainer)
    reference.expect(trainer)


def test_a_signal_handler_may_save_and_read_at_any_moment(backend, reference, tmp_path):
    trainer, path = advance(make(backend), 4), tmp_path / "saved"
    for number in sample(backend, 4, 8):
        read, steps = [], trainer.steps

        def look():
            trainer.save(path)
            read.extend((trainer.steps, trainer.params))  # noqa: B023
            read.append(tree_map(np.array, backend.to_numpy(read[1])))  # noqa: B023

        with at(number, look):
            advance(trainer)
        assert trainer.steps == steps + 1
        reference.expect(trainer)
        saved = nn.Trainer.load(path, backend)
        assert saved.steps == read[0]
        reference.expect(saved)
        reference.expect(advance(trainer))
        for leaf, copy in zip(leaves(read[1]), leaves(read[2]), strict=True):
            np.testing.assert_array_equal(backend.to_numpy(leaf), copy)


def test_a_signal_handler_may_restore_parameters_during_a_step(backend, reference):
    trainer = advance(make(backend), 4)
    trainer.keep("four")
    for number in sample(backend, 4, 8):

        def restore():
            trainer.restore("four")
            trainer.steps = 4

        with at(number, restore):
            advance(trainer)
        assert trainer.steps in (4, 5)
        reference.expect(trainer)
        restore()
        reference.expect(trainer)


# --- errors of the calls themselves ---------------------------------------------------


@pytest.fixture(params=["kernels", "no kernels", "no replay"])
def how(request, backend, monkeypatch):
    """Return each way in which NumPy and PyTorch run a step."""
    if backend.name not in ("numpy", "torch") or "cpu" not in str(backend):
        pytest.skip(f"{backend} has one way to run a step")
    if request.param == "kernels" and not kernels.available():
        pytest.skip("llvmlite is not installed")
    if request.param == "no kernels":
        monkeypatch.setattr(kernels, "available", lambda: False)
    return request.param


@pytest.fixture
def chosen(backend, how):
    """Return the backend, without replay if `how` says it."""
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
    trainer, reference = make(chosen), make(chosen)
    for _ in range(taken):
        trainer.step(x, y)
    reported = 0
    for mode, kind in (("raise", FloatingPointError), ("warn", RuntimeWarning)):
        with warnings.catch_warnings(), np.errstate(all=mode):
            warnings.simplefilter("error")
            try:
                trainer.step(x, y)
            except kind:
                reported += 1
        while reference.steps < trainer.steps:
            reference.step(x, y)
        assert bits(trainer) == bits(reference)
    # kernels do not report floating-point errors
    if chosen.name == "numpy" and (how != "kernels" or taken < 2):
        assert reported == 2


def test_floating_point_errors_of_a_commit_follow_the_setting_of_the_user(
    backend, capsys
):
    if backend.name != "numpy":
        pytest.skip("only NumPy reports floating-point errors")
    from agnostic_nn_backends.numpy.tracing import library
    from agnostic_nn_backends.replay.program import replayed

    square = replayed(lambda old: (old * old,), library, (0,))
    reports = []

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
        call(-200, all="call", call=lambda *report: reports.append(report))
        call(-200, all="print")
    assert reports[-1] == ("underflow", 4)
    assert "underflow encountered in multiply" in "".join(capsys.readouterr())


def programs(trainer):
    """Return the programs of a trainer's step."""
    function = trainer._step
    while not hasattr(getattr(function, "into", None), "__closure__"):
        function = (
            function._version.run
            if hasattr(function, "_version")
            else function.function
        )
    names = function.into.__code__.co_freevars
    run = function.into.__closure__[names.index("_run")].cell_contents
    cells = dict(zip(run.__code__.co_freevars, run.__closure__, strict=True))
    entries = cells["programs"].cell_contents.values()
    return [entry for entry in entries if isinstance(entry, Program)]


class Failing:
    """A function whose first `times` calls raise MemoryError."""

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
        pytest.skip("without replay there is no program")
    trainer = advance(make(backend, optimizer), 4)
    reference = Reference(backend, optimizer)
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
        reference.expect(trainer)
    # an error before the commit prevents the step; the commit is always completed
    assert raised == {0, 1}
    reference.expect(advance(trainer, 2))


def test_a_commit_that_cannot_be_completed_is_an_error_until_the_state_is_replaced(
    backend, how
):
    if how == "no replay":
        pytest.skip("without replay there is no program")
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
        if trainer._current.settled().lost:
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
    Reference(backend).expect(advance(trainer))


def test_an_error_in_a_thread_that_shares_a_kernel_leaves_a_whole_number_of_steps(
    backend, how, monkeypatch
):
    if how != "kernels":
        pytest.skip("only kernels are shared by threads")
    from importlib import import_module

    library = import_module(f"agnostic_nn_backends.{backend.name}.tracing").library
    monkeypatch.setattr(kernels, "MIN_ELEMENTS_PER_THREAD", 1)
    monkeypatch.setattr(type(library), "num_threads", lambda self: 3)
    trainer, reference = advance(make(backend), 4), Reference(backend)
    (program,) = programs(trainer)
    assert program.is_parallel
    for name in [name for name in program.env if name[0] == "k"]:
        function = program.env[name]
        program.env[name] = Failing(function)
        with pytest.raises(MemoryError):
            advance(trainer)
        program.env[name] = function
        reference.expect(trainer)
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
    reference.expect(trainer)
    reference.expect(advance(trainer, 2))


def test_a_failure_that_loses_donated_memory_is_reported(backend, monkeypatch):
    trainer = advance(make(backend), 4)
    if backend.name != "jax":
        pytest.skip("only JAX frees donated memory before there is a result")
    trainer.keep("four")

    class Broken:
        """A compiled function that fails after it has freed its first argument."""

        def __init__(self, function):
            self._cache_size = function._cache_size

        def __call__(self, carry, *_):
            for leaf in leaves(carry):
                leaf.delete()
            raise MemoryError("planted")

    ((signature, program),) = trainer._step.programs.items()
    broken = Broken(program)
    with monkeypatch.context() as patch:
        patch.setitem(trainer._step.programs, signature, broken)
        patch.setitem(trainer._step.entries, broken, program._cache_size())
        with pytest.raises(MemoryError):
            advance(trainer)
    for use in (advance, bits, lambda trainer: trainer.predict(X)):
        with pytest.raises(StateLost, match=r"MemoryError: planted.* Trainer\.load"):
            use(trainer)
    assert trainer.steps == 4
    trainer.restore("four")
    Reference(backend).expect(advance(trainer))


# --- signals --------------------------------------------------------------------------


PRESSES = """
import os, random, signal, threading, time
from agnostic_nn.training.interrupts import DeferredInterrupts

presses, caught, awaited = 200, 0, -1

def press():
    generator = random.Random(0)
    for number in range(presses):
        while awaited < number:  # until the main thread can catch the next one
            time.sleep(1e-5)
        time.sleep(generator.random() * 1e-4)
        os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=press, daemon=True).start()
while caught < presses:
    try:
        awaited = caught
        while True:
            with DeferredInterrupts():
                pass
    except KeyboardInterrupt:
        caught += 1
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""


def test_no_deferred_ctrl_c_is_lost():
    # in another process: a late Ctrl-C would end this one, and a lost one would hang
    subprocess.run([sys.executable, "-c", PRESSES], timeout=120, check=True)


def test_a_handler_of_the_user_is_never_replaced():
    calls = []

    def handler(*_):
        calls.append(1)

    before, replace = signal.signal(signal.SIGINT, handler), signal.signal
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            signal, "signal", lambda *_: pytest.fail("the handler was replaced")
        )
        with DeferredInterrupts() as deferred:
            signal.raise_signal(signal.SIGINT)
    replace(signal.SIGINT, before)
    assert calls == [1]
    assert not deferred.requested


def test_a_deferred_ctrl_c_is_raised_from_another_exception():
    def press_and_raise():
        with DeferredInterrupts():
            signal.raise_signal(signal.SIGINT)
            raise Shot

    with pytest.raises(KeyboardInterrupt) as caught:
        press_and_raise()
    assert isinstance(caught.value.__cause__, Shot)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_step_installs_no_signal_handler(backend, monkeypatch):
    trainer = advance(make(backend), 4)
    monkeypatch.setattr(
        signal, "signal", lambda *_: pytest.fail("a step needs no handler")
    )
    advance(trainer)


def test_an_exception_while_batches_are_prepared_ahead_ends_their_thread(backend):
    before = threading.active_count()
    for number in (1, 40, 90, 120, 150):
        for action in (shoot, None):
            with at(number if action else 0, action):
                try:
                    with batches.prefetched(iter(range(100)), 2) as items:
                        assert [next(items) for _ in range(3)] == [0, 1, 2]
                except Shot:
                    pass
    until = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() == before


# --- regressions ----------------------------------------------------------------------


def test_a_change_by_a_signal_handler_during_a_step_is_kept(
    backend, reference, monkeypatch
):
    """The interrupted step still writes to its memory, but its result is discarded."""
    trainer = advance(make(backend), 4)
    trainer.keep("four")
    call = advance_module.into

    def restore():
        trainer.restore("four")

    def count():
        trainer.steps = 4

    for action in (count, restore):

        def interrupted(*args):
            action()  # noqa: B023
            call(*args)

        with monkeypatch.context() as patch:
            patch.setattr(advance_module, "into", interrupted)
            advance(trainer)
        assert trainer.steps == 4
        reference.expect(trainer)
    reference.expect(advance(trainer, 2))


def test_a_program_is_used_again_after_an_exception(backend, how, monkeypatch):
    if how == "no replay":
        pytest.skip("without replay there is no program")
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


def test_an_epoch_is_counted_and_ended_by_one_change(backend, monkeypatch):
    monkeypatch.setattr(
        "agnostic_nn.training.feed._MAX_MULTIPLICATIONS", 0
    )  # one call per step
    trainer = make(backend)
    change, changes = trainer._current.change, []

    def checked(**parts):
        run = change(**parts)
        assert run.epoch * BATCHES + run.open.batches_done == run.steps
        changes.append(parts)
        return run

    monkeypatch.setattr(trainer._current, "change", checked)
    fit(trainer, epochs=2)
    assert [parts["epoch"] for parts in changes if "epoch" in parts] == [1, 2]


def test_a_commit_in_another_thread_is_awaited(monkeypatch):
    started, may_end = threading.Event(), threading.Event()
    written: list[str] = []
    outcome: list[object] = []

    def write():
        started.set()
        may_end.wait()
        written.append("all")

    def interrupted(timeout=None):
        started.wait()
        raise Shot

    commit = Commit(outcome, [write], "result", call, None, in_worker=True)
    with monkeypatch.context() as patch:
        patch.setattr(commit.worker.done, "wait", interrupted)
        with pytest.raises(Shot):
            commit.run()
    threading.Timer(0.05, may_end.set).start()
    commit.finish()
    assert (written, outcome[1:]) == (["all"], ["result"])


def test_an_exception_during_verification_leaves_a_whole_number_of_steps(
    backend, how, monkeypatch
):
    """Verification writes to the memory of the parameters, after the step was taken."""
    if how == "no replay":
        pytest.skip("without replay there is no program")
    trainer, reference = advance(make(backend), 1), Reference(backend)
    with monkeypatch.context() as patch:
        patch.setattr(replay, "_equal", lambda *_: shoot())
        with pytest.raises(Shot):
            advance(trainer)
    assert trainer.steps == 2
    reference.expect(trainer)
    reference.expect(advance(trainer, 2))


def test_arguments_whose_binding_failed_are_bound_at_the_next_call():
    from agnostic_nn_backends.numpy.tracing import library

    first, second = np.ones(5), np.arange(5.0)
    program = Program(lambda x: (x * 2.0 + 1.0,), (first,), library, ())
    assert program.fits((first,))
    program.binders[:] = [Failing(bind) for bind in program.binders]
    with pytest.raises(MemoryError):
        program.fits((second,))
    assert program.fits((second,))
    np.testing.assert_array_equal(program((second,))[0], second * 2.0 + 1.0)


def test_a_second_ctrl_c_is_not_deferred():
    events = []

    def press_twice():
        with DeferredInterrupts() as deferred:
            signal.raise_signal(signal.SIGINT)
            events.append(deferred.requested)
            signal.raise_signal(signal.SIGINT)
            events.append("still running")

    with pytest.raises(KeyboardInterrupt):
        press_twice()
    assert events == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_exception_at_any_instruction_of_a_commit_leaves_a_whole_number_of_steps(
    backend, reference
):
    """All instructions of the functions that donate memory and store the result."""
    trainer = advance(make(backend), 4)
    functions = [Commit.__init__, Commit.run, Program.into]
    if hasattr(type(trainer._step), "into"):  # on a backend that compiles
        functions.append(type(trainer._step).into)
    codes = {each.__code__ for each in functions}
    with at(0, None, codes) as executed:
        advance(trainer)
    if not executed:
        pytest.skip(f"{backend} neither compiles nor replays")
    for number in range(1, len(executed) + 1):
        steps = advance(trainer).steps  # so that the next call is a regular one
        with pytest.raises(Shot), at(number, shoot, codes):
            advance(trainer)
        assert trainer.steps - steps in (0, 1)
        reference.expect(trainer)


def test_memory_is_not_donated_to_a_call_that_may_compile(backend, monkeypatch):
    """Compilation runs Python code, in which an exception can be raised anywhere."""
    if backend.name != "jax":
        pytest.skip("only JAX compiles")
    trainer = advance(make(backend), 4)

    class Broken:
        """A compiled function that frees its first argument and fails."""

        def __init__(self, function):
            self._cache_size, self.clear_cache = function._cache_size, lambda: None

        def __call__(self, carry, *_):
            for leaf in leaves(carry):
                leaf.delete()
            raise Shot

    ((signature, program),) = trainer._step.programs.items()
    with monkeypatch.context() as patch:
        # as after a change of the parameters
        patch.setattr(trainer._step, "latest", frozenset())
        patch.setitem(trainer._step.programs, signature, Broken(program))
        with pytest.raises(Shot):
            advance(trainer)
    assert trainer.steps == 4
    Reference(backend).expect(advance(trainer))


@pytest.mark.parametrize("number", [1, 2, 5])
def test_jax_works_after_an_exception_while_it_was_tracing(
    backend, monkeypatch, number
):
    """A signal handler can raise one before JAX has restored its current trace."""
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
        if len(calls) == number:
            raise Shot
        return restore(self, *error)

    with monkeypatch.context() as patch:
        patch.setattr(set_current_trace, "__exit__", cut_short)
        with pytest.raises(Shot):
            advance(trainer)
    assert trainer.steps == 0
    assert current() is before
    Reference(backend).expect(advance(trainer))


def test_an_exception_while_data_are_moved_is_not_dropped(backend):
    """NumPy drops exceptions that are raised while it compares a dtype."""
    array = np.ones(2, np.float32)
    expect_exceptions_to_be_raised(lambda: backend.asarray(array))


def test_an_exception_while_a_dtype_is_compared_is_not_dropped(backend):
    """Functions that compute float16 and float32 differently compare the dtype of x."""
    array = backend.asarray(np.ones(2, np.float32))
    xp = namespace(array)
    expect_exceptions_to_be_raised(lambda: float_bits(array.dtype, xp))
    expect_exceptions_to_be_raised(lambda: is_narrow(array))


def expect_exceptions_to_be_raised(function):
    """Raise an exception in each call that `function` makes, and expect it outside."""
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
    for number in range(len(calls)):
        remaining = [number]

        def shoot(frame, event, argument, remaining=remaining):
            if event == "call":
                remaining[0] -= 1
                if remaining[0] < 0:
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
