"""Tags: what a member's behaviour says they are interested in, with the evidence behind every one.

Deterministic: the same records give the same tags, scores and evidence, whenever and however often it is
run. Each tag names its rule and the records it was drawn from. Sensitive products never give one, guests
have none, and what a member struck out stays out.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

import msgspec
from psycopg.rows import DictRow

from membership.actor import MemberId, ProductId, ShowId, is_id, new_id
from membership.members import shown_as
from membership.page import Page, check_page
from membership.refusal import NotFound
from membership.transaction import Connection, Transaction

# What an evidence event weighs before it fades. An order and its payment are one event.
WATCH, COMMENT, QUESTION, CLICK, BALLOT, PLACED, PAID = 1.0, 2.0, 2.5, 3.0, 4.0, 5.0, 10.0
WATCH_SCALE_S = 120.0  # watching x seconds weighs 1 − exp(−x / 120 s); an hour little more than ten minutes
HALF_LIFE = timedelta(days=30)  # food
LOOK_BACK = timedelta(days=365)  # after twelve half-lives an order weighs 0.002

# Watching and one click weigh 4 together at the very most, after an hour: the 180 s rule decides on these.
THETA = 4.0
OFF = 0.6 * THETA  # on at 4, off below 2.4: a tag does not flicker
STRONG_EVENTS = 3
WATCHED_S = 180.0
SEGMENT_S_MIN = 10.0  # shorter glances are dropped
JOINED_S = 2.0  # heartbeats of one sitting lie this close together
DOUBLE_TAP_S = 2.0
KEPT_OUT = timedelta(days=180)  # after its member deleted a tag

Strength = Literal["strong", "weak"]
STRONG, WATCHED, FEW = "interest.strong.1", "interest.watched.1", "interest.few.1"
RULES: dict[str, str] = {
    STRONG: f"score ≥ {THETA:g} and at least {STRONG_EVENTS} evidence events",
    WATCHED: f"watched {WATCHED_S:g} s of one show while the product was on air, and one click",
    FEW: f"score ≥ {THETA:g}, from fewer than {STRONG_EVENTS} evidence events",
}
_NOT_YET = datetime.max.replace(tzinfo=UTC)  # still on air
_DERIVE_LOCK = 7_304_001  # one derivation at a time


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


# -- pure: from records to a judgement --------------------------------------------------------------------


class Seen(NamedTuple):
    """One behaviour record as the rules see it."""

    id: str
    show: str
    kind: str
    subject: str
    value: int
    at: datetime
    text: str | None


class Interval(NamedTuple):
    start: datetime
    end: datetime


class Event(NamedTuple):
    """One evidence event: something done once, with the records that prove it."""

    kind: str
    at: datetime
    weight: float
    records: tuple[str, ...]
    seconds: float = 0.0  # watched


class Judgement(NamedTuple):
    strength: Strength
    rule: str
    score: float
    events: tuple[Event, ...]
    expires_at: datetime


def score_of(events: Iterable[Event], as_of: datetime) -> float:
    """Σ weight · 2^(−age / half-life), six decimals. What came after `as_of` has not faded."""
    total = math.fsum(
        event.weight * 2.0 ** (-max(as_of - event.at, timedelta(0)) / HALF_LIFE) for event in events
    )
    return round(total, 6)


def judge(events: Sequence[Event], as_of: datetime, before: Strength | None = None) -> Judgement | None:
    """Whether a tag is on, how strongly and by which rule. `before` is its strength until now.

    What is on stays on, and as strong as it was, until its score is below 0.6 θ.
    """
    if not events:
        return None
    score = score_of(events, as_of)
    if score < OFF:
        return None
    clicked = any(event.kind == "click" for event in events)
    watched = max((event.seconds for event in events), default=0.0)
    strength: Strength = "weak"
    if len(events) >= STRONG_EVENTS and (score >= THETA or before == "strong"):
        strength, rule = "strong", STRONG
    elif clicked and watched >= WATCHED_S:
        rule = WATCHED
    elif score >= THETA or before is not None:
        rule = FEW
    else:
        return None
    return Judgement(strength, rule, score, tuple(events), as_of + HALF_LIFE * math.log2(score / OFF))


class Sitting(NamedTuple):
    """Watching without a break, in one window or several, with the records it was told by."""

    start: datetime
    end: datetime
    parts: list[tuple[Interval, str]]


def sittings(watched: Iterable[tuple[Interval, str]]) -> list[Sitting]:
    """Intervals joined where they touch, so that two open windows do not count double."""
    found: list[Sitting] = []
    for interval, record in sorted(watched):
        if found and interval.start <= found[-1].end + timedelta(seconds=JOINED_S):
            last = found[-1]
            last.parts.append((interval, record))
            found[-1] = last._replace(end=max(last.end, interval.end))
        else:
            found.append(Sitting(interval.start, interval.end, [(interval, record)]))
    return found


def overlap(watched: Iterable[Sitting], on_air: Iterable[Interval]) -> Event | None:
    """What was watched while on air, as one evidence event; None when there was no more than a glance."""
    seconds = 0.0
    ends: list[datetime] = []
    proof: dict[str, None] = {}
    for sitting in watched:
        for air in sorted(on_air):
            low, high = max(sitting.start, air.start), min(sitting.end, air.end)
            if (high - low).total_seconds() < SEGMENT_S_MIN:
                continue
            seconds += (high - low).total_seconds()
            ends.append(high)
            proof |= dict.fromkeys(
                record for part, record in sitting.parts if part.start < high and part.end > low
            )
    if not ends:
        return None
    return Event("watch", max(ends), watch_weight(seconds), tuple(proof), seconds)


def watch_weight(seconds: float) -> float:
    return WATCH * (1.0 - math.exp(-seconds / WATCH_SCALE_S))


def merge_intervals(intervals: Iterable[Interval]) -> list[Interval]:
    """The same time as disjoint intervals: a product pinned twice at once is on air once."""
    merged: list[Interval] = []
    for interval in sorted(intervals):
        if merged and interval.start <= merged[-1].end:
            merged[-1] = Interval(merged[-1].start, max(merged[-1].end, interval.end))
        elif interval.end > interval.start:
            merged.append(interval)
    return merged


_CLAUSE = re.compile(r"[\s,，.。!！?？;；、~～…]+")
_A_NOT_A = re.compile(r"(\w)不\1")  # 要不要, 好不好: asks, does not deny
_NOT = re.compile(
    r"不要(?!太)|不想|不买|不喜欢|不爱|不好|不吃|不行|难吃|没兴趣|不感兴趣|别买|讨厌|退货|踩雷"
    r"|\b(?:not|don't|dont|no|never|hate|bad)\b"
)
_ASKS = re.compile(
    r"怎么买|多少钱|怎么卖|哪里买|在哪买|怎么下单|还有货|有货吗|几块|什么价|how much|where.*buy|price"
)
_SIZE = re.compile(
    r"\d+(?:\.\d+)?\s*(?:kg|g|ml|l|公斤|斤|克|毫升|升|袋装|盒装|袋|盒|瓶|包|罐|只|枚|支|箱|件)?",
    re.IGNORECASE,
)


def fold(text: str) -> str:
    """One spelling for comparison: NFKC, small letters."""
    return unicodedata.normalize("NFKC", text).casefold()


class Aliases:
    """What products are called. The longest name wins: 有机大米 is not also 大米."""

    def __init__(self, names: Mapping[ProductId, Iterable[str]]) -> None:
        owners: dict[str, set[ProductId]] = defaultdict(set)
        for product, given in names.items():
            for name in given:
                folded = fold(name).strip()
                bare = " ".join(_SIZE.sub(" ", folded).split())
                # a word of a Chinese name stands for the product; of a Latin one it may be any adjective
                words = {word for word in bare.split() if len(word) >= 3 and not word.isascii()}
                for alias in {folded, bare} | words:
                    if len(alias) >= 2:
                        owners[alias].add(product)
        # what two products share (the brand, a size) names neither
        self._owner = {alias: next(iter(found)) for alias, found in owners.items() if len(found) == 1}
        spelled = (
            rf"(?<![a-z0-9]){re.escape(alias)}(?![a-z0-9])" if alias.isascii() else re.escape(alias)
            for alias in sorted(self._owner, key=lambda alias: (-len(alias), alias))
        )
        joined = "|".join(spelled)
        self._pattern = re.compile(joined) if joined else None

    def mentions(self, text: str) -> dict[ProductId, float]:
        """Products named in a comment → its weight. A clause that denies does not count."""
        found: dict[ProductId, float] = {}
        if self._pattern is None:
            return found
        folded = fold(text)
        weight = QUESTION if _ASKS.search(folded) else COMMENT
        denied: set[ProductId] = set()
        for clause in _clauses(folded):
            named = [self._owner[match.group()] for match in self._pattern.finditer(clause)]
            if not named:
                continue
            if _NOT.search(_A_NOT_A.sub("", clause)):
                denied.update(named)
            else:
                found.update(dict.fromkeys(named, weight))
        return {product: weight for product, weight in found.items() if product not in denied}


def _clauses(text: str) -> list[str]:
    """Clauses by punctuation; a clause that is only spaces apart in Latin script stays together."""
    hard = re.split(r"[,，.。!！?？;；、~～…\n]+", text)
    clauses: list[str] = []
    for part in hard:
        clauses += [part] if part.isascii() else _CLAUSE.split(part)
    return [clause for clause in clauses if clause]


class World(NamedTuple):
    """Everything besides a member's own records that the rules look at."""

    aliases: Aliases
    products: frozenset[ProductId]  # those that may be tagged
    on_air: Mapping[tuple[str, ProductId], Sequence[Interval]]  # (show, product)
    ordered: Mapping[str, Sequence[ProductId]]  # order id → products
    choices: Mapping[str, str]  # poll:<id>:<choice> → what the choice says


