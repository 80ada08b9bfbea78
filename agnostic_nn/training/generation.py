"""Generation: a model continues sequences of tokens, one token at a time.

The prompt goes through `prefill`, and then each token through `advance`. The next token
is drawn from the model's logits on the device. A backend that compiles loops gets one
program for all of it; on others, one step is compiled and called in a loop.

Random numbers come from `core.random`, on the host, for all steps at once. Token i of
row r is drawn by word i of the counter's high word r, so it depends neither on the
number of rows nor on `length`.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from ..core import random
from ..core.arrays import Array, Memory, Params, State, device, namespace
from ..core.backend import Backend
from ..core.errors import (
    described,
    expect,
    expect_count,
    expect_flag,
    expect_integer,
    expect_number,
)
from ..layers import Layer
from ..layers.base import not_a_layer
from ..ops import loop_until, widened
from .trainer import Trainer

__all__ = ["generate", "stream_tokens"]

# Where no loop is compiled, one call makes several steps: a call takes as long as many
# operations, since it compares all arguments with those of the call before.
STEPS_PER_CALL = 8
MIN_LENGTH = 4 * STEPS_PER_CALL  # shorter texts are not worth another program
MAX_PROGRAMS = 16  # compiled functions that are kept for each trainer or model


def generate(
    trainer: "Trainer | tuple[Layer, Params, State, Backend]",
    prompt: Any,
    length: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: int | None = None,
    seed: int = 0,
    averaged: bool = False,
) -> np.ndarray:
    """Return `length` tokens that continue each row of `prompt`.

    The result is (batch, length), int32. Each token is drawn from
    softmax(y / temperature), where y are the logits that the model computes at the
    token before it.

    trainer
        A `Trainer`, or a tuple (model, params, state, backend). The model maps integers
        (batch, steps) to logits (batch, steps, vocabulary), and every layer can decode
        step by step: see `begin`, `prefill` and `advance` of `Layer`.
    prompt
        Integers (batch, steps) with at least one step. All rows have the same length.
    length
        The number of tokens to generate.
    temperature
        At 0 the most likely token is taken, the first one if several are equal.
    top_k
        Draw from the `top_k` most likely tokens only, and those equal to the last.
    top_p
        Draw from the most likely tokens only, as few as have a probability of at least
        `top_p` in sum (Holtzman et al., arXiv:1904.09751), and those equal to the last;
        after `top_k` if both are given.
    stop
        A token that ends a row. The rest of the row is filled with it. When all rows
        have ended, nothing more is computed.
    seed
        Fixes the random numbers, which are the same on every backend. The tokens are
        the same too, unless two backends round a probability differently at the very
        place of a random number.
    averaged
        Use the mean of the parameters that `Average` maintains.

    The first call with a batch size, a length of the prompt and, where loops are
    compiled, `length` compiles the model for them.

    Raises
    ------
    TypeError
        If the prompt does not hold integers, or a layer cannot decode step by step.
    ValueError
        If the prompt has another shape, or a token outside of the vocabulary; if the
        model has fewer positions than the prompt and `length` need; or if logits are
        not finite.
    """
    task = _Task.of(trainer, averaged)
    sampling = _Sampling.of(temperature, top_k, top_p, stop)
    prompt = _checked_prompt(task, prompt, length)
    uniforms = _uniforms(task, sampling, seed, prompt.shape[0], length)
    if task.backend.compiles:
        function = partial(_generate_all, task.model, sampling, length)
        program = task.compiled((sampling, length), function)
        device_prompt = task.backend.asarray(prompt)
        result = program(task.params, task.state, device_prompt, uniforms)
        tokens, largest = task.backend.to_numpy(result)
    else:
        steps = STEPS_PER_CALL if length >= MIN_LENGTH else 1
        parts = tuple(_steps(task, sampling, prompt, length, uniforms, steps))
        columns = zip(*task.backend.to_numpy(parts), strict=True)
        tokens, largest = [np.concatenate(column, axis=1) for column in columns]
        if stop is not None:  # all rows may have ended before
            missing = ((0, 0), (0, length - tokens.shape[1]))
            tokens = np.pad(tokens, missing, constant_values=stop)
    _expect_finite(largest)
    return np.array(tokens, np.int32)


def stream_tokens(
    trainer: "Trainer | tuple[Layer, Params, State, Backend]",
    prompt: Any,
    length: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: int | None = None,
    seed: int = 0,
    averaged: bool = False,
) -> Iterator[np.ndarray]:
    """Yield the tokens of `generate` one step at a time, (batch,), int32.

    Arguments and errors are those of `generate`. The iterator ends after `length`
    steps, or when all rows have ended. One step is compiled on every backend.
    """
    task = _Task.of(trainer, averaged, is_shared=True)
    sampling = _Sampling.of(temperature, top_k, top_p, stop)
    prompt = _checked_prompt(task, prompt, length)
    uniforms = _uniforms(task, sampling, seed, prompt.shape[0], length)
    for i, step in enumerate(_steps(task, sampling, prompt, length, uniforms, 1)):
        tokens, largest = task.backend.to_numpy(step)
        _expect_finite(largest, i)
        yield np.array(tokens[:, 0], np.int32)


class _Sampling(NamedTuple):
    """The options of `generate` that say how a token is drawn."""

    temperature: float
    top_k: int | None
    top_p: float | None
    stop: int | None

    @classmethod
    def of(cls, temperature: Any, top_k: Any, top_p: Any, stop: Any) -> "_Sampling":
        expect_number("temperature", temperature, 0.0, math.inf)
        if top_k is not None:
            expect_count("top_k", top_k)
        if top_p is not None:
            fits = not isinstance(top_p, bool) and isinstance(top_p, int | float)
            fits = fits and 0.0 < top_p <= 1.0
            expect(fits, "expected top_p in (0, 1], got {}", top_p)
        if stop is not None:
            expect_integer("stop", stop, 0)
        return cls(float(temperature), top_k, top_p, stop)

    @property
    def is_random(self) -> bool:
        return self.temperature > 0.0 and self.top_k != 1


# (model, compiled function) by options: of each trainer, and for all tuples
_Programs = dict[Any, tuple[Layer, Callable[..., Any]]]
_of_trainers: WeakKeyDictionary[Trainer, _Programs] = WeakKeyDictionary()
_of_tuples: _Programs = {}


class _Task(NamedTuple):
    """A model with its weights on a backend. programs: its compiled functions."""

    programs: _Programs
    model: Layer
    params: Params
    state: State
    backend: Backend

    @classmethod
    def of(cls, trainer: Any, averaged: Any, is_shared: bool = False) -> "_Task":
        """Check the arguments. is_shared: whether the trainer may take steps now."""
        expect_flag("averaged", averaged)
        if isinstance(trainer, Trainer):
            if is_shared and not averaged:
                params, state = trainer.params, trainer.state
            else:
                params, state = trainer._prediction_weights(averaged)
            programs = _of_trainers.setdefault(trainer, {})
            return cls(programs, trainer.model, params, state, trainer.backend)
        is_task = isinstance(trainer, tuple) and len(trainer) == 4
        if not is_task or not isinstance(trainer[3], Backend):
            raise TypeError(
                "expected a Trainer or a tuple (model, params, state, backend), got "
                f"{described(trainer)}"
            )
        if not isinstance(trainer[0], Layer):
            raise TypeError(f"expected a layer, got {not_a_layer(trainer[0])}")
        expect(not averaged, "averaged parameters need a Trainer, got a tuple")
        return cls(_of_tuples, *trainer)

    def compiled(
        self, options: Any, function: Callable[..., Any], donate: tuple[int, ...] = ()
    ) -> Callable[..., Any]:
        """Return `function`, compiled; the same one for equal options."""
        # by identity, since a custom layer need not be hashable
        key = (id(self.model), self.backend, options)
        entry = self.programs.pop(key, None)
        if entry is None:
            entry = (self.model, self.backend.jit(function, donate))
        self.programs[key] = entry  # the latest one is last
        while len(self.programs) > MAX_PROGRAMS:
            self.programs.pop(next(iter(self.programs)))
        return entry[1]


def _checked_prompt(task: _Task, prompt: Any, length: Any) -> np.ndarray:
    """Return the prompt on the host, in int32."""
    expect_count("length", length)
    if hasattr(prompt, "__array_namespace__") and not isinstance(prompt, np.ndarray):
        prompt = task.backend.to_numpy(prompt)
    prompt = np.asarray(prompt)
    if prompt.dtype.kind not in "iu":
        raise TypeError(
            f"expected a prompt of integers (batch, steps), got {prompt.dtype}"
        )
    fits = prompt.ndim == 2 and min(prompt.shape) >= 1
    remedy = ": write prompt[None] for a single row" if prompt.ndim == 1 else ""
    message = "expected a prompt (batch, steps) of at least one token, got {}{}"
    expect(fits, message, prompt.shape, remedy)
    task.model.check(prompt)
    tokens: np.ndarray = prompt.astype(np.int32)
    return tokens


def _uniforms(
    task: _Task, sampling: _Sampling, seed: Any, rows: int, length: int
) -> Any:
    """Return uniform numbers in [0, 1), (length, rows), or () if none are needed."""
    key = random.key(seed, xp=namespace(np.zeros(())))
    if not sampling.is_random:
        return ()
    zeros = np.zeros((rows, (length + 1) // 2), np.uint32)
    high = zeros + np.arange(rows, dtype=np.uint32)[:, None]
    low = zeros + np.arange(zeros.shape[1], dtype=np.uint32)
    words = np.stack(random.threefry(key[0:1], key[1:2], high, low), axis=-1)
    words = words.reshape(rows, -1)[:, :length]
    # 24 bits, as `random.uniform` takes
    return task.backend.asarray((words >> 8).T.astype(np.float32) * np.float32(2**-24))


def _expect_finite(largest: np.ndarray, first: int = 0) -> None:
    """Raise ValueError if a largest logit (batch, steps) is not finite."""
    is_finite = np.isfinite(largest)
    if not is_finite.all():
        row, step = np.argwhere(~is_finite)[0]
        raise ValueError(
            f"the logits of token {first + step} of row {row} are not finite; "
            "nn.explain finds the layer where this begins"
        )


def _begin(
    model: Layer, params: Params, state: State, prompt: Array, count: int
) -> Any:
    """Return the memory for `count` tokens after the prompt, of which the last is not
    an input."""
    steps = prompt.shape[1]
    try:
        return model.begin(params, state, prompt[:, :1], steps + count - 1)
    except ValueError as error:
        needed = f"a prompt of {steps} steps and {count} more tokens"
        raise ValueError(f"{needed} need {steps + count - 1} steps: {error}") from error


def _steps(
    task: _Task,
    sampling: _Sampling,
    prompt: np.ndarray,
    length: int,
    uniforms: Any,
    steps_per_call: int,
) -> Iterator[tuple[Array, Array]]:
    """Yield tokens and their largest logits, (batch, steps), of one or more steps."""
    backend = task.backend
    device_prompt = backend.asarray(prompt)
    weights = task.params, task.state
    with backend.applied(), backend.inference():
        memory = _begin(task.model, *weights, device_prompt, length)
    first = task.compiled(
        ("first", sampling), partial(_first, task.model, sampling), donate=(2,)
    )
    with backend.inference():
        carry, results, memory = first(*weights, memory, device_prompt, uniforms)
    yield results
    calls, rest = divmod(length - 1, steps_per_call)
    for steps in (*(1,) * rest, *(steps_per_call,) * calls):
        if sampling.stop is not None and backend.to_numpy(carry["done"]).all():
            return
        following = task.compiled(
            ("next", sampling, steps),
            partial(_several, task.model, sampling, steps),
            donate=(2,),
        )
        with backend.inference():
            carry, results, memory = following(*weights, memory, carry, uniforms)
        yield results


def _several(
    model: Layer,
    sampling: _Sampling,
    steps: int,
    params: Params,
    state: State,
    memory: Memory,
    carry: dict[str, Array],
    uniforms: Any,
) -> tuple[dict[str, Array], tuple[Array, Array], Memory]:
    """Return the carry after some steps, their tokens and logits, and the memory."""
    columns: list[tuple[Array, Array]] = []
    for _ in range(steps):
        carry, memory = _next(model, sampling, params, state, memory, carry, uniforms)
        columns.append((carry["tokens"], carry["logits"]))
    return carry, _joined(columns), memory


def _joined(columns: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Return tokens and largest logits of several steps, (batch, steps).

    columns: for each step the tokens (batch,) and the logits (batch, vocabulary).
    """
    xp = namespace(columns[0][0])
    tokens, logits = zip(*columns, strict=True)
    largest = xp.max(xp.stack(logits, axis=1), axis=-1)
    return xp.stack(tokens, axis=1), largest


