"""Tags: what a member's behaviour says they are interested in, with the evidence behind every one.

Deterministic: the same records give the same tags, scores and evidence, whenever and however often it is
run. Each tag names its rule and the records it was drawn from. Sensitive products never give one, guests
have none, and what a member struck out stays out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec
from psycopg.rows import DictRow

from membership.actor import MemberId, ProductId, ShowId, is_id, new_id
from membership.interest import (
    KEPT_OUT,
    LOOK_BACK,
    RULES,
    STILL_ON_AIR,
    Aliases,
    Interval,
    Judgement,
    Seen,
    Strength,
    World,
    evidence_of,
    judge,
    merge_intervals,
)
from membership.members import shown_as
from membership.page import Page, check_page
from membership.refusal import NotFound
from membership.transaction import Connection, Transaction, lock


class NoSuchTag(NotFound):
    """There is no such tag."""


class Evidence(msgspec.Struct, frozen=True):
    """One record behind a tag. Records of one sitting share the number of their event."""

    record: str
    event: int
    weight: float  # of the event, before it fades
    kind: str
    show: ShowId
    subject: str
    value: int
    at: datetime
    text: str | None


class Tag(msgspec.Struct, frozen=True):
    id: str
    member: MemberId
    member_name: str  # as others see them
    subject: str  # product:<id>
    name: str  # 对有机大米感兴趣
    score: float  # as of the end of the show it was last drawn from
    strength: Strength
    rule: str
    rule_text: str
    events: int
    as_of: datetime
    expires_at: datetime
    evidence: tuple[Evidence, ...] = ()


class Summary(msgspec.Struct, frozen=True):
    """What a derivation did. Run again: everything unchanged."""

    members: int
    added: int = 0
    changed: int = 0
    dropped: int = 0
    unchanged: int = 0


_TAG = """
    SELECT g.id, g.member_id, m.nickname, g.subject, g.name, g.score, g.strength, g.rule, g.events, g.as_of,
           g.expires_at
    FROM tags g
    JOIN members m ON m.id = g.member_id
    JOIN products p ON g.subject = 'product:' || p.id AND NOT p.no_behaviour_tags
    WHERE g.expires_at > clock_timestamp()
      AND NOT EXISTS (
          SELECT 1 FROM tag_deletions d
          WHERE d.member_id = g.member_id AND d.subject = g.subject
            AND d.deleted_at > clock_timestamp() - interval '180 days')
