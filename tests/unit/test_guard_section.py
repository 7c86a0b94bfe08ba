"""The section `guard` of ctxpipe.yaml: all its mistakes at their lines, the local model without an address, and what
`check` says of endpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.commands._check_guard import judged
from pipeline.core.config import Config, load
from pipeline.core.errors import ConfigError
from pipeline.core.guarding import Endpoint, webhook_key
from pipeline.guard.values import RawAnswer

HEAD = "kafka: {bootstrap_servers: '127.0.0.1:9092'}\nredis: {url: 'redis://127.0.0.1:6379/0'}\n"
GOOD = """\
guard:
  endpoints:
    - {name: large, url: "https://api.example.com/v1/", model: gpt-4o, api_key: "${LARGE_KEY}"}
    - {name: here, url: "http://127.0.0.1:1/v1", model: tiny, price: local-cpu, certificate_authority: tls/own.pem}
  routes:
    rebook: {primary: large, local: [here]}
    "*": {primary: here}
  routing: routing.yaml
  prices: prices.toml
  budget: {tenant_cost_per_hour_max: {"*": 1.5}}
  escalations:
    kept_days: 7
    webhook: {url: "https://hooks.example.com/x", secret: "${HOOK_SECRET}"}
"""


def config(folder: Path, text: str) -> Config:
    (folder / "ctxpipe.yaml").write_text(HEAD + text)
    return load(folder / "ctxpipe.yaml")


def mistakes(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as told:
        config(folder, text)
    return [mistake.removeprefix(f"{folder / 'ctxpipe.yaml'}:") for mistake in told.value.mistakes]


def test_what_a_guard_is_made_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LARGE_KEY", "sk-large-large-large")
    monkeypatch.setenv("HOOK_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    read = config(tmp_path, GOOD)
    section = read.guard
    assert section is not None
    large, here = section.config.endpoints
    assert large.url == "https://api.example.com/v1" and large.certificate_authority is None
    assert here.certificate_authority == str(tmp_path / "tls/own.pem")
    assert section.routing_file == tmp_path / "routing.yaml" and section.prices_file == tmp_path / "prices.toml"
    assert section.escalations.topic == "ctxpipe.escalations" and section.escalations.kept_days == 7
    assert set(section.secrets) == {"sk-large-large-large", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}
    shown = json.dumps(read.shown()) + repr(read)
    assert "sk-large" not in shown and "MfKQ" not in shown
    assert config(tmp_path, "").guard is None


def test_all_mistakes_at_once_with_their_lines(tmp_path: Path) -> None:
    assert mistakes(
        tmp_path,
        "embedding: {endpoints: {large: {url: 'http://h/v1'}}}\n"
        "guard:\n"
        "  endpoints:\n"
        "    - {name: large, url: 'http://h/v1', model: m}\n"
        "    - {name: small, url: 'http://h/v1', model: m}\n"
        "    - {name: small, url: 'http://h/v1', model: m}\n"
        "  routes:\n"
        "    rebook: {primary: lrge, local: [small, small]}\n",
    ) == [
        "6: guard.endpoints.0.name: embedding.endpoints has 'large' too, and metrics go by the name; take another one",
        "8: guard.endpoints.2.name: there are two endpoints 'small'",
        "10: guard.routes.rebook: route 'rebook' names the endpoint 'lrge', which is not there; did you mean large?",
        "10: guard.routes.rebook: route 'rebook' names an endpoint twice; use retries_max to try one again",
    ]
    found = mistakes(
        tmp_path,
        "guard:\n"
        "  endpoints: [{name: a, url: nowhere, modell: m}]\n"
        "  escalations:\n"
        "    topic: 'not a topic'\n"
        "    webhook: {url: x, secret: short}\n",
    )
    assert len(found) == 7 and set(found) == {
        "3: guard: 'routes' is missing",
        "4: guard.endpoints.0: 'model' is missing",
        "4: guard.endpoints.0.modell: unknown key; did you mean model?",
        "4: guard.endpoints.0.url: is no address of an API; write https://host/v1",
        "6: guard.escalations.topic: 'not a topic' is no name of a topic; write letters, digits, dots, _ and -",
        "7: guard.escalations.webhook.secret: is no key; write whsec_ and 16 bytes in base64, or 16 characters",
        "7: guard.escalations.webhook.url: is no address of a webhook; write https://host/path",
    }


def test_the_local_model_needs_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of `ctxpipe up --with llm`; an endpoint of another model does, so that nobody asks the wrong one."""
    state = tmp_path / ".ctxpipe" / "local" / "state.json"
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps({"up": True, "servers": {"llm": {"address": "http://127.0.0.1:18081/v1"}}}))
    monkeypatch.chdir(tmp_path)
    text = "guard: {{endpoints: [{{name: here, model: {0}}}], routes: {{'*': {{primary: here}}}}}}\n"
    section = config(tmp_path, text.format("tiny")).guard
    assert section is not None and section.endpoints[0].url == "http://127.0.0.1:18081/v1"
    assert mistakes(tmp_path, text.format("gpt-4o")) == ["3: guard.endpoints.0: 'url' is missing"]
    assert mistakes(tmp_path, "guard: {endpoints: [tiny, {model: tiny, url: 5}], routes: 5}\n")
    assert mistakes(tmp_path, "guard: {endpoints: [], routes: {}}\n") == [
        "3: guard.endpoints: must not be empty",
        "3: guard.routes: must not be empty",
    ]


@pytest.mark.parametrize(
    ("secret", "key"),
    [
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", 24),
        ("sixteen signs!!!", 16),
        ("whsec_not base64", 0),
        ("x whsec_x", 9),
    ],
)
def test_keys_of_webhooks(secret: str, key: int) -> None:
    assert len(webhook_key(secret)) == key


ENDPOINT = Endpoint(name="large", url="https://api.example.com/v1", model="gpt-4o")


def listing(*names: str) -> bytes:
    return json.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in names]}).encode()


@pytest.mark.parametrize(
    ("answer", "severity", "part"),
    [
        (RawAnswer(status=200, body=listing("a", "gpt-4o")), "ok", "answers and has gpt-4o"),
        (RawAnswer(status=200, body=listing("a", "b")), "warning", "not among its models (a, b)"),
        (RawAnswer(status=200, body=listing()), "warning", "(none)"),
        (RawAnswer(status=200, body=b"{}"), "warning", "lists no models"),
        (RawAnswer(status=200, body=b"[" * 100_000), "warning", "lists no models"),
        (RawAnswer(status=404), "note", "lists no models"),
        (RawAnswer(status=400), "warning", "lists no models"),
        (RawAnswer(status=401), "unfit", "refuses the key"),
        (RawAnswer(status=429), "warning", "asks for a pause"),
        (RawAnswer(status=503), "unreachable", "answers 503"),
        (RawAnswer(failure="timeout", detail="it did not answer in time"), "unreachable", "did not answer in time"),
        (RawAnswer(failure="tls", detail="expired"), "unreachable", "expired"),
    ],
)
def test_what_check_says_of_an_endpoint(answer: RawAnswer, severity: str, part: str) -> None:
    finding = judged(ENDPOINT, answer)
    assert finding.severity == severity and part in finding.message
    assert finding.subject == "guard: endpoint large"
    if answer.failure == "tls":
        assert "certificate_authority" in finding.mend
