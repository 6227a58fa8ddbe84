"""The one list of what is personal: where it lies, and how it is forgotten.

Everything else that is kept of a member is an opaque id, an amount or a date. Erasing walks this list;
the books (terms, points, orders, audit) stay whole.
"""

from __future__ import annotations

from typing import LiteralString

import msgspec


class Personal(msgspec.Struct, frozen=True):
    table: str
    columns: tuple[str, ...]
    erase: LiteralString  # one statement; its parameter %(member)s is the member's id


PERSONAL: tuple[Personal, ...] = (
    Personal(
        "identifiers",
        ("value",),
        "UPDATE identifiers SET value = NULL, ended_at = coalesce(ended_at, clock_timestamp())"
        " WHERE member_id = %(member)s",
    ),
    Personal(
        "addresses",
        ("name", "phone", "region", "detail"),
        "DELETE FROM addresses WHERE member_id = %(member)s",
    ),
    Personal(
        "gift_claims",
        ("address",),
        "UPDATE gift_claims SET address = NULL WHERE member_id = %(member)s",
    ),
    Personal("tags", ("name", "score"), "DELETE FROM tags WHERE member_id = %(member)s"),
    Personal("tag_deletions", ("subject",), "DELETE FROM tag_deletions WHERE member_id = %(member)s"),
    Personal(
        "behaviour_records",
        ("viewer", "member_id", "text"),
        "UPDATE behaviour_records SET viewer = NULL, member_id = NULL, text = NULL"
        " WHERE member_id = %(member)s",
    ),
    Personal(
        "members",
        ("nickname", "external_id", "birthday"),
        "UPDATE members SET nickname = NULL, external_id = NULL, birthday = NULL, erased_at = clock_timestamp()"
        " WHERE id = %(member)s",
    ),
)
