"""The report as JUnit XML, which continuous integration shows as tests."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as Xml

from ckv_export.parity.compare import TensorResult
from ckv_export.parity.report import ParityReport


def write_junit(report: ParityReport, path: Path) -> None:
    """Write `path`: a suite per runtime, a test per comparison.

    What wasn't run, and what the cases can't prove, is skipped.
    """
    root = Xml.Element("testsuites", name=f"parity of {report.model}")
    for outcome in report.outcomes:
        suite = _suite(root, outcome.name or outcome.runtime.runtime)
        for result in outcome.results:
            _test(suite, result)
        if outcome.unproven:
            _skipped(suite, "scores that differ", outcome.unproven)
    for name, why in report.not_run.items():
        _skipped(_suite(root, name), "run", why)
    for suite in root:
        found = {"failures": "testcase/failure", "skipped": "testcase/skipped", "tests": "testcase"}
        suite.attrib |= {what: str(len(suite.findall(each))) for what, each in found.items()}
    Xml.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def _suite(root: Xml.Element, name: str) -> Xml.Element:
    return Xml.SubElement(root, "testsuite", name=name)


def _case(suite: Xml.Element, name: str) -> Xml.Element:
    return Xml.SubElement(suite, "testcase", classname=suite.attrib["name"], name=name)


def _skipped(suite: Xml.Element, name: str, why: str) -> None:
    Xml.SubElement(_case(suite, name), "skipped", message=why)


def _test(suite: Xml.Element, result: TensorResult) -> None:
    test = _case(suite, f"{result.tensor}: {result.case}")
    if not result.passed:
        Xml.SubElement(test, "failure", message=result.sentence())
