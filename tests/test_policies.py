"""Precision and determinism: what is chosen, what is set meanwhile, and what a probe finds."""

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
from agnostic_nn.diagnostics.compare import Workload, compare
from agnostic_nn.diagnostics.conformance import conformance, library
from agnostic_nn.diagnostics.explain.notebooks import notebook_page
from agnostic_nn.training import Trainer, make_step
from agnostic_nn.training.batches import Examples
from agnostic_nn_backends import SHIPPED

WAYS = ("matmul", "matmul of stacks", "convolve", "convolve_input", "convolve_weight")


def all_in(name):
    return {how: dict.fromkeys(WAYS, name) for how in ("eager", "compiled")}


# --- choosing -------------------------------------------------------------------------


def test_a_backend_is_strict_and_not_deterministic_unless_told_so(monkeypatch, backend):
    for variable in ("AGNOSTIC_NN_PRECISION", "AGNOSTIC_NN_DETERMINISTIC"):
        monkeypatch.setenv(variable, "")
    one = nn.backend(str(backend))
    assert one.policy == {"precision": "strict", "deterministic": False}
    monkeypatch.setenv("AGNOSTIC_NN_PRECISION", "fast")
    fast = nn.backend(str(backend))
    assert (fast.precision, fast.deterministic) == ("fast", False)
    assert fast in [device for status in nn.backends() for device in status.devices]
    assert nn.backend(str(backend), precision="strict") == one
    assert nn.backend(str(backend), precision="fast") == fast


def test_the_environment_makes_a_backend_deterministic(monkeypatch):
    monkeypatch.setenv("AGNOSTIC_NN_DETERMINISTIC", "1")
    assert nn.backend("numpy").deterministic
    assert not nn.backend("numpy", deterministic=False).deterministic
    monkeypatch.setenv("AGNOSTIC_NN_DETERMINISTIC", "0")
    assert not nn.backend("numpy").deterministic


def test_backends_of_another_policy_are_others_of_the_same_name(backend):
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
def test_what_is_no_policy_is_refused(
    monkeypatch, arguments, environment, error, message
):
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(error, match=message):
        nn.backend("numpy", **arguments)


# --- the probe, and backends that fall short ------------------------------------------


@pytest.mark.parametrize("precision", policies.PRECISIONS)
def test_what_is_strict_multiplies_in_float32(backend, precision):
    """So does a GPU if it has to be strict; if it may be fast, TensorFloat-32 is allowed."""
    result = nn.backend(str(backend), precision=precision).probe()
    if precision == "strict" or backend.device_name.startswith(("cpu", "CPU")):
        assert result == all_in("float32")
    for names in result.values():
        assert set(names) == set(WAYS)
        assert set(names.values()) <= {"float32", "TensorFloat-32"}


def test_a_float64_product_would_pass():
    """The result is exact in float32: a probe cannot require more."""
    left, right = policies._matrices()
    assert policies._format(left @ right) == "float32"
    assert policies._format((left @ right).astype(np.float32)) == "float32"
    assert np.array_equal(left, left.astype(np.float32))
    assert np.array_equal(right, right.astype(np.float32))


def rounded(x, digits):
    """x with so many binary digits after the point, ties to even."""
    mantissa, exponent = np.frexp(np.asarray(x, np.float64))
    return np.ldexp(np.rint(mantissa * 2.0 ** (digits + 1)), exponent - digits - 1)


def cut(x, digits):
    """x without the binary digits after those, as tensor cores take it."""
    mantissa, exponent = np.frexp(np.asarray(x, np.float64))
    return np.ldexp(np.trunc(mantissa * 2.0 ** (digits + 1)), exponent - digits - 1)


def narrow(x):
    with np.errstate(over="ignore"):
        return np.asarray(x).astype(np.float16).astype(np.float64)


def in_steps(product, add):
    """A product whose sums are rounded by `add` after each term."""

    def multiplied(a, b):
        total = np.zeros(np.matmul(a[..., :1], b[..., :1, :]).shape)
        for k in range(a.shape[-1]):
            column, row = a[..., k : k + 1], b[..., k : k + 1, :]
            if column.any() and row.any():  # adding 0 rounds nothing
                with np.errstate(invalid="ignore"):  # 0 times what overflowed
                    total = add(total + product(column, row))
        return total

    return multiplied


