"""A report as JUnit XML, the format in which CI services read the results of tests.

Each run is a test case: one backend, device and dtype. Its class name is the workload,
so that a service lists the runs of one workload together and finds the same run in the
report of another day.

    status of the run     element of its test case
    agrees                none: the test passed
    differs               failure
    failed                error
    not checked           skipped

What was left out is a skipped test case too. Each machine is a test suite. The order of
elements and the required attributes are those of the XML schema that JUnit's Ant task
and Jenkins share.
"""

import re
from collections import Counter
from collections.abc import Iterator
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from .report.headline import headline
from .report.sentences import sentence
from .schema import Difference, LeftOut, Machine, Report, Result, Status

__all__ = ["junit"]

_ELEMENTS: dict[Status, str] = {
    "differs": "failure",
    "failed": "error",
    "not checked": "skipped",
}
# The attribute of a test suite that counts the test cases with such an element.
_COUNTS = {"failure": "failures", "error": "errors", "skipped": "skipped"}
# Characters that XML 1.0 does not allow, also not as a reference such as &#0;.
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(report: Report) -> str:
    """Return the report as the text of a JUnit XML file."""
    root = Element("testsuites")
    for number, machine in enumerate(report.machines):
        root.append(_suite(report, machine, number))
    for name in ("tests", *_COUNTS.values()):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))
    for element in root.iter():
        element.attrib = {key: _valid(value) for key, value in element.attrib.items()}
        element.text = None if element.text is None else _valid(element.text)
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def _suite(report: Report, machine: Machine, number: int) -> Element:
    """Return the test suite of a machine."""
    workload = report.workload.name
    cases = [_case(workload, r) for r in report.results if r.machine == machine.label]
    left_out = [each for each in report.left_out if each.machine == machine.label]
    cases += _skipped_cases(workload, left_out)
    counts = Counter(child.tag for case in cases for child in case)
    # The schema wants a time without a time zone, in seconds.
    timestamp = machine.environment.date[: len("2000-01-01T00:00:00")]
    suite = Element(
        "testsuite",
        id=str(number),
        name=f"agnostic-nn compare {workload}",
        package="agnostic_nn.compare",
        hostname=machine.label,
        timestamp=timestamp,
        tests=str(len(cases)),
        time=f"{sum(float(case.get('time', '0')) for case in cases):.3f}",
    )
    for tag, attribute in _COUNTS.items():
        suite.set(attribute, str(counts[tag]))
    properties = SubElement(suite, "properties")
    for name, value in _properties(report, machine).items():
        SubElement(properties, "property", name=name, value=value)
    suite.extend(cases)
    SubElement(suite, "system-out").text = f"{headline(report)}."
    SubElement(suite, "system-err")
    return suite


def _case(workload: str, result: Result) -> Element:
    """Return the test case of a run."""
    case = Element(
        "testcase",
        classname=workload,
        name=_case_name(result),
        time=f"{_seconds(result):.3f}",
    )
    tag = _ELEMENTS.get(result.status)
    if tag is not None:
        message = result.verdict if result.error is None else result.error
        lines = [sentence(result), *_first_difference(result)]
        element = SubElement(case, tag, message=message, type=result.status)
        element.text = "\n".join(lines)
    return case


def _case_name(result: Result) -> str:
    """Return a name that does not depend on the other runs in the report.

    Services follow a test case over time by its name.
    """
    words = [result.name, result.dtype]
    words += ["fast"] if result.precision == "fast" else []
    words += ["deterministic"] if result.deterministic else []
    return " ".join(words)


def _skipped_cases(workload: str, left_out: list[LeftOut]) -> Iterator[Element]:
    """Yield a skipped test case for each backend that was left out."""
    numbers: Counter[str] = Counter()
    for each in left_out:
        # The same backend may be left out twice, for two dtypes.
        numbers[each.backend] += 1
        number = f" #{numbers[each.backend]}" if numbers[each.backend] > 1 else ""
        name = f"{each.backend} (left out){number}"
        case = Element("testcase", classname=workload, name=name, time="0.000")
        SubElement(case, "skipped", message=each.reason, type="left out")
        yield case


def _seconds(result: Result) -> float:
    """Return about how many seconds the steps of a run took."""
    later = (result.steps or 1) - 1
    return ((result.first_step_ms or 0.0) + later * (result.step_ms or 0.0)) / 1e3


def _first_difference(result: Result) -> Iterator[str]:
    """Yield a line for each field of the first difference."""
    if result.first_difference is None:
        return
    for name, value in _fields(result.first_difference).items():
        yield f"{name}: {value}"


def _fields(difference: Difference) -> dict[str, object]:
    return {
        "first difference": difference.description,
        "step": difference.step,
        "relative deviation": _number(difference.relative),
        "tolerance": _number(difference.tolerance),
    }


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"


def _properties(report: Report, machine: Machine) -> dict[str, str]:
    """Return what identifies the run of a test suite, by name."""
    task = report.workload
    environment = machine.environment
    settings = {
        "model": task.model,
        "seed": task.seed,
        "steps": task.steps,
        "platform": environment.platform,
        "processor": environment.processor,
        "start_sha256": report.start_sha256,
    }
    return {name: str(value) for name, value in settings.items()}


def _valid(text: str) -> str:
    """Return the text with U+FFFD instead of each character that XML cannot hold."""
    return _NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", text)
