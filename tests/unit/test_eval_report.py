"""Reports of a judged run: what flipped, with both outputs; and nothing that a model wrote steers what shows them."""

from __future__ import annotations

import base64
import hashlib
import re
import unicodedata
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree as Xml

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from prometheus_client.parser import text_string_to_metric_families

from pipeline.evaluation.baseline import OUTPUT_CHARACTERS_MAX, Baseline, blessed, blessed_case, moves
from pipeline.evaluation.gate import judged, stopped
from pipeline.evaluation.report.as_json import as_object
from pipeline.evaluation.report.difference import side_by_side
from pipeline.evaluation.report.junit import junit
from pipeline.evaluation.report.markdown import CHARACTERS_MAX, markdown, marker
from pipeline.evaluation.report.page import page
from pipeline.evaluation.report.prometheus import prometheus
from pipeline.evaluation.report.reported import Reported, moved_between, reported
from pipeline.evaluation.report.visible import HIDDEN, KEPT, output_texts, visible, wrapped
from pipeline.evaluation.values import CaseResult, Run, Step
from tests.support.eval_results import result, run_of, sha

EVIL = (
    "</pre></td></table><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "@everyone see #12 and ![x](https://example.com/p.png) https://example.com",
    "```\n\n# heading\n\n| a | b |\n\n</details>",
    "\x1b]0;title\x07\x1b[31mred\x1b[0m",
    "\u202etxt.exe \u2066 \U000e0041 \ud800 \x00 \ufffe",
    "]]></failure><testcase/>",
    "<!-- --> &lt;b&gt; &#60;b&#62;",
    "{{ one.digest }} {% raw %}",
)


def baseline_of(run: Run, before: Baseline | None = None, reason: str = "first") -> Baseline:
    told = moves(before, run)
    return blessed(run, sha("suite"), before, reason=reason, by="Ada", date="2026-11-30", moved=told)


def report(
    before: Sequence[CaseResult], now: Sequence[CaseResult], base: Baseline | None = None, **options: Any
) -> Reported:
    baseline = baseline_of(run_of(before))
    run = run_of(now, **options)
    whys = {one.id: f"why of {one.id}" for one in now}
    return reported(judged(run, whys, sha("suite"), baseline, lower=lambda *_: "unknown"), run, baseline, base)


def hostile() -> Reported:
    """Every dangerous text as output and as what a check says, of cases that flipped."""
    names = [f"case/{number}" for number in range(len(EVIL))]
    before = [result(name, output={"text": "fine", "same": 1}) for name in names]
    now = [
        result(name, passed=False, output={"text": evil, "same": 1, evil: [evil]}, told=f"came {evil}")
        for name, evil in zip(names, EVIL, strict=True)
    ]
    return report(before, now)


@given(st.text())
def test_nothing_invisible_is_left(text: str) -> None:
    shown = visible(text)
    assert all(character in KEPT or unicodedata.category(character) not in HIDDEN for character in shown)
    assert visible(shown) == shown
    if not any(unicodedata.category(character) in HIDDEN for character in text):
        assert shown == text


@given(
    st.text(alphabet=st.characters(exclude_characters="\t\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")), st.integers(1, 9)
)
def test_wrapping_loses_nothing(text: str, width: int) -> None:
    lines = wrapped(text, width)
    assert all(len(line) <= width for line in lines)
    assert "".join(lines) == text.replace("\n", "")


def test_two_texts_side_by_side() -> None:
    left, right = "\n".join("abcdefghijklm"), "\n".join("abcdefgXhijklm")
    pairs = side_by_side(left, right, 80)
    assert [(pair.left, pair.right, pair.differs) for pair in pairs] == [
        ("… 5 equal lines", "… 5 equal lines", False),
        ("f", "f", False),
        ("g", "g", False),
        ("", "X", True),
        ("h", "h", False),
        ("i", "i", False),
        ("… 4 equal lines", "… 4 equal lines", False),
    ]
    assert [pair.left for pair in side_by_side("a\nb", "a\nb", 80)] == ["a", "b"]
    assert [(pair.left, pair.right) for pair in side_by_side("a\nb", "c", 80)] == [("a", "c"), ("b", "")]


