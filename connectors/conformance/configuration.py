"""The suite's tests of what a person writes and is told: the section, its secrets, `check`, discovery."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, SecretBytes, SecretStr

from connectors.conformance.harness import NAME, Harness, Misconfigured, needs
from connectors.conformance.running import Subject
from connectors.registry import configure_one
from connectors.source import Checking, Discovering, Topics
from pipeline.core.errors import ConfigError, EnvironmentProblem, Fatal, Retryable
from schemas.topics import table_topic
from schemas.yaml_file import SECRET_KEY

_URL_PASSWORD = re.compile(r"://[^/@\s:]*:([^/\s]+)@")


class SectionTests:
    """A section is taken or refused as a whole, with every mistake named, and no secret is ever shown."""

    def test_a_good_section_is_taken(self, harness: Harness) -> None:
        configured = configure_one(harness.plugin, NAME, harness.section())
        assert configured.name == NAME
        assert not harness.plugin.problems()

    def test_each_missing_required_field_is_named(self, harness: Harness) -> None:
        fields = harness.plugin.config.model_fields
        required = [name for name, field in fields.items() if field.is_required() and name not in ("name", "connector")]
        for name in required:
            section = {key: value for key, value in harness.section().items() if key != name}
            mistakes = refusal(harness, section)
            assert f"sources.{NAME}.{name}: is missing" in mistakes, f"{name} may be left out: {mistakes}"
        if len(required) > 1:
            mistakes = refusal(harness, {})
            for name in required:
                assert f"sources.{NAME}.{name}: " in mistakes, "all mistakes at once"

    def test_an_unknown_key_is_refused(self, harness: Harness) -> None:
        assert f"sources.{NAME}.no_such_key: unknown key" in refusal(harness, {**harness.section(), "no_such_key": 1})

    def test_secrets_are_masked(self, harness: Harness) -> None:
        configured = configure_one(harness.plugin, NAME, harness.section())
        config = configured.config
        for path, model, field in fields_of(type(config)):
            annotation = str(model.model_fields[field].annotation)
            assert not SECRET_KEY.search(field) or "Secret" in annotation, f"{path}: declare it as SecretStr"
        shown = f"{config!r} {config} {config.model_dump(mode='json')}"
        if harness.plugin.source is not None:
            shown += f" {configured.source()!r}"
        for secret in secrets_of(config):
            assert secret not in shown, "a secret is in the configuration's own words"

    def test_a_mistake_beside_a_secret_does_not_show_it(self, harness: Harness) -> None:
        section = {**harness.section(), "no_such_key": 1}
        mistakes = refusal(harness, section)
        wrong = refusal(harness, {name: ["wrong", value] for name, value in section.items()})
        for secret in secrets_of(configure_one(harness.plugin, NAME, harness.section()).config):
            assert secret not in mistakes + wrong


class ConfigurationTests(SectionTests):
    """The same of a source that we run; what it says of itself and of what does not fit it."""

    async def test_no_secret_is_logged(self, subject: Subject, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        await subject.write({1: "a row"})
        async with subject.running() as running:
            await running.until_equal()
        for secret in secrets_of(subject.configured.config):
            told = [f"{record.name}: {record.getMessage()}" for record in caplog.records]
            leaks = [line.partition(":")[0] for line in told if secret in line]
            assert not leaks, f"a secret is in what {leaks[0]} logs"

    @needs(Checking)
    async def test_check_finds_a_fit_source_fit(self, subject: Subject) -> None:
        source = subject.source()
        assert isinstance(source, Checking)
        try:
            found = await source.check()
        finally:
            await source.close()
        assert found, "it says at least that all is well"
        assert not [finding for finding in found if finding.severity == "unfit"]
        assert {finding.severity for finding in found} <= {"ok", "note", "warning"}

    @needs(Checking, Misconfigured)
    async def test_check_finds_what_is_wrong(self, subject: Subject, harness: Any) -> None:
        sections = await harness.bad_sections()
        assert sections
        for what, section in sections.items():
            source = subject.source(configure_one(harness.plugin, NAME, section))
            assert isinstance(source, Checking)
            try:
                told = [finding for finding in await source.check() if finding.severity == "unfit"]
                assert told and all(finding.message for finding in told), f"{what}: found fit"
                assert any(finding.mend for finding in told), f"{what}: does not say how to mend it"
            except (EnvironmentProblem, Retryable) as error:
                assert str(error), what
            finally:
                await source.close()

    @needs(Misconfigured)
    async def test_a_source_that_cannot_work_says_so_at_its_start(self, subject: Subject, harness: Any) -> None:
        for what, section in (await harness.bad_sections()).items():
            source = subject.source(configure_one(harness.plugin, NAME, section))
            try:
                await source.open(None)
                for _batch in range(10):
                    batch = await source.read()
                    if batch.position is not None:
                        await source.acknowledge(batch.position)
            except (EnvironmentProblem, Fatal, Retryable) as error:
                assert str(error), what
            else:
                raise AssertionError(f"{what}: it runs all the same")
            finally:
                await source.close()

    @needs(Discovering)
    async def test_discovery_lists_the_table(self, subject: Subject) -> None:
        await subject.write({1: "a row"})  # some systems know no columns before
        source = subject.source()
        assert isinstance(source, Discovering) and isinstance(source, Topics)
        try:
            tables = await source.discover()
        finally:
            await source.close()
        names = [table.name for table in tables]
        assert len(set(names)) == len(names), "names are unique"
        captured = [table for table in tables if table_topic(NAME, table.name) in source.table_topics()]
        assert captured, f"the captured table is not among {names}"
        for table in captured:
            assert table.key and set(table.key) <= set(table.columns), f"{table.name}: its key is not among its columns"


def refusal(harness: Harness, section: dict[str, Any]) -> str:
    """What is said of a section that must not be taken."""
    try:
        configure_one(harness.plugin, NAME, section)
    except ConfigError as error:
        return str(error)
    return "it was taken"


def secrets_of(config: BaseModel) -> list[str]:
    """Every secret that the configuration holds, and the password of each that is an address."""
    found: list[str] = []
    for name in type(config).model_fields:
        found += _secrets_in(getattr(config, name))
    return [*found, *(password for secret in found for password in _URL_PASSWORD.findall(secret))]


def _secrets_in(value: Any) -> list[str]:
    if isinstance(value, SecretStr | SecretBytes):
        text = value.get_secret_value()
        return [text if isinstance(text, str) else text.decode(errors="replace")] if text else []
    if isinstance(value, BaseModel):
        return secrets_of(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [secret for one in inner for secret in _secrets_in(one)]


def fields_of(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel], str]]:
    """(path, model, name) of every field, those of parts that are models of their own included."""
    for name, field in model.model_fields.items():
        yield f"{path}{name}", model, name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields_of(field.annotation, f"{path}{name}.")