"""


def _tag(row: DictRow, evidence: Sequence[Evidence] = ()) -> Tag:
    return Tag(
        id=str(row["id"]),
        member=MemberId(str(row["member_id"])),
        member_name=shown_as(MemberId(str(row["member_id"])), row["nickname"]),
        subject=row["subject"],
        name=row["name"],
        score=row["score"],
        strength=row["strength"],
        rule=row["rule"],
        rule_text=RULES[row["rule"]],
        events=row["events"],
        as_of=row["as_of"],
        expires_at=row["expires_at"],
        evidence=tuple(evidence),
    )


class _Held(NamedTuple):
    """A tag as it stands in the store."""

    id: str
    name: str
    strength: Strength
    rule: str
    score: float
    events: int
    as_of: datetime
    expires_at: datetime
    proof: dict[str, tuple[int, float]]

    def says(self, name: str, judgement: Judgement, as_of: datetime) -> bool:
        """Whether drawing the tag anew changes nothing in it."""
        return (
            self.name,
            self.strength,
            self.rule,
            self.score,
            self.events,
            self.as_of,
            self.expires_at,
        ) == (
            name,
            judgement.strength,
            judgement.rule,
            judgement.score,
            len(judgement.events),
            as_of,
            judgement.expires_at,
        ) and self.proof == _proof(judgement)


class _Drawn(NamedTuple):
    """A tag to be written."""

    id: str
    member: str
    subject: str
    name: str
    judgement: Judgement
    as_of: datetime


def _proof(judgement: Judgement) -> dict[str, tuple[int, float]]:
    """Record → number and weight of its evidence event."""
    return {
        record: (number, round(event.weight, 6))
        for number, event in enumerate(judgement.events, 1)
        for record in event.records
    }


def _columns(tags: Sequence[_Drawn]) -> dict[str, list[object]]:
    return {
        "ids": [tag.id for tag in tags],
        "members": [tag.member for tag in tags],
        "subjects": [tag.subject for tag in tags],
        "names": [tag.name for tag in tags],
        "scores": [tag.judgement.score for tag in tags],
        "strengths": [tag.judgement.strength for tag in tags],
        "rules": [tag.judgement.rule for tag in tags],
        "events": [len(tag.judgement.events) for tag in tags],
        "as_of": [tag.as_of for tag in tags],
        "expires_at": [tag.judgement.expires_at for tag in tags],
    }


class Tags:
    async def derive(self, t: Transaction, show: ShowId) -> Summary:
        """Draw the tags of every member who did something in this show, as of its end.

        All their records count, of any show, each faded by its age. Run again, or for an earlier show after
        a later one, it changes nothing. Raises NotFound when there is no such show.
        """
        await lock(t.conn, "tags")  # one derivation at a time
        end = await self._end_of(t.conn, show)
        members = await self._members_of(t.conn, show)
        products = await self._products(t.conn)
        total = Summary(members=len(members))
        for first in range(0, len(members), 500):
            total = await self._derive_some(t, members[first : first + 500], end, products, total)
        return total

    async def fade(self, t: Transaction, *, at: datetime | None = None) -> int:
        """Drop the tags that have faded below 0.6 θ. Nobody sees them any more; this frees their rows."""
        dropped = await t.conn.execute(
            "DELETE FROM tags WHERE expires_at <= coalesce(%s::timestamptz, clock_timestamp())", (at,)
        )
        return dropped.rowcount

    async def of_member(
        self, conn: Connection, member: MemberId, *, evidence: bool = True
    ) -> tuple[Tag, ...]:
        """The member's tags, strongest first, with their evidence."""
        rows = await (
            await conn.execute(_TAG + " AND g.member_id = %s ORDER BY g.score DESC, g.subject", (member,))
        ).fetchall()
        return await self._with_evidence(conn, rows) if evidence else tuple(_tag(row) for row in rows)

    async def of_show(
        self, conn: Connection, show: ShowId, cursor: str | None = None, limit: int = 50
    ) -> Page[Tag]:
        """The tags to which something done in this show is evidence."""
        check_page(cursor, limit)
        rows = await (
            await conn.execute(
                _TAG  # noqa: S608 - a constant; what comes from outside is a parameter
                + """
                AND EXISTS (SELECT 1 FROM tag_evidence e JOIN behaviour_records r ON r.id = e.record_id
                            WHERE e.tag_id = g.id AND r.show_id = %(show)s)
                AND (%(cursor)s::uuid IS NULL OR g.id > %(cursor)s)
                ORDER BY g.id LIMIT %(limit)s + 1
                """,
                {"show": show, "cursor": cursor, "limit": limit},
            )
        ).fetchall()
        items = await self._with_evidence(conn, rows[:limit])
        return Page(items, items[-1].id if len(rows) > limit else None)

    async def delete_by_member(self, t: Transaction, member: MemberId, tag: str) -> None:
        """Strike a tag out. It does not return for 180 days, nor ever from what was done before now.

        Raises NoSuchTag, also for somebody else's.
        """
        row = None
        if is_id(tag):
            row = await (
                await t.conn.execute(
                    "DELETE FROM tags WHERE id = %s AND member_id = %s RETURNING subject", (tag, member)
                )
            ).fetchone()
        if row is None:
            raise NoSuchTag
        await t.conn.execute(
            "INSERT INTO tag_deletions (member_id, subject) VALUES (%s, %s)", (member, row["subject"])
        )

    # -- reading what the rules look at

    async def _end_of(self, conn: Connection, show: ShowId) -> datetime:
        row = await (
            await conn.execute(
                """
                SELECT coalesce(s.ended_at, max(r.at), s.starts_at) AS at
                FROM shows s LEFT JOIN behaviour_records r ON r.show_id = s.id AND s.ended_at IS NULL
                WHERE s.id = %s GROUP BY s.id
                """,
                (show,),
            )
        ).fetchone()
        if row is None:
            raise NotFound("There is no such show.")
        end: datetime = row["at"]
        return end

    async def _members_of(self, conn: Connection, show: ShowId) -> list[str]:
        rows = await (
            await conn.execute(
                """
                SELECT DISTINCT r.member_id::text AS member
                FROM behaviour_records r JOIN members m ON m.id = r.member_id AND m.erased_at IS NULL
                WHERE r.show_id = %s ORDER BY member
                """,
                (show,),
            )
        ).fetchall()
        return [row["member"] for row in rows]

    async def _products(self, conn: Connection) -> dict[ProductId, tuple[str, str | None]]:
        rows = await (
            await conn.execute(
                "SELECT id::text, name, tag_name FROM products WHERE NOT no_behaviour_tags ORDER BY id"
            )
        ).fetchall()
        return {ProductId(row["id"]): (row["name"], row["tag_name"]) for row in rows}

    async def _records(
        self, conn: Connection, members: Sequence[str], since: datetime
    ) -> dict[str, list[tuple[Seen, datetime]]]:
        """Each member's records, with the moment from which each is known: it, or the end of its show."""
        rows = await (
            await conn.execute(
                """
                SELECT r.member_id::text AS member, r.id::text AS id, r.show_id, r.kind, r.subject, r.value,
                       r.at, r.text, coalesce(s.ended_at, r.at) AS known_at
                FROM behaviour_records r LEFT JOIN shows s ON s.id = r.show_id
                WHERE r.member_id = ANY(%s::uuid[]) AND r.at >= %s
                  AND r.kind IN ('watch', 'click', 'comment', 'ballot', 'order', 'paid')
                ORDER BY r.at, r.id
                """,
                (list(members), since),
            )
        ).fetchall()
        found: dict[str, list[tuple[Seen, datetime]]] = defaultdict(list)
        for row in rows:
            seen = Seen(
                row["id"], row["show_id"], row["kind"], row["subject"], row["value"], row["at"], row["text"]
            )
            found[row["member"]].append((seen, min(row["at"], row["known_at"])))
        return found

    async def _world(
        self,
        conn: Connection,
        products: Mapping[ProductId, tuple[str, str | None]],
        records: Iterable[Seen],
    ) -> World:
        shows: set[str] = set()
        orders: set[str] = set()
        polls: set[str] = set()
        for record in records:
            if record.kind == "watch":
                shows.add(record.show)
            elif record.subject.startswith("order:") and is_id(record.subject[6:]):
                orders.add(record.subject[6:])
            elif record.kind == "ballot" and is_id(record.subject[5:41]):
                polls.add(record.subject[5:41])
        rows = await (
            await conn.execute(
                """
                SELECT a.show_id, a.product_id::text AS product, a.from_at,
                       coalesce(a.to_at, s.ended_at) AS to_at
                FROM on_air a JOIN shows s ON s.id = a.show_id WHERE a.show_id = ANY(%s)
                """,
                (sorted(shows),),
            )
        ).fetchall()
        on_air: dict[tuple[str, ProductId], list[Interval]] = defaultdict(list)
        for row in rows:
            interval = Interval(row["from_at"], row["to_at"] or STILL_ON_AIR)
            on_air[(row["show_id"], ProductId(row["product"]))].append(interval)
        lines = await (
            await conn.execute(
                """
                SELECT DISTINCT order_id::text AS order_id, product_id::text AS product FROM order_lines
                WHERE order_id = ANY(%s::uuid[]) AND kind = 'goods' ORDER BY order_id, product
                """,
                (sorted(orders),),
            )
        ).fetchall()
        ordered: dict[str, list[ProductId]] = defaultdict(list)
        for line in lines:
            ordered[line["order_id"]].append(ProductId(line["product"]))
        asked = await (
            await conn.execute(
                "SELECT id::text, choices FROM polls WHERE id = ANY(%s::uuid[])", (sorted(polls),)
            )
        ).fetchall()
        return World(
            aliases=Aliases(
                {product: [name for name in given if name] for product, given in products.items()}
            ),
            products=frozenset(products),
            on_air={key: merge_intervals(intervals) for key, intervals in sorted(on_air.items())},
            ordered=ordered,
            choices={
                f"poll:{poll['id']}:{number}": str(choice)
                for poll in asked
                for number, choice in enumerate(poll["choices"])
            },
        )

    # -- writing what they say

    async def _derive_some(
        self,
        t: Transaction,
        members: Sequence[str],
        end: datetime,
        products: Mapping[ProductId, tuple[str, str | None]],
        total: Summary,
    ) -> Summary:
        records = await self._records(t.conn, members, end - LOOK_BACK)
        world = await self._world(t.conn, products, (seen for rows in records.values() for seen, _ in rows))
        held = await self._held(t.conn, members)
        struck = await self._struck(t.conn, members)
        added: list[_Drawn] = []
        changed: list[_Drawn] = []
        dropped: list[str] = []
        unchanged = 0
        for member in members:
            mine = held.get(member, {})
            # an earlier show after a later one: what was drawn from the later stands
            as_of = max([end, *(tag.as_of for tag in mine.values())])
            known = [seen for seen, known_at in records.get(member, ()) if known_at <= as_of]
            drawn: set[str] = set()
            for product, events in evidence_of(known, world).items():
                subject = f"product:{product}"
                out_at = struck.get((member, subject))
                if out_at is not None:
                    if as_of < out_at + KEPT_OUT:
                        continue
                    events = [event for event in events if event.at > out_at]
                tag = mine.get(subject)
                before = tag.strength if tag is not None and tag.expires_at > as_of else None
                judgement = judge(events, as_of, before)
                if judgement is None:
                    continue
                drawn.add(subject)
                name, tag_name = products[product]
                name = f"对{tag_name or name}感兴趣"
                if tag is None:
                    added.append(_Drawn(new_id(), member, subject, name, judgement, as_of))
                elif tag.says(name, judgement, as_of):
                    unchanged += 1
                else:
                    changed.append(_Drawn(tag.id, member, subject, name, judgement, as_of))
            dropped += [tag.id for subject, tag in mine.items() if subject not in drawn]
        await self._write(t.conn, added, changed, dropped)
        return Summary(
            total.members,
            total.added + len(added),
            total.changed + len(changed),
            total.dropped + len(dropped),
            total.unchanged + unchanged,
        )

    async def _held(self, conn: Connection, members: Sequence[str]) -> dict[str, dict[str, _Held]]:
        rows = await (
            await conn.execute(
                """
                SELECT id::text, member_id::text AS member, subject, name, score, strength, rule, events,
                       as_of, expires_at
                FROM tags WHERE member_id = ANY(%s::uuid[]) ORDER BY id FOR UPDATE
                """,
                (list(members),),
            )
        ).fetchall()
        proofs = await (
            await conn.execute(
                "SELECT tag_id::text AS tag, record_id::text AS record, event, weight FROM tag_evidence"
                " WHERE tag_id = ANY(%s::uuid[])",
                ([row["id"] for row in rows],),
            )
        ).fetchall()
        stands: dict[str, dict[str, tuple[int, float]]] = defaultdict(dict)
        for proof in proofs:
            stands[proof["tag"]][proof["record"]] = (proof["event"], proof["weight"])
        held: dict[str, dict[str, _Held]] = defaultdict(dict)
        for row in rows:
            held[row["member"]][row["subject"]] = _Held(
                id=row["id"],
                name=row["name"],
                strength=row["strength"],
                rule=row["rule"],
                score=row["score"],
                events=row["events"],
                as_of=row["as_of"],
                expires_at=row["expires_at"],
                proof=stands[row["id"]],
            )
        return held

    async def _struck(self, conn: Connection, members: Sequence[str]) -> dict[tuple[str, str], datetime]:
        rows = await (
            await conn.execute(
                """
                SELECT member_id::text AS member, subject, max(deleted_at) AS at FROM tag_deletions
                WHERE member_id = ANY(%s::uuid[]) GROUP BY member_id, subject
                """,
                (list(members),),
            )
        ).fetchall()
        return {(row["member"], row["subject"]): row["at"] for row in rows}

    async def _write(
        self, conn: Connection, added: Sequence[_Drawn], changed: Sequence[_Drawn], dropped: Sequence[str]
    ) -> None:
        """A batch in five statements: one by one, 30,000 tags took three minutes."""
        await conn.execute("DELETE FROM tags WHERE id = ANY(%s::uuid[])", (list(dropped),))
        await conn.execute(
            "DELETE FROM tag_evidence WHERE tag_id = ANY(%s::uuid[])", ([tag.id for tag in changed],)
        )
        columns = """
            unnest(%(ids)s::uuid[], %(members)s::uuid[], %(subjects)s::text[], %(names)s::text[],
                   %(scores)s::double precision[], %(strengths)s::text[], %(rules)s::text[],
                   %(events)s::integer[], %(as_of)s::timestamptz[], %(expires_at)s::timestamptz[])
            AS n (id, member_id, subject, name, score, strength, rule, events, as_of, expires_at)
        """
        await conn.execute(
            """
            INSERT INTO tags (id, member_id, subject, name, score, strength, rule, events, as_of, expires_at)
            SELECT * FROM
            """
            + columns,
            _columns(added),
        )
        await conn.execute(
            """
            UPDATE tags g SET name = n.name, score = n.score, strength = n.strength, rule = n.rule,
                              events = n.events, as_of = n.as_of, expires_at = n.expires_at
            FROM
            """  # noqa: S608
            + columns
            + " WHERE g.id = n.id",
            _columns(changed),
        )
        async with (
            conn.cursor() as cursor,
            cursor.copy("COPY tag_evidence (tag_id, record_id, event, weight) FROM STDIN") as copy,
        ):
            for tag in (*added, *changed):
                for record, (number, weight) in _proof(tag.judgement).items():
                    await copy.write_row((tag.id, record, number, weight))

    async def _with_evidence(self, conn: Connection, rows: Sequence[DictRow]) -> tuple[Tag, ...]:
        proofs = await (
            await conn.execute(
                """
                SELECT e.tag_id, e.event, e.weight, r.id, r.kind, r.show_id, r.subject, r.value, r.at, r.text
                FROM tag_evidence e JOIN behaviour_records r ON r.id = e.record_id
                WHERE e.tag_id = ANY(%s) ORDER BY e.tag_id, e.event, r.at, r.id
                """,
                ([row["id"] for row in rows],),
            )
        ).fetchall()
        by_tag: dict[str, list[Evidence]] = defaultdict(list)
        for proof in proofs:
            by_tag[str(proof["tag_id"])].append(
                Evidence(
                    record=str(proof["id"]),
                    event=proof["event"],
                    weight=proof["weight"],
                    kind=proof["kind"],
                    show=ShowId(proof["show_id"]),
                    subject=proof["subject"],
                    value=proof["value"],
                    at=proof["at"],
                    text=proof["text"],
                )
            )
        return tuple(_tag(row, by_tag[str(row["id"])]) for row in rows)