@given(st.text("ab\n", max_size=60), st.text("ab\n", max_size=60))
def test_every_line_that_differs_is_shown(left: str, right: str) -> None:
    pairs = side_by_side(left, right, 80)
    if left == right:
        assert not any(pair.differs for pair in pairs)
    else:
        assert any(pair.differs for pair in pairs)
    hidden = sum(int(told[1]) for pair in pairs if (told := re.fullmatch(r"… (\d+) equal lines", pair.left)))
    shown = [pair for pair in pairs if not pair.left.startswith("…")]
    equal = sum(not pair.differs for pair in shown) + hidden
    assert equal + sum(pair.differs and pair.left != "" for pair in shown) <= len(left.split("\n"))


def test_endless_texts_end() -> None:
    pairs = side_by_side("\n".join(map(str, range(10_000))), "x" * 1_000_000, 80, lines_max=50)
    assert len(pairs) <= 102
    assert "9950 more lines" in "\n".join(pair.left for pair in pairs)


def test_a_long_output_of_the_baseline_is_laid_beside_the_same_part_of_now() -> None:
    before = blessed_case(result("a", output={"text": "x" * 5000}))
    left, right = output_texts(before, result("a", output={"text": "x" * 5001}), 20_000)
    assert left.partition("…")[0] == right.partition("…")[0]
    assert len(left.partition("…")[0]) == OUTPUT_CHARACTERS_MAX
    assert "3,011 more characters" in left and "3,012 more characters" in right
    assert output_texts(None, None, 100) == ("", "")


def rendered(text: str) -> str:
    """As sites for code do, where HTML is allowed and tables are known."""
    document: str = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    return document


class Tags(HTMLParser):
    """Which elements and attributes there are, and whether every one is closed in its order."""

    VOID = frozenset({"meta", "br", "img", "hr", "rect", "circle", "polyline"})

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self._open: list[str] = []
        self.feed(document)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1] == tag, f"</{tag}> where {self._open[-3:]} are open"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


COMMENT_TAGS = {"h3", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "details", "summary", "code", "p", "pre",
                "strong"}  # fmt: skip


def test_a_comment_shows_hostile_text_and_formats_none_of_it() -> None:
    text = markdown(hostile())
    assert text.startswith(f"{marker('flights')}\n")
    assert "@everyone" not in text and "https://" not in text
    found = Tags(rendered(text))
    assert found.tags <= COMMENT_TAGS
    assert found.attributes <= {"style"}, "alignment of a table's figures"
    assert "<script>alert(1)</script>" in found.text and "\\u202etxt.exe" in found.text
    assert "\x1b" not in text and "```" not in text
    for part in ("9 cases", "why of case/0", '"text": "fine"', "passed before, fails now"):
        assert part in found.text.replace("\u200b", "")


def test_a_comment_fits_however_much_flipped() -> None:
    names = [f"case/{number:04}" for number in range(3000)]
    output = {"text": "<&>" * 2000}
    found = report([result(name) for name in names], [result(name, passed=False, output=output) for name in names])
    text = markdown(found)
    assert len(text) <= CHARACTERS_MAX
    assert re.search(r"and 29\d\d more that flipped", text)
    Tags(rendered(text))
    many = reported(
        stopped("flights", [f"file:{number}: " + "wrong " * 1000 for number in range(100)]), None, None, None
    )
    assert len(markdown(many)) <= CHARACTERS_MAX


def test_a_suite_can_not_end_the_comment_that_marks_it() -> None:
    assert "-->" not in marker("a --> b")[4:-3]
    assert "\n" not in marker("a\nb")


