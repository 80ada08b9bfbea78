"""Trainers, backends and all that users store can be copied and pickled."""

import copy
import io
import multiprocessing
import pickle
import threading
from functools import partial

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core import backend as backend_module
from agnostic_nn.core.atomic import StateLost
from agnostic_nn.core.trees import leaves, named_leaves
from agnostic_nn.diagnostics.examples import LAYERS, LOSSES, OPTIMIZERS

X = np.random.default_rng(0).standard_normal((60, 5), dtype=np.float32)
LABELS = np.arange(60) % 3
MODEL = nn.Sequential(nn.Dense(6), nn.BatchNorm(), nn.Dropout(0.3), nn.Dense(3))


def pickled(thing, protocol=pickle.HIGHEST_PROTOCOL):
    return pickle.loads(pickle.dumps(thing, protocol))


COPIES = {
    "protocol 0": partial(pickled, protocol=0),
    "protocol 5": pickled,
    "pickle in Python": lambda thing: pickle.loads(pickle._dumps(thing)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


def new(backend, **options):
    options = {"loss": nn.softmax_cross_entropy, "optimizer": nn.Adam(0.01)} | options
    return nn.Trainer(MODEL, backend=backend, **options)


def bits(trainer):
    """Return parameters, state and moments as bytes, by name."""
    carry = trainer.backend.to_numpy((trainer.params, trainer.state, trainer.moments))
    return {name: leaf.tobytes() for name, leaf in named_leaves(carry)}


def fit(trainer, **options):
    options = {"epochs": 2, "batch_size": 16, "verbose": 0} | options
    history = trainer.fit(X, LABELS, **options)
    return [{**row, "seconds": None} for row in history.epochs]


@pytest.fixture(scope="module")
def midway(backend):
    """Return a trainer in the middle of its second epoch, with all that it can hold."""
    trainer = new(backend, optimizer=nn.Adam(0.02))
    fit(trainer, steps=3)
    trainer.keep("three")
    trainer.optimizer = nn.Adam(nn.schedules.Cosine(0.01, steps=50))
    trainer.notes["lines"] = ["one"]
    fit(trainer, steps=3, epochs=3)
    return trainer


@pytest.fixture
def quick(backend, thorough):
    """Return whether to train few copies, as each is compiled again."""
    return backend.compiles and not thorough


@pytest.mark.parametrize("how", COPIES)
def test_training_of_a_copy_continues_with_the_same_bits(midway, how, quick):
    if quick and how not in ("protocol 5", "deepcopy"):
        pytest.skip("the others are tested on other backends")
    original = pickled(midway)  # each test continues it
    copied = COPIES[how](original)
    before = bits(original)
    assert (copied.steps, copied.epoch, copied.shape) == (6, 1, (5,))
    assert bits(copied) == before
    rows = fit(copied)
    after = bits(copied)
    copied.notes["lines"].append("two")
    copied.keep("another")
    assert bits(original) == before, "they share memory"
    assert original.notes == {"lines": ["one"]}
    with pytest.raises(KeyError, match=r"only \['three'\]"):
        original.restore("another")
    assert rows == fit(original)
    assert bits(copied) == after == bits(original)
    assert copied.steps > 6
    for trainer in (copied, original):
        trainer.restore("three")
    assert bits(copied) == bits(original)


def test_a_copy_compiles_its_own_programs_and_keeps_the_settings(backend):
    trainer = new(backend, seed=3, keep_finite=False, metrics={"accuracy": nn.accuracy})
    trainer.step(X, LABELS)
    copied = pickled(trainer)
    assert copied._step is not trainer._step
    assert copied.backend == backend
    assert copied.model == MODEL
    assert (copied.seed, copied.dtype, copied.keep_finite) == (3, "float32", False)
    assert copied.metrics == {"accuracy": nn.accuracy}
    assert str(copied) == str(trainer)


def test_a_trainer_without_weights_is_copied_without_weights(backend):
    trainer = new(backend)
    copied = pickled(trainer)
    assert copied.shape is None
    for each in (copied, trainer):
        each.build((5,))
    assert bits(copied) == bits(trainer)


@pytest.mark.parametrize("name", ["float64", "float16", "bfloat16"])
def test_the_bits_of_other_dtypes_survive(backend, name, quick):
    if not backend.has_dtype(name):
        pytest.skip(f"{backend} has no {name}")
    x = X[:8].astype("float64" if name == "float64" else "float32")
    trainer = new(backend, dtype=name, optimizer=nn.SGD(0.1, momentum=0.9), shape=(5,))
    trainer.step(x, LABELS[:8])
    copied = pickled(trainer)
    assert bits(copied) == bits(trainer)
    kinds = [{str(leaf.dtype) for leaf in leaves(t.params)} for t in (copied, trainer)]
    assert kinds[0] == kinds[1]
    assert name in "".join(kinds[0])
    if not quick:
        for each in (copied, trainer):
            each.step(x, LABELS[:8])
        assert bits(copied) == bits(trainer)


class Pickler(nn.Callback):
    """Pickles the trainer after the first epoch, or after some step."""

    def __init__(self, step=None):
        self.at_step, self.data = step, None

    def step(self, trainer, report):
        if report.number == self.at_step:
            self.data = pickle.dumps(trainer)

    def epoch(self, trainer, row):
        if self.at_step is None and self.data is None:
            self.data = pickle.dumps(trainer)


class Counter(nn.Callback):
    """Adds to the row how many epochs of the run there were."""

    def epoch(self, trainer, row):
        memory = trainer.memory(self)
        row["count"] = memory["count"] = memory.get("count", 0) + 1


@pytest.mark.parametrize("step", [None, 3, 6])
def test_a_pickle_made_by_a_callback_continues_the_run(backend, step, quick):
    """The copy has what other callbacks remember, as a checkpoint has."""
    if quick and step != 3:
        pytest.skip("the others are tested on other backends")
    trainer = new(backend)
    pickler = Pickler(step)
    rows = fit(trainer, callbacks=[Counter(), pickler], epochs=3)
    copied = pickle.loads(pickler.data)
    steps = 4 if step is None else step
    assert (copied.steps, copied.epoch) == (steps, steps // 4)
    left = 3 - copied.epoch
    resumed = fit(copied, callbacks=[Counter()], epochs=left)
    assert [(row["loss"], row["count"]) for row in resumed] == [
        (row["loss"], row["count"]) for row in rows[-left:]
    ]
    assert bits(copied) == bits(trainer)


def test_a_later_step_changes_nothing_that_a_pickle_refers_to(backend):
    """Buffers outside a pickle are written to a file when it is complete."""
    trainer = new(backend, shape=(5,))
    trainer.step(X, LABELS)
    buffers = []
    before = bits(trainer)
    data = pickle.dumps(trainer, 5, buffer_callback=buffers.append)
    for _ in range(3):
        trainer.step(X, LABELS)
    assert buffers
    assert bits(trainer) != before
    assert bits(pickle.loads(data, buffers=buffers)) == before


def test_a_pickle_made_by_another_thread_is_of_a_whole_number_of_steps(backend):
    trainer = new(backend, shape=(5,))
    reference = new(backend, shape=(5,))
    states = [bits(reference)]
    for _ in range(40):
        reference.step(X, LABELS)
        states.append(bits(reference))
    copies, is_done = [], threading.Event()

    def pickle_often():
        while not is_done.is_set() and len(copies) < 30:
            copies.append(pickle.dumps(trainer))

    thread = threading.Thread(target=pickle_often)
    thread.start()
    for _ in range(40):
        trainer.step(X, LABELS)
    is_done.set()
    thread.join()
    assert copies
    for data in copies:
        copied = pickle.loads(data)
        assert bits(copied) == states[copied.steps]


@pytest.mark.parametrize("how", COPIES)
def test_a_trainer_that_lost_its_state_stays_so(backend, how):
    trainer = new(backend, shape=(5,))
    trainer.keep("first")
    expected = bits(trainer)
    trainer._current.change(carry=None, lost="a failure that was planted")
    copied = COPIES[how](trainer)
    with pytest.raises(StateLost, match="lost: a failure that was planted"):
        copied.predict(X)
    with pytest.raises(StateLost):
        copied.step(X, LABELS)
    copied.restore("first")
    assert bits(copied)["0.0.weight"] == expected["0.0.weight"]


def offset_loss(y, target, *, context):
    value, dy = nn.mean_squared_error(y - context["offset"], target)
    return value, dy


class Offset:
    def __call__(self):
        return {"offset": np.ones((), np.float32)}


@pytest.mark.parametrize("context", [Offset()(), Offset()], ids=["tree", "function"])
def test_a_context_is_copied(backend, context):
    options = {"loss": offset_loss, "backend": backend, "shape": (5,)}
    trainer = nn.Trainer(nn.Dense(2), optimizer=nn.SGD(0.1), context=context, **options)
    copied = pickled(trainer)
    assert callable(copied.context) == callable(context)
    for each in (copied, trainer):
        each.step(X, X[:, :2])
    assert bits(copied) == bits(trainer)


def test_a_context_of_bfloat16_keeps_its_dtype(backend):
    if not backend.has_dtype("bfloat16"):
        pytest.skip(f"{backend} has no bfloat16")
    xp = backend.xp
    offset = xp.astype(backend.asarray(np.float32(1.5)), xp.bfloat16)
    options = {"loss": offset_loss, "backend": backend}
    context = {"offset": offset}
    trainer = nn.Trainer(nn.Dense(2), optimizer=nn.SGD(0.1), context=context, **options)
    assert pickled(trainer).context["offset"].dtype == offset.dtype


class Named(nn.Trainer):
    """A subclass with attributes, before and after the trainer's own are set."""

    def __init__(self, label, **options):
        self.label = label
        super().__init__(**options)
        self.lines = []


@pytest.mark.parametrize("how", COPIES)
def test_attributes_of_a_subclass_are_copied(backend, how):
    trainer = Named(
        "mine",
        model=nn.Dense(2),
        loss=nn.mean_squared_error,
        optimizer=nn.SGD(0.1),
        backend=backend,
        shape=(5,),
    )
    trainer.lines.append(1)
    copied = COPIES[how](trainer)
    assert type(copied) is Named
    assert (copied.label, copied.lines) == ("mine", [1])
    assert (copied.lines is trainer.lines) == (how == "copy")


class Self:
    """A loss that reads its trainer."""

    trainer = None

    def __call__(self, y, target):
        return nn.mean_squared_error(y, target)


@pytest.mark.parametrize("how", COPIES)
def test_a_part_that_refers_to_the_trainer_refers_to_the_copy(backend, how):
    loss = Self()
    loss.trainer = nn.Trainer(nn.Dense(2), loss, nn.SGD(0.1), backend=backend)
    copied = COPIES[how](loss.trainer)
    whose = loss.trainer if how == "copy" else copied
    assert copied.loss.trainer is whose


# --- what cannot be pickled -----------------------------------------------------------


def my_rate(t):
    return 0.1 + 0.0 * t


def refused():
    """Yield the options of a trainer, and the part that cannot be pickled."""

    def local(y, target):
        return nn.mean_squared_error(y, target)

    sgd = nn.SGD(0.1)
    good = nn.mean_squared_error
    yield {"loss": local}, "its loss, local, .*local"
    yield {"loss": lambda y, t: good(y, t)}, "its loss, <lambda>, "
    yield {"optimizer": nn.SGD(lambda t: 0.1 + 0 * t)}, r"its optimizer, .*lambda"
    yield {"metrics": {"mine": lambda y, t: t[:, 0]}}, "its metric 'mine', <lambda>"
    yield (
        {"loss": offset_loss, "context": lambda: {"offset": 1.0}},
        "its context, <lambda>",
    )
    yield {"optimizer": sgd, "attribute": threading.Lock()}, "its attribute 'extra', "


@pytest.mark.parametrize(("options", "message"), list(refused()))
@pytest.mark.parametrize("dumps", [pickle.dumps, pickle._dumps])
def test_errors_name_the_part_that_cannot_be_pickled(backend, options, message, dumps):
    options = {"loss": nn.mean_squared_error, "optimizer": nn.SGD(0.1)} | options
    attribute = options.pop("attribute", None)
    trainer = nn.Trainer(nn.Dense(2), backend=backend, **options)
    if attribute is not None:
        trainer.extra = attribute
    with pytest.raises(TypeError, match=rf"(?s){message}.*at the top level of a modul"):
        dumps([trainer])


def test_a_copy_may_have_functions_that_cannot_be_pickled(backend):
    optimizer = nn.SGD(lambda t: 0.1 + 0 * t)
    trainer = nn.Trainer(nn.Dense(2), nn.mean_squared_error, optimizer, backend=backend)
    for copied in (copy.copy(trainer), copy.deepcopy(trainer)):
        assert copied.optimizer.rate is optimizer.rate


def test_an_optimizer_with_a_named_schedule_is_pickled(backend):
    trainer = nn.Trainer(
        nn.Dense(2), nn.mean_squared_error, nn.SGD(my_rate), backend=backend
    )
    assert pickled(trainer).optimizer.rate is my_rate


def test_a_pickle_of_another_format_is_refused(backend):
    contents = new(backend).__getstate__() | {"format": 99}
    with pytest.raises(ValueError, match=r"format 1, got format 99.*`save`"):
        object.__new__(nn.Trainer).__setstate__(contents)


# --- backends -------------------------------------------------------------------------


def test_a_backend_is_pickled_with_its_settings(backend):
    changed = nn.backend(str(backend), deterministic=backend.deterministic)
    for each in (backend, changed, nn.backend("numpy", precision="fast", replay=False)):
        again = pickled(each, 0)
        assert again == each
        assert again.policy == each.policy
        assert again.replay == each.replay
        assert again.device == each.device
    assert copy.copy(backend) is copy.deepcopy(backend) is backend


@pytest.mark.parametrize("name", ["{library}:gpu:77", "absent:0"])
def test_a_backend_that_is_not_available_is_not_replaced(backend, name):
    name = name.format(library=backend.name)
    data = pickle.dumps(new(backend, shape=(5,)), 0)
    saved = str(backend).encode()
    assert data.count(saved) == 1
    expected = f"the pickle is of the backend '{name}', which is not available here: "
    with pytest.raises(nn.BackendUnavailable, match=rf"{expected}.*to\('numpy'\)"):
        pickle.loads(data.replace(saved, name.encode()))


def test_a_backend_with_another_adapter_is_refused(backend):
    class Other:
        xp = backend.xp

    for name in (backend.name, "absent"):
        odd = backend_module.Backend(name, backend.device_name, backend.device, Other)
        with pytest.raises(TypeError, match="its adapter is not the one"):
            pickle.dumps(odd)


# --- other classes --------------------------------------------------------------------


def public():
    """Yield an instance of every public class that users store."""
    for example in (*LAYERS, *LOSSES):
        yield example.name, example.layer
    for optimizer in OPTIMIZERS:
        yield type(optimizer).__name__, optimizer
    yield from (
        ("Losses", nn.Losses({"a": nn.hinge, "b": partial(nn.huber, delta=0.5)})),
        ("Weighted", nn.Weighted(nn.huber, 0.5)),
        ("Penalized", nn.Penalized(nn.huber, [nn.penalties.L1(0.1)])),
        ("BetweenOutputs", nn.BetweenOutputs(nn.mean_squared_error)),
        ("L2", nn.penalties.L2(0.1)),
        ("Orthogonality", nn.penalties.Orthogonality(0.1)),
        ("OverAll", nn.OverAll(nn.r2)),
        ("Shared", nn.Shared("node")),
        ("Fixed", nn.Fixed()),
        ("Parts", nn.Parts((("bias", nn.SGD(0.1)),))),
        *[
            (f"{owner} {type(each).__name__}", each)
            for owner, group in (("schedule", SCHEDULES), ("initializer", INITIALIZERS))
            for each in group
        ],
        *[(type(each).__name__, each) for each in CALLBACKS],
        ("History", nn.History([{"epoch": 1, "loss": 0.5}])),
        ("NonFiniteLoss", nn.NonFiniteLoss("step 3")),
        ("BackendUnavailable", nn.BackendUnavailable("cupy")),
        ("CheckpointError", nn.CheckpointError("file")),
        *[(name, getattr(nn, name)) for name in nn.losses.__all__],
        *[(name, getattr(nn, name)) for name in ("accuracy", "r2", "perplexity")],
    )


S = nn.schedules
SCHEDULES = (
    S.Constant(0.1),
    S.StepDecay(0.1, every=3),
    S.ExponentialDecay(0.1, factor=0.5, every=10),
    S.Cosine(0.1, steps=10),
    S.CosineRestarts(0.1, (5, 10)),
    S.Linear(0.1, 0.0, steps=10),
    S.Polynomial(0.1, steps=10),
    S.InverseSquareRoot(0.1, warmup=10),
    S.OneCycle(0.1, steps=10),
    S.Piecewise((0.1, 0.01), (10,)),
    S.Warmup(S.Cosine(0.1, steps=10), steps=3),
    S.Times(S.Constant(0.1), S.Constant(0.5)),
)
INITIALIZERS = (
    nn.Constant(0.1),
    nn.Orthogonal(),
    nn.TruncatedNormal(0.1),
    nn.VarianceScaling(2.0, "in", distribution="normal"),
    nn.he_normal,
)
CALLBACKS = (
    nn.Checkpoint("a", best=True),
    nn.CSVLog("a"),
    nn.EarlyStopping(),
    nn.LogTo(print),
    nn.RateLog(),
    nn.ReduceOnPlateau(),
    nn.TensorBoardLog("a"),
)
PUBLIC = list(public())


@pytest.mark.parametrize("thing", [t for _, t in PUBLIC], ids=[n for n, _ in PUBLIC])
def test_public_objects_survive_a_pickle_and_a_deepcopy(thing):
    for again in (pickled(thing), pickled(thing, 0), copy.deepcopy(thing)):
        assert type(again) is type(thing)
        assert repr(again) == repr(thing)
        if type(thing).__eq__ is not object.__eq__ and not callable(thing):
            assert again == thing


def test_every_public_class_is_in_the_list_above():
    classes = {
        thing for name in nn.__all__ if isinstance(thing := getattr(nn, name), type)
    }
    listed = {type(thing) for _, thing in PUBLIC}
    elsewhere = {
        *(nn.Backend, nn.Trainer, nn.RowMask, nn.Status),  # in tests of this file
        *(nn.Block, nn.Callback, nn.Elementwise, nn.Layer),  # base classes
        *(nn.Optimizer, nn.Rule),
        nn.CheckFailed,
    }
    missing = {kind.__name__ for kind in classes - listed - elsewhere}
    assert not missing


def test_arrays_of_random_keys_and_masks_are_pickled(backend):
    key = nn.random.key(3, xp=backend.xp)
    expected = backend.to_numpy(key)
    # PyTorch cannot unpickle its own tensors of uint32
    np.testing.assert_array_equal(pickled(expected), expected)
    np.testing.assert_array_equal(backend.to_numpy(copy.deepcopy(key)), expected)
    mask = nn.RowMask(backend.asarray(np.ones(4, np.float32)))
    for again in (pickled(mask), copy.deepcopy(mask)):
        assert bool(again)
        np.testing.assert_array_equal(backend.to_numpy(again.counts), np.ones(4))


def test_reports_are_pickled_as_numbers(backend):
    reports, rates = [], []

    class Watcher(nn.Callback):
        def step(self, trainer, report):
            rates.append((report.rate, report.metrics))
            reports.append((pickled(report), pickled(report, 0), copy.deepcopy(report)))

    trainer = new(backend, optimizer=nn.SGD(S.Linear(0.1, 0.0, steps=9)))
    (row,) = fit(trainer, epochs=1, callbacks=[Watcher()])
    assert len(reports) == 4
    assert len({rate for rate, _ in rates}) == 4
    for number, copies in enumerate(reports):
        for report in copies:
            assert report.number == number + 1
            assert (report.rate, report.metrics) == rates[number]
            assert "accuracy" in report.metrics
    assert row["steps"] == 4


def test_the_status_of_backends_and_a_summary_are_pickled(backend):
    status = nn.Status(backend.name, backend.version, (backend,), None)
    assert pickled(status) == status
    table = backend_module.StatusTable([status])
    assert repr(pickled(table)) == repr(table)
    summary = new(backend, shape=(5,)).summary()
    assert str(pickled(summary)) == str(summary)


def test_a_tensorboard_log_is_pickled_without_its_open_files(tmp_path):
    copies = []
    log = nn.TensorBoardLog(str(tmp_path))

    class Watcher(nn.Callback):
        def epoch(self, trainer, row):
            copies.append(pickled(log))

    trainer = new(nn.backend("numpy"))
    fit(trainer, epochs=1, callbacks=[log, Watcher()])
    assert copies == [log]


# --- other processes ------------------------------------------------------------------


def outputs_of(trainer):
    """Return what a trainer predicts after an epoch, in another process."""
    fit(trainer, epochs=1)
    return trainer, trainer.predict(X)


def test_a_spawned_process_continues_training_with_the_same_bits():
    trainer = new(nn.backend("numpy"))
    fit(trainer, steps=3)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        returned, outputs = pool.apply(outputs_of, (trainer,))
    again, expected = outputs_of(trainer)
    np.testing.assert_array_equal(outputs, expected)
    assert bits(returned) == bits(again)
    assert returned.steps == 4


# --- checkpoints in file objects ------------------------------------------------------


class Stream:
    """A file that can be read and written, but has no position, such as a socket."""

    def __init__(self, data=b"", limit=None):
        self.data, self.limit = data, limit

    def write(self, data):
        if self.limit is not None and len(self.data) + len(data) > self.limit:
            raise OSError("the stream is full")
        self.data += data

    def read(self):
        return self.data


def test_a_checkpoint_in_memory_has_the_bytes_of_the_file(midway, tmp_path):
    midway.save(tmp_path / "a")
    buffer, stream = io.BytesIO(), Stream()
    midway.save(buffer)
    midway.save(stream)
    with open(tmp_path / "b", "wb") as file:
        midway.save(file)
        assert not file.closed
        # it is flushed before it is closed
        assert (tmp_path / "b").read_bytes() == buffer.getvalue()
    assert (tmp_path / "a").read_bytes() == buffer.getvalue() == stream.data


def test_training_continues_from_file_objects(midway, backend, tmp_path):
    original = pickled(midway)
    buffer = io.BytesIO(b"before")
    buffer.seek(6)
    original.save(buffer)
    buffer.seek(6)
    original.save(tmp_path / "a")
    with open(tmp_path / "a", "rb") as file:
        from_file = nn.Trainer.load(file, backend)
    copies = [from_file, nn.Trainer.load(buffer, backend)]
    copies.append(nn.Trainer.load(Stream(buffer.getvalue()[6:]), backend))
    before = bits(original)
    for copied in copies:
        assert bits(copied) == before
    assert fit(from_file, epochs=1) == fit(original, epochs=1)
    assert bits(from_file) == bits(original)


class Short(io.BytesIO):
    """A file that writes at most 1000 bytes at a time, as an unbuffered one may."""

    def write(self, data):
        return super().write(data[:1000])


def test_a_file_that_writes_less_than_it_gets_is_written_whole(midway):
    short, whole = Short(), io.BytesIO()
    midway.save(short)
    midway.save(whole)
    assert short.getvalue() == whole.getvalue()


class Full(io.BytesIO):
    """A file on a full disk: fails at the second write, or when it is flushed."""

    def __init__(self, data, when):
        super().__init__(data)
        self.when, self.writes = when, 0

    def write(self, data):
        self.writes += 1
        if self.when == "write" and self.writes == 2:
            super().write(data[:3])
            raise OSError(28, "No space left on device")
        return super().write(data)

    def flush(self):
        if self.when == "flush":
            raise OSError(28, "No space left on device")


@pytest.mark.parametrize("when", ["write", "flush"])
def test_a_file_object_is_written_whole_or_not_at_all(midway, when):
    file = Full(b"before", when)
    file.seek(6)
    with pytest.raises(OSError, match="No space left"):
        midway.save(file)
    assert file.getvalue() == b"before"


def test_a_part_of_a_checkpoint_in_a_stream_is_refused(midway):
    stream = Stream(limit=10)
    with pytest.raises(OSError, match="is full"):
        midway.save(stream)
    whole = io.BytesIO()
    midway.save(whole)
    for count in (1, 100, len(whole.getvalue()) - 1):
        with pytest.raises(nn.CheckpointError, match=r"Stream is .*damaged"):
            nn.Trainer.load(Stream(whole.getvalue()[:count]))


def test_file_objects_that_cannot_hold_a_checkpoint_are_refused(midway, tmp_path):
    with pytest.raises(TypeError, match=r"StringIO, which is open for text.*'wb'"):
        midway.save(io.StringIO())
    with (
        open(tmp_path / "text", "w+") as file,
        pytest.raises(TypeError, match="text, which is open for text"),
    ):
        midway.save(file)
    with pytest.raises(TypeError, match=r"StringIO, whose read\(\) returned"):
        nn.Trainer.load(io.StringIO("text"))
    buffer = io.BytesIO(b"12345")
    buffer.seek(2)
    message = r"BytesIO, which has 3 bytes after position 2.*truncate\(\)"
    with pytest.raises(ValueError, match=message):
        midway.save(buffer)
    assert buffer.getvalue() == b"12345"
    buffer.seek(0)
    buffer.truncate()
    midway.save(buffer)
    with pytest.raises(nn.CheckpointError, match=r"no bytes after its.*seek\(0\)"):
        nn.Trainer.load(buffer)
    for wrong in (3, None, io.BytesIO):
        with pytest.raises(TypeError, match="expected path to be a path"):
            midway.save(wrong)
        with pytest.raises(TypeError, match="expected path to be a path"):
            nn.Trainer.load(wrong)
