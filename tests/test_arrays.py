"""Namespaces and devices of arrays, row masks, and `expect`."""

import dataclasses
import types

import array_api_compat
import numpy as np
import pytest

from agnostic_nn.core import arrays
from agnostic_nn.core.arrays import (
    RowMask,
    device,
    first_true,
    namespace,
    register,
    size,
)
from agnostic_nn.core.errors import expect


class Foreign:
    """An array of a library that is not installed."""

    library = types.ModuleType("foreign")

    def __array_namespace__(self, api_version=None):
        return self.library


def test_the_namespace_is_that_of_the_library(backend, draw):
    x = backend.asarray(draw(2, 3))
    assert namespace(x) is backend.xp
    assert namespace(x, x, backend.asarray(draw(4))) is backend.xp
    assert namespace(Foreign()) is Foreign.library


def test_the_namespace_is_found_inside_jit(backend, draw):
    result = []
    backend.jit(lambda x: result.append(namespace(x, x)) or x)(backend.asarray(draw(2)))
    assert result == [backend.xp]


def test_a_reduction_to_a_scalar_still_belongs_to_its_library(backend, draw):
    x = backend.asarray(draw(3))
    assert namespace(backend.xp.sum(x), x) is backend.xp


@pytest.mark.parametrize("thing", [[1.0], 1.0, "x", None, {"x": 1}], ids=repr)
def test_the_namespace_of_anything_else_is_an_error(backend, draw, thing):
    with pytest.raises(TypeError):
        namespace(thing)
    with pytest.raises(TypeError):
        namespace(backend.asarray(draw(2)), thing)


def test_arrays_of_two_libraries_are_refused_by_name(backend, draw):
    x = backend.asarray(draw(2))
    with pytest.raises(
        TypeError, match=rf"one library, got .*{type(x).__name__} and .*Foreign"
    ):
        namespace(x, x, Foreign())


def test_a_type_is_looked_up_once(monkeypatch):
    looked_up = []

    def look_up(x):
        looked_up.append(type(x))
        return array_api_compat.array_namespace(x)

    monkeypatch.setattr(arrays, "array_namespace", look_up)
    monkeypatch.setattr(arrays, "_NAMESPACES", {})
    for _ in range(3):
        namespace(np.ones(2), np.zeros(3))
    assert looked_up == [np.ndarray]


class Bare:
    """An array without `__array_namespace__` and `device`."""


@pytest.fixture
def registered(monkeypatch):
    """Undo registrations after a test."""
    monkeypatch.setattr(arrays, "_NAMESPACES", {})
    monkeypatch.setattr(arrays, "_DEVICES", {})


@pytest.mark.usefixtures("registered")
def test_a_registered_class_has_a_namespace_and_a_device_and_is_not_changed():
    xp, before = types.SimpleNamespace(asarray=Bare), dict(vars(Bare))
    with pytest.raises(TypeError):
        namespace(Bare())
    register(Bare, xp, lambda x: "over there")
    assert namespace(Bare(), Bare()) is xp
    assert device(Bare()) == "over there"
    assert dict(vars(Bare)) == before
    with pytest.raises(TypeError, match=r"one library, got .*Bare and .*ndarray"):
        namespace(Bare(), np.ones(2))
    register(Bare, xp)  # again, as when a module is reloaded


REFUSED = [  # arguments of register, message
    ((Bare(), np), "expected a class of arrays, got <"),
    ((Bare, Bare), "expected a namespace of the Array API Standard, got <class"),
    ((Bare, np, "cpu"), "expected device to be a function of an array, got 'cpu'"),
]


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("arguments", "text"), REFUSED, ids=[text for _, text in REFUSED]
)
def test_wrong_arguments_of_register_are_refused(arguments, text):
    with pytest.raises(TypeError, match=text):
        register(*arguments)
    with pytest.raises(TypeError):
        namespace(Bare())


@pytest.mark.usefixtures("registered")
def test_a_class_cannot_be_registered_for_a_second_namespace():
    xp = types.SimpleNamespace(asarray=Bare)
    register(Foreign, xp)  # before its own namespace was used
    assert namespace(Foreign()) is xp
    namespace(np.ones(2))
    for kind in (Foreign, np.ndarray):
        with pytest.raises(ValueError, match=f"{kind.__name__}'> already belong to "):
            register(kind, types.SimpleNamespace(asarray=Bare))
    assert namespace(Foreign()) is xp


def test_expect_raises_its_message_only_if_the_condition_is_false():
    expect(True, "not raised")
    with pytest.raises(ValueError, match=r"^Dense takes 4, got 5$"):
        expect(False, "Dense takes 4, got 5")
    with pytest.raises(ValueError, match=r"^Dense takes \(4,\), got {}$"):
        expect(False, "Dense takes {}, got {}", (4,), {})
    with pytest.raises(ValueError, match=r"^{} is literal$"):
        expect(False, "{} is literal")


def test_expect_writes_every_shape_as_a_tuple(backend, draw):
    with pytest.raises(ValueError, match=r"^got \(2, 3\)$"):
        expect(False, "got {}", backend.asarray(draw(2, 3)).shape)


def test_a_row_mask_is_true_whatever_its_counts(backend, widest):
    for counts in (np.zeros(3, widest), np.asarray([1, 0, 1], widest)):
        assert RowMask(backend.asarray(counts))
    with pytest.raises(dataclasses.FrozenInstanceError):
        RowMask(np.ones(2)).counts = None


@pytest.mark.parametrize(
    "shape", [(), (1,), (300,), (2, 3), (3, 1, 5), (4, 0), (0,)], ids=str
)
def test_first_true_is_the_first_in_row_major_order(shape):
    generator = np.random.default_rng(0)
    for share in (0.0, 0.05, 0.5, 1.0):
        mask = np.asarray(generator.random(shape) < share)
        positions = np.argwhere(mask)
        expected = tuple(int(i) for i in positions[0]) if len(positions) else None
        assert first_true(mask) == expected


def test_first_true_finds_each_element():
    for position in np.ndindex(3, 4, 5):
        mask = np.zeros((3, 4, 5), bool)
        mask[position] = True
        assert first_true(mask) == position


def test_size_and_device_are_known_inside_jit(backend, draw):
    x = backend.asarray(draw(2, 3))
    results = []
    backend.jit(lambda x: results.append((size(x), device(x))) or x)(x)
    assert results[0][0] == size(x) == 6
    backend.xp.zeros(2, device=results[0][1])
