"""The built-in page in a real browser, on a real pipeline: what a person finds, what changes before their eyes, where
it comes from, and that nothing of what a bundle holds ever becomes more than text."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from selenium.webdriver.common.keys import Keys

from deploy.demo.http_client import HttpConnection
from tests.support.browser import Browser
from tests.support.eventually import eventually, eventually_sync
from tests.support.running_pipeline import RunningPipeline, free_port
from tests.support.servers import SharedServers, fresh_database

pytestmark = [pytest.mark.servers, pytest.mark.timeout(400)]

HOSTILE = '<script>document.title="owned"</script><img src="https://elsewhere.example/x" onerror="alert(1)">'
ODD_KEY = "a b/<i>%|?#"
TABLES = """
CREATE TABLE customers (id int PRIMARY KEY, name text, email text, tier text);
CREATE TABLE orders (id text PRIMARY KEY, customer_id int, status text, total numeric(12,2), placed_at timestamptz,
  note text, card text, sequence bigint);
CREATE TABLE lines (id int PRIMARY KEY, order_id text, article text, quantity int, price numeric(10,2));
INSERT INTO customers VALUES (1, 'Ada Lovelace', 'ada@example.org', 'gold'), (2, %(hostile)s, NULL, 'none');
INSERT INTO orders VALUES
  ('A-17', 1, 'packed', 1249.90, '2026-03-01 09:30+00', 'Leave it with the neighbour, please.', '4111111111111234',
   9007199254740993),
  (%(odd)s, 2, %(hostile)s, 0, NULL, %(hostile)s, NULL, 1);
INSERT INTO lines SELECT i, 'A-17', (ARRAY['Desk lamp', 'Oak desk', 'Cable tray', 'Footrest'])[i], i, i * 10.5
  FROM generate_series(1, 4) i;
