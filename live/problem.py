"""Refusals as HTTP answers: one table from the word to the status, and RFC 9457 problem+json.

The words are those of the socket; only here do they meet HTTP numbers.
"""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from membership.refusal import Refusal, Unavailable

MEDIA = "application/problem+json"


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a request was not done. Further members may follow, such as `rank` of an earlier claim."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    retry_ms: int | None = None


# word -> (HTTP status, what it means). Every refusal of every package is in it; a test looks.
WORDS: dict[str, tuple[int, str]] = {
    "bad_request": (400, "The request is malformed or out of bounds"),
    "invalid_phone": (400, "This is no phone number we can reach"),
    "invalid_address": (400, "The address is not complete"),
    "invalid_nickname": (400, "A nickname has 1 to 20 characters"),
    "unauthenticated": (401, "Sign in first"),
    "token_expired": (401, "The token has expired; sign in again"),
    "wrong_code": (401, "The code is not right"),
    "code_expired": (401, "The code has expired; ask for another"),
    "link_used": (401, "This sign-in link was used before"),
    "link_expired": (401, "This sign-in link has expired"),
    "bad_signature": (401, "The signature does not fit the body"),
    "forbidden": (403, "Your role does not allow this"),
    "members_only": (403, "This is for members; see the way in"),
    "not_eligible": (403, "This is not open to you"),
    "muted": (403, "You may not comment for now"),
    "bad_origin": (403, "The request came from a foreign page"),
    "bad_csrf": (403, "The X-CSRF-Token header does not fit the companion_csrf cookie"),
    "not_found": (404, "There is no such thing here"),
    "method_not_allowed": (405, "This address does not take this method"),
    "already_claimed": (409, "You have claimed this before"),
    "already_open": (409, "Such an offer is open already"),
    "already_refunded": (409, "The money of this order was sent back before"),
    "already_voted": (409, "You have voted in this poll before"),
    "already_decided": (409, "Somebody has decided about this before"),
    "already_member": (409, "A plan is running already"),
    "benefit_open": (409, "Another benefit for joining is open in this show"),
    "case_open": (409, "Another case about these goods is open"),
    "busy": (409, "The same Idempotency-Key is still being worked on"),
    "closed": (409, "This is closed"),
    "coupon_used": (409, "The coupon was used, or another order holds it"),
    "cue_done": (409, "This cue has run; a quota is given once"),
    "cue_running": (409, "This cue runs already"),
    "key_reused": (409, "This key was used before with another body"),
    "limit_reached": (409, "You have as many as one person may have"),
    "not_covered": (409, "We do not send to this address"),
    "no_promo": (409, "The product takes no part in promotions"),
    "needs_approval": (409, "A second person must grant this first"),
    "name_taken": (409, "Another one has this name"),
    "not_enough_points": (409, "You have not so many points to spend"),
    "not_live": (409, "The show is not live"),
    "not_started": (409, "The countdown is still running"),
    "window_promised": (409, "Viewers were promised this until its time"),
    "over_budget": (409, "This passes a budget; a second person may grant it"),
    "over_rebate_cap": (409, "With this, the rules would give back more than the house allows"),
    "paused": (409, "This is paused"),
    "payments_down": (409, "Payments do not come through now"),
    "phone_taken": (409, "This phone belongs to another member"),
    "poll_open": (409, "A poll is open in this show already"),
    "price_changed": (409, "The price has changed; ask for a new quote"),
    "reserved_out": (409, "All are held for now; one may come back"),
    "show_ended": (409, "The show has ended"),
    "sku_taken": (409, "Another product has this SKU"),
    "sold_out": (409, "None is left"),
    "too_many_audiences": (409, "A show has at most eight audiences"),
    "trial_used": (409, "This phone has had its trial"),
    "wrong_status": (409, "The show's status does not allow this"),
    "too_large": (413, "The body is larger than it may be: 64 KB, a photo 512 KB"),
    "unsupported_media": (415, "The body must be application/json"),
    "room_busy": (409, "Another show of this room is on air"),
    "slug_taken": (409, "Another room has this address"),
    "not_paid": (409, "The order is not paid"),
    "refused": (422, "Understood and declined"),
    "rate_limited": (429, "Too many in too short a time"),
    "internal": (500, "Something went wrong on our side; it has been noted"),
    "unavailable": (503, "The store did not answer; nothing was decided. Try again"),
}


class InternalError(Refusal):
    """Something went wrong on our side; it has been noted."""

    code = "internal"


def status_of(word: str) -> int:
    """The HTTP status of a refusal; a word that is not in the table is a plain conflict."""
    return WORDS.get(word, (409, ""))[0]


def title_of(word: str) -> str:
    return WORDS.get(word, (409, word.replace("_", " ").capitalize()))[1]


def problem_of(refusal: Refusal) -> dict[str, Any]:
    """The members of the answer. What the store said of itself stays in the log."""
    word = refusal.word
    detail = str(refusal) if not isinstance(refusal, Unavailable) else f"{title_of(word)}."
    members = dict(refusal.details)
    members.update(
        msgspec.to_builtins(
            Problem(
                type=f"/docs#{word}",
                title=title_of(word),
                status=status_of(word),
                detail=detail,
                code=word,
                retry_ms=refusal.retry_ms,
            )
        )
    )
    return members


def problem_response(refusal: Refusal, headers: dict[str, str] | None = None) -> Response:
    """problem+json, with Retry-After (whole seconds, rounded up) where trying again helps."""
    members = problem_of(refusal)
    sent = {"cache-control": "no-store", **(headers or {})}
    if refusal.retry_ms is not None:
        sent["retry-after"] = str(-(-refusal.retry_ms // 1000))
    if members["status"] == 401:
        sent.setdefault("www-authenticate", "Bearer")
    return Response(
        msgspec.json.encode(members), status_code=members["status"], media_type=MEDIA, headers=sent
    )
