"""Precision and determinism: how they are chosen, applied and measured."""

import json
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn import ops, random
from agnostic_nn.core import policies
from agnostic_nn.core.backend import Backend
from agnostic_nn.core.trees import leaves
from agnostic_nn.diagnostics.compare import Workload, run_comparison
from agnostic_nn.diagnostics.conformance import conformance, library
from agnostic_nn.diagnostics.explain.notebooks import notebook_page
from agnostic_nn.training import Trainer, make_step
from agnostic_nn.training.batches import Examples
from agnostic_nn_backends import SHIPPED

OPERATIONS = (
    "matmul",
    "matmul of stacks",
    "convolve",
    "convolve_input",
    "convolve_weight",
)


def all_in(name):
    return {mode: dict.fromkeys(OPERATIONS, name) for mode in ("eager", "compiled")}


# --- choosing -------------------------------------------------------------------------


def test_a_backend_is_strict_and_not_deterministic_by_default(monkeypatch, backend):
    for variable in ("AGNOSTIC_NN_PRECISION", "AGNOSTIC_NN_DETERMINISTIC"):
        monkeypatch.setenv(variable, "")
    default = nn.backend(str(backend))
    assert default.policy == {"precision": "strict", "deterministic": False}
    monkeypatch.setenv("AGNOSTIC_NN_PRECISION", "fast")
    fast = nn.backend(str(backend))
    assert (fast.precision, fast.deterministic) == ("fast", False)
    assert fast in [device for status in nn.backends() for device in status.devices]
    assert nn.backend(str(backend), precision="strict") == default
    assert nn.backend(str(backend), precision="fast") == fast


def test_the_environment_can_make_a_backend_deterministic(monkeypatch):
    monkeypatch.setenv("AGNOSTIC_NN_DETERMINISTIC", "1")
    assert nn.backend("numpy").deterministic
    assert not nn.backend("numpy", deterministic=False).deterministic
    monkeypatch.setenv("AGNOSTIC_NN_DETERMINISTIC", "0")
    assert not nn.backend("numpy").deterministic


def test_backends_with_different_policies_are_unequal_but_have_the_same_name(backend):
    fast = nn.backend(
        str(backend), precision="fast", deterministic=backend.deterministic
    )
    assert fast != nn.backend(
        str(backend), precision="strict", deterministic=backend.deterministic
    )
    assert str(fast) == str(backend)
    assert "precision='fast'" in repr(fast)
    assert json.loads(json.dumps(fast.policy)) == fast.policy


@pytest.mark.parametrize(
    ("arguments", "environment", "error", "message"),
    [
        (
            {"precision": "exact"},
            {},
            ValueError,
            "precision to be 'strict' or 'fast', got 'exact'",
        ),
        ({"precision": True}, {}, ValueError, "got True"),
        (
            {"deterministic": 1},
            {},
            TypeError,
            "deterministic to be True or False, got 1",
        ),
        (
            {},
            {"AGNOSTIC_NN_PRECISION": "low"},
            ValueError,
            "AGNOSTIC_NN_PRECISION to be 'strict'",
        ),
        (
            {},
            {"AGNOSTIC_NN_DETERMINISTIC": "yes"},
            ValueError,
            "to be 0 or 1, got 'yes'",
        ),
    ],
    ids=lambda part: str(part)[:40],
)
def test_invalid_policies_are_refused(
    monkeypatch, arguments, environment, error, message
):
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(error, match=message):
        nn.backend("numpy", **arguments)


# --- the probe ------------------------------------------------------------------------


@pytest.mark.parametrize("precision", policies.PRECISIONS)
def test_strict_backends_multiply_in_float32(backend, precision):
    """With "fast", a GPU may use TensorFloat-32."""
    result = nn.backend(str(backend), precision=precision).probe()
    if precision == "strict" or backend.device_name.startswith(("cpu", "CPU")):
        assert result == all_in("float32")
    for names in result.values():
        assert set(names) == set(OPERATIONS)
        assert set(names.values()) <= {"float32", "TensorFloat-32"}


def test_a_float64_product_passes_the_probe():
    """Its result is exact in float32, and the probe requires no more."""
    left, right = policies._matrices()
    assert policies._format(left @ right) == "float32"
    assert policies._format((left @ right).astype(np.float32)) == "float32"
    assert np.array_equal(left, left.astype(np.float32))
    assert np.array_equal(right, right.astype(np.float32))


def rounded(x, digits):
    """Round x to that many binary digits after the point, ties to even."""
    mantissa, exponent = np.frexp(np.asarray(x, np.float64))
    return np.ldexp(np.rint(mantissa * 2.0 ** (digits + 1)), exponent - digits - 1)


