"""OpenAPI 3.1 from the route table: every path, body, answer and refusal, nothing written twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from live.http import BODY_BYTES_MAX, CSRF_HEADER, KEY_CHARS_MAX, PATH_FORMS, Route, roles_with
from live.problem import MEDIA, Problem, status_of, title_of
from membership.actor import SHOP_WIDE

REF: Final = "#/components/schemas/{name}"

TAGS: Final[dict[str, str]] = {
    "sign-in": "Becoming a registered member by phone and one-time code; sessions of viewers and staff.",
    "me": "What a member has and does: profile, plan, orders, benefits, addresses, tags.",
    "shows": "Rooms and shows: the public card, the calendar file, the life of a show.",
    "cues": "What is prepared before a show and run with one key.",
    "talk": "Comments, polls, mutes, the announcement bar.",
    "trade": "Products, offers, benefits, quotes and orders.",
    "guards": "Budgets and the cost meter, what a second person must grant, the switch for money.",
    "members": "Members, as staff and the shop's server see them; tags with their evidence.",
    "reports": "Live numbers, the end card, the audit log.",
    "accounts": "Staff accounts, their one-time links, and API keys.",
    "shop": "What a shop's own server calls with an API key.",
    "webhooks": "What payment providers tell us.",
    "service": "Health, readiness, metrics and these documents.",
}

DESCRIPTION: Final = f"""\
Identify with a session cookie (pages), `Authorization: Bearer <JWT>` or `Authorization: Bearer ck_…`
(an API key). A write that relies on a cookie carries the `companion_csrf` cookie's value in
`{CSRF_HEADER.title()}`. Staff bound to one room act in that room and its shows only, whatever their role, and
read the catalogue; they have none of the permissions
{", ".join(f"`{each}`" for each in sorted(SHOP_WIDE))}. Bodies are JSON of at most
{BODY_BYTES_MAX // 1024} KB; a member we do not know is refused.
Money is an integer of the currency's minor unit (fields ending in `_fen`). A point in time is a text in
ISO 8601 with its offset, or an integer of milliseconds since 1970, as its type says.
Lists come in parts: pass `next` as `cursor` for the following one.
Send `Idempotency-Key` (up to {KEY_CHARS_MAX} characters) with a write; a repeat gets the first answer.
Every refusal is `application/problem+json` (RFC 9457) with a word in `code`, and `retry_ms` where trying
again helps. The socket of a show is described in `/asyncapi.json`.
"""


def refusals_of(route: Route) -> list[str]:
    """Every word a route may answer with: its own, and those its form brings along."""
    words = set(route.refusals)
    words.update(("unavailable", "internal"))
    words.add("unauthenticated")  # a token that is none is refused on every route
    words.add("token_expired")
    if route.who != "public" or route.prefers_staff:
        words.add("forbidden")
    if route.parameters:
        words.add("not_found")
    if route.query is not None or route.writes:
        words.add("bad_request")
    if route.writes:
        words.update(("too_large", "bad_origin", "bad_csrf"))
        if route.who in ("public", "viewer") and not route.signed:
            words.add("rate_limited")
        if route.keeps_reply:
            words.update(("key_reused", "busy"))
    if route.body is not None or route.takes:
        words.add("unsupported_media")
    return sorted(words)


def openapi(routes: Sequence[Route], *, version: str, server: str | None) -> dict[str, Any]:
    """The document, as JSON-ready builtins."""
    types = _types(routes)
    schemas, components = msgspec.json.schema_components(types, ref_template=REF)
    schema_of = dict(zip((_key(kind) for kind in types), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = defaultdict(dict)
    shared: dict[str, Any] = {}
    for route in routes:
        paths[route.path][route.method.lower()] = _operation(route, schema_of, components, shared)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Live companion", "version": version, "description": DESCRIPTION},
        "jsonSchemaDialect": "https://spec.openapis.org/oas/3.1/dialect/base",
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": dict(paths),
        "components": {
            "schemas": dict(sorted(components.items())),
            "responses": dict(sorted(shared.items())),
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "api_key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key `ck_…`, made by `companion apikey`.",
                },
                "viewer_cookie": {"type": "apiKey", "in": "cookie", "name": "companion_viewer"},
                "staff_cookie": {"type": "apiKey", "in": "cookie", "name": "companion_staff"},
            },
        },
    }
    if server:
        document["servers"] = [{"url": server}]
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(document))
    return plain


def _types(routes: Iterable[Route]) -> list[Any]:
    found: dict[str, Any] = {_key(Problem): Problem}
    for route in routes:
        for kind in (route.query, route.body, route.answer):
            if kind is not None and kind is not bytes and kind is not str:
                found.setdefault(_key(kind), kind)
    return list(found.values())


def _key(kind: Any) -> str:
    return f"{getattr(kind, '__module__', '')}:{kind!r}"


def _security(route: Route) -> list[dict[str, list[str]]]:
    if route.who == "public":
        return [{}, {"token": []}]
    if route.who == "viewer":
        return [{"token": []}, {"viewer_cookie": []}]
    if route.who == "staff":
        return [{"token": []}, {"staff_cookie": []}]
    return [{"token": []}, {"staff_cookie": []}, {"api_key": []}]


def _who_text(route: Route) -> str:
    if route.who == "public":
        return "For everyone."
    if route.who == "viewer":
        return "For signed-in members."
    if route.who == "staff":
        return "For staff."
    roles = ", ".join(roles_with(route.who))
    room = "; not for staff of one room" if route.who in SHOP_WIDE else ""
    return f"For staff and API keys with the permission `{route.who}` (roles: {roles}{room})."


def _operation(
    route: Route, schema_of: dict[str, Any], components: dict[str, Any], shared: dict[str, Any]
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "tags": [route.tag],
        "summary": route.summary,
        "description": _described(route),
        "security": _security(route),
        "parameters": _parameters(route, components),
        "responses": _responses(route, schema_of, shared),
    }
    if route.body is not None:
        schema = schema_of[_key(route.body)]
        named = components.get(schema.get("$ref", "").rsplit("/", 1)[-1], schema)
        operation["requestBody"] = {
            "required": bool(named.get("required")),
            "content": {"application/json": {"schema": schema}},
        }
    if route.takes:
        operation["requestBody"] = {"required": True, "content": {media: {} for media in route.takes}}
    if not operation["parameters"]:
        del operation["parameters"]
    return operation


def _described(route: Route) -> str:
    text = " ".join((route.handler.__doc__ or "").split())
    return f"{text} {_who_text(route)}".strip()


def _parameters(route: Route, components: dict[str, Any]) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = []
    for name in route.parameters:
        form, text = PATH_FORMS[name]
        parameters.append(
            {
                "name": name,
                "in": "path",
                "required": True,
                "description": text,
                "schema": {"type": "string", "pattern": f"^{form.pattern}$"},
            }
        )
    if route.query is not None:
        shape = components[route.query.__name__]
        for name, schema in shape["properties"].items():
            parameters.append(
                {
                    "name": name,
                    "in": "query",
                    "required": name in shape.get("required", ()),
                    "schema": _without_null(schema),
                }
            )
    if route.prefers_staff:
        parameters.append(
            {
                "name": "as",
                "in": "query",
                "required": False,
                "description": "`viewer`: answer as to the viewer of this browser, though staff ask",
                "schema": {"type": "string", "enum": ["viewer"]},
            }
        )
    if route.writes and route.keeps_reply:
        parameters.append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "description": "A repeat with this key gets the first answer",
                "schema": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": KEY_CHARS_MAX,
                    "pattern": "^[!-~]+$",
                },
            }
        )
    if route.writes:
        parameters.append(
            {
                "name": CSRF_HEADER.title(),
                "in": "header",
                "required": False,
                "description": "Required when a cookie identifies: the value of the cookie companion_csrf",
                "schema": {"type": "string", "pattern": "^[!-~]*$"},
            }
        )
    return parameters


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A query parameter that is not given is left out; it is never null."""
    schema = {name: value for name, value in schema.items() if not (name == "default" and value is None)}
    choices = [choice for choice in schema.get("anyOf", ()) if choice != {"type": "null"}]
    if len(choices) == 1:
        rest = {name: value for name, value in schema.items() if name != "anyOf"}
        return {**rest, **choices[0]}
    return schema


def _responses(route: Route, schema_of: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    """The answer and the refusals by status. What several refuse alike is written once, in `shared`."""
    responses: dict[str, Any] = {}
    if route.answer is None:
        responses["204"] = {"description": "Done."}
    else:
        schema = {"type": "string"} if route.answer in (bytes, str) else schema_of[_key(route.answer)]
        responses[str(route.status)] = {
            "description": route.summary,
            "content": {media: {"schema": schema} for media in route.media.split(", ")},
        }
    by_status: dict[int, list[str]] = defaultdict(list)
    for word in refusals_of(route):
        by_status[status_of(word)].append(word)
    problem = schema_of[_key(Problem)]
    for status, words in sorted(by_status.items()):
        said = "; ".join(f"`{word}`: {title_of(word)}" for word in words)
        named = "-".join(words)
        responses[str(status)] = {"$ref": f"#/components/responses/{named}"}
        shared[named] = {
            "description": said,
            "content": {
                MEDIA: {
                    "schema": {
                        "allOf": [problem, {"type": "object", "properties": {"code": {"enum": words}}}]
                    }
                }
            },
        }
        if any(word in ("rate_limited", "unavailable", "busy") for word in words):
            shared[named]["headers"] = {
                "Retry-After": {"description": "Seconds, rounded up", "schema": {"type": "integer"}}
            }
    return responses
