"""Replay: a tracing compiler for libraries that run each operation eagerly.

A training step is a long list of small array operations, made by much Python code.
NumPy, and PyTorch on a CPU, would run that Python code at each call and allocate memory
for each result. Replay records the operations once and then repeats only them. They are
the same operations on the same numbers, so the results are the same to the last bit.

How `program.replayed(function, library, donated)` works
--------------------------------------------------------
1. *Record* (`trace`). The function is called with `Traced` arrays. Each operation on
   them becomes a `Node` of the `Trace`. Operations that no argument affects are
   constants, and equal operations are recorded once (common-subexpression elimination).
2. *Plan* (`plan`, which lists its passes). `graph` keeps the nodes that a result needs
   and finds out which share memory. `schedule` orders the calls and collects
   elementwise ones into groups. `allocate` finds the lifetime of each result (liveness)
   and assigns it a buffer, which later results reuse. What replaces a donated argument
   is computed in the memory of that argument, if nothing reads the old values any more.
3. *Fuse* (`fuse`, `kernels`). With llvmlite, a group of elementwise calls is compiled
   to machine code, if the bits stay the same. Otherwise it is run block by block, so
   that intermediate results stay in the cache.
4. *Generate code* (`emit`, `codegen`). The plan becomes Python functions without
   control flow.
5. *Verify* (`program._build`). The new program runs once, and its result has to equal
   that of the function.
6. *Run* (`program.Program`). A call binds arguments that are other arrays than before,
   makes the calls, and makes those that write to donated memory last, as one commit
   (`commit`). An exception at any moment leaves either all old values or all new ones.

When the function is called instead
-----------------------------------
- The first time that arguments with given shapes, dtypes and layouts come: most
  functions that are called once are not worth a program.
- If it cannot be traced, for it reads values (`if x > 0`), has results whose shape
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
"""