def truncated(x, digits):
    """Drop the binary digits of x after those, as tensor cores do."""
    mantissa, exponent = np.frexp(np.asarray(x, np.float64))
    return np.ldexp(np.trunc(mantissa * 2.0 ** (digits + 1)), exponent - digits - 1)


def narrow(x):
    with np.errstate(over="ignore"):
        return np.asarray(x).astype(np.float16).astype(np.float64)


def in_steps(product, add):
    """Return a product whose sums are rounded by `add` after each term."""

    def multiplied(a, b):
        total = np.zeros(np.matmul(a[..., :1], b[..., :1, :]).shape)
        for k in range(a.shape[-1]):
            column, row = a[..., k : k + 1], b[..., k : k + 1, :]
            if column.any() and row.any():  # adding 0 causes no rounding
                with np.errstate(invalid="ignore"):  # 0 times infinity
                    total = add(total + product(column, row))
        return total

    return multiplied


def of(inputs):
    """Return a product whose factors are rounded by `inputs`."""

    def multiplied(a, b):
        with np.errstate(invalid="ignore"):
            return np.matmul(inputs(a), inputs(b))

    return multiplied


def in_two_parts(a, b):
    """Multiply sums of two bfloat16 numbers, without the smallest product."""
    (a, rest_of_a), (b, rest_of_b) = (
        (high, rounded(x - high, 7)) for x in (a, b) for high in [rounded(x, 7)]
    )
    return a @ b + a @ rest_of_b + rest_of_a @ b


def without_last_products(a, b):
    """Multiply float32 as sums of two TF32 numbers, without the smallest product."""
    (a, rest_of_a), (b, rest_of_b) = (
        (high, x - high) for x in (a, b) for high in [truncated(x, 10)]
    )
    return a @ b + a @ rest_of_b + rest_of_a @ b


FAKES = {  # a fake product, and the format that the probe has to report
    "TF32": (of(partial(rounded, digits=10)), "TensorFloat-32"),
    "TF32, truncated": (of(partial(truncated, digits=10)), "TensorFloat-32"),
    "bf16": (of(partial(rounded, digits=7)), "bfloat16"),
    "bf16, truncated": (of(partial(truncated, digits=7)), "bfloat16"),
    "fp16": (of(narrow), "float16"),
    "fp16 sums": (in_steps(np.matmul, narrow), "float16, summed in float16"),
    "bf16 sums": (
        in_steps(np.matmul, partial(rounded, digits=7)),
        "bfloat16, summed in bfloat16",
    ),
    "fp16, summed in fp16": (
        in_steps(of(narrow), narrow),
        "float16, summed in float16",
    ),
    "two parts": (in_two_parts, "16 bits"),
    "no last products": (without_last_products, "float32 in parts"),
    "12 digits": (of(partial(rounded, digits=12)), "12 bits"),
    "only the left": (lambda a, b: rounded(a, 10) @ b, "TensorFloat-32"),
    "only the right": (lambda a, b: a @ rounded(b, 10), "TensorFloat-32"),
}


class Rounded(np.ndarray):
    """NumPy arrays whose matrix products are computed by `Rounded.product`."""

    product = None

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        plain = [np.asarray(x) if isinstance(x, Rounded) else x for x in inputs]
        if ufunc is np.matmul and Rounded.product is not None:
            result = Rounded.product(*(x.astype(np.float64) for x in plain)).astype(
                np.float32
            )
        else:
            result = getattr(ufunc, method)(*plain, **kwargs)
        if out is not None:
            np.asarray(out[0])[...] = result
            return out[0]
        return result.view(Rounded) if isinstance(result, np.ndarray) else result


def fake(**changed):
    """Return a class of backends with rounded arrays and a `changed` adapter."""
    names = {
        **vars(nn.backend("numpy").adapter),
        "asarray": lambda data, device: np.array(data).view(Rounded),
        "to_numpy": np.asarray,
        "jit": lambda function, device, donate=(): function,
        **changed,
    }
    return partial(Backend, "fake", "gpu:0", None, SimpleNamespace(**names))


@pytest.fixture(params=FAKES)
def named(request, monkeypatch):
    product, name = FAKES[request.param]
    monkeypatch.setattr(Rounded, "product", staticmethod(product))
    return name


def test_each_reduced_format_is_named(named):
    result = fake()("fast").probe()
    assert result == all_in(named)