def evidence_of(records: Iterable[Seen], world: World) -> dict[ProductId, list[Event]]:
    """Product → evidence events, oldest first. A pure function of one member's records."""
    found: dict[ProductId, list[Event]] = defaultdict(list)
    watched: dict[str, list[tuple[Interval, str]]] = defaultdict(list)
    orders: dict[tuple[ProductId, str], list[Seen]] = defaultdict(list)
    last_click: dict[tuple[str, str], datetime] = {}
    for record in sorted(records, key=lambda record: (record.at, record.id)):
        kind, _, rest = record.subject.partition(":")
        if record.kind == "watch":
            end = record.at + timedelta(milliseconds=record.value)
            watched[record.show].append((Interval(record.at, end), record.id))
        elif record.kind == "click" and kind == "product":
            before = last_click.get((record.show, rest))
            if before is None or (record.at - before).total_seconds() > DOUBLE_TAP_S:
                found[ProductId(rest)].append(Event("click", record.at, CLICK, (record.id,)))
                last_click[(record.show, rest)] = record.at
        elif record.kind == "comment" and record.text:
            for product, weight in world.aliases.mentions(record.text).items():
                found[product].append(Event("comment", record.at, weight, (record.id,)))
        elif record.kind == "ballot":
            for product in world.aliases.mentions(world.choices.get(record.subject, "")):
                found[product].append(Event("ballot", record.at, BALLOT, (record.id,)))
        elif record.kind in ("order", "paid"):
            products = [ProductId(rest)] if kind == "product" else world.ordered.get(rest, ())
            for product in products:
                orders[(product, rest)].append(record)
    for (product, _), steps in orders.items():
        paid = any(step.kind == "paid" for step in steps)
        at = max(step.at for step in steps)
        ids = tuple(step.id for step in steps)
        found[product].append(Event("order", at, PAID if paid else PLACED, ids))
    sat = {show: sittings(parts) for show, parts in watched.items()}
    for (show, product), air in world.on_air.items():
        event = overlap(sat.get(show, ()), air)
        if event is not None:
            found[product].append(event)
    return {
        product: sorted(events, key=lambda event: (event.at, event.records))
        for product, events in found.items()
        if product in world.products
    }


# -- the store --------------------------------------------------------------------------------------------

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
        await t.conn.execute("SELECT pg_advisory_xact_lock(%s)", (_DERIVE_LOCK,))
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
            interval = Interval(row["from_at"], row["to_at"] or _NOT_YET)
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
