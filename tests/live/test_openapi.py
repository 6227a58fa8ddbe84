"""The descriptions: valid, complete, and of the same table that serves."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
from openapi_spec_validator import OpenAPIV31SpecValidator

from live.asyncapi import OWN, asyncapi, commands, events
from live.dispatch import Command
from live.http import Body
from live.openapi import TAGS, openapi, refusals_of
from live.problem import WORDS, status_of
from live.protocol import CLOSE_CODES
from live.routes import TABLE

DOCUMENT = openapi(TABLE, version="1.2.3", server="https://shop.example")


def test_it_is_valid() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()
    assert json.loads(json.dumps(DOCUMENT)) == DOCUMENT
    assert DOCUMENT["openapi"] == "3.1.0"
    assert DOCUMENT["servers"] == [{"url": "https://shop.example"}]


def test_every_route_is_in_it_and_nothing_else() -> None:
    described = {(method.upper(), path) for path, item in DOCUMENT["paths"].items() for method in item}
    assert described == {(route.method, route.path) for route in TABLE}


def operations() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{method} {path}", operation)
        for path, item in DOCUMENT["paths"].items()
        for method, operation in item.items()
    ]


def resolved(response: dict[str, Any]) -> dict[str, Any]:
    named: str | None = response.get("$ref")
    if named is None:
        return response
    found: dict[str, Any] = DOCUMENT["components"]["responses"][named.rsplit("/", 1)[-1]]
    return found


def test_every_operation_says_what_it_is_and_which_refusals_it_gives() -> None:
    for name, operation in operations():
        assert operation["summary"], name
        assert len(operation["description"]) > 20, name
        assert operation["tags"][0] in TAGS, name
        for status, response in operation["responses"].items():
            found = resolved(response)
            assert found["description"], f"{name} {status}"
            if status >= "400":
                assert list(found["content"]) == ["application/problem+json"], name
    for route in TABLE:
        responses = DOCUMENT["paths"][route.path][route.method.lower()]["responses"]
        for word in refusals_of(route):
            found = resolved(responses[str(status_of(word))])
            assert f"`{word}`" in found["description"], f"{route.name} {word}"


def test_every_word_has_a_sentence() -> None:
    for word, (status, text) in WORDS.items():
        assert re.fullmatch(r"[a-z_]+", word)
        assert 400 <= status < 600
        assert len(text.split()) >= 3, word


def test_what_a_route_takes_it_takes_exactly() -> None:
    """A member we do not know, such as a price posted by a client, is refused and described as such."""
    for route in TABLE:
        if route.body is None or route.signed:
            continue
        assert route.body.__struct_config__.forbid_unknown_fields, route.name
        if issubclass(route.body, Body):
            operation = DOCUMENT["paths"][route.path][route.method.lower()]
            reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            schema = DOCUMENT["components"]["schemas"][reference.rsplit("/", 1)[-1]]
            assert schema["additionalProperties"] is False, route.name


def test_money_has_a_bound_wherever_it_comes_in() -> None:
    for route in TABLE:
        if route.body is None or route.name in ("create_plan",):  # whose bounds stand in its own check
            continue
        for field in msgspec.structs.fields(route.body):
            if field.name.endswith("_fen"):
                assert "maximum" in json.dumps(msgspec.json.schema(field.type)), f"{route.name} {field.name}"


def test_the_socket_is_described_whole() -> None:
    document = asyncapi(version="1.2.3", server="https://shop.example")
    messages = set(document["components"]["messages"])
    spoken = {kind.__struct_config__.tag for kind in Command.__args__}
    assert spoken == {kind.__struct_config__.tag for kind in commands()}
    assert {kind.__struct_config__.tag for kind in (*commands(), *OWN, *events())} == messages
    assert document["servers"]["here"] == {"host": "shop.example", "protocol": "wss"}
    for code in CLOSE_CODES:
        assert str(code) in document["info"]["description"]
    text = json.dumps(document)
    for reference in set(re.findall(r'"\$ref": "#/([^"]+)"', text)):
        found: Any = document
        for part in reference.split("/"):
            found = found[part]
        assert found is not None
    for operation in document["operations"].values():
        assert {message["$ref"].rsplit("/", 1)[-1] for message in operation["messages"]} <= set(
            document["channels"]["show"]["messages"]
        )
    for message in document["components"]["messages"].values():
        assert message["summary"], message["name"]
