"""Which modules of a source belong to which layers of a model.

With a mapping, names decide. Without one, structure does: the type of a layer, its
shapes, and the order. An assignment that is not the only one possible is refused, with
the list of both sides.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from .conventions import Form, Rule
from .units import Unit
from .weight_files import Source, snake_case

__all__ = ["Match", "Names", "matches_of", "pairs_of", "remaining_names"]

# a dict from paths to prefixes, patterns of both, or a function of a path
Names = Mapping[str, str] | Callable[[str], str | None]

# arrays of sources that are not weights: positions 0, 1, ... and frequencies
_BUFFERS = re.compile(
    r"(^|[./])(position_ids|num_batches_tracked|inv_freq|masked_bias|seed_generator_state)$"
)
_LONGEST_LIST = 40


@dataclass(frozen=True)
class Match:
    """A unit, the prefix of its module in the source, and the form of its arrays."""

    unit: Unit
    prefix: str
    form: Form
    separator: str
    is_array: bool = False  # a single array, which is not converted

    def name(self, name: str) -> str:
        """Return the name in the source of an array of the form."""
        return _name(self.prefix, name, self.separator)

    @property
    def names(self) -> list[str]:
        """Names in the source of all arrays of the form."""
        return [self.name(name) for name in self.form.names]


def _name(prefix: str, name: str, separator: str) -> str:
    return separator.join(filter(None, (prefix, name)))


def remaining_names(
    source: Source, used: Collection[str], ignore: Iterable[str]
) -> list[str]:
    """Return the names of arrays that are neither used, nor buffers, nor ignored.

    Raises
    ------
    ValueError
        If a pattern in `ignore` matches nothing.
    """
    patterns = {pattern: _regex(pattern, several=True) for pattern in ignore}
    for pattern, regex in patterns.items():
        if not any(regex.fullmatch(name) for name in source.arrays):
            raise ValueError(
                f"ignore has {pattern!r}, which matches no array of {source.label}: "
                f"{_listed(source.arrays)}"
            )
    return [
        name
        for name in source.arrays
        if name not in used
        and not _BUFFERS.search(name)
        and not any(regex.fullmatch(name) for regex in patterns.values())
    ]


def matches_of(
    units: list[Unit],
    source: Source,
    mapping: Names | None,
    *,
    strict: bool,
    ignore: Iterable[str] = (),
) -> list[Match]:
    """Return the module of each unit in the source.

    Raises
    ------
    ValueError
        If the mapping names what does not exist or twice the same, shapes differ, or
        without a mapping the structures do not tell.
    TypeError
        If the mapping is neither a dict of names nor a function.
    """
    if mapping is None:
        return _Structure(source, ignore).matches(units, strict)
    matches = [
        _array_match(unit, prefix, source)
        if unit.is_array
        else _named_match(unit, prefix, source)
        for unit, prefix in pairs_of(units, mapping)
    ]
    _expect_once(matches)
    return matches


def pairs_of(units: list[Unit], mapping: Names) -> list[tuple[Unit, str]]:
    """Return the units that a mapping names, each with its prefix in the source.

    Raises
    ------
    ValueError
        If the model has no layer of that name, or two patterns name the same one.
    TypeError
        If the mapping is neither a dict of names nor a function.
    """
    if isinstance(mapping, Mapping):
        return _pairs_of_dict(units, mapping)
    if callable(mapping):
        return _pairs_of_function(units, mapping)
    raise TypeError(
        "expected a dict of our paths and the source's prefixes, or a function of "
        f"a path, as mapping, got {type(mapping).__name__}"
    )


# --- by a mapping ---------------------------------------------------------------------


def _regex(pattern: str, several: bool = False) -> re.Pattern[str]:
    """Return the regular expression of a pattern in which * is one part of a name.

    several: whether * may be several parts.
    """
    parts = [re.escape(part) for part in pattern.split("*")]
    return re.compile(("(.*)" if several else "([^./]+)").join(parts))


def _pairs_of_dict(
    units: list[Unit], mapping: Mapping[str, str]
) -> list[tuple[Unit, str]]:
    """Return the units that the keys of a mapping name, with prefixes."""
    layers = {unit.path: unit for outer in units for unit in outer.walk()}
    everything = layers | {
        path: unit for path, unit in _arrays_of(units).items() if path not in layers
    }
    pairs: dict[str, tuple[str, str]] = {}
    for key, value in mapping.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"expected names in the mapping, got {key!r}: {value!r}")
        if value.count("*") > key.count("*"):
            raise ValueError(
                f"{key!r}: {value!r} has more * on the right than on the left"
            )
        regex = _regex(key)
        hits = [m for path in everything if (m := regex.fullmatch(path))]
        if not hits:
            raise ValueError(
                f"the mapping has {key!r}, which is no layer of the model: "
                f"{_close(key, layers)}"
            )
        for match in hits:
            path = match.string
            if path in pairs and pairs[path][1] != value:
                raise ValueError(
                    f"the mapping names {path!r} twice: as {pairs[path][0]!r} and as "
                    f"{key!r}"
                )
            captured = list(match.groups())
            prefix = re.sub(r"\*", lambda _: captured.pop(0), value)  # noqa: B023
            pairs[path] = (key, prefix)
    return [(everything[path], prefix) for path, (_, prefix) in pairs.items()]


def _arrays_of(units: list[Unit]) -> dict[str, Unit]:
    """Return a unit for each single array, {its path: unit}."""
    return {
        name.partition(".")[2]: replace(
            unit,
            path=name.partition(".")[2],
            leaves={leaf: unit.leaves[leaf]},
            names={leaf: name},
            parts=(),
            is_array=True,
        )
        for unit in units
        for leaf, name in unit.names.items()
    }


def _pairs_of_function(
    units: Iterable[Unit], mapping: Callable[[str], str | None]
) -> list[tuple[Unit, str]]:
    """Return the units for which a function returns a prefix, the outermost first."""
    pairs: list[tuple[Unit, str]] = []
    for unit in units:
        prefix = mapping(unit.path)
        if isinstance(prefix, str):
            pairs.append((unit, prefix))
        elif prefix is None:
            pairs += _pairs_of_function(unit.parts, mapping)
        else:
            raise TypeError(
                f"expected a name or None from the mapping for {unit.path!r}, got "
                f"{type(prefix).__name__}"
            )
    return pairs


def _named_match(unit: Unit, prefix: str, source: Source) -> Match:
    """Return the match of a unit with the module at a prefix."""
    separator = source.convention.separator
    inside = _inside(prefix, source)
    try:
        forms = source.convention.forms(unit.layer)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{unit}: {error}{_parts_hint(unit)}") from None
    forms = _of_kind(unit, forms, prefix, source)
    present = [form for form in forms if set(form.required) <= inside.keys()]
    if not present:
        raise ValueError(
            f"{unit}: {source.convention.library} stores it as "
            f"{_and(forms[0].required)}, but {prefix or 'the source'} of "
            f"{source.label} has {_listed(inside)}{_parts_hint(unit)}"
        )
    most = max(len(form.required) for form in present)
    present = [form for form in present if len(form.required) == most]
    shapes = {name: tuple(source.arrays[full].shape) for name, full in inside.items()}
    for form in present:
        if not _wrong_shapes(form, unit, shapes):
            return Match(unit, prefix, form, separator)
    raise ValueError(_shape_error(unit, present[0], prefix, shapes, source))


def _inside(prefix: str, source: Source) -> dict[str, str]:
    """Return {name relative to a prefix: name in the source}; raise if none is."""
    separator = source.convention.separator
    start = f"{prefix}{separator}" if prefix else ""
    inside = {n[len(start) :]: n for n in source.arrays if n.startswith(start)}
    if prefix in source.arrays:
        inside[""] = prefix
    if not inside:
        raise ValueError(
            f"the mapping names {prefix!r}, which is no module of {source.label}: "
            f"{_close(prefix, _prefixes(source))}"
        )
    return inside


def _array_match(unit: Unit, name: str, source: Source) -> Match:
    """Return the match of a single array of ours with an array of the source."""
    if name not in source.arrays:
        raise ValueError(
            f"the mapping names {name!r} for the array {unit.path}, which is no array "
            f"of {source.label}: {_close(name, source.arrays)}"
        )
    (leaf,) = unit.leaves
    rule = Rule((leaf,), ("",), "the same", lambda a: (a,), lambda a: (a,))
    form = Form("array", (rule,))
    shapes = {"": tuple(source.arrays[name].shape)}
    if _wrong_shapes(form, unit, shapes):
        raise ValueError(_shape_error(unit, form, name, shapes, source))
    return Match(unit, name, form, source.convention.separator, is_array=True)


def _of_kind(unit: Unit, forms: list[Form], prefix: str, source: Source) -> list[Form]:
    """Return the forms that a class or an operator of the source may have."""
    kind = source.kinds.get(prefix)
    if kind is None:
        return forms
    matching = [form for form in forms if _is_kind(form, kind)]
    if not matching:
        expected = " or ".join(dict.fromkeys(form.name for form in forms))
        raise ValueError(
            f"{unit}: expected {expected} at {prefix} of {source.label}, got {kind}"
        )
    return matching


def _is_kind(form: Form, kind: str) -> bool:
    """Return whether a class, perhaps written as in a file of Keras, has this form."""
    return not form.kinds or any(kind in (k, snake_case(k)) for k in form.kinds)


def _wrong_shapes(
    form: Form, unit: Unit, shapes: Mapping[str, tuple[int, ...]]
) -> list[tuple[str, Any]]:
    """Return (name, expected shape or a reason) of arrays that do not fit a form."""
    if not set(form.leaves) <= unit.leaves.keys():
        return [(form.names[0], "other parameters")]
    try:
        expected = form.shapes({path: unit.leaves[path] for path in form.leaves})
    except ValueError as error:
        return [(form.names[0], str(error))]
    return [
        (name, shape)
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]


def _shape_error(
    unit: Unit,
    form: Form,
    prefix: str,
    shapes: Mapping[str, tuple[int, ...]],
    source: Source,
) -> str:
    name, expected = _wrong_shapes(form, unit, shapes)[0]
    full = _name(prefix, name, source.convention.separator)
    if isinstance(expected, str):
        return f"{unit}: {full} of {source.label} does not fit: {expected}"
    rule = next(rule for rule in form.rules if name in rule.theirs)
    ours = " and ".join(
        f"{unit.names[leaf].partition('.')[2]} {tuple(unit.leaves[leaf].shape)}"
        for leaf in rule.ours
    )
    return (
        f"{ours} of {type(unit.layer).__name__} does not fit {full} "
        f"{tuple(shapes[name])} of {source.label}: expected {expected} there "
        f"({rule.how}). Change the layer, or leave it out of the mapping and pass "
        "strict=False"
    )


def _expect_once(matches: list[Match]) -> None:
    """Raise if two matches fill the same array."""
    filled: dict[str, Match] = {}
    for match in matches:
        for leaf in match.form.leaves:
            name = match.unit.names[leaf]
            if name in filled:
                raise ValueError(
                    f"the mapping fills {name.partition('.')[2]} twice: by "
                    f"{filled[name].prefix!r} and by {match.prefix!r}"
                )
            filled[name] = match


# --- by structure ---------------------------------------------------------------------


class _Structure:
    """Matches units with modules by type, shapes and order."""

    def __init__(self, source: Source, ignore: Iterable[str]) -> None:
        self.source = source
        self.separator = source.convention.separator
        self.names = remaining_names(source, (), ignore)
        self.shapes = {n: tuple(a.shape) for n, a in source.arrays.items()}

    def matches(self, units: list[Unit], strict: bool) -> list[Match]:
        in_order: list[Match] = []
        if self.source.ordered:
            in_order, is_complete = self._in_order(list(units))
            if is_complete:
                return in_order
        only, is_complete = self._only_possible(list(units))
        if is_complete or (not strict and only and not in_order):
            return only
        if not strict and in_order:
            return in_order
        raise ValueError(self._both_sides(units, in_order))

    def _candidates(
        self, unit: Unit, remaining: Collection[str], first: str | None = None
    ) -> list[Match]:
        """Return the modules that a unit may be, of the remaining arrays.

        first: an array that the module must have.
        """
        if not self.source.convention.has(unit.layer):
            return []
        try:
            forms = self.source.convention.forms(unit.layer)
        except ValueError:
            return []
        candidates: dict[str, Match] = {}
        for form in forms:
            anchors = form.required if first is not None else form.required[:1]
            for name in remaining if first is None else [first]:
                for anchor in anchors:
                    prefix = self._prefix(name, anchor)
                    if prefix is None or prefix in candidates:
                        continue
                    match = Match(unit, prefix, form, self.separator)
                    if self._fits(match, remaining):
                        candidates[prefix] = match
        # a table may be a module with a weight or a bare array: the module is enough
        by_arrays: dict[frozenset[str], Match] = {}
        for match in candidates.values():
            by_arrays.setdefault(frozenset(map(match.name, match.form.required)), match)
        return list(by_arrays.values())

    def _prefix(self, name: str, relative: str) -> str | None:
        if relative in ("", name):
            return name if relative == "" else ""
        end = f"{self.separator}{relative}"
        return name[: -len(end)] if name.endswith(end) else None

    def _fits(self, match: Match, remaining: Collection[str]) -> bool:
        """Return whether all arrays are there and no other is next to them."""
        form = match.form
        required = {match.name(name) for name in form.required}
        kind = self.source.kinds.get(match.prefix)
        if not required <= set(remaining) or not (kind is None or _is_kind(form, kind)):
            return False
        shapes = {
            name: self.shapes[match.name(name)]
            for name in form.names
            if match.name(name) in self.shapes
        }
        if _wrong_shapes(form, match.unit, shapes):
            return False
        if set(form.required) == {""}:
            return True
        parents = {name.rpartition(self.separator)[0] for name in required}
        matched = set(match.names)
        return not any(
            name.rpartition(self.separator)[0] in parents and name not in matched
            for name in remaining
        )

    def _in_order(self, pending: list[Unit]) -> tuple[list[Match], bool]:
        """Match each unit with the first remaining module, as long as they fit."""
        remaining = dict.fromkeys(self.names)
        matches: list[Match] = []
        while pending:
            unit = pending[0]
            candidates: list[Match] = []
            if remaining:
                candidates = self._candidates(unit, remaining, next(iter(remaining)))
            if candidates:
                best = max(candidates, key=lambda match: len(match.form.required))
                matches.append(best)
                for name in best.names:
                    remaining.pop(name, None)
                pending = pending[1:]
            elif unit.parts:
                pending = [*unit.parts, *pending[1:]]
            else:
                return matches, False
        return matches, not remaining

    def _only_possible(self, pending: list[Unit]) -> tuple[list[Match], bool]:
        """Match units that can be one module only, until none is left."""
        remaining = dict.fromkeys(self.names)
        matches: list[Match] = []
        while pending:
            possible = [(unit, self._candidates(unit, remaining)) for unit in pending]
            expanded = [
                part
                for unit, candidates in possible
                for part in ((unit,) if candidates or not unit.parts else unit.parts)
            ]
            if len(expanded) != len(pending):
                pending = expanded
                continue
            group = _determined(possible)
            if not group:
                return matches, False
            matches += group
            for match in group:
                for name in match.names:
                    remaining.pop(name, None)
            done = {match.unit.path for match in group}
            pending = [unit for unit in pending if unit.path not in done]
        return matches, not remaining

    def _both_sides(self, units: list[Unit], in_order: list[Match]) -> str:
        """Return the error that lists the layers and the modules."""
        ours = [
            f"  {unit}: "
            + ", ".join(
                f"{leaf.partition('.')[2]} {tuple(array.shape)}"
                for leaf, array in unit.leaves.items()
            )
            for unit in units
        ]
        theirs = [
            f"  {prefix or '(no name)'}: "
            + ", ".join(f"{name} {shape}" for name, shape in arrays)
            for prefix, arrays in self._modules().items()
        ]
        reason = "their structures do not tell which module is which layer"
        if in_order:
            last = in_order[-1]
            reason += f" after {last.unit.path} = {last.prefix}"
        return "\n".join(
            [
                f"cannot match the model with {self.source.label}: {reason}.",
                "Pass mapping={path of ours: prefix of theirs, ...}, and "
                "ignore=[patterns] for arrays that the model does not have.",
                "The model:",
                *_shortened(ours),
                f"{self.source.label}:",
                *_shortened(theirs),
            ]
        )

    def _modules(self) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
        """Return the arrays of each module, by prefix."""
        modules: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
        for name in self.names:
            prefix, _, last = name.rpartition(self.separator)
            modules.setdefault(prefix, []).append((last, self.shapes[name]))
        return modules


def _determined(possible: list[tuple[Unit, list[Match]]]) -> list[Match]:
    """Return matches of units that have as many possible modules as there are units.

    Several such units are in the order of the numbers in the names of their modules.
    """
    groups: dict[tuple[str, ...], list[dict[str, Match]]] = {}
    for _, candidates in possible:
        by_prefix = {match.prefix: match for match in candidates}
        groups.setdefault(tuple(by_prefix), []).append(by_prefix)
    for prefixes, units in groups.items():
        if len(prefixes) == len(units) and _are_numbered(prefixes):
            ordered = sorted(prefixes, key=_natural)
            return [unit[p] for unit, p in zip(units, ordered, strict=True)]
    return []


def _are_numbered(prefixes: tuple[str, ...]) -> bool:
    """Return whether names differ in their numbers only, so that these order them."""
    return bool(prefixes) and len({re.sub(r"\d+", "#", p) for p in prefixes}) == 1


def _natural(name: str) -> list[Any]:
    """Sort 10 after 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


