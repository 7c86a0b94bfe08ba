"""The section `collector`: its mistakes are told all at once, each with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.config import load
from pipeline.core.errors import ConfigError

SERVERS = "kafka: {bootstrap_servers: '127.0.0.1:9092'}\nredis: {url: 'redis://127.0.0.1:6379'}\n"


def test_every_mistake_is_told(tmp_path: Path) -> None:
    file = tmp_path / "ctxpipe.yaml"
    file.write_text(
        SERVERS
        + """collector:
  url: collector:9108
  interval_s: 0
  scrape: ["http://serve-0:9101/metrics", "serve-1:9101"]
  allowed_lag_records: {"a*": -1}
  offset_reset: {"b*": newest}
  grups: ["*"]
"""
    )
    with pytest.raises(ConfigError) as caught:
        load(file)
    told = str(caught.value)
    for words in ("http://host:port", "interval_s", "'serve-1:9101'", "0 or more", "offset_reset", "grups"):
        assert words in told, told
    assert len(caught.value.mistakes) == 6 and all(f"{file}:" in mistake for mistake in caught.value.mistakes)


def test_defaults_watch_every_group(tmp_path: Path) -> None:
    file = tmp_path / "ctxpipe.yaml"
    file.write_text(SERVERS)
    section = load(file).collector
    assert (section.groups, section.interval_s, section.samples, section.partitions) == (["*"], 10.0, 10, False)
