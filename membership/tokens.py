"""Tokens: short-lived JWTs that say who somebody is. Cookies carry the same text."""

from __future__ import annotations

import hmac
import time
from typing import Any, Literal

import jwt
import msgspec

from membership.actor import PERMISSIONS, Actor, Role, RoomId
from membership.refusal import BadRequest, Unauthenticated

ISSUER = "companion"
ALGORITHM = "HS256"
TTL_S_MAX = 30 * 86_400
LENGTH_MAX = 4096  # characters; ours have about 300

Preview = Literal["guest", "plan"]


class InvalidToken(Unauthenticated):
    """This token is not one of ours."""


class TokenExpired(Unauthenticated):
    """The token has expired. Sign in again."""

    code = "token_expired"


class Claims(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a token says. `sub` is a member's, guest's or staff account's id."""

    iss: str
    sub: str
    kind: Literal["viewer", "staff"]
    exp: int  # seconds
    iat: int
    role: Role | None = None
    room: RoomId | None = None
    name: str = ""
    preview: Preview | None = None  # staff looking at the viewer's page as somebody else would see it


class Tokens:
    """`secret` is the deployment's; the signing key is drawn from it for this use alone."""

    def __init__(self, secret: bytes | str) -> None:
        key = secret.encode() if isinstance(secret, str) else secret
        self._key = hmac.digest(key, b"companion tokens", "sha256")

    def mint(self, actor: Actor, ttl_s: int, *, preview: Preview | None = None) -> str:
        """A token for a viewer or a staff account. It carries no permissions: those are read anew."""
        if actor.kind not in ("viewer", "staff"):
            raise BadRequest("A token is for a viewer or a staff account.")
        if not 0 < ttl_s <= TTL_S_MAX:
            raise BadRequest(f"A token lives 1–{TTL_S_MAX} seconds.")
        now = int(time.time())
        claims = Claims(
            iss=ISSUER,
            sub=actor.id,
            kind="viewer" if actor.kind == "viewer" else "staff",
            exp=now + ttl_s,
            iat=now,
            role=actor.role,
            room=actor.room,
            name=actor.name,
            preview=preview,
        )
        payload: dict[str, Any] = msgspec.to_builtins(claims)
        return jwt.encode(payload, self._key, ALGORITHM)

    def verify(self, token: str) -> Claims:
        """Raises InvalidToken or TokenExpired."""
        if len(token) > LENGTH_MAX:
            raise InvalidToken
        try:
            payload = jwt.decode(
                token,
                self._key,
                [ALGORITHM],
                issuer=ISSUER,
                options={"require": ["iss", "sub", "exp", "iat"]},
            )
            claims = msgspec.convert(payload, Claims)
        except jwt.ExpiredSignatureError:
            raise TokenExpired from None
        except (jwt.InvalidTokenError, msgspec.ValidationError, UnicodeError):
            raise InvalidToken from None
        if claims.kind == "staff" and claims.role not in PERMISSIONS:
            raise InvalidToken
        return claims