def test_a_strict_backend_with_reduced_precision_is_an_error_that_names_the_setting(
    monkeypatch,
):
    product, _ = FAKES["TF32"]
    monkeypatch.setattr(Rounded, "product", staticmethod(product))

    def policy(device, precision, deterministic):
        """It sets nothing; FAKE_TF32=0
        would."""
        return nullcontext()

    with pytest.raises(nn.BackendUnavailable) as caught:
        fake(policy=policy)().probe()
    text = str(caught.value)
    assert text.startswith(
        "fake:gpu:0 should compute in float32, but computes in TensorFl"
    )
    assert (
        "in TensorFloat-32 (eager: all; compiled: all). It sets nothing; FAKE_TF32=0 "
        "would" in text
    )
    with pytest.raises(
        nn.BackendUnavailable, match="look at what the library was built with"
    ):
        fake()().probe()


@pytest.mark.parametrize("what", ["convolve", "convolve_input", "convolve_weight"])
def test_a_single_operation_with_reduced_precision_is_detected(monkeypatch, what):
    product, _ = FAKES["bf16"]
    function = getattr(ops, what)

    def imprecise(*args):
        monkeypatch.setattr(Rounded, "product", staticmethod(product))
        result = function.dispatch(np.ndarray)(*args)
        monkeypatch.setattr(Rounded, "product", None)
        return result

    class Imprecise(Rounded):
        """A class for which the function is registered."""

    function.register(Imprecise, imprecise)
    backend = fake(asarray=lambda data, device: np.array(data).view(Imprecise))
    monkeypatch.setattr(Rounded, "product", None)
    with pytest.raises(
        nn.BackendUnavailable,
        match=rf"in bfloat16 \(eager: {what}; compiled: {what}\)\. There",
    ):
        backend().probe()


def test_reduced_precision_in_compiled_functions_only_is_detected(monkeypatch):
    product, _ = FAKES["TF32"]

    def jit(function, device, donate=()):
        def compiled(*args):
            with monkeypatch.context() as patch:
                patch.setattr(Rounded, "product", staticmethod(product))
                return function(*args)

        return compiled

    result = fake(jit=jit)("fast").probe()
    assert result == all_in("float32") | {
        "compiled": dict.fromkeys(OPERATIONS, "TensorFloat-32")
    }


def test_reduced_formats_are_listed_by_format():
    result = {
        "eager": {"matmul": "float32", "convolve": "bfloat16"},
        "compiled": {"matmul": "float16", "convolve": "bfloat16"},
    }
    text = (
        "bfloat16 (eager: convolve; compiled: convolve) and float16 (compiled: matmul)"
    )
    assert policies.reduced_formats(result) == text
    assert policies.reduced_formats(all_in("float32")) == ""


def test_the_probe_runs_under_the_policy(monkeypatch):
    """Settings outside of the backend have no influence on the probe."""
    product, _ = FAKES["TF32"]
    monkeypatch.setattr(Rounded, "product", staticmethod(product))

    class Exact:
        def __enter__(self):
            self.before = Rounded.product
            Rounded.product = None

        def __exit__(self, *_):
            Rounded.product = staticmethod(self.before)

    def policy(device, precision, deterministic):
        return Exact() if precision == "strict" else nullcontext()

    assert fake(policy=policy)().probe() == all_in("float32")
    assert fake(policy=policy)("fast").probe() == all_in("TensorFloat-32")


# --- applying a policy ----------------------------------------------------------------


def test_the_policy_is_applied_during_calls_only():
    active = []

    class Policy:
        def __init__(self, *arguments):
            self.arguments = arguments

        def __enter__(self):
            active.append(self.arguments)

        def __exit__(self, *_):
            active.pop()

    backend = fake(policy=Policy)("fast", True)
    function = backend.jit(lambda x, more=0: (x, more, tuple(active)))
    assert function(1, more=2) == (1, 2, ((None, "fast", True),))
    with backend.applied():
        assert active == [(None, "fast", True)]
    with pytest.raises(ZeroDivisionError):
        backend.jit(lambda x: x / 0)(1)
    assert active == []


def test_an_adapter_without_policy_is_accepted():
    names = dict(vars(nn.backend("numpy").adapter))
    del names["policy"]
    backend = Backend("fake", "gpu:0", None, SimpleNamespace(**names), "strict", True)
    assert backend.jit(lambda x: x + 1)(1) == 2
    with backend.applied():
        pass


def test_functions_passed_to_the_compiler_are_equal_for_equal_policies(backend):
    compiled = []
    compiling = fake(
        compiles=True,
        policy=lambda *_: nullcontext(),
        jit=lambda function, *_: compiled.append(function),
    )
    compiling().jit(random.words)
    compiling().jit(random.words)
    compiling("fast").jit(random.words)
    compiling().jit(random.split)
    first, second, *others = compiled
    assert first == second
    assert first not in others
    assert hash(first) == hash(second)
    assert first != random.words
    assert first.__name__ == random.words.__name__


