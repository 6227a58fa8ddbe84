"""Receipts: "37 of 100", signed, for anyone to check; and the chain that proves the order.

Each claim has one, written in the transaction that writes the claim and under the lock of its benefit. It
names the digest of the one before it, so none can be put in, left out or moved later without breaking every
receipt that follows. Links are in the order of commits. A rank of a benefit that needs no payment is decided
before the commit, so two processes may commit theirs the other way round: then the links show it. A rank that
is recalled keeps its link.

What is kept is the core, unsigned; the signature is deterministic and made anew each time. It is Ed25519, with
a key drawn from the deployment's secret: every node signs alike, and the public key is all that a check needs.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from msgspec import Struct

from membership.actor import BenefitId, MemberId, ShowId, is_id, public_id
from membership.moment import in_ms
from membership.page import Page, check_page
from membership.transaction import Connection

log = logging.getLogger(__name__)

VERSION = "r1"
CHARS_MAX = 2_048  # a title of 60 characters makes about 700
KEY_BYTES, SIGNATURE_CHARS = 32, 86
KEY_USE = b"companion receipts"
FIRST = ""  # what the first link names as the one before it

_TEXT = re.compile(r"[A-Za-z0-9_-]+")


class Unverified(ValueError):
    """One line that says why this is no receipt of ours."""


class Receipt(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a receipt says. Its encoding is the core: what is signed, and what the next one names."""

    show: ShowId
    benefit: BenefitId
    title: str
    what: str
    value_fen: int
    rank: int
    of: int  # the quota at that time; it may rise later
    nth: int
    viewer: str  # who it is in this show, and in no other: not the member's id
    at: int  # ms: our record of the claim
    link: int
    before: str  # digest of the link before it, '' for the first


class Link(Struct, frozen=True, kw_only=True):
    """One link of a benefit's chain, as anyone may read it: `digest` is the SHA-256 of `core`."""

    link: int
    rank: int
    viewer: str
    at: int
    digest: str
    core: str


class HeldReceipt(Struct, frozen=True, kw_only=True):
    """A receipt in its holder's hands, and the id of the claim it is for."""

    claim: str
    benefit: BenefitId
    show: ShowId
    title: str
    rank: int
    of: int
    at: int
    receipt: str


class Receipts:
    """Signs and reads receipts. `secret` is the deployment's; the key is drawn from it for this use alone."""

    def __init__(self, secret: bytes | str) -> None:
        given = secret.encode() if isinstance(secret, str) else secret
        self._key = Ed25519PrivateKey.from_private_bytes(
            HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=KEY_USE).derive(given)
        )

    @property
    def public_key(self) -> str:
        """What everybody may know: 43 characters of base64url."""
        return _encode(self._key.public_key().public_bytes_raw())

    def sign(self, core: str) -> str:
        """The receipt of a core; the same core always gives the same receipt. About 60 µs."""
        text = f"{VERSION}.{_encode(core.encode())}"
        return f"{text}.{_encode(self._key.sign(text.encode()))}"

    def sign_bytes(self, what: bytes) -> str:
        """The signature of something longer, named by its digest."""
        return _encode(self._key.sign(what))

    async def of_member(
        self, conn: Connection, member: MemberId, cursor: str | None = None, limit: int = 50
    ) -> Page[HeldReceipt]:
        """The member's receipts, newest first."""
        check_page(cursor, limit)
        rows = await (
            await conn.execute(
                """
                SELECT c.id::text AS claim, r.core, r.digest
                FROM benefit_claims c JOIN benefit_receipts r ON r.claim_id = c.id
                WHERE c.member_id = %(member)s AND (%(cursor)s::uuid IS NULL OR c.id < %(cursor)s)
                ORDER BY c.id DESC LIMIT %(limit)s + 1
                """,
                {"member": member, "cursor": cursor, "limit": limit},
            )
        ).fetchall()
        items = []
        for row in rows[:limit]:
            if digest_of(row["core"]) != row["digest"]:
                log.error(
                    "the receipt of claim %s was changed where it is kept; it is not signed", row["claim"]
                )
                continue
            said = read_core(row["core"])
            items.append(
                HeldReceipt(
                    claim=row["claim"],
                    benefit=said.benefit,
                    show=said.show,
                    title=said.title,
                    rank=said.rank,
                    of=said.of,
                    at=said.at,
                    receipt=self.sign(row["core"]),
                )
            )
        return Page(tuple(items), rows[limit - 1]["claim"] if len(rows) > limit else None)

    async def chain(
        self, conn: Connection, benefit: BenefitId, *, after: int = 0, limit: int = 100
    ) -> tuple[Link, ...]:
        """The links of a benefit in their order, from the one after `after`."""
        rows = await (
            await conn.execute(
                """
                SELECT r.link, r.core, r.digest, b.show_id, c.rank, c.claimed_at, c.member_id::text AS member
                FROM benefit_receipts r JOIN benefit_claims c ON c.id = r.claim_id
                JOIN benefits b ON b.id = r.benefit_id
                WHERE r.benefit_id = %s AND r.link > %s ORDER BY r.link LIMIT %s
                """,
                [benefit, after, limit],
            )
        ).fetchall()
        return tuple(
            Link(
                link=row["link"],
                rank=row["rank"],
                viewer=public_id(ShowId(row["show_id"]), row["member"]),
                at=in_ms(row["claimed_at"]),
                digest=row["digest"],
                core=row["core"],
            )
            for row in rows
        )


