"""The report as JUnit XML, which continuous integration shows as tests."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as Xml

from ckv_export.parity.compare import TensorResult
from ckv_export.parity.report import ParityReport


def write_junit(report: ParityReport, path: Path) -> None:
    """Write `path`: a suite per runtime, a test per comparison; what wasn't run is skipped."""
    root = Xml.Element("testsuites", name=f"parity of {report.model}")
    for outcome in report.outcomes:
        suite = _suite(root, outcome.name or outcome.runtime.runtime)
        for result in outcome.results:
            _test(suite, result)
        failures = sum(not r.passed for r in outcome.results)
        suite.attrib |= {"tests": str(len(outcome.results)), "failures": str(failures)}
    for name, why in report.not_run.items():
        suite = _suite(root, name)
        suite.attrib |= {"tests": "1", "failures": "0", "skipped": "1"}
        test = Xml.SubElement(suite, "testcase", classname=name, name="run")
        Xml.SubElement(test, "skipped", message=why)
    Xml.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def _suite(root: Xml.Element, name: str) -> Xml.Element:
    return Xml.SubElement(root, "testsuite", name=name)


def _test(suite: Xml.Element, result: TensorResult) -> None:
    name = f"{result.tensor}: {result.case}"
    test = Xml.SubElement(suite, "testcase", classname=suite.attrib["name"], name=name)
    if not result.passed:
        Xml.SubElement(test, "failure", message=result.sentence())