# --- words ----------------------------------------------------------------------------


def _prefixes(source: Source) -> list[str]:
    """Return the prefixes of all modules, the outer ones too."""
    separator = source.convention.separator
    prefixes: dict[str, None] = {}
    for name in source.arrays:
        parts = name.split(separator)
        prefixes.update(
            dict.fromkeys(separator.join(parts[:n]) for n in range(1, len(parts)))
        )
    return list(prefixes)


def _parts_hint(unit: Unit) -> str:
    if not unit.parts:
        return ""
    paths = ", ".join(part.path for part in unit.parts)
    return f". Its parts may be mapped instead: {paths}"


def _close(name: str, names: Iterable[str]) -> str:
    """Return the names that are like a wrong one, or some of all."""
    names = list(names)
    close = get_close_matches(name, names, n=5, cutoff=0.5)
    if close:
        return f"do you mean {' or '.join(close)}?"
    return f"there are {_listed(names)}"


def _listed(names: Iterable[str]) -> str:
    names = [name or "(no name)" for name in names]
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return (", ".join(names[:10]) or "none") + more


def _and(names: Iterable[str]) -> str:
    return " and ".join(name or "an array" for name in names)


def _shortened(lines: list[str]) -> list[str]:
    if len(lines) <= _LONGEST_LIST:
        return lines
    return [*lines[:_LONGEST_LIST], f"  ... and {len(lines) - _LONGEST_LIST} more"]