async def write_receipts(conn: Connection, benefit: BenefitId, claims: Sequence[Any]) -> None:
    """Link the receipts of claims that this transaction has written, in order of rank. Their ids are given.

    The benefit's row must be locked (FOR NO KEY UPDATE): links follow one another without a gap.
    """
    if not claims:
        return
    rows = await (
        await conn.execute(
            """
            SELECT c.id, c.member_id::text AS member, c.nth, c.rank, c.claimed_at,
                b.show_id, b.title, b.what, b.value_fen, b.quota,
                last.link, last.digest
            FROM benefit_claims c JOIN benefits b ON b.id = c.benefit_id
            LEFT JOIN (
                SELECT link, digest FROM benefit_receipts WHERE benefit_id = %(benefit)s
                ORDER BY link DESC LIMIT 1
            ) last ON true
            WHERE c.benefit_id = %(benefit)s AND c.id = ANY(%(claims)s::uuid[]) ORDER BY c.rank
            """,
            {"benefit": benefit, "claims": list(claims)},
        )
    ).fetchall()
    if not rows:
        return
    before, link = rows[0]["digest"] or FIRST, rows[0]["link"] or 0
    cores: list[str] = []
    digests: list[str] = []
    for row in rows:
        link += 1
        core = core_of(
            Receipt(
                show=ShowId(row["show_id"]),
                benefit=benefit,
                title=row["title"],
                what=row["what"],
                value_fen=row["value_fen"],
                rank=row["rank"],
                of=row["quota"],
                nth=row["nth"],
                viewer=public_id(ShowId(row["show_id"]), row["member"]),
                at=in_ms(row["claimed_at"]),
                link=link,
                before=before,
            )
        )
        before = digest_of(core)
        cores.append(core)
        digests.append(before)
    await conn.execute(
        """
        INSERT INTO benefit_receipts (claim_id, benefit_id, link, core, digest)
        SELECT w.claim, %s, w.link, w.core, w.digest
        FROM unnest(%s::uuid[], %s::integer[], %s::text[], %s::text[]) AS w (claim, link, core, digest)
        """,
        [
            benefit,
            [row["id"] for row in rows],
            list(range(link - len(rows) + 1, link + 1)),
            cores,
            digests,
        ],
    )


async def cores_of(
    conn: Connection, benefit: BenefitId, members: Sequence[MemberId]
) -> dict[tuple[MemberId, int], str]:
    """The cores of what these members have of a benefit, by (member, nth)."""
    rows = await (
        await conn.execute(
            """
            SELECT c.member_id::text AS member, c.nth, r.core
            FROM benefit_claims c JOIN benefit_receipts r ON r.claim_id = c.id
            WHERE c.benefit_id = %s AND c.member_id = ANY(%s::uuid[])
            """,
            [benefit, [member for member in members if is_id(member)]],
        )
    ).fetchall()
    return {(MemberId(row["member"]), int(row["nth"])): row["core"] for row in rows}


# --- pure parts: all that a check needs ---


