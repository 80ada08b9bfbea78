"""Raise exceptions at random moments of a training, and check its state.

    python tests/campaigns/interrupts.py [--shots 2000] [CONFIGURATION ...]

Each configuration runs in a separate process: `fit`, then `step`, with the same number
of shots, of five kinds in turn: a SIGALRM handler and a SIGTERM handler that raise, a
custom SIGINT handler, Ctrl-C twice, and an exception from another thread. After each,
parameters, state and moments have to equal, bit for bit, those of an undisturbed run
after `trainer.steps` steps. Then the same trainer continues.
"""

import argparse
import ctypes
import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from unittest.mock import patch

CONFIGURATIONS = {
    "numpy": {"AGNOSTIC_NN_BACKEND": "numpy"},
    "numpy-no-kernels": {"AGNOSTIC_NN_BACKEND": "numpy", "AGNOSTIC_NN_KERNELS": "0"},
    "numpy-no-replay": {"AGNOSTIC_NN_BACKEND": "numpy", "AGNOSTIC_NN_REPLAY": "0"},
    "numpy-threads": {"AGNOSTIC_NN_BACKEND": "numpy", "OMP_NUM_THREADS": "2"},
    "torch": {"AGNOSTIC_NN_BACKEND": "torch:cpu"},
    "jax": {"AGNOSTIC_NN_BACKEND": "jax"},
}
KINDS = "alarm", "term", "handler", "ctrl-c", "async"
BATCH, BATCHES = 16, 12
SHOT_WITHIN = 5  # steps within which an exception is raised
SHOTS_PER_TRAINER = 100
SHOTS_WHILE_COMPILING = 6  # the first ones of each trainer


class Shot(Exception):
    """The exception that a handler raises."""


class Thrown(BaseException):
    """The exception that another thread raises in this one."""


LAST_FRAMES = []  # the innermost frames in which the last handler ran


def note(frame):
    stack = traceback.extract_stack(frame, limit=3)
    LAST_FRAMES[:] = [f"{call.filename}:{call.lineno} {call.name}" for call in stack]


def raise_shot(number, frame):
    note(frame)
    raise Shot


def exit_now(number, frame):
    note(frame)
    sys.exit(1)


def digest(trainer):
    from agnostic_nn.core.trees import named_leaves

    result = hashlib.sha256()
    carry = trainer.backend.to_numpy((trainer.params, trainer.state, trainer.moments))
    for name, leaf in named_leaves(carry):
        result.update(name.encode() + leaf.tobytes())
    return result.digest()