def test_a_change_of_the_baseline_itself_is_told() -> None:
    base = baseline_of(run_of([result("a"), result("b"), result("c"), result("d", passed=False)]))
    now = run_of([result("a"), result("b", passed=False), result("d")])
    after = baseline_of(now, base, "cheaper | model")
    moved = moved_between(base, after)
    assert moved is not None
    assert ([entry.reason for entry in moved.blessings], moved.gone, moved.now_fail) == (
        ["cheaper | model"],
        ("c",),
        ("b",),
    )
    assert moved_between(base, base) is None
    whys = dict.fromkeys(("a", "b", "d"), "")
    found = reported(judged(now, whys, sha("suite"), after, lower=lambda *_: "same"), now, after, base)
    assert found.judgement.verdict == "pass"
    for text in (Tags(rendered(markdown(found))).text, Tags(page(found)).text):
        assert "cheaper | model" in text
        assert "no longer demanded: 1 case (c)" in text and "no longer have to pass: 1 case (b)" in text
    assert as_object(found)["baseline_moved"] == {"reasons": ["cheaper | model"], "gone": ["c"], "now_fail": ["b"]}


def test_a_history_that_was_written_anew_is_told_from_where_it_differs() -> None:
    base = baseline_of(run_of([result("a")]), None, "one")
    base = baseline_of(run_of([result("a", output=1)]), base, "two")
    other = baseline_of(run_of([result("a")]), None, "another past")
    moved = moved_between(base, other)
    assert moved is not None
    assert [entry.reason for entry in moved.blessings] == ["another past"]


def test_the_page_needs_nothing_and_runs_nothing() -> None:
    document = page(hostile())
    found = Tags(document)
    assert not found.tags & {"script", "img", "iframe", "link", "object", "a", "form", "style"} - {"style"}
    assert not {name for name in found.attributes if name.startswith("on") or name in ("href", "src", "style")}
    style = document.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'" in document
    assert "<script>alert(1)</script>" in found.text and "{{ one.digest }}" in found.text
    assert not {one for one in found.text if one not in KEPT and unicodedata.category(one) in HIDDEN}
    for figure in re.findall(r"<svg.*?</svg>", document, re.DOTALL):
        Xml.fromstring(figure)


def test_the_page_shows_plots_history_and_steps() -> None:
    before = [result("a", kind="trace", latency_ms=10), result("b", kind="latency", latency_ms=90)]
    step = Step(what="tool", name="rebook", asked={"seat": "</pre>"}, at_ms=3.0)
    now = [result("a", kind="trace", passed=False, latency_ms=12), before[1]]
    object.__setattr__(now[0], "steps", (step,))
    document = page(report(before, now))
    assert document.count("<svg") == 3
    assert "0/1 pass" in document and "1/1 pass" in document
    assert "what it did" in document and "&lt;/pre&gt;" in document
    assert "first baseline: 2 cases" in document


def test_a_page_of_a_suite_that_could_not_run_says_why() -> None:
    found = reported(stopped("flights", ["suite.yaml:3: unknown key 'flwo', did you mean 'flow'?"]), None, None, None)
    text = Tags(page(found)).text
    assert "nothing decided" in text and "suite.yaml:3: unknown key 'flwo'" in text
    assert "What flipped" not in text


def test_junit_of_everything_that_can_happen() -> None:
    before = [result("a"), result("b"), result("gone"), result("leave", passed=False)]
    now = [
        result("a"),
        result("b", passed=False, told="came 3", output=3),
        result("leave", passed=False),
        result("new"),
    ]
    root = Xml.fromstring(junit(report(before, now)))
    suite = root.find("testsuite")
    assert suite is not None
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "5",
        "failures": "2",
        "errors": "0",
        "skipped": "1",
    }
    failure = suite.find("testcase[@name='b']/failure")
    assert failure is not None and failure.text is not None
    assert "equals: came 3" in failure.text and "baseline:" in failure.text and "now:\n3" in failure.text
    assert suite.find("testcase[@name='gone']/failure") is not None
    assert suite.find("testcase[@name='leave']/skipped") is not None
    assert len(suite.findall("testcase[@name='a']/*")) == 0