"""


class Shop(RunningPipeline):
    """Orders with their customer, linked, and their lines, copied; two servers, of which one asks for keys."""

    def __init__(self, folder: Path, kafka: str, redis_url: str, dsn: str) -> None:
        super().__init__(folder, kafka, redis_url, dsn, "SELECT 1", ("orders", "customers", "lines"))
        with psycopg.connect(dsn, autocommit=True, cursor_factory=psycopg.ClientCursor) as connection:
            connection.execute(TABLES, {"hostile": HOSTILE, "odd": ODD_KEY})
        self.context = "order"
        self.config["redis"]["prefix"] = self.source
        self.write_config()
        self.write_file("context.yaml", spec(self.source))
        self.port, self.guarded_port = free_port(), free_port()

    def start(self) -> None:
        self.role("connect", self.source)
        self.role("worker")
        self.role("serve", "--port", str(self.port))
        open_config = self.config_path
        self.config_path, self.config["access"] = self.folder / "guarded.yaml", {"keys_file": "keys.json"}
        self.write_config()
        self.role("serve", "--port", str(self.guarded_port))
        self.config_path = open_config

    async def key(self, *scopes: str, fields: str | None = None) -> str:
        """As `ctxpipe key new` makes it."""
        words = [word for scope in scopes for word in ("--scope", scope)] + (["--fields", fields] if fields else [])
        made = await self.result("key", "new", "--name", "page", *words, "--file", str(self.folder / "keys.json"))
        text: str = made["key"]
        return text

    def sql(self, statement: str, *values: Any) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(statement, values or None)  # type: ignore[arg-type]

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn) as connection:
            return connection.execute(query).fetchall()  # type: ignore[arg-type]

    async def until_searchable(self) -> None:
        async def listed() -> Any:
            for role in self.roles:
                role.ensure_running()
            client = HttpConnection("127.0.0.1", self.port)
            try:
                status, body = await client.ask("/v1/contexts")
                found = json.loads(body)["contexts"][0].get("space")
                bundle = await client.ask("/v1/contexts/order/A-17?budget_ms=2000")
                return status == 200 and found is not None and json.loads(bundle[1])["embedding"]["state"]
            except OSError:
                return None
            finally:
                client.close()

        await eventually(listed, lambda seen: seen == "current", timeout_s=120, what="order A-17 can be searched")


def spec(source: str) -> dict[str, Any]:
    def entity(table: str) -> dict[str, Any]:
        return {"source": source, "table": f"public.{table}", "key": ["id"]}

    return {
        "context": "order",
        "version": 3,
        "description": "An order with its customer and its lines.",
        "root": "order",
        "entities": {"order": entity("orders"), "customer": entity("customers"), "line": entity("lines")},
        "fields": [
            *("id", "status", "total", "placed_at", "note", "sequence"),
            {"name": "card", "mask": "last4"},
            {"name": "large", "value": "total > 1000", "default": False},
        ],
        "sections": {
            "customer": {
                "entity": "customer",
                "on": {"id": "customer_id"},
                "compose": "link",
                "fields": [{"name": "name", "column": "name"}, {"name": "tier", "column": "tier"}, "email"],
            },
            "lines": {
                "entity": "line",
                "kind": "many",
                "on": {"order_id": "id"},
                "order_by": ["-id"],
                "limit": 10,
                "compose": "copy",
                "fields": ["article", "quantity", "price"],
            },
            "sums": {
                "entity": "line",
                "kind": "many",
                "on": {"order_id": "id"},
                "compose": "copy",
                "aggregates": {"pieces": {"sum": "quantity"}, "dearest": {"max": "price"}},
            },
        },
        "embedding": {
            "engine": "hash",
            "template": "{{ note }} {% for line in lines %}{{ line.article }} {% endfor %}",
        },
        "history": {"retention_s": 3600, "lineage": True},
        "serving": {"budget_ms": 2000, "max_age_ms": 3000},
    }


@pytest.fixture(scope="module")
def shop(servers: SharedServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with fresh_database(servers.postgres(), f"page_{os.getpid()}") as dsn:
        made = Shop(tmp_path_factory.mktemp("shop"), servers.kafka(), servers.redis(), dsn)
        (made.folder / "keys.json").write_text('{"keys": []}')
        made.start()
        yield made
        made.stop()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    made = Browser(tmp_path_factory.mktemp("browser"))
    yield made
    made.close()


@pytest.fixture
async def browser(shop: Shop, chromium: Browser) -> Browser:
    await shop.until_searchable()
    chromium.driver.get("about:blank")  # the page of the test before asks no more
    chromium.collect()
    chromium.messages.clear()
    chromium.asked.clear()
    return chromium


def assert_clean(browser: Browser, port: int, *expected: str) -> None:
    """No other host, nothing refused by the policy, and no word in the console but those that are expected."""
    assert browser.hosts() == {f"127.0.0.1:{port}"}
    assert browser.refused() == []
    assert [one for one in browser.messages if not any(re.search(word, one) for word in expected)] == []


def page(port: int, place: str = "") -> str:
    return f"http://127.0.0.1:{port}/page/{place}"


async def test_a_person_finds_a_bundle_by_its_key(shop: Shop, browser: Browser, tmp_path: Path) -> None:
    browser.open(f"http://127.0.0.1:{shop.port}/")
    browser.until("#start", lambda seen: "order by id · version 3 · fresh up to 3.0 s" in seen, "the contexts")
    assert browser.driver.current_url == page(shop.port)
    browser.type("#wanted", f"A-17{Keys.ENTER}")
    browser.until("#name", lambda seen: seen == "order A-17", "the answer")
    browser.until("#status", lambda seen: seen == "fresh", "it is fresh")
    assert browser.driver.current_url == page(shop.port, "#order/A-17")
    tree = browser.text("#bundle")
    for told in ("status\npacked", "total\n1249.90", "name\nAda Lovelace", "sequence\n9007199254740993", "4 items"):
        assert told in tree
    assert "4111" not in tree
    facts = browser.text("#facts")
    for told in ("Spec version\n3", "Embedding\ncurrent", f"Position in {shop.source}\n"):
        assert told in facts
    assert re.search(r"Space\n[0-9a-f]{8}", facts) and re.search(r"Answered from\n(Redis|near cache)\n", facts)
    assert re.search(r"Bundle id\n\S", facts)
    assert_clean(browser, shop.port)
    for width, scheme in ((1280, "light"), (1280, "dark"), (400, "light"), (400, "dark")):
        browser.look(width, 1500 if width > 1000 else 2600, scheme, tmp_path / f"{width}-{scheme}.png")
        wide = browser.driver.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width, f"{wide} pixels of page on a screen of {width}"


async def test_ages_tick_and_are_told_by_source_and_section(shop: Shop, browser: Browser) -> None:
    browser.open(page(shop.port, "#order/A-17"))
    browser.until("#ages .of", lambda seen: seen == f"source {shop.source}\ncustomer\nlines\nsums", "whose ages")
    browser.find("#live").click()
    assert browser.text("#live") == "Paused"
    before = browser.text("#ages div:first-child .age")
    browser.until("#ages div:first-child .age", lambda seen: seen != before, "the age ticks without being read anew")
    browser.until("#ages .age.bad", lambda seen: seen.count("\n") == 3, "and is over the limit some time")
    browser.until("#bundle summary .age.bad", lambda seen: seen.count("\n") == 2, "also in the tree")
    browser.find("#live").click()
    browser.until("#ages .age.bad", lambda seen: seen == "", "read again, they are fresh")
    assert_clean(browser, shop.port)


async def test_an_update_appears_as_what_became_of_what(shop: Shop, browser: Browser, tmp_path: Path) -> None:
    browser.open(page(shop.port, "#order/A-17"))
    browser.until("#bundle", lambda seen: "Ada Lovelace" in seen, "the bundle")
    shop.sql("UPDATE orders SET status = 'shipped' WHERE id = 'A-17'")
    change = browser.until("#history .change", lambda seen: "status" in seen, "the change")
    assert change == "status\npacked → shipped"
    (entry,) = browser.all("#history li")
    assert re.fullmatch(r"\d\d:\d\d:\d\d", entry.find_element("css selector", "time").text)
    assert entry.find_element("css selector", ".id").text
    shop.sql("UPDATE customers SET tier = 'platinum' WHERE id = 1")
    browser.until(
        "#history li:first-child .change", lambda seen: seen == "customer.tier\ngold → platinum", "a linked one"
    )
    shop.sql("INSERT INTO lines VALUES (5, 'A-17', 'Monitor arm', 1, 99)")
    browser.until("#history", lambda seen: "Monitor arm" in seen, "a new line")
    assert '{"article":"Desk lamp"' not in browser.text("#history"), "the others only moved on"
    assert "status\nshipped" in browser.text("#bundle") and "5 items" in browser.text("#bundle")
    assert_clean(browser, shop.port)
    browser.look(1280, 1100, "light", tmp_path / "changes.png")


DIFFERENCES = """
const [before, after, done] = given;
const { differences } = await import("/page/differences.js");
done(JSON.stringify([...differences(before, after, [])]));
"""
ITEMS = [{"id": 5, "late": 1}, {"id": 4, "late": 2}, {"id": 3, "late": 3}]


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ({"a": 1, "b": {"c": None}}, {"b": {"c": None}, "a": 1}, []),
        ({"a": 1, "b": {"c": None}}, {"a": 1, "b": {"c": 0}}, [{"at": ["b", "c"], "before": None, "after": 0}]),
        ({"a": 1}, {"b": 1}, [{"at": ["a"], "before": 1}, {"at": ["b"], "after": 1}]),
        ({"a": {"b": 1}}, {"a": None}, [{"at": ["a"], "before": {"b": 1}, "after": None}]),
        ({"a": [1]}, {"a": {"1": 1}}, [{"at": ["a"], "before": [1], "after": {"1": 1}}]),
        (None, {"a": 1}, [{"at": [], "after": {"a": 1}}]),
        ({"a": 1}, None, [{"at": [], "before": {"a": 1}}]),
        (ITEMS[1:], ITEMS[:2], [{"at": [1], "after": ITEMS[0]}, {"at": [2], "before": ITEMS[2]}]),
        (ITEMS, [ITEMS[0], {"id": 4, "late": 9}, ITEMS[2]], [{"at": [2, "late"], "before": 2, "after": 9}]),
        (ITEMS, [], [{"at": [number], "before": item} for number, item in enumerate(ITEMS, 1)]),
    ],
)
async def test_what_changed_is_told_by_field_and_item(
    shop: Shop, browser: Browser, before: Any, after: Any, told: list[Any]
) -> None:
    browser.open(page(shop.port))
    found = json.loads(
        browser.driver.execute_async_script(f"(async (given) => {{{DIFFERENCES}}})(arguments)", before, after)
    )
    assert sorted(found, key=str) == sorted(told, key=str)


async def test_a_bundle_that_goes_and_comes_is_told(shop: Shop, browser: Browser) -> None:
    browser.open(page(shop.port, "#order/B-1"))
    browser.until("#status", lambda seen: seen == "missing", "it is missing")
    assert "There is no bundle with this key." in browser.text("#meaning")
    shop.sql("INSERT INTO orders (id, status) VALUES ('B-1', 'new')")
    browser.until("#status", lambda seen: seen == "fresh", "it comes")
    shop.sql("DELETE FROM orders WHERE id = 'B-1'")
    browser.until("#status", lambda seen: seen == "missing", "it goes")
    gone, came = (one.text for one in browser.all("#history li"))
    assert '"status":"new"' in came and '"status":"new"' in gone
    assert browser.all("#history li:first-child ins") == [] and len(browser.all("#history li:first-child del")) == 1
    assert_clean(browser, shop.port)


async def test_a_field_tells_where_it_comes_from(shop: Shop, browser: Browser, tmp_path: Path) -> None:
    browser.open(page(shop.port, "#order/A-17"))
    browser.until("#bundle", lambda seen: "Ada Lovelace" in seen, "the bundle")

    def origin(*path: str | int, row: str) -> str:
        field = browser.find(f"#bundle [data-at='{json.dumps(path, separators=(',', ':'))}']")
        field.send_keys(Keys.ENTER)
        assert field.get_attribute("aria-expanded") == "true"
        told = field.find_element("xpath", "following-sibling::dl")
        found: str = eventually_sync(lambda: told.text, lambda seen: f"\n{row}\n" in seen, what=f"the row of {path}")
        return found

    card = origin("card", row="row\nid = A-17")
    assert card.startswith(f"source\n{shop.source}\ntable\npublic.orders\ncolumn\ncard\nmask\nlast4\n")
    assert re.search(r"lsn\n[0-9A-F]+/[0-9A-F]+\ncommit time\n20\S+ \S+ UTC\nput together\n20\S+ \S+ UTC$", card)
    tier = origin("customer", "tier", row="row\nid = 1")
    assert "expression\ntotal > 1000" in origin("large", row="row\nid = A-17")
    assert "table\npublic.customers\ncolumn\ntier\nmask\nnone\ncomposed\nlink: kept once" in tier
    assert "aggregate\nsum(quantity)" in origin("sums", "pieces", row="rows\nall with order_id = A-17")
    last = max(int(one[0]) for one in shop.rows("SELECT id FROM lines WHERE order_id = 'A-17'"))
    browser.look(400, 1500, "dark", tmp_path / "origins.png")
    assert "column\narticle" in origin("lines", 1, "article", row=f"row\nid = {last}")
    assert_clean(browser, shop.port)


async def test_words_lead_to_keys(shop: Shop, browser: Browser, tmp_path: Path) -> None:
    browser.open(page(shop.port))
    browser.until("#way-field", lambda seen: "meaning" in seen, "searches are offered")
    browser.find("#way").send_keys("meaning")
    browser.type("#wanted", f"leave it with the neighbour{Keys.ENTER}")
    browser.until("#hits li:first-child", lambda seen: seen.startswith("A-17"), "the hit")
    browser.look(1280, 700, "light", tmp_path / "hits.png")
    assert browser.driver.current_url == page(shop.port, "#order?leave%20it%20with%20the%20neighbour")
    browser.find("#hits li:first-child a").send_keys(Keys.ENTER)
    browser.until("#name", lambda seen: seen == "order A-17", "its bundle")
    browser.driver.back()
    browser.until("#hits", lambda seen: "neighbour" in seen, "the hits once more")
    assert_clean(browser, shop.port)


async def test_what_a_bundle_holds_stays_text(shop: Shop, browser: Browser) -> None:
    browser.open(page(shop.port))
    browser.until("#start", lambda seen: "order" in seen, "the contexts")
    browser.type("#wanted", f"{ODD_KEY.replace('%', '%25').replace('|', '%7C')}{Keys.ENTER}")
    browser.until("#bundle", lambda seen: seen.count(HOSTILE) == 3, "the bundle")
    browser.driver.refresh()
    browser.until("#bundle", lambda seen: seen.count(HOSTILE) == 3, "a deep link leads to it as well")
    shop.sql("UPDATE orders SET note = %s WHERE id = %s", f"now {HOSTILE}", ODD_KEY)
    browser.until("#history", lambda seen: f"now {HOSTILE}" in seen, "the change")
    assert "owned" not in browser.driver.title.replace(ODD_KEY, "")
    assert browser.all("main img, main script, main i") == []
    assert_clean(browser, shop.port)


async def test_mistakes_are_told_in_one_sentence(shop: Shop, browser: Browser) -> None:
    browser.open(page(shop.port, "#order/a|b"))
    told = browser.until("#message", lambda seen: seen != "", "the mistake")
    assert told == "A key of order has 1 part: id (a | inside a part is %7C)."
    assert not browser.find("#found").is_displayed()
    browser.open(page(shop.port, "#no_such/1"))
    assert browser.until("#message", lambda seen: seen != "", "the mistake") == "No context no_such is served here."
    assert_clean(browser, shop.port, r"batchGet.*status of 400")


async def test_a_server_that_is_away_is_asked_again(shop: Shop, browser: Browser) -> None:
    browser.open(page(shop.port, "#order/A-17"))
    browser.until("#bundle", lambda seen: "Ada Lovelace" in seen, "the bundle")
    browser.cut_off(True)
    told = browser.until("#message", lambda seen: seen != "", "it is told")
    assert re.fullmatch(r"The server does not answer\. Asking again in \d+ s\.", told)
    assert "Ada Lovelace" in browser.text("#bundle"), "what was known stays, and grows old before one's eyes"
    browser.until("#ages .age.bad", lambda seen: seen != "", "its age")
    browser.cut_off(False)
    browser.until("#message", lambda seen: seen == "", "it answers again")
    assert_clean(browser, shop.port, "ERR_INTERNET_DISCONNECTED")


async def test_a_server_that_asks_for_keys_gets_one(shop: Shop, browser: Browser, tmp_path: Path) -> None:
    right = await shop.key("bundles:read", fields="order:id,customer.name")
    searching = await shop.key("search:read")
    browser.open(page(shop.guarded_port, "#order/A-17"))
    browser.until("#credential", lambda seen: "asks for an API key" in seen, "the question")
    assert browser.text("#message") == "" and browser.text("#bundle") == "" and not browser.find("#ask").is_displayed()
    browser.type("#api-key", f"ctx_wrong_key{Keys.ENTER}")
    browser.until("#message", lambda seen: seen == "This API key is not valid here.", "the refusal")
    browser.look(400, 700, "dark", tmp_path / "credential.png")
    browser.type("#api-key", f"{right}{Keys.ENTER}")
    browser.until("#bundle", lambda seen: "Ada Lovelace" in seen, "the bundle", timeout_s=30)
    assert browser.text("#message") == "" and "packed" not in browser.text("#bundle")
    assert "lines is left out: not allowed" in browser.text("#bundle")
    assert right not in browser.driver.current_url and right not in browser.driver.page_source
    stored = "return [Object.values(sessionStorage), localStorage.length, document.cookie]"
    assert browser.driver.execute_script(stored) == [[right], 0, ""]
    browser.driver.refresh()
    browser.until("#bundle", lambda seen: "Ada Lovelace" in seen, "it is still known in this tab")
    browser.find("#forget").click()
    browser.until("#credential", lambda seen: "asks for an API key" in seen, "it is asked for again")
    assert browser.driver.execute_script("return sessionStorage.length") == 0 and browser.text("#bundle") == ""
    browser.type("#api-key", f"{searching}{Keys.ENTER}")
    told = browser.until("#message", lambda seen: seen != "", "the refusal", timeout_s=30)
    assert told == "This credential lacks the scope bundles:read:order."
    assert_clean(browser, shop.guarded_port, "status of 401", "status of 403")
