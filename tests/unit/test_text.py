"""The text of a bundle: template in a sandbox, budget kept by leaving out what matters least."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.core.errors import Poison
from pipeline.text import count_tokens, render_template, render_text
from schemas.context import ContextSpec

TEMPLATE = (
    "Flight {{ id }} to {{ dest.name }}."
    "{% if weather %} Weather: {{ weather.temp }} degrees.{% endif %}"
    "{% if plane %} Plane: {{ plane.model }}.{% endif %}"
)
BUNDLE = {"id": 7, "dest": {"name": "Boston"}, "weather": {"temp": "39.0"}, "plane": {"model": "A320"}}


def _spec(template: str = TEMPLATE, **text: Any) -> ContextSpec:
    section = {"entity": "e", "on": {"id": "id"}, "fields": ["id"]}
    return ContextSpec.model_validate(
        {
            "context": "c",
            "version": 1,
            "root": "e",
            "entities": {"e": {"source": "s", "table": "public.e", "key": ["id"]}},
            "fields": ["id"],
            "sections": {"dest": section, "weather": section, "plane": section},
            "text": {"template": template, **text},
        }
    )


def test_the_whole_text_without_a_budget() -> None:
    rendered = render_text(_spec(), BUNDLE)
    assert rendered.text == "Flight 7 to Boston. Weather: 39.0 degrees. Plane: A320."
    assert rendered.tokens == count_tokens(rendered.text) == 16
    assert rendered.left_out == ()


def test_the_least_important_section_goes_first() -> None:
    rendered = render_text(_spec(token_budget=12, priorities=["dest", "plane", "weather"]), BUNDLE)
    assert rendered.text == "Flight 7 to Boston. Plane: A320."
    assert rendered.left_out == ("weather",)
    assert not rendered.cut


def test_sections_without_a_priority_go_before_all_others() -> None:
    rendered = render_text(_spec(token_budget=12, priorities=["weather"]), BUNDLE)
    assert rendered.left_out == ("plane",)
    assert "Weather" in rendered.text


def test_what_is_still_too_long_is_cut_and_says_so() -> None:
    rendered = render_text(_spec(token_budget=3), BUNDLE)
    assert (rendered.text, rendered.tokens, rendered.cut) == ("Flight 7 to", 3, True)


@pytest.mark.parametrize("template", ["{{ ''.__class__.__mro__ }}", "{{ id.__init__.__globals__ }}", "{{ 1 / 0 }}"])
def test_a_template_reaches_nothing_but_the_bundle(template: str) -> None:
    try:
        text = render_text(_spec(template), BUNDLE).text
    except Poison:
        return
    assert text == "", "a forbidden attribute is nothing"


@pytest.mark.parametrize(
    "template",
    [
        "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
        "{{ '{5}'.format(1) }}",
        "{{ 'a'.encode('nothing') }}",
        "{{ 'a' * 10**10 }}",
        "{{ 2 ** 100000 }}",
        "{{ cycler() }}",
        "{{ lipsum() }}",
        "{{ [1, 2] | random }}",
    ],
)
def test_a_template_that_fails_is_poison_whatever_it_does(template: str) -> None:
    with pytest.raises(Poison, match="the text template fails"):
        render_text(_spec(template), BUNDLE)


def test_names_of_the_bundle_go_before_methods() -> None:
    bundle = {**BUNDLE, "dest": {"items": [1, 2], "keys": "k"}}
    template = "{% for item in dest.items %}{{ item * 2 }} {% endfor %}{{ dest.keys }}{{ plane.items() | length }}"
    assert render_text(_spec(template), bundle).text == "2 4 k1"


def test_a_section_within_a_section_has_a_priority_of_its_own() -> None:
    spec = _spec(
        "{{ id }} {{ plane.model }} {% for f in plane.last %}{{ f.to }} {{ f.crew.size }} {% endfor %}",
        token_budget=4,
        priorities=["plane", "plane.last", "plane.last.crew"],
    )
    flights = [{"to": "A", "crew": {"size": 5}}, {"to": "B", "crew": {"size": 6}}]
    bundle = {"id": 7, "dest": None, "weather": None, "plane": {"model": "A320", "last": flights}}
    rendered = render_text(spec, bundle)
    assert (" ".join(rendered.text.split()), rendered.left_out) == ("7 A320 A B", ("plane.last.crew",))
    rendered = render_text(spec.model_copy(update={"text": spec.text.model_copy(update={"token_budget": 3})}), bundle)  # type: ignore[union-attr]
    assert (rendered.text, rendered.left_out) == ("7 A320", ("plane.last.crew", "plane.last"))
    assert "crew" in flights[0], "the bundle itself stays as it was"


def test_missing_values_are_empty() -> None:
    assert render_text(_spec("{{ nothing.at.all }}!"), BUNDLE).text == "!"


def test_null_is_written_as_nothing() -> None:
    assert (
        render_template(
            "{{ name }} of {{ maker.name }}, {{ year or 'unknown' }}", {"name": "a", "maker": None, "year": None}
        )
        == "a of , unknown"
    )
