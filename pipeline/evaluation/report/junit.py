"""The run as JUnit XML, which every CI can show: a case a test, accepted failures skipped, missing cases failed."""

from __future__ import annotations

from xml.etree import ElementTree as Xml

from pipeline.evaluation.gate import BLOCKING, Flip
from pipeline.evaluation.report.reported import STATE_TEXTS, Reported
from pipeline.evaluation.report.visible import cut, output_texts, visible
from pipeline.evaluation.values import CaseResult

TEXT_CHARACTERS_MAX = 4000


def junit(found: Reported) -> str:
    """The document, UTF-8; times are of the virtual clock."""
    judgement = found.judgement
    flips = {flip.id: flip for flip in judgement.flips if flip.state in BLOCKING}
    cases = [_case(judgement.suite, result, flips.get(result.id), judgement.accepted) for result in found.results]
    cases += [_missing(judgement.suite, flip) for flip in judgement.flips if flip.state == "missing"]
    if judgement.exit_code == 3:
        cases += [_trouble(judgement.suite, number, told) for number, told in enumerate(judgement.reasons, start=1)]
    elif judgement.verdict != "pass" and not flips:
        cases.append(_verdict(judgement.suite, judgement.verdict, judgement.reasons))
    root = Xml.Element("testsuites", name="ctxpipe eval")
    attributes = {"name": judgement.suite, **_counts(cases), "time": f"{judgement.seconds:.3f}"}
    suite = Xml.SubElement(root, "testsuite", attributes)
    suite.extend(cases)
    Xml.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{Xml.tostring(root, encoding="unicode")}\n'


def _case(suite: str, result: CaseResult, flip: Flip | None, accepted: tuple[str, ...]) -> Xml.Element:
    element = _element(f"{suite}.{result.kind}", result.id, (result.measures.get("latency_ms") or 0.0) / 1000)
    told = "\n".join(f"{check.check}: {check.told}" for check in result.checks if not check.passed)
    if flip is not None:
        before, now = output_texts(flip.before, flip.now, TEXT_CHARACTERS_MAX)
        parts = [flip.why, told, f"baseline:\n{before}" if flip.before else "", f"now:\n{now}"]
        text = "\n\n".join(part for part in parts if part)
        _add(element, "failure", STATE_TEXTS[flip.state], text, type=flip.state)
    elif result.id in accepted:
        _add(element, "skipped", f"accepted failure: {told}", "")
    elif not result.passed:
        _add(element, "failure", "fails", told, type="failed")
    return element


def _missing(suite: str, flip: Flip) -> Xml.Element:
    element = _element(f"{suite}.{flip.kind}", flip.id, 0.0)
    _add(element, "failure", STATE_TEXTS["missing"], "The baseline has it and the suite does not.", type="missing")
    return element


def _trouble(suite: str, number: int, told: str) -> Xml.Element:
    element = _element(f"{suite}.harness", f"harness error {number}", 0.0)
    _add(element, "error", told, told, type="harness_error")
    return element


def _verdict(suite: str, verdict: str, reasons: tuple[str, ...]) -> Xml.Element:
    """What is true of many cases together: scores that are lower. Inconclusive fails nothing here."""
    element = _element(f"{suite}.verdict", verdict, 0.0)
    _add(element, "failure" if verdict == "regression" else "skipped", "; ".join(reasons), "")
    return element


def _element(classname: str, name: str, seconds: float) -> Xml.Element:
    return Xml.Element("testcase", classname=classname, name=name, time=f"{seconds:.3f}")


def _add(element: Xml.Element, tag: str, message: str, text: str, **attributes: str) -> None:
    told = {"message": _fit(cut(message, 300).replace("\n", " ")), **attributes}
    Xml.SubElement(element, tag, told).text = _fit(cut(text, 3 * TEXT_CHARACTERS_MAX)) if text else None


def _fit(text: str) -> str:
    """Without what XML can't hold: after `visible` only U+FFFE and the like could be left, which it escapes too."""
    return visible(text)


def _counts(cases: list[Xml.Element]) -> dict[str, str]:
    def having(tag: str) -> str:
        return str(sum(case.find(tag) is not None for case in cases))

    counted = {"failures": having("failure"), "errors": having("error"), "skipped": having("skipped")}
    return {"tests": str(len(cases)), **counted}
