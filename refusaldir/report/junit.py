"""A gate's outcome as JUnit XML, the form that build servers show.

One test suite, one test case a limit. It obeys the strictest schema in use, that of Ant's JUnit
task (https://github.com/windyroad/JUnit-Schema), and so the laxer ones too. A limit that fails is
a ``failure``. One that cannot be decided is an ``error``, the schema's word for a test that could
not be carried out: ``skipped`` would be green, and a release would go out unseen.
"""

import xml.etree.ElementTree as ET
from datetime import datetime, timezone

from refusaldir.report.gate import FAIL, PASS, UNDECIDED, Gate, sentence
from refusaldir.report.text import visible

_KINDS = {FAIL: "failure", UNDECIDED: "error"}


def junit_xml(gate: Gate) -> bytes:
    """Return a gate's outcome as JUnit XML in UTF-8.

    The time stamp is that of the comparison, so that the same document gives the same bytes.

    Args:
        gate: From `refusaldir.report.gate.gate`.
    """
    outcomes = [check.outcome for check in gate.checks]
    suite = ET.Element(
        "testsuite",
        name="refusaldir.gate",
        timestamp=_without_zone(gate.measured),
        hostname="localhost",
        tests=str(len(outcomes)),
        failures=str(outcomes.count(FAIL)),
        errors=str(outcomes.count(UNDECIDED)),
        skipped="0",
        time="0",
    )
    properties = ET.SubElement(suite, "properties")
    for name, value in (("base", gate.base), ("tuned", gate.tuned)):
        ET.SubElement(properties, "property", name=name, value=visible(value))
    for check in gate.checks:
        case = ET.SubElement(
            suite,
            "testcase",
            name=_token(f"{check.limit.what}: at most {check.limit.allowed}"),
            classname=f"refusaldir.gate.{check.limit.axis}",
            time="0",
        )
        if check.outcome != PASS:
            said = sentence(check)
            kind = ET.SubElement(case, _KINDS[check.outcome], message=said, type=check.outcome)
            kind.text = said
    ET.SubElement(suite, "system-out").text = "\n".join(map(sentence, gate.checks))
    ET.SubElement(suite, "system-err")
    ET.indent(suite)
    return bytes(ET.tostring(suite, encoding="utf-8", xml_declaration=True)) + b"\n"


def _without_zone(created: str) -> str:
    """A time in UTC, to the second and without a zone, as the schema wants it."""
    time = datetime.fromisoformat(created)
    if time.tzinfo is not None:
        time = time.astimezone(timezone.utc)
    return time.replace(tzinfo=None).isoformat(timespec="seconds")


def _token(text: str) -> str:
    """Text without leading, trailing or repeated spaces (xs:token)."""
    return " ".join(text.split())
