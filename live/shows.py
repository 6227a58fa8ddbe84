"""Shows: scheduled → waiting → live ⇄ paused → ending → ended; their card, their keys, their rebirth.

PostgreSQL holds a show's status: a move is committed first and told by an idempotent script after. `agree`
repeats that for whatever a crash left between, and `ensure` makes the keys anew when Redis lost them.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from chat.comments import Comments, need
from chat.polls import Polls
from chat.text import bounded
from commerce.benefits import Benefits
from commerce.incidents import Incidents
from commerce.offers import Offers
from live.database import Database
from live.rooms import Room, room_from
from membership.actor import Actor, Facts, RoomId, ShowId, is_id, new_link_id
from membership.alone import alone
from membership.audience import EVERYONE, FIRST_OWN_BIT, LAST_OWN_BIT, PLAN_MEMBERS, Audience
from membership.moment import in_ms
from membership.page import BadCursor, Page
from membership.refusal import Away, BadRequest, Forbidden, NotFound, Refusal, Unavailable
from membership.script import Arg, ScriptLoader, json_arg
from membership.transaction import Connection, Transaction, lock

log = logging.getLogger(__name__)

Status = Literal["scheduled", "waiting", "live", "paused", "ending", "ended"]
VideoKind = Literal["hls", "flv", "mp4"]
AfterShow = Callable[[Transaction, ShowId], Awaitable[object]]

TITLE_MAX, SUMMARY_MAX = 60, 500  # code points
WAITING_BEFORE_S = 30 * 60  # the waiting room opens so long before the start
LAST_CALL_MAX_S = 600  # as long as an order's hold
AGREE_AFTER_END_S = 3_600
REBUILD_MS = 10_000  # longer, and whoever rebuilt has died on the way
KEPT_EVENTS = (
    "comment.pinned",
    "comment.unpinned",
    "comment.hidden",
    "announcement.set",
    "viewer.muted",
    "viewer.unmuted",
)

MOVES: Final[dict[Status, dict[Status, str]]] = {
    "scheduled": {"waiting": "show.opened"},
    "waiting": {"live": "show.started"},
    "live": {"paused": "show.paused", "ending": "show.ending"},
    "paused": {"live": "show.resumed", "ending": "show.ending"},
    "ending": {"ended": "show.ended"},
    "ended": {},
}


class WrongStatus(Refusal):
    """The show's status does not allow this now."""

    code = "wrong_status"


class RoomBusy(Refusal):
    """Another show of this room is on air."""

    code = "room_busy"


class Show(Struct, frozen=True, kw_only=True):
    """One broadcast in a room. Times are ms."""

    id: ShowId
    room: Room
    title: str
    summary: str
    video_url: str
    video_kind: VideoKind
    poster_url: str
    status: Status
    starts_at: int
    started_at: int | None
    ending_until: int | None  # end of the last call
    ended_at: int | None
    guest_comments: bool
    generation: int