def test_the_error_about_determinism_gives_the_remedy_of_the_adapter(monkeypatch):
    def policy(device, precision, deterministic):
        if deterministic:
            raise NotImplementedError("set THIS before Python starts")

    adapter = SimpleNamespace(**{**vars(nn.backend("numpy").adapter), "policy": policy})
    monkeypatch.setattr(nn.core.backend, "_load", lambda library: adapter)
    assert nn.backend("numpy").policy["deterministic"] is False
    with pytest.raises(
        nn.BackendUnavailable, match="numpy:cpu: set THIS before Python starts"
    ):
        nn.backend("numpy", deterministic=True)


# --- the settings of each library -----------------------------------------------------


def torch_settings(torch):
    backends = torch.backends
    products = {
        f"{name}.{kind}": getattr(getattr(backends, name), kind).fp32_precision
        for name, kinds in {
            "cuda": ["matmul"],
            "cudnn": ["conv", "rnn"],
            "mkldnn": ["matmul", "conv", "rnn"],
        }.items()
        for kind in kinds
    }
    return products | {
        "deterministic": torch.get_deterministic_debug_mode(),
        "cudnn.deterministic": backends.cudnn.deterministic,
        "cudnn.benchmark": backends.cudnn.benchmark,
    }


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    if not hasattr(torch._C, "_get_fp32_precision_getter"):
        pytest.skip("PyTorch before 2.9 has other settings")
    nn.backend("torch")
    return torch


CUDA = ("cuda.matmul", "cudnn.conv", "cudnn.rnn")
CPU = ("mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")


