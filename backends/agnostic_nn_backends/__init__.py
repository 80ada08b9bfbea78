"""Backends: one module per array library, all with the same names.

    xp            the library's Array API namespace
    version       its version
    devices       () -> {name: the library's own device}, the preferred one first
    describe      device -> what the hardware calls itself
    has_float64   device -> whether float64 is to be had as things are set up now
    float64_remedy  what to do where `has_float64` is false and something helps: a sentence for
                  an error; an adapter may lack it
    double        () -> a context in which it is, or None where it never is
    asarray       (host array, device) -> an array of this library, never sharing memory
    to_numpy      array -> a NumPy array on the host
    jit           (function, device, donate) -> the pure function, compiled where that is
                  possible; `donate` says which arguments the caller gives up, by position. One
                  that takes their memory has an attribute `into`, as `agnostic_nn.core.atomic` says
    eager         (function, device) -> the function, whose Python runs at each call; None where
                  `jit` does no more, and an adapter of a user's own may lack it
    compiles      whether `jit` compiles loops too
    peak_memory   device -> bytes that were in use there at most so far, or None if it does not
                  tell; None where no device does, and an adapter of a user's own may lack it
    policy        (device, precision, deterministic) -> a context in which the library computes
                  float32 as such ("strict") or as TensorFloat-32 if it can ("fast"), and gives
                  the same bits in every run; raises NotImplementedError, with what to do, where
                  that cannot be had, and its docstring says what it sets. None where nothing
                  is to be set; an adapter of a user's own may also lack it
    random_state  () -> the state of the library's hidden random generator, to be compared, or None
                  if it has none; an adapter of a user's own may lack it
    synchronize   array -> None, once its values are there (for timing)
    vjp           (function, *primals) -> (outputs, pullback), the library's own automatic
                  differentiation, or None; only checks of our gradients use it

A backend imports its own library, and of ours `agnostic_nn.ops`, `.random` and `.spans`, to
register native versions there, and the workshops beside it. It sets no global option.
"""

__all__ = ["SHIPPED", "processor"]

SHIPPED = {  # name: (module, what to install)
    "numpy": ("agnostic_nn_backends.numpy", "numpy"),
    "jax": ("agnostic_nn_backends.jax", "agnostic-nn[jax]"),
    "torch": ("agnostic_nn_backends.torch", "agnostic-nn[torch]"),
    "cupy": ("agnostic_nn_backends.cupy", "agnostic-nn[cupy-cuda13x]"),
    "dpnp": ("agnostic_nn_backends.dpnp", "agnostic-nn[dpnp]"),
    "array_api_strict": ("agnostic_nn_backends.array_api_strict", "agnostic-nn[strict]"),
}


def processor() -> str:
    """The processor's name; Linux tells Python no more than its architecture."""
    import platform

    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = file.readlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