def test_junit_of_hostile_text_is_xml() -> None:
    root = Xml.fromstring(junit(hostile()))
    texts = [failure.text or "" for failure in root.iter("failure")]
    assert len(texts) == len(EVIL)
    assert any("]]></failure><testcase/>" in text for text in texts)


@pytest.mark.parametrize(
    ("options", "tag", "name"),
    [({"harness": ["a: no recording"]}, "error", "harness error 1"), ({"fixtures": {}}, "error", "harness error 1")],
)
def test_junit_of_a_run_that_decided_nothing_is_red(options: Any, tag: str, name: str) -> None:
    root = Xml.fromstring(junit(report([result("a")], [result("a")], **options)))
    assert root.find(f".//testcase[@name='{name}']/{tag}") is not None


def test_junit_of_an_open_question_is_skipped_and_said() -> None:
    found = report([result("a", scores={"recall": 0.9})], [result("a", scores={"recall": 0.8})])
    assert found.judgement.verdict == "inconclusive"
    skipped = Xml.fromstring(junit(found)).find(".//testcase[@name='inconclusive']/skipped")
    assert skipped is not None and "mean recall" in str(skipped.get("message"))


def test_the_object_for_programs() -> None:
    before = [result("a"), result("b"), result("gone"), result("c", passed=False)]
    now = [result("a", output=1), result("b", passed=False, output={"x": 2}), result("c"), result("new")]
    told = as_object(report(before, now))
    assert told["verdict"] == "regression"
    assert (told["cases"], told["passed"], told["failed"]) == (4, 3, 1)
    assert (told["flipped"], told["missing"], told["new"], told["improved"]) == (["b"], ["gone"], ["new"], ["c"])
    flip = next(one for one in told["flips"] if one["id"] == "b")
    assert flip["before"] == '{\n  "answer": "b"\n}' and flip["now"] == '{\n  "x": 2\n}'
    assert flip["told"] == ["equals: expected another value"]
    assert told["other_output"] == 1
    assert "baseline_moved" not in told


def samples(text: str) -> dict[tuple[str, ...], float]:
    return {
        (one.name, *(value for _, value in sorted(one.labels.items()))): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def test_metrics_of_a_run() -> None:
    before = [result("a"), result("b"), result("c", passed=False), result("gone")]
    now = [result("a", latency_ms=40), result("b", passed=False), result("c", passed=False)]
    found = samples(prometheus(report(before, now), 1_000.5))
    assert found["ctxpipe_eval_verdict", "flights"] == 1
    assert found["ctxpipe_eval_ended_seconds", "flights"] == 1000.5
    assert found["ctxpipe_eval_cases", "output", "passed", "flights"] == 1
    assert found["ctxpipe_eval_cases", "output", "failed", "flights"] == 1
    assert found["ctxpipe_eval_cases", "output", "accepted", "flights"] == 1
    assert found["ctxpipe_eval_flipped_cases", "output", "missing", "flights"] == 1
    assert found["ctxpipe_eval_flipped_cases", "output", "regressed", "flights"] == 1
    assert found["ctxpipe_eval_score", "output", "flights"] == pytest.approx(1 / 3)
    assert found["ctxpipe_eval_score_blessed", "output", "flights"] == pytest.approx(3 / 4)
    assert found["ctxpipe_eval_latency_seconds", "output", "flights"] == pytest.approx(0.04)
    assert not any(name[0] == "ctxpipe_eval_case_cost" for name in found), "no case's cost is known: it is not 0"


def test_metrics_of_a_run_that_decided_nothing_hold_no_scores_of_an_earlier_one() -> None:
    prometheus(report([result("a")], [result("a")]), 1.0)
    found = samples(prometheus(reported(stopped("flights", ["gone"]), None, None, None), 2.0))
    assert found["ctxpipe_eval_verdict", "flights"] == 3
    assert not any(name[0] in ("ctxpipe_eval_cases", "ctxpipe_eval_score") for name in found)
