"""The page of a run in a real browser: it shows what models wrote, and its policy has nothing to refuse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.evaluation.report.page import page
from tests.support.browser import Browser
from tests.unit.test_eval_report import EVIL, hostile


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    browser = Browser(tmp_path)
    yield browser
    browser.driver.quit()


def test_hostile_outputs_are_text_and_the_page_keeps_to_its_policy(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(page(hostile()), encoding="utf-8")
    browser.open(file.as_uri())
    driver = browser.driver
    assert driver.execute_script("return window.refused") == []
    assert [entry["message"] for entry in driver.get_log("browser")] == []
    shown = browser.find("body").text
    for evil in EVIL[:3]:
        assert evil in shown
    assert driver.execute_script("return document.querySelectorAll('script, img, a, iframe').length") == 0
    assert driver.execute_script("return document.querySelectorAll('svg').length") == 3
    assert (
        driver.execute_script("return getComputedStyle(document.querySelector('.verdict')).color")
        == "rgb(255, 255, 255)"
    )
    columns = driver.execute_script(
        "return [...document.querySelectorAll('.side tr:nth-child(2) td')].map(e => e.offsetWidth)"
    )
    assert columns and max(columns) - min(columns) < 3, "both outputs have the same room"