def verify(receipt: str, public_key: str) -> Receipt:
    """What the receipt says, when it was signed by the owner of this key. Raises Unverified."""
    if len(receipt) > CHARS_MAX:
        raise Unverified(f"it has {len(receipt)} characters; a receipt has at most {CHARS_MAX}")
    strange = re.search(r"[^A-Za-z0-9._-]", receipt)
    if strange is not None:
        raise Unverified(f"character {strange.start() + 1} is none that a receipt can have")
    parts = receipt.split(".")
    if len(parts) != 3 or not all(parts):
        raise Unverified("it is cut off or joined: a receipt has three parts with dots between")
    version, core_text, signature_text = parts
    if version != VERSION:
        raise Unverified(f"it is of version {version[:8]}; this program knows {VERSION}")
    if len(signature_text) != SIGNATURE_CHARS:
        raise Unverified(
            f"its signature has {len(signature_text)} characters of {SIGNATURE_CHARS}: it is cut off or joined"
        )
    core = _decode(core_text, "what it says")
    signature = _decode(signature_text, "its signature")
    try:
        _public(public_key).verify(signature, f"{version}.{core_text}".encode())
    except InvalidSignature:
        raise Unverified(
            "the signature does not fit: a character was changed, or another key signed it"
        ) from None
    try:
        return read_core(core.decode())
    except (UnicodeDecodeError, msgspec.DecodeError) as error:
        raise Unverified(f"it is signed, but is no receipt: {error}") from None


def verify_bytes(what: bytes, signature: str, public_key: str) -> None:
    """Raises Unverified unless the owner of this key signed these bytes."""
    try:
        _public(public_key).verify(_decode(signature, "its signature"), what)
    except InvalidSignature:
        raise Unverified("the signature does not fit: it was changed, or another key signed it") from None


def broken_link(cores: Sequence[str]) -> str | None:
    """Why these cores, in their order from the first, are no unbroken chain; None when they are one."""
    before = FIRST
    ranks: set[int] = set()
    for place, core in enumerate(cores, 1):
        try:
            said = read_core(core)
        except msgspec.DecodeError as error:
            return f"link {place} cannot be read: {error}"
        if said.link != place:
            return f"link {place} calls itself {said.link}"
        if said.before != before:
            return f"link {place} does not follow from the one before it"
        if said.rank in ranks or not 1 <= said.rank <= said.of:
            return f"link {place} has rank {said.rank} of {said.of}, which was given before or is none"
        ranks.add(said.rank)
        before = digest_of(core)
    return None


def in_words(said: Receipt) -> str:
    """What a receipt says, for people."""
    at = datetime.fromtimestamp(said.at / 1000, UTC)
    worth = f", worth {said.value_fen / 100:.2f}" if said.value_fen else ""
    again = f" (claim {said.nth} of this viewer)" if said.nth > 1 else ""
    return "\n".join(
        [
            f"rank      {said.rank} of {said.of}{again}",
            f"benefit   {said.title} ({said.what}{worth})",
            f"          {said.benefit}",
            f"show      {said.show}",
            f"viewer    {said.viewer}",
            f"recorded  {at:%Y-%m-%d %H:%M:%S}.{said.at % 1000:03d} UTC",
            f"link      {said.link}, after {said.before or 'none: it is the first'}",
        ]
    )


def core_of(receipt: Receipt) -> str:
    return msgspec.json.encode(receipt).decode()


def read_core(core: str) -> Receipt:
    """Raises msgspec.DecodeError."""
    return msgspec.json.decode(core, type=Receipt)


def digest_of(core: str) -> str:
    return hashlib.sha256(core.encode()).hexdigest()


def _public(text: str) -> Ed25519PublicKey:
    key = _decode(text.strip(), "the key")
    if len(key) != KEY_BYTES:
        raise Unverified(f"the key has {len(key)} bytes; a public key has {KEY_BYTES}")
    return Ed25519PublicKey.from_public_bytes(key)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str, what: str) -> bytes:
    """Only the one way of writing these bytes: else a changed last character could mean the same."""
    try:
        if _TEXT.fullmatch(text) is None:
            raise binascii.Error
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        raise Unverified(f"{what} is not base64url") from None
    if _encode(data) != text:
        raise Unverified(f"{what} is not base64url as we write it")
    return data
