"""From behaviour records to a judgement: is this member interested in that product, and what proves it.

Pure: the same records give the same judgement, whenever and however often it is drawn. Sensitive products
are not in the `World` that is judged, and guests have no records here.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

from membership.actor import ProductId

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
STILL_ON_AIR = datetime.max.replace(tzinfo=UTC)  # still on air


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
