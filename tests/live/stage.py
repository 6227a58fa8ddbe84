"""A room with everything that shows, cues and reports call, on real stores."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from redis.asyncio import Redis

from chat.comments import Comments
from chat.polls import Polls
from chat.reactions import Reactions
from commerce.benefits import Benefits
from commerce.claims import Claims
from commerce.coupons import Coupons
from commerce.grants import Grants
from commerce.offers import Offers
from commerce.products import Product, ProductInput, Products
from live.cues import Cues
from live.database import Database
from live.log import Entry, ShowLog, redacted
from live.lua import Scripts
from live.report import Report
from live.rooms import Room, RoomInput, Rooms
from live.shows import Show, ShowInput, Shows
from membership.actor import PERMISSIONS, Actor, Facts, MemberId, PlanId, Role, RoomId, ShowId, new_id
from membership.audience import EVERYONE, Audience, ShowAudiences
from membership.members import Members
from membership.notices import Notices
from membership.points import Points
from membership.transaction import Transaction


class Stage:
    """Every part, and short ways to put a show on it."""

    def __init__(self, redis: Redis, scripts: Scripts, database: Database) -> None:
        self.redis = redis
        self.database = database
        self.audiences = ShowAudiences(scripts)
        notices = Notices(redis)
        self.members = Members(notices)
        self.products = Products()
        self.comments = Comments(scripts, self.audiences)
        self.polls = Polls(scripts, self.audiences)
        self.reactions = Reactions(scripts)
        self.offers = Offers(scripts, self.audiences, self.products)
        grants = Grants(Points(notices), Coupons(notices))
        self.benefits = Benefits(scripts, self.audiences, notices, self.members.facts, grants)
        self.claims = Claims(scripts, notices, database.transaction, grants)
        self.rooms = Rooms()
        self.after: list[ShowId] = []  # shows whose after-show job was deferred
        self.shows = Shows(
            scripts, database, self.comments, self.polls, self.offers, self.benefits, self._after_show
        )
        self.cues = Cues(self.offers, self.benefits, self.polls, self.comments, self.products, self.shows)
        self.report = Report(self.comments, self.polls, self.shows)
        self.log = ShowLog(redis, scripts)
        self.owner = staff("owner")
        self.host = staff("host")

    async def _after_show(self, t: Transaction, show: ShowId) -> None:
        self.after.append(show)

    async def room(self, audience: Audience = EVERYONE, title: str = "会员健康夜") -> Room:
        async with self.database.transaction() as t:
            return await self.rooms.create(
                t, self.owner, RoomInput(title=title, host_name="小禾", audience=audience)
            )

    async def show(self, status: str = "live", room: Room | None = None, **given: Any) -> Show:
        """A show brought to a status by its own moves."""
        where = room or await self.room()
        given = {
            "title": "秋收专场",
            "starts_at": datetime.now(UTC) + timedelta(hours=2),
            "video_url": "/static/demo/loop.mp4",
            "video_kind": "mp4",
            **given,
        }
        async with self.database.transaction() as t:
            made = await self.shows.create(t, self.owner, ShowInput(room=where.id, **given))
        for move in {
            "scheduled": [],
            "waiting": ["open"],
            "live": ["open", "start"],
            "paused": ["open", "start", "pause"],
            "ended": ["open", "start", "end"],
        }[status]:
            await self.move(move, made.id)
        return await self.read(made.id)

    async def move(self, move: str, show: ShowId, actor: Actor | None = None, **given: Any) -> Show:
        async with self.database.transaction() as t:
            moved: Show = await getattr(self.shows, move)(t, actor or self.host, show, **given)
        return moved

    async def read(self, show: ShowId) -> Show:
        async with self.database.reading() as conn:
            return await self.shows.get(conn, show)

    async def product(self, name: str = "五常有机大米", **given: Any) -> Product:
        given = {"list_fen": 12_800, "stock": 500, "tag_name": "有机大米", **given}
        async with self.database.transaction() as t:
            return await self.products.create(t, self.owner, ProductInput(sku=new_id(), name=name, **given))

    async def member(self, phone: str = "13800138000", nickname: str = "王小明") -> Actor:
        async with self.database.transaction() as t:
            member = await self.members.register(t, phone, nickname, None)
            facts = await self.members.facts(t.conn, member.id)
        return Actor(kind="viewer", id=member.id, name=nickname, facts=facts)

    async def states(self, show: ShowId, mask: int = 1) -> dict[str, dict[str, Any]]:
        changes = await self.log.changes(show, -1)
        found = {state.key: state.seen_by(mask) for state in changes.states}
        return {key: data for key, data in found.items() if data is not None}

    async def entries(self, show: ShowId) -> list[Entry]:
        return redacted((await self.log.changes(show, -1, 1000)).entries)

    async def words(self, show: ShowId) -> list[str]:
        """The types of the log's events in order."""
        return [
            entry.event.split(b'"type":"', 1)[1].split(b'"', 1)[0].decode()
            for entry in await self.entries(show)
            if entry.event
        ]


def staff(role: Role, room: RoomId | None = None) -> Actor:
    return Actor(kind="staff", id=new_id(), name="小禾", role=role, permissions=PERMISSIONS[role], room=room)


def viewer(*, plan: bool = False) -> Actor:
    member = MemberId(new_id())
    plans = frozenset({PlanId(new_id())}) if plan else frozenset[PlanId]()
    return Actor(
        kind="viewer", id=member, name="王小明", facts=Facts(member=member, registered=True, plans=plans)
    )
