"""Replay: a tracing compiler for libraries that run each operation eagerly.

A training step is a long list of small array operations, made by much Python code.
NumPy, and PyTorch on a CPU, would run that Python code at each call and allocate memory
for each result. Replay records the operations once and then repeats only them. They are
the same operations on the same numbers, so the results are the same to the last bit.

An example
----------
`replayed` turns this function into a program. The caller gives up, or donates, the
argument w: its memory may be reused for the result.

    def step(w, x, y):
        error = x @ w - y
        return w - 0.1 * (x.T @ error), (error * error).mean()

    step = program.replayed(step, library, donated=(0,))

The operations are numbered in the order in which they are recorded; 0, 1 and 2 are the
arguments:

    3 = x @ w        5 = x.T          7 = 0.1 * 6        9 = 4 * 4
    4 = 3 - y        6 = 5 @ 4        8 = w - 7         10 = mean(9)

For small arrays on NumPy, the generated code is

    def run():
        f3(e1, e0, e3)
        f4(e3, e2, e4)
        f6(e5, e4, e6)
        f7(c17, e6, e7)
        f9(e4, e4, e9)
        e10 = f10(e9)
        return [partial(f8, e0, e7, e8)]

where f{n} is the function of operation n, such as `numpy.matmul` for f3, and e{n} its
result; c17 is the constant 0.1. Most calls write their result to an array that exists
already, the last argument. Several of these share one buffer: e9 overwrites e4, which
is not needed any more. The new w is computed last, in the memory of w: e0 and e8 are
the same array, and the caller makes this call when all others have succeeded. e5 is a
view of e1; the view is made again only if x is another array than in the call before.

How `program.replayed(function, library, donated)` works
--------------------------------------------------------
1. *Record* (`trace`). The function is called with `Traced` arrays, which wrap real
   ones. Each operation on them is computed, and becomes a `Node` of the `Trace`.
   Operations that no argument affects are constants, and equal operations are recorded
   once (common-subexpression elimination).
2. *Plan* (`plan`, which lists its passes). `graph` keeps the nodes that a result needs
   and finds out which share memory. `schedule` orders the calls and collects
   elementwise ones on large arrays into groups. `allocate` finds the lifetime of each
   result (liveness) and assigns it a buffer, which later results reuse. What replaces a
   donated argument is computed in the memory of that argument, if nothing reads the old
   values any more.
3. *Fuse* (`fuse`, `kernels`). With llvmlite, a group of elementwise calls is compiled
   to machine code, if the bits stay the same. Otherwise it is run block by block, so
   that intermediate results stay in the cache.
4. *Generate code* (`emit`, `codegen`). The plan becomes Python functions without
   control flow, as above.
5. *Verify* (`program._build`). The function is called once more, then the new program
   runs once, and its result has to equal that of the function. This run already
   overwrites the donated arguments.
6. *Run* (`program.Program`). A call binds arguments that are other arrays than before,
   makes the calls, and makes those that write to donated memory last, as one commit
   (`commit`). An exception at any moment leaves either all old values or all new ones.

When the function is called instead
-----------------------------------
- The first time that arguments with given shapes, dtypes and layouts are passed: most
  functions that are called once are not worth a program.
- If it cannot be traced, because it reads values (`if x > 0`), has results whose shape
  depends on values, writes to an array, or has a long loop; or if the program failed
  its verification.
- If another thread is running a program of the same function.

Checks before a call
--------------------
- `Program.fits` checks before each call the structure of the arguments, the layout of
  each array that changed, the identity of all leaves that are not arrays, and that
  donated memory is writable and overlaps nothing else.
- `agnostic_nn.core.guards` checks the Python values that user code reads, such as
  closures, before the call gets here.
- A step that is skipped for non-finite gradients is `ops.select(finite, new, old)`. The
  plan turns it into an early return of the program: if `finite` is false, `run` returns
  before the new values are computed (`graph.EarlyReturn`).

Where to look
-------------
- A function is not replayed: call `Program(function, args, library, donated)`, which
  raises `Untraceable` with the reason.
- A program gives other numbers: `replay=False` in `nn.backend` shows whether replay is
  at fault, and the environment variable AGNOSTIC_NN_KERNELS=0 whether a kernel is.
- A library gets replay: implement `trace.Library`, a subclass of `trace.Traced` and its
  namespace, as `numpy/tracing.py` does.
"""