def _generate_all(
    model: Layer,
    sampling: _Sampling,
    length: int,
    params: Params,
    state: State,
    prompt: Array,
    uniforms: Any,
) -> tuple[Array, Array]:
    """Return all tokens and their largest logits, (batch, length), from one loop."""
    xp = namespace(prompt)
    memory = _begin(model, params, state, prompt, length)
    first = _first(model, sampling, params, state, memory, prompt, uniforms)
    carry, (_, largest), memory = first
    numbers = xp.arange(length, dtype=xp.int32, device=device(prompt))
    fill = 0 if sampling.stop is None else sampling.stop
    tokens = xp.where(numbers == 0, carry["tokens"][:, None], fill)
    largest = xp.where(numbers == 0, largest, 0.0)

    def is_done(loop_carry: Any) -> Any:
        carry = loop_carry[0]
        never = carry["step"] < 0
        return never if sampling.stop is None else xp.all(carry["done"])

    def step(loop_carry: Any) -> Any:
        carry, memory, tokens, largest = loop_carry
        is_now = numbers == carry["step"]
        carry, memory = _next(model, sampling, params, state, memory, carry, uniforms)
        tokens = xp.where(is_now, carry["tokens"][:, None], tokens)
        now_largest = xp.max(carry["logits"], axis=-1, keepdims=True)
        largest = xp.where(is_now, now_largest, largest)
        return carry, memory, tokens, largest

    loop_carry = (carry, memory, tokens, largest)
    _, _, tokens, largest = loop_until(is_done, step, loop_carry, length - 1)
    return tokens, largest


