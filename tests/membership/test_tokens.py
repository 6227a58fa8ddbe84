from __future__ import annotations

import base64
import json
import time
from typing import Any

import jwt
import pytest

from membership.actor import PERMISSIONS, Actor, Facts, MemberId, RoomId, new_id
from membership.members import guest, new_guest_id
from membership.refusal import BadRequest
from membership.tokens import LENGTH_MAX, InvalidToken, TokenExpired, Tokens

VIEWER = Actor(kind="viewer", id=new_id(), name="小米", facts=Facts(member=MemberId("x"), registered=True))
HOST = Actor(
    kind="staff",
    id=new_id(),
    name="小禾",
    role="host",
    permissions=PERMISSIONS["host"],
    room=RoomId(new_id()),
)


def test_a_token_says_who_somebody_is() -> None:
    tokens = Tokens("a secret")
    claims = tokens.verify(tokens.mint(VIEWER, 60))
    assert (claims.iss, claims.sub, claims.kind, claims.name) == ("companion", VIEWER.id, "viewer", "小米")
    assert 58 <= claims.exp - time.time() <= 60
    staff = tokens.verify(tokens.mint(HOST, 60, preview="plan"))
    assert (staff.kind, staff.role, staff.room, staff.preview) == ("staff", "host", HOST.room, "plan")
    assert tokens.verify(tokens.mint(guest(new_guest_id()), 60)).sub.startswith("g_")


def test_a_token_carries_no_permissions() -> None:
    body = Tokens("a secret").mint(HOST, 60).split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    assert set(claims) == {"iss", "sub", "kind", "exp", "iat", "role", "room", "name"}


def test_an_old_token_is_expired() -> None:
    tokens = Tokens("a secret")
    old = _forge(tokens, exp=int(time.time()) - 1)
    with pytest.raises(TokenExpired) as refusal:
        tokens.verify(old)
    assert refusal.value.word == "token_expired"


def _forge(tokens: Tokens, algorithm: str = "HS256", **changes: Any) -> str:
    now = int(time.time())
    claims = {"iss": "companion", "sub": VIEWER.id, "kind": "viewer", "iat": now, "exp": now + 60} | changes
    kept = {name: value for name, value in claims.items() if value is not None}
    key = tokens._key.ljust(64, b"\0")  # the same to HMAC, long enough for every algorithm
    given: Any = None if algorithm == "none" else key
    return jwt.encode(kept, given, algorithm)


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "somebody"},
        {"iss": None},
        {"exp": None},
        {"sub": None},
        {"kind": "shop"},
        {"kind": None},
        {"sub": 7},
        {"exp": "soon"},
        {"kind": "staff"},
        {"kind": "staff", "role": "emperor"},
        {"algorithm": "HS512"},
        {"algorithm": "none"},
    ],
)
def test_a_token_that_is_not_ours_in_every_part_is_refused(changes: dict[str, Any]) -> None:
    tokens = Tokens("a secret")
    with pytest.raises(InvalidToken) as refusal:
        tokens.verify(_forge(tokens, **changes))
    assert refusal.value.word == "unauthenticated"


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "\ud800", "\0", "é.é.é", "x" * (LENGTH_MAX + 1)])
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidToken):
        Tokens("a secret").verify(token)


def test_another_deployments_token_is_refused() -> None:
    with pytest.raises(InvalidToken):
        Tokens("a secret").verify(Tokens("another").mint(VIEWER, 60))


def test_text_and_bytes_of_a_secret_are_the_same_secret() -> None:
    assert Tokens(b"a secret").verify(Tokens("a secret").mint(VIEWER, 60)).sub == VIEWER.id


@pytest.mark.parametrize("ttl_s", [0, -1, 31 * 86_400])
def test_a_lifetime_out_of_bounds_is_refused(ttl_s: int) -> None:
    with pytest.raises(BadRequest):
        Tokens("a secret").mint(VIEWER, ttl_s)


@pytest.mark.parametrize("kind", ["shop", "job"])
def test_a_shop_server_and_a_job_have_no_tokens(kind: Any) -> None:
    with pytest.raises(BadRequest):
        Tokens("a secret").mint(Actor(kind=kind, id="x"), 60)