class ShowInput(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A show to be scheduled."""

    room: RoomId
    title: Annotated[str, Meta(min_length=1, max_length=400)]
    starts_at: datetime
    summary: Annotated[str, Meta(max_length=4000)] = ""
    video_url: Annotated[str, Meta(max_length=2000)] = ""
    video_kind: VideoKind = "hls"
    poster_url: Annotated[str, Meta(max_length=2000)] = ""
    guest_comments: bool = False


class ShowPatch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What of a show is to be changed; its start only before it began."""

    title: Annotated[str, Meta(min_length=1, max_length=400)] | UnsetType = UNSET
    starts_at: datetime | UnsetType = UNSET
    summary: Annotated[str, Meta(max_length=4000)] | UnsetType = UNSET
    video_url: Annotated[str, Meta(max_length=2000)] | UnsetType = UNSET
    video_kind: VideoKind | UnsetType = UNSET
    poster_url: Annotated[str, Meta(max_length=2000)] | UnsetType = UNSET
    guest_comments: bool | UnsetType = UNSET


class Seen(Struct, frozen=True):
    """What a node saw of a show's log, to be compared with the store's."""

    seq: int  # the highest number
    compared: int  # number and event of the last entry that can be compared
    event: bytes  # b"" when there is none
    agreed: int  # the last number at which node and store agree


class Video(Struct, frozen=True):
    """Where the moving picture comes from."""

    url: str
    kind: VideoKind
    poster: str


class CardRoom(Struct, frozen=True):
    slug: str
    title: str
    host: str


class Card(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a person may know of a show before entering it.

    Who is not in the room's audience gets title, host, start, poster and the way in; nothing else.
    """

    id: ShowId
    title: str
    status: Status
    starts_at: int
    room: CardRoom
    poster: str
    admitted: bool
    way_in: Literal["sign_in", "join", "closed"] | None = None
    summary: str | UnsetType = UNSET
    started_at: int | UnsetType | None = UNSET
    ended_at: int | UnsetType | None = UNSET
    video: Video | UnsetType = UNSET


class _Event(Struct, frozen=True, kw_only=True):
    """A move of the show. The store adds `at`, the hub `seq`."""

    seq: int | UnsetType = UNSET
    at: int | UnsetType = UNSET


class ShowOpened(_Event, tag="show.opened", frozen=True, kw_only=True):
    """The waiting room is open."""


class ShowStarted(_Event, tag="show.started", frozen=True, kw_only=True):
    """The show is live."""


class ShowPaused(_Event, tag="show.paused", frozen=True, kw_only=True):
    """The show is paused; people stay."""


class ShowResumed(_Event, tag="show.resumed", frozen=True, kw_only=True):
    """The show goes on."""


class ShowEnding(_Event, tag="show.ending", frozen=True, kw_only=True):
    """Last call: what is open closes at `until` (ms)."""

    until: int | UnsetType = UNSET


class ShowEnded(_Event, tag="show.ended", frozen=True, kw_only=True):
    """The show is over. Holds run on; orders are paid on their own page."""


EVENTS: Final[tuple[type[_Event], ...]] = (
    ShowOpened,
    ShowStarted,
    ShowPaused,
    ShowResumed,
    ShowEnding,
    ShowEnded,
)


class Shows:
    """The life of shows."""

    def __init__(
        self,
        scripts: ScriptLoader,
        database: Database,
        comments: Comments,
        polls: Polls,
        offers: Offers,
        benefits: Benefits,
        after_show: AfterShow,
        incidents: Incidents | None = None,
    ) -> None:
        self._incidents = incidents
        self._database = database
        self._comments = comments
        self._polls = polls
        self._offers = offers
        self._benefits = benefits
        self._after_show = after_show
        self._open_keys = scripts.load("live", "open_show")
        self._read = scripts.load("live", "read_show")
        self._set_status = scripts.load("live", "set_status")
        self._mark_whole = scripts.load("live", "mark_whole")
        self._renew_epoch = scripts.load("live", "renew_epoch")

    # -- the books ---------------------------------------------------------------------------------

    async def create(self, t: Transaction, actor: Actor, given: ShowInput) -> Show:
        """Schedule a show. Raises Forbidden, NotFound (room), BadRequest."""
        need(actor, "room.write")
        if actor.room is not None and actor.room != given.room:
            raise Forbidden
        room = None
        if is_id(given.room):
            room = await (
                await t.conn.execute("SELECT id FROM rooms WHERE id = %s FOR KEY SHARE", [given.room])
            ).fetchone()
        if room is None:
            raise NotFound("There is no such room.")
        show = ShowId(new_link_id())
        await t.conn.execute(
            "INSERT INTO shows (id, room_id, title, summary, video_url, video_kind, poster_url, starts_at,"
            " guest_comments) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                show,
                given.room,
                bounded(given.title, TITLE_MAX, "A title"),
                _summary(given.summary),
                _address(given.video_url, "The video's address"),
                given.video_kind,
                _address(given.poster_url, "The poster's address"),
                _start(given.starts_at),
                given.guest_comments,
            ],
        )
        made = await self.get(t.conn, show)
        t.after_commit(lambda: self._open_new(made))
        return made

    async def get(self, conn: Connection, show: str) -> Show:
        """Raises NotFound."""
        return await self._row(conn, ShowId(show))

    async def list(
        self,
        conn: Connection,
        cursor: str | None = None,
        room: RoomId | None = None,
        *,
        statuses: tuple[Status, ...] | None = None,
        limit: int = 50,
    ) -> Page[Show]:
        """Shows, the latest start first."""
        before, last = _place(cursor)
        rows = await (
            await conn.execute(
                _SHOWS
                + """
                WHERE (%(room)s::uuid IS NULL OR s.room_id = %(room)s)
                  AND (%(statuses)s::text[] IS NULL OR s.state = ANY(%(statuses)s))
                  AND (%(before)s::timestamptz IS NULL OR (s.starts_at, s.id) < (%(before)s, %(last)s))
                ORDER BY s.starts_at DESC, s.id DESC LIMIT %(limit)s + 1
                """,
                {
                    "room": room if room is None or is_id(room) else "00000000-0000-0000-0000-000000000000",
                    "statuses": None if statuses is None else list(statuses),
                    "before": before,
                    "last": last,
                    "limit": max(1, min(200, limit)),
                },
            )
        ).fetchall()
        kept = rows[: max(1, min(200, limit))]
        following = None
        if len(rows) > len(kept):
            at: datetime = kept[-1]["starts_at"]
            following = f"{int(at.timestamp()) * 1_000_000 + at.microsecond}.{kept[-1]['id']}"
        return Page(tuple(_show(row) for row in kept), following)

    async def update(self, t: Transaction, actor: Actor, show: ShowId, patch: ShowPatch) -> Show:
        """Change a show; viewers follow after the commit.

        Raises Forbidden, NotFound, BadRequest, WrongStatus.
        """
        need(actor, "room.write")
        found = await self._row(t.conn, show, lock=True)
        _same_room(actor, found)
        columns: dict[str, object] = {}
        if patch.title is not UNSET:
            columns["title"] = bounded(patch.title, TITLE_MAX, "A title")
        if patch.summary is not UNSET:
            columns["summary"] = _summary(patch.summary)
        if patch.video_url is not UNSET:
            columns["video_url"] = _address(patch.video_url, "The video's address")
        if patch.video_kind is not UNSET:
            columns["video_kind"] = patch.video_kind
        if patch.poster_url is not UNSET:
            columns["poster_url"] = _address(patch.poster_url, "The poster's address")
        if patch.guest_comments is not UNSET:
            columns["guest_comments"] = patch.guest_comments
        if patch.starts_at is not UNSET:
            if found.status not in ("scheduled", "waiting"):
                raise WrongStatus("The start is fixed once the show has begun.")
            columns["starts_at"] = _start(patch.starts_at)
        if columns:
            await t.conn.execute(
                """
                UPDATE shows SET title = coalesce(%(title)s, title), summary = coalesce(%(summary)s, summary),
                    video_url = coalesce(%(video_url)s, video_url),
                    video_kind = coalesce(%(video_kind)s, video_kind),
                    poster_url = coalesce(%(poster_url)s, poster_url),
                    guest_comments = coalesce(%(guest_comments)s, guest_comments),
                    starts_at = coalesce(%(starts_at)s, starts_at)
                WHERE id = %(id)s
                """,
                {
                    **dict.fromkeys(
                        (
                            "title",
                            "summary",
                            "video_url",
                            "video_kind",
                            "poster_url",
                            "guest_comments",
                            "starts_at",
                        )
                    ),
                    **columns,
                    "id": show,
                },
            )
            t.after_commit(lambda: self.agree(show))
        return await self.get(t.conn, show)

    async def in_room(self, show: ShowId, room: RoomId) -> bool:
        """Whether a show is of a room: staff and tokens may be bound to one."""
        async with self._database.reading() as conn:
            row = await (await conn.execute("SELECT room_id FROM shows WHERE id = %s", [show])).fetchone()
        return row is not None and str(row["room_id"]) == room

    async def refresh_room(self, t: Transaction, room: RoomId) -> None:
        """After a room has changed: its shows that are not over follow after the commit."""
        rows = await (
            await t.conn.execute("SELECT id FROM shows WHERE room_id = %s AND state <> 'ended'", [room])
        ).fetchall()
        for row in rows:
            t.after_commit(lambda show=row["id"]: self.agree(ShowId(show)))  # type: ignore[misc]

    def card(self, show: Show, facts: Facts, *, staff: bool = False) -> Card:
        """What a person may know of a show before entering it."""
        room = CardRoom(show.room.slug, show.room.title, show.room.host_name)
        public = Card(
            id=show.id,
            title=show.title,
            status=show.status,
            starts_at=show.starts_at,
            room=room,
            poster=show.poster_url,
            admitted=staff or show.room.audience.has(facts),
        )
        if not public.admitted:
            return msgspec.structs.replace(public, way_in=_way_in(show.room.audience, facts))
        return msgspec.structs.replace(
            public,
            summary=show.summary,
            started_at=show.started_at,
            ended_at=show.ended_at,
            video=Video(show.video_url, show.video_kind, show.poster_url),
        )

    # -- moves -------------------------------------------------------------------------------------

    async def open(self, t: Transaction, actor: Actor, show: ShowId) -> Show:
        """scheduled → waiting. Every move raises Forbidden, NotFound, WrongStatus."""
        return await self._move(t, actor, show, ("scheduled",), "waiting")

    async def start(self, t: Transaction, actor: Actor, show: ShowId) -> Show:
        """waiting → live. Raises RoomBusy while another show of the room is on air."""
        found = await self._row(t.conn, show)
        # Two starts in one room wait for each other; the second sees the first.
        await t.conn.execute("SELECT id FROM rooms WHERE id = %s FOR NO KEY UPDATE", [found.room.id])
        busy = await (
            await t.conn.execute(
                "SELECT 1 FROM shows WHERE room_id = %s AND id <> %s"
                " AND state IN ('live', 'paused', 'ending')",
                [found.room.id, show],
            )
        ).fetchone()
        if busy is not None and actor.may("show.run"):
            raise RoomBusy
        return await self._move(t, actor, show, ("waiting",), "live")

    async def pause(self, t: Transaction, actor: Actor, show: ShowId) -> Show:
        """live → paused."""
        return await self._move(t, actor, show, ("live",), "paused")

    async def resume(self, t: Transaction, actor: Actor, show: ShowId) -> Show:
        """paused → live."""
        return await self._move(t, actor, show, ("paused",), "live")

    async def end(self, t: Transaction, actor: Actor, show: ShowId, last_call_s: int = 0) -> Show:
        """live or paused → ending → ended: open offers, benefits and the poll are closed; the after-show job
        makes the tags and the end card.

        With a last call, what is open stays so for `last_call_s`; then a job ends the show, or a second call.
        """
        if not 0 <= last_call_s <= LAST_CALL_MAX_S:
            raise BadRequest(f"A last call lasts at most {LAST_CALL_MAX_S} seconds.")
        found = await self._row(t.conn, show, lock=True)
        if found.status != "ending":
            found = await self._move(t, actor, show, ("live", "paused"), "ending", last_call_s=last_call_s)
            if last_call_s:
                return found
        need(actor, "show.run")
        _same_room(actor, found)
        await self._offers.close_all(t, actor, show)
        await self._benefits.close_all(t, actor, show)
        await self._polls.close_open(t, actor, show)
        await t.conn.execute(
            "UPDATE cues SET state = 'done' WHERE show_id = %s AND state = 'running'", [show]
        )
        ended = await self._move(t, actor, show, ("ending",), "ended")
        await self._after_show(t, show)
        return ended

    async def _move(
        self,
        t: Transaction,
        actor: Actor,
        show: ShowId,
        before: tuple[Status, ...],
        to: Status,
        *,
        last_call_s: int = 0,
    ) -> Show:
        need(actor, "show.run")
        found = await self._row(t.conn, show, lock=True)
        _same_room(actor, found)
        if found.status not in before:
            raise WrongStatus(f"The show is {found.status}; this needs {' or '.join(before)}.")
        await t.conn.execute(
            """
            UPDATE shows SET state = %(to)s,
                started_at = CASE WHEN %(to)s = 'live' THEN coalesce(started_at, clock_timestamp())
                                  ELSE started_at END,
                ending_until = CASE WHEN %(to)s = 'ending' AND %(last_call_s)s > 0
                                    THEN clock_timestamp() + make_interval(secs => %(last_call_s)s)
                                    ELSE ending_until END,
                ended_at = CASE WHEN %(to)s = 'ended' THEN clock_timestamp() END
            WHERE id = %(id)s
            """,
            {"to": to, "id": show, "last_call_s": last_call_s},
        )
        # Once, and after whatever else this transaction tells: what closed, closed before the show did.
        t.committed[:] = [
            step for step in t.committed if not (isinstance(step, _Agree) and step.show == show)
        ]
        t.after_commit(_Agree(self, show))
        return await self.get(t.conn, show)

    # -- Redis -------------------------------------------------------------------------------------

    async def ensure(self, show: Show) -> None:
        """Make the show's keys whole when Redis lost them: from the tables, under a new generation and epoch.

        One process does it at a time; what asks meanwhile is answered `unavailable`, never zero.
        Raises Unavailable while Redis does not answer.
        """
        if await self._is_whole(show.id):
            return
        async with self._database.transaction() as t:
            await lock(t.conn, f"ensure:{show.id}")
            if await self._is_whole(show.id, REBUILD_MS):
                return  # another has just done it
            raised = await t.conn.execute(
                "UPDATE shows SET generation = generation + 1 WHERE id = %s", [show.id]
            )
            if raised.rowcount == 0:
                raise NotFound
            now = await self.get(t.conn, show.id)
            audiences = await self._audiences(t.conn, now.id)
            fields = [*_meta(now), "audiences", audiences, "rebuilding", time.time_ns() // 1_000_000]
            await self._open_keys(now.id, [], [secrets.token_hex(6), now.generation, now.status, *fields])
            await self._comments.rebuild(now.id, await self._kept_events(t.conn, now.id))
            await self._polls.rebuild(t.conn, now.id)
            await self._offers.rebuild(t.conn, now.id)
            await self._put(now, now.status, now.status)
            await self._benefits.agree(t, now.id, at_once=True)  # puts them after the commit
            if self._incidents is not None:
                await self._incidents.agree(t.conn, now.id)
            t.after_commit(lambda: self._mark_whole(now.id, [], [now.generation]))

    async def renew(self, show: ShowId, epoch: str, seen: Seen) -> bool:
        """A new epoch and generation when the store lost writes that a node saw; False when it did not, or
        another node was first.

        What the store still has of the log stays. Counters of what is worth money are built anew from the
        tables; while that lasts the show answers `unavailable`.
        """
        args: list[Arg] = [epoch, seen.seq, seen.compared, seen.event, seen.agreed, secrets.token_hex(6)]
        try:
            async with self._database.transaction() as t:
                await lock(t.conn, f"ensure:{show}")
                await t.conn.execute("UPDATE shows SET generation = generation + 1 WHERE id = %s", [show])
                now = await self.get(t.conn, show)
                if not await self._renew_epoch(show, [], [*args, now.generation]):
                    raise _AsItWas
                await self._polls.rebuild(t.conn, show)
                await self._offers.rebuild(t.conn, show)
                await self._benefits.agree(t, show, at_once=True)
                if self._incidents is not None:
                    await self._incidents.agree(t.conn, show)
                t.after_commit(lambda: self._mark_whole(show, [], [now.generation]))
        except _AsItWas:
            return False
        await self.agree(show)  # the status may have moved in what was lost
        return True

    async def agree(self, show: ShowId) -> bool:
        """Bring Redis to the status and terms that PostgreSQL holds, a move at a time; True if it changed."""
        async with self._database.reading() as conn:
            now = await self.get(conn, show)
        try:
            age_ms, status, *_ = await self._read(show, [], [])
        except Away:
            raise  # no answer says nothing of the keys
        except Unavailable:
            age_ms = b"0"
        if age_ms:
            await self.ensure(now)
            return True
        path = _path(status.decode(), now.status)
        if path is None:
            return False
        changed = False
        for before, to in pairwise(path):
            changed = await self._put(now, before, to) or changed
        return await self._put(now, now.status, now.status) or changed

    async def open_due(self, database: Database, actor: Actor) -> int:
        """For a job: open waiting rooms 30 minutes before, end shows whose last call is over, rebuild lost
        keys and tell moves that were committed and not told. Returns how many shows moved or were mended.
        """
        async with database.reading() as conn:
            rows = await (
                await conn.execute(
                    """
                    SELECT id, state, starts_at <= clock_timestamp() + make_interval(secs => %s) AS due,
                        ending_until <= clock_timestamp() AS over
                    FROM shows
                    WHERE state IN ('waiting', 'live', 'paused', 'ending')
                       OR (state = 'scheduled' AND starts_at <= now() + make_interval(secs => %s))
                       OR (state = 'ended' AND ended_at > now() - make_interval(secs => %s))
                    ORDER BY starts_at
                    """,
                    [WAITING_BEFORE_S, WAITING_BEFORE_S, AGREE_AFTER_END_S],
                )
            ).fetchall()
        moved = 0
        for row in rows:
            show = ShowId(row["id"])
            with alone(f"moving {show}", log, refused=logging.DEBUG):
                if row["state"] == "scheduled" and row["due"]:
                    async with database.transaction() as t:
                        await self.open(t, actor, show)
                    moved += 1
                elif row["state"] == "ending" and row["over"]:
                    async with database.transaction() as t:
                        await self.end(t, actor, show)
                    moved += 1
                else:
                    moved += await self.agree(show)
        return moved

    async def position(self, show: ShowId) -> tuple[int, int]:
        """Viewers now and at the most. Raises Unavailable."""
        _, _, peak, viewers = await self._read(show, [], [])
        return int(viewers), int(peak)

    async def _is_whole(self, show: ShowId, grace_ms: int = 0) -> bool:
        """Whether the show's keys are there and filled, or began to be filled less than `grace_ms` ago.

        Raises Away: a store that does not answer has not lost them, and building anew would drop them.
        """
        try:
            age_ms, *_ = await self._read(show, [], [])
        except Away:
            raise
        except Unavailable:
            return False
        return not age_ms or int(age_ms) < grace_ms

    async def _open_new(self, show: Show) -> None:
        """The keys of a show that has nothing yet to be rebuilt."""
        await self._open_keys(
            show.id,
            [],
            [secrets.token_hex(6), show.generation, show.status, *_meta(show)],
        )
        await self._put(show, show.status, show.status)

    async def _put(self, show: Show, before: Status, to: Status) -> bool:
        event: bytes | str = ""
        if before != to:
            kind = next(kind for kind in EVENTS if kind.__struct_config__.tag == MOVES[before][to])
            event = json_arg(
                ShowEnding(until=show.ending_until) if kind is ShowEnding and show.ending_until else kind()
            )
        try:
            answer = await self._set_status(show.id, [], [before, to, _parts(show, to), event, *_meta(show)])
        except Refusal as refusal:
            if refusal.word == "wrong_status":  # another process has told it meanwhile
                return False
            raise
        return bool(answer)

    async def _audiences(self, conn: Connection, show: ShowId) -> bytes:
        """The show's own audiences in the order of their bits.

        Offers are kept with their bit: given to another audience, it would show them to the wrong people.
        The places between go to the audiences that have no kept bit, so that six are enough again.
        """
        cursor = await conn.execute(
            "SELECT DISTINCT audience_bit, audience FROM offers"
            " WHERE show_id = %s AND audience_bit BETWEEN %s AND %s",
            [show, FIRST_OWN_BIT, LAST_OWN_BIT],
        )
        known = {row["audience_bit"]: _audience(row) for row in await cursor.fetchall()}
        cursor = await conn.execute(
            """
            SELECT audience FROM polls WHERE show_id = %(show)s AND closed_at IS NULL
            UNION SELECT audience FROM benefits WHERE show_id = %(show)s AND status <> 'closed'
            UNION SELECT p.member_price_audience FROM offers o JOIN products p ON p.id = o.product_id
                WHERE o.show_id = %(show)s AND o.status = 'open'
            """,
            {"show": show},
        )
        others = [_audience(row) for row in await cursor.fetchall()]
        others = [each for each in others if each not in (EVERYONE, PLAN_MEMBERS, *known.values())]
        places = range(FIRST_OWN_BIT, max(known, default=FIRST_OWN_BIT - 1) + 1)
        filled = [known.get(bit) or (others.pop() if others else _NOBODY) for bit in places]
        return json_arg([json_arg(audience).decode() for audience in filled])

    async def _kept_events(self, conn: Connection, show: ShowId) -> Sequence[dict[str, Any]]:
        cursor = await conn.execute(
            "SELECT event FROM show_log WHERE show_id = %s AND event->>'type' = ANY(%s) ORDER BY at, seq",
            [show, list(KEPT_EVENTS)],
        )
        return [row["event"] for row in await cursor.fetchall()]

    async def _row(self, conn: Connection, show: ShowId, *, lock: bool = False) -> Show:
        row = None
        if "\0" not in show and len(show) <= 64:
            statement = _SHOWS + (" WHERE s.id = %s FOR NO KEY UPDATE OF s" if lock else " WHERE s.id = %s")
            row = await (await conn.execute(statement, [show])).fetchone()
        if row is None:
            raise NotFound("There is no such show.")
        return _show(row)


class _AsItWas(Exception):
    """Nothing was renewed: the transaction is rolled back, and the generation with it."""


class _Agree:
    """The step after a move's commit; two moves in one transaction need one."""

    def __init__(self, shows: Shows, show: ShowId) -> None:
        self._shows = shows
        self.show = show

    async def __call__(self) -> bool:
        return await self._shows.agree(self.show)


_NOBODY: Final = Audience(kind="list")

_SHOWS: Final = """
    SELECT s.*, r.slug, r.title AS room_title, r.host_name, r.audience, r.created_at AS room_created_at
    FROM shows s JOIN rooms r ON r.id = s.room_id
"""


def _audience(row: dict[str, Any]) -> Audience:
    return msgspec.convert(row["audience"], Audience)


def _show(row: dict[str, Any]) -> Show:
    return Show(
        id=ShowId(row["id"]),
        room=room_from(
            {**row, "id": row["room_id"], "title": row["room_title"], "created_at": row["room_created_at"]}
        ),
        title=row["title"],
        summary=row["summary"],
        video_url=row["video_url"],
        video_kind=row["video_kind"],
        poster_url=row["poster_url"],
        status=row["state"],
        starts_at=in_ms(row["starts_at"]),
        started_at=None if row["started_at"] is None else in_ms(row["started_at"]),
        ending_until=None if row["ending_until"] is None else in_ms(row["ending_until"]),
        ended_at=None if row["ended_at"] is None else in_ms(row["ended_at"]),
        guest_comments=row["guest_comments"],
        generation=row["generation"],
    )


def _meta(show: Show) -> list[str | bytes | int]:
    return [
        "guest_comments",
        "1" if show.guest_comments else "",
        "room_audience",
        json_arg(show.room.audience),
        "started_at",
        show.started_at or "",
        "ended_at",
        show.ended_at or "",
    ]


def _parts(show: Show, status: Status) -> bytes:
    """The parts of state `show`: who is in a show may know all of it."""
    data = {
        "status": status,
        "title": show.title,
        "summary": show.summary,
        "starts_at": show.starts_at,
        "started_at": show.started_at,
        "ending_until": show.ending_until,
        "ended_at": show.ended_at,
        "room": {
            "id": show.room.id,
            "slug": show.room.slug,
            "title": show.room.title,
            "host": show.room.host_name,
        },
        "video": {"url": show.video_url, "kind": show.video_kind, "poster": show.poster_url},
    }
    return json_arg([{"a": 0, "d": data}])


def _path(before: str, to: Status) -> list[Status] | None:
    """The shortest way of moves from one status to another, both ends included; None when there is none."""
    start = next((status for status in MOVES if status == before), None)
    if start is None:
        return None
    waiting: deque[list[Status]] = deque([[start]])
    seen = {start}
    while waiting:
        path = waiting.popleft()
        if path[-1] == to:
            return path
        for following in MOVES[path[-1]]:
            if following not in seen:
                seen.add(following)
                waiting.append([*path, following])
    return None


def _way_in(audience: Audience, facts: Facts) -> Literal["sign_in", "join", "closed"]:
    """What a person who is not in the audience can do about it."""
    if audience.exclude is not None and audience.exclude.has(facts):
        return "closed"
    if audience.kind == "registered":
        return "sign_in"
    if audience.kind in ("plan_members", "plans"):
        return "join"
    return "closed" if facts.registered else "sign_in"


def _same_room(actor: Actor, show: Show) -> None:
    if actor.room is not None and actor.room != show.room.id:
        raise Forbidden("You work in another room.")


def _summary(text: str) -> str:
    return bounded(text, SUMMARY_MAX, "A summary") if text.strip() else ""


def _address(text: str, what: str) -> str:
    """An http(s) address, or a path of this server; nothing that a page would run."""
    if not text:
        return ""
    try:
        parsed = urlsplit(text)
        port_fits = parsed.port is None or parsed.port > 0
    except ValueError:
        parsed, port_fits = urlsplit(""), False
    plain = text.isprintable() and not any(char in text for char in ' "<>\\')
    outside = parsed.scheme in ("http", "https") and bool(parsed.hostname)
    ours = not parsed.scheme and not parsed.netloc and text.startswith("/")
    if not (plain and port_fits and (outside or ours)):
        raise BadRequest(f"{what} begins with https:// or http://, or is a path of this server.")
    return text


def _start(at: datetime) -> datetime:
    if at.tzinfo is None:
        raise BadRequest("The start needs a time zone, as in 2026-11-21T20:00:00+08:00.")
    if not timedelta(days=-1) < at - datetime.now(UTC) < timedelta(days=366):
        raise BadRequest("The start lies within a year from now.")
    return at


def _place(cursor: str | None) -> tuple[datetime | None, str | None]:
    if cursor is None:
        return None, None
    at, _, last = cursor.partition(".")
    if not (at.isascii() and at.isdigit() and len(at) <= 17 and last.isalnum() and len(last) <= 64):
        raise BadCursor
    seconds, micros = divmod(int(at), 1_000_000)
    try:
        return datetime.fromtimestamp(seconds, UTC).replace(microsecond=micros), last
    except (OverflowError, OSError, ValueError):
        raise BadCursor from None