@pytest.mark.parametrize(
    ("device", "names"), [("cpu", CPU), ("cuda:0", CUDA)], ids=["cpu", "cuda"]
)
def test_settings_of_pytorch_are_changed_for_a_call_and_then_restored(
    torch, monkeypatch, device, names
):
    """The settings need no device, so the name of a missing one is enough."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    adapter = nn.backend("torch").adapter
    torch_device = torch.device(device)
    before = torch_settings(torch)
    for precision, value in {"strict": ("ieee", "none"), "fast": ("tf32",)}.items():
        backend = Backend("torch", device, torch_device, adapter, precision, True)
        with backend.applied():
            inside = torch_settings(torch)
        for name in (*CUDA, *CPU):
            if name in names:
                assert inside[name] in value, name
            else:
                assert inside[name] == before[name], name
        assert inside["deterministic"] == 2
        assert not inside["cudnn.benchmark"]
        assert inside["cudnn.deterministic"] == (
            device != "cpu" or before["cudnn.deterministic"]
        )
        with pytest.raises(ZeroDivisionError), backend.applied():
            raise ZeroDivisionError
        assert torch_settings(torch) == before


def test_settings_of_pytorch_by_the_user_are_restored(torch):
    mkldnn = torch.backends.mkldnn
    before = mkldnn.matmul.fp32_precision
    settings = []
    backend = nn.backend("torch:cpu")
    look = backend.jit(lambda x: settings.append(mkldnn.matmul.fp32_precision) or x)
    try:
        mkldnn.matmul.fp32_precision = "bf16"
        look(torch.ones(2))
        assert mkldnn.matmul.fp32_precision == "bf16"
    finally:
        mkldnn.matmul.fp32_precision = before
    assert settings == ["ieee"]


def test_older_versions_of_pytorch_use_their_older_settings(torch, monkeypatch):
    adapter = nn.backend("torch").adapter
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    monkeypatch.delattr(torch._C, "_get_fp32_precision_getter")
    adapter._settings.cache_clear()
    try:
        for precision, expected in {
            "fast": ("high", True),
            "strict": ("highest", False),
        }.items():
            with adapter.policy(torch.device("cuda:0"), precision, False):
                settings = (
                    torch.get_float32_matmul_precision(),
                    torch.backends.cudnn.allow_tf32,
                )
            assert settings == expected
    finally:
        adapter._settings.cache_clear()
    assert before == (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
    )


def test_pytorch_on_cuda_is_deterministic_only_with_a_cublas_workspace(
    torch, monkeypatch
):
    policy = nn.backend("torch").adapter.policy
    for value in ("", ":4096:2"):
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", value)
        with pytest.raises(
            NotImplementedError, match="CUBLAS_WORKSPACE_CONFIG is :4096:8 or :16:8"
        ):
            policy(torch.device("cuda:0"), "strict", True)
        policy(torch.device("cuda:0"), "strict", False)
        policy(torch.device("cpu"), "strict", True)


def test_pytorch_refuses_custom_code_that_cannot_be_deterministic(torch):
    backend = nn.backend("torch:cpu", deterministic=True)
    put = backend.jit(
        lambda x: x.clone().put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
    )
    with pytest.raises(
        RuntimeError, match="does not have a deterministic implementation"
    ):
        put(torch.ones(3))
    assert torch.get_deterministic_debug_mode() == 0


JAX = {"strict": "HIGHEST", "fast": "HIGH"}


@pytest.mark.parametrize("precision", policies.PRECISIONS)
def test_products_compiled_by_jax_contain_the_precision(precision):
    """In the text of XLA every product and convolution has it, also for CUDA."""
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    backend = nn.backend("jax:cpu", precision=precision)
    arguments = backend.asarray(policies._operands())
    traced = backend.jit(policies._products).trace(*arguments)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    lines = [
        line
        for line in text.splitlines()
        if "dot_general" in line or "convolution" in line
    ]
    assert len(lines) == len(OPERATIONS)
    for line in lines:
        expected = f"{JAX[precision]}, {JAX[precision]}"
        text = line.replace("#stablehlo<precision ", "").replace(">", "")
        assert expected in text, line
    assert jax.config.jax_default_matmul_precision is None
    with backend.applied():
        assert jax.config.jax_default_matmul_precision in ("highest", "tensorfloat32")
    assert jax.config.jax_default_matmul_precision is None


@pytest.mark.parametrize(
    ("flags", "is_accepted"),
    [
        ("", False),
        ("--xla_gpu_deterministic_ops=false", False),
        ("--xla_gpu_deterministic_ops_of_ours=true", False),
        ("--xla_gpu_deterministic_ops=true", True),
        ("--xla_gpu_autotune_level=0 --xla_gpu_deterministic_ops", True),
    ],
)
def test_jax_on_a_gpu_is_deterministic_only_with_the_flag(
    monkeypatch, flags, is_accepted
):
    pytest.importorskip("jax", reason="JAX is not installed")
    policy = nn.backend("jax").adapter.policy
    monkeypatch.setenv("XLA_FLAGS", flags)
    gpu, cpu = SimpleNamespace(platform="gpu"), SimpleNamespace(platform="cpu")
    if is_accepted:
        policy(gpu, "strict", True)
    else:
        with pytest.raises(
            NotImplementedError, match="--xla_gpu_deterministic_ops=true into"
        ):
            policy(gpu, "strict", True)
    policy(gpu, "strict", False)
    policy(cpu, "strict", True)


def test_the_flag_exists_in_xla():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    function = jax.jit(
        lambda x: x + 1, compiler_options={"xla_gpu_deterministic_ops": True}
    )
    assert function(1) == 2
    with pytest.raises(Exception, match="No such compile option"):
        jax.jit(lambda x: x + 2, compiler_options={"xla_gpu_deterministic_opps": True})(
            1
        )


def test_dpnp_is_deterministic_only_with_the_mode_of_onemkl(monkeypatch):
    pytest.importorskip("dpnp", reason="dpnp is not installed")
    from agnostic_nn_backends.dpnp import policy

    for value in ("", "AVX2"):
        monkeypatch.setenv("MKL_CBWR", value)
        with pytest.raises(
            NotImplementedError, match="AVX2,STRICT, before Python starts"
        ):
            policy(None, "strict", True)
    monkeypatch.setenv("MKL_CBWR", "AVX2,STRICT")
    policy(None, "strict", True)
    policy(None, "fast", False)


# --- tools ----------------------------------------------------------------------------


@pytest.fixture
def watched():
    """Return a backend, the functions called on it, and those without its policy."""
    active, called, without_policy = [], set(), set()

    class Watched(np.ndarray):
        def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
            called.add(ufunc.__name__)
            if not active:
                without_policy.add(ufunc.__name__)
            inputs = [np.asarray(x) if isinstance(x, Watched) else x for x in inputs]
            kwargs |= {} if out is None else {"out": tuple(map(np.asarray, out))}
            result = np.asarray(getattr(ufunc, method)(*inputs, **kwargs))
            return result.view(Watched) if out is None else out[0]

    @contextmanager
    def policy(*_):
        active.append(True)
        try:
            yield
        finally:
            active.pop()

    def asarray(data, device):
        return np.array(data).view(Watched)

    return fake(policy=policy, asarray=asarray)(), called, without_policy


SMALL = nn.Sequential(
    nn.Dense(4),
    nn.Residual(nn.LayerNorm(), nn.Dense(4)),
    nn.BatchNorm(),
    nn.Dropout(0.1),
    nn.Dense(2),
)
DATA = (
    np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32),
    (np.arange(20) % 2).astype(np.int32),
)
TASK = SMALL, nn.softmax_cross_entropy, nn.Average(nn.Adam()), *DATA


def _train(backend):
    trainer = Trainer(*TASK[:3], backend=backend)
    trainer.fit(*DATA, batch_size=8, verbose=0, validation=DATA)
    trainer.step(*DATA)
    trainer.evaluate(*DATA, averaged=True)
    trainer.predict(DATA[0], batch_size=8, averaged=True)
    trainer.summary()


def _compare(backend):
    workload = Workload("", "", lambda: (Examples(*DATA),) * 2, *TASK[:2], None, 1)
    (result,) = run_comparison(workload, [backend], sizes=(2,)).results
    assert result.error is None


TOOLS = {
    "bisect": lambda backend: nn.bisect(*TASK, backend, steps=1),
    "check": lambda backend: nn.check(SMALL, (3,), backends=[backend], elements=1),
    "compare": _compare,
    "conformance": lambda backend: conformance(backend, only="training"),
    "explain": lambda backend: nn.explain(*TASK[:2], *DATA, backend=backend),
    "explain of a notebook": lambda backend: notebook_page(
        "chain_rule_and_update", backend
    ),
    "probe": lambda backend: backend.probe(),
    "profile": lambda backend: nn.profile(*TASK, backend=backend, steps=1),
    "Trainer": _train,
}


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_computes_under_the_policy(watched, tool):
    backend, called, without_policy = watched
    TOOLS[tool](backend)
    assert "matmul" in called
    assert without_policy == set()


def test_a_trainer_moved_by_name_keeps_its_policy(monkeypatch):
    trainer = Trainer(
        *TASK[:3], backend=nn.backend("numpy", precision="fast", deterministic=True)
    )
    moved = trainer.to("numpy:cpu")
    assert moved.backend.policy == {"precision": "fast", "deterministic": True}
    other = nn.backend("numpy", precision="strict", deterministic=False)
    assert trainer.to(other).backend is other
    monkeypatch.setenv("AGNOSTIC_NN_PRECISION", "fast")
    monkeypatch.setenv("AGNOSTIC_NN_DETERMINISTIC", "1")
    moved = Trainer(*TASK[:3], backend=other).to("numpy").backend
    assert moved.policy == {"precision": "strict", "deterministic": False}


def test_a_trainer_cannot_move_to_a_backend_that_refuses_its_policy(monkeypatch):
    def policy(device, precision, deterministic):
        if deterministic:
            raise NotImplementedError("results vary between runs")

    module = SimpleNamespace(**{**vars(nn.backend("numpy").adapter), "policy": policy})
    monkeypatch.setitem(sys.modules, "varying", module)
    monkeypatch.setitem(SHIPPED, "varying", ("varying", "nothing"))
    assert Trainer(*TASK[:3], backend="numpy").to("varying").backend.name == "varying"
    trainer = Trainer(*TASK[:3], backend=nn.backend("numpy", deterministic=True))
    with pytest.raises(
        nn.BackendUnavailable, match="varying:cpu: results vary between runs"
    ):
        trainer.to("varying")


def test_a_library_without_an_adapter_has_the_policy_of_the_environment(monkeypatch):
    monkeypatch.setenv("AGNOSTIC_NN_PRECISION", "fast")
    assert library("numpy", bare=True).precision == "fast"
    monkeypatch.setenv("AGNOSTIC_NN_PRECISION", "")
    assert library("numpy", bare=True).precision == "strict"


# --- the same bits in every run -------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "width", "rows"),
    [
        (0, 3, 5),
        (1, 1, 1),
        (2, 2, 1),
        (257, 5, 129),
        (1001, 3, 1),
        (64, 33, 1000),
        (70, 0, 3),
    ],
    ids=str,
)
@pytest.mark.parametrize("integer", ["int32", "uint8"])
def test_add_sorted_equals_scatter_add(backend, widest, count, width, rows, integer):
    """The sums of small integers are exact in every order."""
    generator = np.random.default_rng(0)
    updates = generator.integers(-8, 9, (count, width)).astype(widest)
    index = generator.integers(0, min(rows, 256), count).astype(integer)
    expected = np.zeros((rows, width))
    np.add.at(expected, index, updates)
    add = backend.jit(
        lambda updates, index: ops.indexing.add_sorted(updates, index, rows)
    )
    result = backend.to_numpy(add(*backend.asarray((updates, index))))
    assert result.dtype == updates.dtype
    np.testing.assert_array_equal(result, expected)


def test_add_sorted_does_not_mix_rows(backend, widest):
    """Not even with infinity or NaN."""
    updates = np.asarray([[1.0], [np.inf], [2.0], [np.nan], [4.0]], widest)
    index = np.asarray([2, 0, 2, 1, 2], np.int32)
    add = backend.jit(lambda updates, index: ops.indexing.add_sorted(updates, index, 4))
    result = backend.to_numpy(add(*backend.asarray((updates, index))))
    np.testing.assert_array_equal(result, [[np.inf], [np.nan], [7.0], [0.0]])


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


INDEX = np.random.default_rng(0).integers(0, 7, 3000).astype(np.int32)
IMAGES, WINDOW = numbers(4, 9, 8, 6), numbers(3, 3, 3, 4)
OPTIONS = (2, 1), ((1, 1), (0, 2)), (1, 2), 2
QUERY, KEYS = numbers(2, 3, 2, 20, 8), numbers(2, 3, 20, 8)


CALLS = {  # name: (a function of arrays, those arrays)
    "above_zero": (ops.above_zero, (numbers(50, 60), numbers(50, 60, seed=1))),
    "all_finite": (ops.all_finite, (numbers(500, 60), numbers(7))),
    "attend": (lambda *a: ops.attend(*a)[0], (QUERY, KEYS, KEYS)),
    "attend_backward": (
        lambda q, k, v, dy: ops.attend_backward(
            q, k, v, (), (), *ops.attend(q, k, v), dy
        ),
        (QUERY, KEYS, KEYS, numbers(2, 3, 2, 20, 8, seed=1)),
    ),
    "attend_stored": (
        lambda q, k, start: ops.attend_stored(q, k, k, start),
        (numbers(2, 3, 2, 5, 8), KEYS, np.asarray(9, np.int32)),
    ),
    "barrier_impl": (lambda x: ops.barrier(x), (numbers(4, 5),)),
    "convolve": (lambda x, w: ops.convolve(x, w, *OPTIONS), (IMAGES, WINDOW)),
    "convolve_input": (
        lambda x, w: ops.convolve_input(
            ops.convolve(x, w, *OPTIONS), w, x.shape[1:-1], *OPTIONS
        ),
        (IMAGES, WINDOW),
    ),
    "convolve_weight": (
        lambda x, w: ops.convolve_weight(
            x, ops.convolve(x, w, *OPTIONS), w.shape[:2], *OPTIONS
        ),
        (IMAGES, WINDOW),
    ),
    "affine": (ops.affine, (numbers(40, 60), numbers(60, 33), numbers(33))),
    "interpolate": (lambda x: _resized(x, (18, 16))[0], (IMAGES,)),
    "interpolate_input": (lambda x: _resized(x, (18, 16))[1], (IMAGES,)),
    "largest": (
        lambda x: ops.largest(x, (3, 2), (1, 1), ((1, 1), (0, 0)), (1, 1))[0],
        (IMAGES,),
    ),
    "largest_input": (
        lambda x: _unpooled(x, (3, 2), (1, 1), ((1, 1), (0, 0)), (1, 1)),
        (IMAGES,),
    ),
    "loop_until_impl": (
        lambda x: ops.loop_until(lambda y: y[0, 0] > 9.0, lambda y: y + 0.3 * x, x, 4),
        (numbers(50, 60),),
    ),
    "most_look_ups": (lambda x: _resized(x, (5, 3)), (IMAGES,)),
    "bounded_exp": (ops.bounded_exp, (numbers(50, 60),)),
    "erf": (ops.erf, (numbers(1000),)),
    "erfc": (ops.erfc, (numbers(50, 60),)),
    "normalize_rows": (
        lambda x, s, b: ops.normalize_rows(x, s, b, 1e-5)[0],
        (numbers(300, 64), numbers(64), numbers(64)),
    ),
    "normalize_rows_backward": (
        lambda x, s, b: ops.normalize_rows_backward(
            x, s, b, ops.normalize_rows(x, s, b, 1e-5)[1]
        ),
        (numbers(300, 64), numbers(64), numbers(64)),
    ),
    "scatter_add": (lambda x, i: ops.scatter_add(x, i, 7), (numbers(3000, 33), INDEX)),
    "select": (
        lambda x, y: ops.select(x[0, 0] > 0, lambda: x * y, y),
        (numbers(9, 9), numbers(9, 9)),
    ),
    "store": (
        lambda memory, rows, start: ops.store(memory, rows, start),
        (KEYS, numbers(2, 3, 4, 8, seed=1), np.asarray(9, np.int32)),
    ),
    "sum_over": (lambda x: ops.sum_over(x, (0, 1)), (numbers(40, 500, 7),)),
    "sum_rows": (ops.sum_rows, (numbers(40, 500, 7),)),
    "pad_impl": (lambda x: ops.pad_impl(x, ((1, 2), (0, 1)), 0.5), (IMAGES,)),
    "tanh": (ops.tanh, (numbers(50, 60),)),
    "unslide": (
        lambda *a: ops.unslide(*a, axis=1, stride=1, dilation=1, length=11),
        tuple(numbers(4, 9, 6, seed=seed) for seed in range(3)),
    ),
    "words": (lambda key: random.words(key, 1001), (np.asarray([1, 2], np.uint32),)),
}
LAYERS = {  # layers that call the other functions
    "lstm": nn.LSTM(16),
    "lstm_backward": nn.LSTM(16),
    "scan_impl": nn.GRU(16),
}


def _resized(x, size):
    y, _, cache = nn.Resize(size).forward({}, {}, x, train=True)
    return y, nn.Resize(size).backward({}, cache, y)[0]


def _unpooled(x, *options):
    y, which = ops.largest(x, *options)
    return ops.largest_input(y, which, x.shape[1:-1], *options)


def test_every_dispatched_function_is_in_the_lists_above():
    modules = (ops, random)
    result = {n for m in modules for n, f in vars(m).items() if hasattr(f, "dispatch")}
    assert result == {*CALLS, *LAYERS}


def bits(backend, tree):
    return [np.asarray(leaf).tobytes() for leaf in leaves(backend.to_numpy(tree))]


@pytest.fixture
def deterministic(backend):
    """Return the backend under test with `deterministic=True`."""
    try:
        return nn.backend(str(backend), deterministic=True)
    except nn.BackendUnavailable as error:
        pytest.skip(str(error))


def assert_repeats(backend, function, arrays):
    """Check that two calls give the same bits, compiled and, if that is fast, eager."""
    compiled = backend.jit(function)
    for call in (compiled,) if backend.compiles else (compiled, function):
        with backend.applied():
            first, second = (
                bits(backend, call(*backend.asarray(arrays))) for _ in range(2)
            )
        assert first == second


@pytest.mark.parametrize("name", CALLS)
def test_each_function_of_ops_gives_the_same_bits_again(deterministic, name):
    assert_repeats(deterministic, *CALLS[name])


@pytest.mark.parametrize("name", LAYERS)
def test_each_recurrent_layer_gives_the_same_bits_again(deterministic, name):
    layer = LAYERS[name]
    params, state, _ = layer.init(
        random.key(0, xp=nn.backend("numpy").xp), (20, 8), np.float32
    )

    def both(params, state, x):
        y, _, cache = layer.forward(params, state, x, train=True)
        return y, *layer.backward(params, cache, y)

    assert_repeats(deterministic, both, (params, state, numbers(5, 20, 8)))


def test_a_difference_of_one_bit_is_detected(backend):
    factors = iter((1.0, 1.0 + 2.0**-23))
    names = vars(backend.adapter) | {
        "policy": None,
        "eager": lambda function, _: function,
    }
    adapter = SimpleNamespace(**names)
    changed = replace(backend, deterministic=False, replay=False, adapter=adapter)
    with pytest.raises(AssertionError):
        assert_repeats(changed, lambda x: x * next(factors), (np.ones(1, np.float32),))


MODELS = {  # name: (model, shape of an example, size of the vocabulary or None)
    "images": (
        nn.Sequential(
            nn.Conv2D(6, 3, stride=2),
            nn.BatchNorm(),
            nn.ReLU(),
            nn.MaxPool2D(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Dense(4),
        ),
        (13, 12, 3),
        None,
    ),
    "words": (
        nn.Sequential(
            nn.Embedding(5, 8), nn.LSTM(16), nn.LayerNorm(), nn.Flatten(), nn.Dense(4)
        ),
        (9,),
        5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_training_gives_the_same_bits_again(deterministic, name):
    assert_training_repeats(deterministic, name)


def assert_training_repeats(backend, name):
    model, shape, words = MODELS[name]
    optimizer = nn.AdamW(1e-2)
    key = random.key(0, xp=nn.backend("numpy").xp)
    params, state, _ = model.init(key, shape, np.float32)
    x = (
        numbers(16, *shape)
        if words is None
        else INDEX[: 16 * shape[0]].reshape(16, -1) % words
    )
    batch = backend.asarray((x, (np.arange(16) % 4).astype(np.int32)))

    step = backend.jit(make_step(model, nn.softmax_cross_entropy, optimizer))

    def trained():
        carry, values = backend.asarray((params, state, optimizer.init(params))), []
        for _ in range(4):
            carry, value, _ = step(carry, *batch)
            values.append(value)
        return bits(backend, (carry, tuple(values)))

    assert trained() == trained()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_pytorch_repeats_itself_with_one_thread_and_with_two(torch, name, threads):
    """The two may differ from each other, because sums may have another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_training_repeats(nn.backend("torch:cpu", deterministic=True), name)
    finally:
        torch.set_num_threads(before)