def _first(
    model: Layer,
    sampling: _Sampling,
    params: Params,
    state: State,
    memory: Memory,
    prompt: Array,
    uniforms: Any,
) -> tuple[dict[str, Array], tuple[Array, Array], Memory]:
    """Return the carry with the first token of each row, that token, and the memory.

    The carry has the last token of each row, the logits it was drawn from, the number
    of tokens so far, and, with a stop token, which rows are done.
    """
    xp = namespace(prompt)
    y, memory = model.prefill(params, state, memory, prompt)
    fits = getattr(y, "shape", ())[:2] == prompt.shape and y.ndim == 3
    message = "expected a model of logits (batch, steps, vocabulary), got {} for {}"
    expect(fits, message, getattr(y, "shape", type(y).__name__), prompt.shape)
    step = xp.zeros((), dtype=xp.int32, device=device(prompt))
    done = xp.zeros(prompt.shape[:1], dtype=xp.bool, device=device(prompt))
    carry = _carry(sampling, y[:, -1, :], step, done, uniforms)
    return carry, _joined([(carry["tokens"], carry["logits"])]), memory


def _next(
    model: Layer,
    sampling: _Sampling,
    params: Params,
    state: State,
    memory: Memory,
    carry: dict[str, Array],
    uniforms: Any,
) -> tuple[dict[str, Array], Memory]:
    """Return the carry with the next token of each row, and the next memory."""
    tokens = carry["tokens"]
    y, memory = model.advance(params, state, memory, tokens[:, None])
    done = carry.get("done")
    return _carry(sampling, y[:, 0, :], carry["step"], done, uniforms), memory