def of(inputs):
    """A product of factors that are rounded by `inputs`."""

    def multiplied(a, b):
        with np.errstate(invalid="ignore"):
            return np.matmul(inputs(a), inputs(b))

    return multiplied


def in_two_parts(a, b):
    """float32 as the sum of two numbers of bfloat16, without the product of the remainders."""
    (a, more), (b, other) = (
        (high, rounded(x - high, 7)) for x in (a, b) for high in [rounded(x, 7)]
    )
    return a @ b + a @ other + more @ b


def without_last_products(a, b):
    """float32 as the sum of two numbers of TensorFloat-32, the smallest product left out."""
    (a, more), (b, other) = ((high, x - high) for x in (a, b) for high in [cut(x, 10)])
    return a @ b + a @ other + more @ b


FAKES = {  # what a fake backend does to a product: what the probe has to call it
    "TF32": (of(partial(rounded, digits=10)), "TensorFloat-32"),
    "TF32, cut": (of(partial(cut, digits=10)), "TensorFloat-32"),
    "bf16": (of(partial(rounded, digits=7)), "bfloat16"),
    "bf16, cut": (of(partial(cut, digits=7)), "bfloat16"),
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
    """NumPy's arrays, but products of matrices are computed by `Rounded.product`."""

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
    """A backend of rounded arrays, which computes nothing well unless `changed` says how."""
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


def test_each_way_to_fall_short_is_named(named):
    result = fake()("fast").probe()
    assert result == all_in(named)


def test_a_strict_backend_that_falls_short_is_an_error_that_names_the_setting(
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
def test_one_operation_that_falls_short_is_found_among_the_others(monkeypatch, what):
    product, _ = FAKES["bf16"]
    function = getattr(ops, what)

    def short(*args):
        monkeypatch.setattr(Rounded, "product", staticmethod(product))
        result = function.dispatch(np.ndarray)(*args)
        monkeypatch.setattr(Rounded, "product", None)
        return result

    class Short(Rounded):
        """A type to register for."""

    function.register(Short, short)
    one = fake(asarray=lambda data, device: np.array(data).view(Short))
    monkeypatch.setattr(Rounded, "product", None)
    with pytest.raises(
        nn.BackendUnavailable,
        match=rf"in bfloat16 \(eager: {what}; compiled: {what}\)\. There",
    ):
        one().probe()


def test_what_only_a_compiler_does_is_found(monkeypatch):
    product, _ = FAKES["TF32"]

    def jit(function, device, donate=()):
        def compiled(*args):
            with monkeypatch.context() as patch:
                patch.setattr(Rounded, "product", staticmethod(product))
                return function(*args)

        return compiled

    result = fake(jit=jit)("fast").probe()
    assert result == all_in("float32") | {
        "compiled": dict.fromkeys(WAYS, "TensorFloat-32")
    }


def test_what_is_less_than_float32_is_told_by_format():
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
    """A setting made elsewhere neither excuses a failure nor raises an alarm."""
    product, _ = FAKES["TF32"]
    monkeypatch.setattr(Rounded, "product", staticmethod(product))

    class Exactly:
        def __enter__(self):
            self.before = Rounded.product
            Rounded.product = None

        def __exit__(self, *_):
            Rounded.product = staticmethod(self.before)

    def policy(device, precision, deterministic):
        return Exactly() if precision == "strict" else nullcontext()

    assert fake(policy=policy)().probe() == all_in("float32")
    assert fake(policy=policy)("fast").probe() == all_in("TensorFloat-32")


# --- applying it ----------------------------------------------------------------------


def test_the_policy_holds_eagerly_and_compiled_and_no_longer():
    now = []

    class Set:
        def __init__(self, *given):
            self.given = given

        def __enter__(self):
            now.append(self.given)

        def __exit__(self, *_):
            now.pop()

    one = fake(policy=lambda *given: Set(*given))("fast", True)
    seen = one.jit(lambda x, more=0: (x, more, tuple(now)))
    assert seen(1, more=2) == (1, 2, ((None, "fast", True),))
    with one.applied():
        assert now == [(None, "fast", True)]
    with pytest.raises(ZeroDivisionError):
        one.jit(lambda x: x / 0)(1)
    assert now == []


def test_an_adapter_that_says_nothing_of_policies_has_nothing_to_set():
    names = dict(vars(nn.backend("numpy").adapter))
    del names["policy"]
    one = Backend("fake", "gpu:0", None, SimpleNamespace(**names), "strict", True)
    assert one.jit(lambda x: x + 1)(1) == 2
    with one.applied():
        pass


def test_what_was_compiled_once_is_equal_to_what_is_compiled_again(backend):
    made = []
    again = fake(
        compiles=True, policy=lambda *_: nullcontext(), jit=lambda f, *_: made.append(f)
    )
    again().jit(random.words)
    again().jit(random.words)
    again("fast").jit(random.words)
    again().jit(random.split)
    assert made[0] == made[1]
    assert made[0] not in made[2:]
    assert hash(made[0]) == hash(made[1])
    assert made[0] != random.words
    assert made[0].__name__ == random.words.__name__


def test_a_backend_that_cannot_be_deterministic_says_what_to_do(monkeypatch):
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
        pytest.skip("PyTorch before 2.9 says it otherwise")
    nn.backend("torch")
    return torch


CUDA = ("cuda.matmul", "cudnn.conv", "cudnn.rnn")
CPU = ("mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")


@pytest.mark.parametrize(
    ("device", "places"), [("cpu", CPU), ("cuda:0", CUDA)], ids=["cpu", "cuda"]
)
def test_pytorch_is_told_for_as_long_as_a_call_takes(
    torch, monkeypatch, device, places
):
    """Names of devices that are not there do: a setting needs none."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    adapter = nn.backend("torch").adapter
    there = (adapter, torch.device(device))
    before = torch_settings(torch)
    for precision, value in {"strict": ("ieee", "none"), "fast": ("tf32",)}.items():
        one = Backend("torch", device, there[1], adapter, precision, True)
        with one.applied():
            inside = torch_settings(torch)
        for place in (*CUDA, *CPU):
            if place in places:
                assert inside[place] in value, place
            else:
                assert inside[place] == before[place], place
        assert inside["deterministic"] == 2
        assert not inside["cudnn.benchmark"]
        assert inside["cudnn.deterministic"] == (
            device != "cpu" or before["cudnn.deterministic"]
        )
        with pytest.raises(ZeroDivisionError), one.applied():
            raise ZeroDivisionError
        assert torch_settings(torch) == before


def test_pytorchs_settings_of_a_user_come_back_as_they_were(torch):
    mkldnn = torch.backends.mkldnn
    before = mkldnn.matmul.fp32_precision
    seen = []
    one = nn.backend("torch:cpu")
    look = one.jit(lambda x: seen.append(mkldnn.matmul.fp32_precision) or x)
    try:
        mkldnn.matmul.fp32_precision = "bf16"
        look(torch.ones(2))
        assert mkldnn.matmul.fp32_precision == "bf16"
    finally:
        mkldnn.matmul.fp32_precision = before
    assert seen == ["ieee"]


def test_an_older_pytorch_is_told_by_its_older_names(torch, monkeypatch):
    adapter = nn.backend("torch").adapter
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    monkeypatch.delattr(torch._C, "_get_fp32_precision_getter")
    adapter._settings.cache_clear()
    try:
        for precision, wanted in {
            "fast": ("high", True),
            "strict": ("highest", False),
        }.items():
            with adapter.policy(torch.device("cuda:0"), precision, False):
                now = (
                    torch.get_float32_matmul_precision(),
                    torch.backends.cudnn.allow_tf32,
                )
            assert now == wanted
    finally:
        adapter._settings.cache_clear()
    assert before == (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
    )


def test_pytorch_on_cuda_is_deterministic_only_with_a_workspace_of_its_own(
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


def test_pytorch_refuses_what_of_a_users_own_cannot_be_deterministic(torch):
    one = nn.backend("torch:cpu", deterministic=True)
    put = one.jit(
        lambda x: x.clone().put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
    )
    with pytest.raises(
        RuntimeError, match="does not have a deterministic implementation"
    ):
        put(torch.ones(3))
    assert torch.get_deterministic_debug_mode() == 0


JAX = {"strict": "HIGHEST", "fast": "HIGH"}


@pytest.mark.parametrize("precision", policies.PRECISIONS)
def test_jax_is_told_within_what_it_compiles(precision):
    """By XLA's own text: every product and convolution carries it, for CUDA as well."""
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    one = nn.backend("jax:cpu", precision=precision)
    arguments = one.asarray(policies._operands())
    traced = one.jit(policies._products).trace(*arguments)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    lines = [
        line
        for line in text.splitlines()
        if "dot_general" in line or "convolution" in line
    ]
    assert len(lines) == len(WAYS)
    for line in lines:
        wanted = f"{JAX[precision]}, {JAX[precision]}"
        assert wanted in line.replace("#stablehlo<precision ", "").replace(">", ""), (
            line
        )
    assert jax.config.jax_default_matmul_precision is None
    with one.applied():
        assert jax.config.jax_default_matmul_precision in ("highest", "tensorfloat32")
    assert jax.config.jax_default_matmul_precision is None


@pytest.mark.parametrize(
    ("flags", "fine"),
    [
        ("", False),
        ("--xla_gpu_deterministic_ops=false", False),
        ("--xla_gpu_deterministic_ops_of_ours=true", False),
        ("--xla_gpu_deterministic_ops=true", True),
        ("--xla_gpu_autotune_level=0 --xla_gpu_deterministic_ops", True),
    ],
)
def test_jax_on_a_gpu_is_deterministic_only_with_xlas_flag(monkeypatch, flags, fine):
    pytest.importorskip("jax", reason="JAX is not installed")
    policy = nn.backend("jax").adapter.policy
    monkeypatch.setenv("XLA_FLAGS", flags)
    gpu, cpu = SimpleNamespace(platform="gpu"), SimpleNamespace(platform="cpu")
    if fine:
        policy(gpu, "strict", True)
    else:
        with pytest.raises(
            NotImplementedError, match="--xla_gpu_deterministic_ops=true into"
        ):
            policy(gpu, "strict", True)
    policy(gpu, "strict", False)
    policy(cpu, "strict", True)


def test_xla_knows_the_flag_that_is_asked_for():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    known = jax.jit(
        lambda x: x + 1, compiler_options={"xla_gpu_deterministic_ops": True}
    )
    assert known(1) == 2
    with pytest.raises(Exception, match="No such compile option"):
        jax.jit(lambda x: x + 2, compiler_options={"xla_gpu_deterministic_opps": True})(
            1
        )


def test_dpnp_is_deterministic_only_with_onemkls_mode(monkeypatch):
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


# --- every tool keeps to it -----------------------------------------------------------


@pytest.fixture
def watched():
    """A backend that notes what is computed on it, and what of that without its policy."""
    now, seen, bare = [], set(), set()

    class Watched(np.ndarray):
        def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
            seen.add(ufunc.__name__)
            if not now:
                bare.add(ufunc.__name__)
            inputs = [np.asarray(x) if isinstance(x, Watched) else x for x in inputs]
            kwargs |= {} if out is None else {"out": tuple(map(np.asarray, out))}
            result = np.asarray(getattr(ufunc, method)(*inputs, **kwargs))
            return result.view(Watched) if out is None else out[0]

    @contextmanager
    def policy(*_):
        now.append(True)
        try:
            yield
        finally:
            now.pop()

    def asarray(data, device):
        return np.array(data).view(Watched)

    return fake(policy=policy, asarray=asarray)(), seen, bare


SMALL = nn.Sequential(
    nn.Dense(4), nn.Residual(nn.LayerNorm(), nn.Dense(4)), nn.BatchNorm(), nn.Dropout(0.1),
    nn.Dense(2),
)  # fmt: skip
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
    (result,) = compare(workload, [backend], sizes=(2,))["results"]
    assert result["error"] is None


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
    backend, seen, bare = watched
    TOOLS[tool](backend)
    assert "matmul" in seen
    assert bare == set()


def test_a_trainer_that_goes_elsewhere_by_name_keeps_its_policy(monkeypatch):
    trainer = Trainer(
        *TASK[:3], backend=nn.backend("numpy", precision="fast", deterministic=True)
    )
    moved = trainer.to("numpy:cpu")
    assert moved.backend.policy == {"precision": "fast", "deterministic": True}
    other = nn.backend("numpy", precision="strict", deterministic=False)
    assert trainer.to(other).backend is other
    monkeypatch.setenv("AGNOSTIC_NN_PRECISION", "fast")
    monkeypatch.setenv("AGNOSTIC_NN_DETERMINISTIC", "1")
    again = Trainer(*TASK[:3], backend=other).to("numpy").backend
    assert again.policy == {"precision": "strict", "deterministic": False}


def test_a_trainer_does_not_go_where_its_policy_is_refused(monkeypatch):
    def policy(device, precision, deterministic):
        if deterministic:
            raise NotImplementedError("it never does the same again")

    module = SimpleNamespace(**{**vars(nn.backend("numpy").adapter), "policy": policy})
    monkeypatch.setitem(sys.modules, "wayward", module)
    monkeypatch.setitem(SHIPPED, "wayward", ("wayward", "nothing"))
    assert Trainer(*TASK[:3], backend="numpy").to("wayward").backend.name == "wayward"
    trainer = Trainer(*TASK[:3], backend=nn.backend("numpy", deterministic=True))
    with pytest.raises(
        nn.BackendUnavailable, match="wayward:cpu: it never does the same again"
    ):
        trainer.to("wayward")


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
def test_sorted_updates_add_up_to_what_scatter_add_gives(
    backend, widest, count, width, rows, integer
):
    """Small whole numbers, whose sums are exact in every order."""
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


def test_sorted_updates_of_other_rows_never_mix(backend, widest):
    """Not even what is infinite, or no number at all."""
    updates = np.asarray([[1.0], [np.inf], [2.0], [np.nan], [4.0]], widest)
    index = np.asarray([2, 0, 2, 1, 2], np.int32)
    add = backend.jit(lambda updates, index: ops.indexing.add_sorted(updates, index, 4))
    result = backend.to_numpy(add(*backend.asarray((updates, index))))
    np.testing.assert_array_equal(result, [[np.inf], [np.nan], [7.0], [0.0]])


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


INDEX = np.random.default_rng(0).integers(0, 7, 3000).astype(np.int32)
IMAGES, WINDOW = numbers(4, 9, 8, 6), numbers(3, 3, 3, 4)
SPANS = (2, 1), ((1, 1), (0, 2)), (1, 2), 2
QUERY, ANSWERS = numbers(2, 3, 2, 20, 8), numbers(2, 3, 20, 8)


CALLS = {  # name: (a function of arrays, those arrays)
    "above_zero": (ops.above_zero, (numbers(50, 60), numbers(50, 60, seed=1))),
    "all_finite": (ops.all_finite, (numbers(500, 60), numbers(7))),
    "attend": (lambda *a: ops.attend(*a)[0], (QUERY, ANSWERS, ANSWERS)),
    "attend_backward": (
        lambda q, k, v, dy: ops.attend_backward(
            q, k, v, (), (), *ops.attend(q, k, v), dy
        ),
        (QUERY, ANSWERS, ANSWERS, numbers(2, 3, 2, 20, 8, seed=1)),
    ),
    "barrier_impl": (lambda x: ops.barrier(x), (numbers(4, 5),)),
    "convolve": (lambda x, w: ops.convolve(x, w, *SPANS), (IMAGES, WINDOW)),
    "convolve_input": (
        lambda x, w: ops.convolve_input(
            ops.convolve(x, w, *SPANS), w, x.shape[1:-1], *SPANS
        ),
        (IMAGES, WINDOW),
    ),
    "convolve_weight": (
        lambda x, w: ops.convolve_weight(
            x, ops.convolve(x, w, *SPANS), w.shape[:2], *SPANS
        ),
        (IMAGES, WINDOW),
    ),
    "largest": (
        lambda x: ops.largest(x, (3, 2), (1, 1), ((1, 1), (0, 0)), (1, 1))[0],
        (IMAGES,),
    ),
    "largest_input": (
        lambda x: _unpooled(x, (3, 2), (1, 1), ((1, 1), (0, 0)), (1, 1)),
        (IMAGES,),
    ),
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
LAYERS = {  # what the rest is called by
    "lstm": nn.LSTM(16),
    "lstm_backward": nn.LSTM(16),
    "scan_impl": nn.GRU(16),
}


def _unpooled(x, *spans):
    y, which = ops.largest(x, *spans)
    return ops.largest_input(y, which, x.shape[1:-1], *spans)


def test_every_function_under_dispatch_is_among_those_run_twice():
    modules = (ops, random)
    result = {n for m in modules for n, f in vars(m).items() if hasattr(f, "dispatch")}
    assert result == {*CALLS, *LAYERS}


def bits(backend, tree):
    return [np.asarray(leaf).tobytes() for leaf in leaves(backend.to_numpy(tree))]


@pytest.fixture
def certain(backend):
    """The backend under test, deterministic."""
    try:
        return nn.backend(str(backend), deterministic=True)
    except nn.BackendUnavailable as error:
        pytest.skip(str(error))


def assert_repeats(backend, function, arrays):
    """The same bits from the same numbers, compiled and, where that is quick, called."""
    compiled = backend.jit(function)
    for call in (compiled,) if backend.compiles else (compiled, function):
        with backend.applied():
            first, second = (
                bits(backend, call(*backend.asarray(arrays))) for _ in range(2)
            )
        assert first == second


@pytest.mark.parametrize("name", CALLS)
def test_each_special_function_gives_the_same_bits_again(certain, name):
    assert_repeats(certain, *CALLS[name])


@pytest.mark.parametrize("name", LAYERS)
def test_each_loop_gives_the_same_bits_again(certain, name):
    layer = LAYERS[name]
    params, state, _ = layer.init(
        random.key(0, xp=nn.backend("numpy").xp), (20, 8), np.float32
    )

    def both(params, state, x):
        y, _, cache = layer.forward(params, state, x, train=True)
        return y, *layer.backward(params, cache, y)

    assert_repeats(certain, both, (params, state, numbers(5, 20, 8)))


def test_a_difference_of_one_bit_would_be_seen(backend):
    made = iter((1.0, 1.0 + 2.0**-23))
    with pytest.raises(AssertionError):
        assert_repeats(
            replace(backend, deterministic=False, replay=False, adapter=SimpleNamespace(
                **{**vars(backend.adapter), "policy": None, "eager": lambda function, _: function}
            )),
            lambda x: x * next(made),
            (np.ones(1, np.float32),),
        )  # fmt: skip


MODELS = {  # name: (model, shape of an example, number of words or None)
    "images": (
        nn.Sequential(
            nn.Conv2D(6, 3, stride=2), nn.BatchNorm(), nn.ReLU(), nn.MaxPool2D(2), nn.Flatten(),
            nn.Dropout(0.3), nn.Dense(4),
        ),
        (13, 12, 3),
        None,
    ),
    "words": (
        nn.Sequential(nn.Embedding(5, 8), nn.LSTM(16), nn.LayerNorm(), nn.Flatten(), nn.Dense(4)),
        (9,),
        5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_training_gives_the_same_bits_again(certain, name):
    assert_training_repeats(certain, name)


def assert_training_repeats(certain, name):
    model, shape, words = MODELS[name]
    optimizer = nn.AdamW(1e-2)
    key = random.key(0, xp=nn.backend("numpy").xp)
    params, state, _ = model.init(key, shape, np.float32)
    x = (
        numbers(16, *shape)
        if words is None
        else INDEX[: 16 * shape[0]].reshape(16, -1) % words
    )
    batch = certain.asarray((x, (np.arange(16) % 4).astype(np.int32)))

    step = certain.jit(make_step(model, nn.softmax_cross_entropy, optimizer))

    def trained():
        carry, values = certain.asarray((params, state, optimizer.init(params))), []
        for _ in range(4):
            carry, value, _ = step(carry, *batch)
            values.append(value)
        return bits(certain, (carry, tuple(values)))

    assert trained() == trained()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_pytorch_repeats_itself_with_one_thread_and_with_two(torch, name, threads):
    """With each of them; between the two, sums may come in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_training_repeats(nn.backend("torch:cpu", deterministic=True), name)
    finally:
        torch.set_num_threads(before)