class Campaign:
    """A trainer to interrupt, and the digests of the states that it should have."""

    def __init__(self, way, seed, apart):
        import numpy as np

        import agnostic_nn as nn
        from agnostic_nn.training import epochs, feed

        if os.environ.get("OMP_NUM_THREADS") != "1":
            from agnostic_nn_backends.replay import kernels

            # several threads share even small arrays
            kernels.MIN_ELEMENTS_PER_THREAD = 1000
        # without `apart`, `fit` combines several steps into one call
        feed._MAX_MULTIPLICATIONS = 0 if apart else 2**20
        self.epochs = epochs
        self.take_steps = epochs.advance
        self.way, self.random = way, random.Random(seed)
        generator = np.random.default_rng(seed)
        self.x = generator.standard_normal((BATCH * BATCHES, 40), dtype=np.float32)
        self.labels = generator.integers(0, 10, BATCH * BATCHES)
        self.batches = [
            (self.x[i : i + BATCH], self.labels[i : i + BATCH])
            for i in range(0, BATCH * BATCHES, BATCH)
        ]

        def new_trainer():
            layers = (
                nn.Dense(80),
                nn.BatchNorm(),
                nn.ReLU(),
                nn.Dropout(0.1),
                nn.Dense(10),
            )
            return nn.Trainer(
                nn.Sequential(*layers),
                nn.softmax_cross_entropy,
                nn.Adam(1e-3),
                shape=(40,),
            )

        self.new_trainer = new_trainer
        self.trainer = new_trainer()
        self.reference = new_trainer()
        self.states = {0: digest(self.reference)}
        self.counts = dict.fromkeys(
            (
                "wrong state",
                "lost",
                "uncounted",
                "swallowed",
                "other",
                "in destructors",
            ),
            0,
        )
        self.messages = []

    def expected(self, steps):
        """Return the digest of the undisturbed run after `steps` steps."""
        reference = self.reference
        while steps not in self.states:
            if self.way == "step":
                reference.step(*self.batches[reference.steps % BATCHES])
                self.states[reference.steps] = digest(reference)
                continue
            with patch.object(self.epochs, "advance", self._recorded):
                reference.fit(self.x, self.labels, batch_size=BATCH, verbose=0)
        return self.states[steps]

    def _recorded(self, *args):
        result = self.take_steps(*args)
        self.states[self.reference.steps] = digest(self.reference)
        return result

    def train(self, until):
        trainer = self.trainer
        if self.way == "step":
            while time.monotonic() < until:
                trainer.step(*self.batches[trainer.steps % BATCHES])
            return

        def late(trainer, row):
            return time.monotonic() > until

        trainer.fit(
            self.x,
            self.labels,
            batch_size=BATCH,
            epochs=10**9,
            verbose=0,
            callbacks=[late],
        )

    def warm(self):
        """Return the seconds of the first calls of a trainer, and of a later step."""
        self.trainer, times = self.new_trainer(), []
        start = time.perf_counter()
        self.advance()
        first = time.perf_counter() - start
        for _ in range(8):
            start, steps = time.perf_counter(), self.trainer.steps
            self.advance()
            times.append((time.perf_counter() - start) / (self.trainer.steps - steps))
        return first, min(times)

    def advance(self):
        """Train without interruption until everything is compiled."""
        trainer = self.trainer
        if self.way == "fit":
            trainer.fit(self.x, self.labels, batch_size=BATCH, verbose=0)
        for _ in range(6) if self.way == "step" else ():
            trainer.step(*self.batches[trainer.steps % BATCHES])

    def shoot(self, kind, delay):
        """Train until an exception is raised; return its class."""
        before = {
            number: signal.getsignal(number)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
        }
        me = threading.get_ident()

        def from_thread(*actions):
            def fire():
                time.sleep(delay)
                for action in actions:
                    action()
                    time.sleep(delay * self.random.random() / 4)

            thread = threading.Thread(target=fire)
            thread.start()
            return thread

        kill, pid, thread = os.kill, os.getpid(), None
        raised = None
        try:
            if kind == "alarm":
                signal.signal(signal.SIGALRM, raise_shot)
                signal.setitimer(signal.ITIMER_REAL, max(delay, 1e-6))
            elif kind == "term":
                signal.signal(signal.SIGTERM, exit_now)
                thread = from_thread(lambda: kill(pid, signal.SIGTERM))
            elif kind == "handler":
                signal.signal(signal.SIGINT, raise_shot)
                thread = from_thread(lambda: kill(pid, signal.SIGINT))
            elif kind == "ctrl-c":
                presses = [lambda: kill(pid, signal.SIGINT)] * (
                    2 if self.way == "fit" else 1
                )
                thread = from_thread(*presses)
            else:
                throw = ctypes.pythonapi.PyThreadState_SetAsyncExc
                thread = from_thread(
                    lambda: throw(ctypes.c_ulong(me), ctypes.py_object(Thrown))
                )
            self.train(time.monotonic() + delay + 5)
        except (Shot, SystemExit, KeyboardInterrupt, Thrown) as error:
            raised = type(error)
        except BaseException as error:
            self.counts["other"] += 1
            self.messages.append(f"{kind}: {type(error).__name__}: {str(error)[:200]}")
            raised = type(error)
        while True:  # a second Ctrl-C, or an exception from the thread, may come here
            try:
                if thread is not None:
                    thread.join()
                time.sleep(1e-3)
                break
            except BaseException:
                continue
        for number, handler in before.items():
            signal.signal(number, handler)
        return raised

    def check(self, kind):
        trainer = self.trainer
        try:
            steps = trainer.steps
            if digest(trainer) != self.expected(steps):
                self.counts["wrong state"] += 1
            if self.way == "fit":
                done = trainer._current.settled().open.batches_done
                self.counts["uncounted"] += trainer.epoch * BATCHES + done != steps
            return
        except Exception as error:
            self.counts["lost"] += 1
            self.messages.append(f"{kind}: {type(error).__name__}: {str(error)[:200]}")
        self.start_again()

    def start_again(self):
        self.trainer = self.new_trainer()

    def run(self, shots):
        first, step = self.warm()
        unraisable = []
        sys.unraisablehook = unraisable.append
        start = time.perf_counter()
        kinds = itertools.cycle(KINDS)
        for n in range(shots):
            kind = next(kinds)
            if n % SHOTS_PER_TRAINER == 0:
                self.start_again()
            if n % SHOTS_PER_TRAINER == SHOTS_WHILE_COMPILING:
                self.advance()
            is_compiling = n % SHOTS_PER_TRAINER < SHOTS_WHILE_COMPILING
            span = first if is_compiling else SHOT_WITHIN * step
            LAST_FRAMES.clear()
            raised = self.shoot(kind, self.random.random() * span)
            if raised is None and not unraisable:
                self.counts["swallowed"] += 1
                self.messages.append(
                    f"{kind}: nothing was raised in 5 s; handled in {LAST_FRAMES}"
                )
            # CPython drops what is raised in a destructor
            if raised is None and unraisable:
                self.counts["in destructors"] += 1
            unraisable.clear()
            wrong = self.counts["wrong state"]
            self.check(kind)
            if self.counts["wrong state"] > wrong:
                self.start_again()
                self.advance()
        return {
            "shots": shots, **self.counts,
            "steps": self.trainer.steps, "step": f"{step * 1e6:.0f} us",
            "seconds": round(time.perf_counter() - start),
            "messages": self.messages[:5],
        }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("configurations", nargs="*", default=list(CONFIGURATIONS))
    parser.add_argument("--shots", type=int, default=2000)
    parser.add_argument("--way", choices=("fit", "step"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--apart", action="store_true", help="one step per call in fit, too"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        # a shell turns off Ctrl-C for background jobs
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print(
            json.dumps(
                Campaign(options.way, options.seed, options.apart).run(options.shots)
            )
        )
        return 0
    failed = False
    for name in options.configurations:
        for way in (options.way,) if options.way else ("fit", "step"):
            env = {"OMP_NUM_THREADS": "1"} | CONFIGURATIONS[name]
            command = [sys.executable, __file__, "--child", "--way", way]
            command += ["--shots", str(options.shots), "--seed", str(options.seed)]
            command += ["--apart"] if options.apart else []
            done = subprocess.run(
                command, env=os.environ | env, stdout=subprocess.PIPE, text=True
            )
            result = (
                json.loads(done.stdout)
                if done.returncode == 0
                else {"exit": done.returncode}
            )
            print(f"{name} {way}:", result, flush=True)
            bad = ("wrong state", "lost", "uncounted", "swallowed", "other")
            failed |= done.returncode != 0 or any(result[count] for count in bad)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