def _carry(
    sampling: _Sampling, logits: Array, step: Array, done: Any, uniforms: Any
) -> dict[str, Array]:
    """Return the carry after a token is drawn from `logits` (batch, vocabulary)."""
    xp = namespace(logits)
    uniform: Any = ()
    if sampling.is_random:
        uniform = xp.take(uniforms, xp.reshape(step, (1,)), axis=0)[0, :]
    logits = widened(logits)
    tokens = _draw(sampling, logits, uniform)
    carry = {"step": step + 1, "logits": logits}
    if sampling.stop is not None:
        tokens = xp.where(done, sampling.stop, tokens)
        carry["done"] = tokens == sampling.stop
    return {**carry, "tokens": tokens}


def _draw(sampling: _Sampling, logits: Array, uniform: Any) -> Array:
    """Return a token for each row of logits (batch, vocabulary), of any integer dtype.

    Token n is drawn if the random number lies between the sums of the probabilities of
    the tokens before n and up to n.
    """
    xp = namespace(logits)
    if not sampling.is_random:
        return xp.argmax(logits, axis=-1)
    largest = xp.max(logits, axis=-1, keepdims=True)
    scores = (logits - largest) / sampling.temperature
    top_k = sampling.top_k
    if top_k is not None and top_k < scores.shape[-1]:
        least = xp.sort(scores, axis=-1)[:, -top_k]
        scores = xp.where(scores >= least[:, None], scores, -math.inf)
    weights = xp.exp(scores)
    if sampling.top_p is not None and sampling.top_p < 1.0:
        ordered = xp.flip(xp.sort(weights, axis=-1), axis=-1)
        sums = xp.cumulative_sum(ordered, axis=-1)
        is_kept = sums - ordered < sampling.top_p * sums[:, -1:]
        least = xp.min(xp.where(is_kept, ordered, math.inf), axis=-1, keepdims=True)
        weights = xp.where(weights >= least, weights, 0.0)
    sums = xp.cumulative_sum(weights, axis=-1)
    # A library may add in another order, so that a sum is not larger than the one
    # before; so a token with the weight 0 must not be drawn by its sum.
    sums = xp.where(weights > 0.0, sums, 0.0)
    total = xp.max(sums, axis=-1)
    is_past = sums > (uniform * total)[:, None]
    return xp.argmax(xp.astype(is_past, xp.int32), axis=-1)
