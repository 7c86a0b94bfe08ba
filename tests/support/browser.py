"""A headless Chromium that keeps a record of what a page asked for, complained of and was refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from deploy.local import install
from tests.support.eventually import eventually_sync

ALL = {"browser": "ALL", "performance": "ALL"}
NOTE_REFUSALS = """
window.refused = [];
addEventListener("securitypolicyviolation", (event) => refused.push(`${event.violatedDirective} ${event.blockedURI}`));
"""


class Browser:
    """Selectors are CSS. What `find` and `text` name must be there; `until` waits for it."""

    def __init__(self, folder: Path) -> None:
        """Raises EnvironmentProblem, which says what to install, where there is no Chromium."""
        install.ensure(["browser"])
        program, driver = install.browser_programs()
        options = ChromeOptions()
        options.binary_location = program
        for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--user-data-dir={folder}/profile"):
            options.add_argument(word)
        options.set_capability("goog:loggingPrefs", ALL)
        self.driver = Chrome(options, Service(driver, log_output=str(folder / "chromedriver.log")))
        self.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": NOTE_REFUSALS})
        self.messages: list[str] = []
        self.asked: list[str] = []

    def open(self, address: str) -> None:
        self.driver.get("about:blank")  # an address that differs in its fragment alone would load nothing
        self.driver.get(address)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """Of all that are shown, a line each; empty where nothing is."""
        return "\n".join(one.text for one in self.all(selector) if one.is_displayed())

    def until(self, selector: str, holds: Callable[[str], bool], what: str, timeout_s: float = 60) -> str:
        found: str = eventually_sync(
            lambda: self.text(selector), holds, timeout_s=timeout_s, what=what, ignore=(StaleElementReferenceException,)
        )
        return found

    def type(self, selector: str, words: str) -> None:
        field = self.find(selector)
        field.clear()
        field.send_keys(words)

    def look(self, width: int, height: int, scheme: str, picture: Path) -> None:
        """A picture of the whole page as it is on such a screen; `scheme`: light or dark."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        assert self.driver.save_screenshot(str(picture))

    def cut_off(self, now: bool) -> None:
        """From the network, or not any more."""
        conditions = {"offline": now, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self.driver.execute_cdp_cmd("Network.enable", {})
        self.driver.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)

    def collect(self) -> None:
        """Takes over what the browser noted since the last time."""
        self.messages += [f"{entry['level']} {entry['message']}" for entry in self.driver.get_log("browser")]
        for entry in self.driver.get_log("performance"):
            event = json.loads(entry["message"])["message"]
            if event["method"] == "Network.requestWillBeSent":
                self.asked.append(event["params"]["request"]["url"])

    def hosts(self) -> set[str]:
        """That were asked for anything."""
        self.collect()
        return {
            urlsplit(address).netloc for address in self.asked if urlsplit(address).scheme in ("http", "https", "ws")
        }

    def refused(self) -> Any:
        """What the page's policy did not let it do."""
        return self.driver.execute_script("return window.refused")

    def close(self) -> None:
        self.driver.quit()
