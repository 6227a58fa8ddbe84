"""Rooms and shows over HTTP: the public card, the calendar file, and what staff do to run a show."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

import icalendar
from msgspec import UNSET, Meta, UnsetType

from commerce.offers import Offer
from live.asking import asking
from live.cues import Cue, CueInput
from live.http import Answer, Body, Context, IdText, PageQuery, Raw
from live.report import EndCard, LiveNumbers
from live.rooms import Room, RoomInput, RoomPatch
from live.shows import Card, CardRoom, Show, ShowInput, ShowPatch, Status, Video
from membership.actor import OfferId, ProductId, RoomId, ShowId
from membership.audience import EVERYONE, Audience
from membership.page import Page
from membership.refusal import Forbidden, NotFound, Refusal, Unavailable
from membership.tokens import Preview
from membership.transaction import Connection

log = logging.getLogger("companion.shows")

PREVIEW_S = 3_600
SHOW_LENGTH = timedelta(hours=2)  # what a calendar is told: a show has no planned end
REMIND_BEFORE = timedelta(minutes=10)


async def own_show(ctx: Context, conn: Connection, show: ShowId) -> Show:
    """The show, for staff who may act in it. Raises NotFound; Forbidden for staff of another room."""
    found = await ctx.parts.shows.get(conn, show)
    if ctx.actor.room is not None and ctx.actor.room != found.room.id:
        raise Forbidden("You work in another room.")
    return found


# -- rooms -----------------------------------------------------------------------------------------


async def list_rooms(ctx: Context) -> Page[Room]:
    """All rooms by title; for staff of one room, that one."""
    async with ctx.reading() as conn:
        return Page(tuple(await ctx.parts.rooms.list(conn, ctx.actor)))


async def create_room(ctx: Context, body: RoomInput) -> Room:
    """Make a room: a host's standing place, with an address and an audience."""
    async with ctx.transaction() as t:
        room = await ctx.parts.rooms.create(t, ctx.actor, body)
        await ctx.audit(t, "room.create", f"room:{room.id}", {"slug": room.slug})
    return room


async def read_room(ctx: Context) -> Room:
    """One room, by id or slug."""
    async with ctx.reading() as conn:
        room = await ctx.parts.rooms.get(conn, ctx.path["room"])
    if ctx.actor.room is not None and ctx.actor.room != room.id:
        raise Forbidden("You work in another room.")
    return room


async def update_room(ctx: Context, body: RoomPatch) -> Room:
    """Change title, host or audience; open shows follow at once."""
    async with ctx.transaction() as t:
        found = await ctx.parts.rooms.get(t.conn, ctx.path["room"])
        room = await ctx.parts.rooms.update(t, ctx.actor, found.id, body)
        await ctx.parts.shows.refresh_room(t, room.id)
        named = [name for name in body.__struct_fields__ if getattr(body, name) is not UNSET]
        await ctx.audit(t, "room.update", f"room:{room.id}", {"changed": named})
    return room


# -- shows -----------------------------------------------------------------------------------------


class ShowsQuery(PageQuery, frozen=True, kw_only=True):
    room: IdText | None = None
    status: Status | None = None


class ShowView(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """What the one who asks may know of a show. Staff get `staff` besides.

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
    staff: Show | UnsetType = UNSET


def show_view(card: Card, staff: Show | None) -> ShowView:
    fields = {name: getattr(card, name) for name in card.__struct_fields__}
    return ShowView(**fields, staff=staff if staff is not None else UNSET)


async def list_shows(ctx: Context, query: ShowsQuery) -> Page[Show]:
    """Shows, the latest start first; for staff of one room, that room's."""
    room = RoomId(query.room) if query.room else None
    if ctx.actor.room is not None:
        if room is not None and room != ctx.actor.room:
            raise Forbidden("You work in another room.")
        room = ctx.actor.room
    statuses = (query.status,) if query.status else None
    async with ctx.reading() as conn:
        return await ctx.parts.shows.list(conn, query.cursor, room, statuses=statuses, limit=query.limit)


async def create_show(ctx: Context, body: ShowInput) -> Show:
    """Schedule a show. Its waiting room opens by itself 30 minutes before the start."""
    async with ctx.transaction() as t:
        show = await ctx.parts.shows.create(t, ctx.actor, body)
        await ctx.audit(t, "show.create", f"show:{show.id}", {"room": show.room.id})
    return show


async def read_show(ctx: Context) -> ShowView:
    """The show's card: before the start, while it runs and after its end."""
    is_staff = ctx.actor.kind in ("staff", "shop")
    async with ctx.reading() as conn:
        if is_staff:
            show = await own_show(ctx, conn, ctx.show)
        else:
            show = await ctx.parts.shows.get(conn, ctx.show)
    card = ctx.parts.shows.card(show, ctx.actor.facts, staff=is_staff)
    return show_view(card, show if is_staff else None)


async def update_show(ctx: Context, body: ShowPatch) -> Show:
    """Change what is named; viewers follow at once. The start only before it began."""
    async with ctx.transaction() as t:
        show = await ctx.parts.shows.update(t, ctx.actor, ctx.show, body)
        named = [name for name in body.__struct_fields__ if getattr(body, name) is not UNSET]
        await ctx.audit(t, "show.update", f"show:{show.id}", {"changed": named})
    return show


async def open_show(ctx: Context) -> Show:
    """Open the waiting room now: scheduled → waiting."""
    async with ctx.transaction() as t:
        show = await ctx.parts.shows.open(t, ctx.actor, ctx.show)
        await ctx.audit(t, "show.open", f"show:{ctx.show}")
    return show


async def start_show(ctx: Context) -> Show:
    """Go on air: waiting → live. One show of a room at a time."""
    async with ctx.transaction() as t:
        show = await ctx.parts.shows.start(t, ctx.actor, ctx.show)
        await ctx.audit(t, "show.start", f"show:{ctx.show}")
    return show


async def pause_show(ctx: Context) -> Show:
    """Pause: live → paused. People stay."""
    async with ctx.transaction() as t:
        show = await ctx.parts.shows.pause(t, ctx.actor, ctx.show)
        await ctx.audit(t, "show.pause", f"show:{ctx.show}")
    return show


async def resume_show(ctx: Context) -> Show:
    """Go on: paused → live."""
    async with ctx.transaction() as t:
        show = await ctx.parts.shows.resume(t, ctx.actor, ctx.show)
        await ctx.audit(t, "show.resume", f"show:{ctx.show}")
    return show


class EndBody(Body, frozen=True, kw_only=True):
    last_call_s: Annotated[int, Meta(ge=0, le=600, description="What is open stays so for this long")] = 0


async def end_show(ctx: Context, body: EndBody) -> Show:
    """End: open offers, benefits and the poll are closed; tags and the end card follow within a minute.

    With a last call, what is open stays so for that time.
    """
    async with ctx.transaction() as t:
        show = await ctx.parts.shows.end(t, ctx.actor, ctx.show, body.last_call_s)
        await ctx.audit(t, "show.end", f"show:{ctx.show}", {"last_call_s": body.last_call_s})
    return show


class PreviewBody(Body, frozen=True, kw_only=True):
    seen_as: Preview


class PreviewToken(Answer, frozen=True, kw_only=True):
    """Looks at a show as somebody else would; can do nothing."""

    token: str
    expires_in_s: int


async def create_preview(ctx: Context, body: PreviewBody) -> PreviewToken:
    """A token for the preview of a viewer's phone, as a guest or as a plan member."""
    if ctx.actor.kind != "staff":
        raise Forbidden("Previews are for staff accounts.")
    async with ctx.reading() as conn:
        await own_show(ctx, conn, ctx.show)
    token = ctx.parts.tokens.mint(ctx.actor, PREVIEW_S, preview=body.seen_as)
    return PreviewToken(token=token, expires_in_s=PREVIEW_S)


async def read_calendar(ctx: Context) -> Raw:
    """Remind me: a calendar file with the show's start and an alarm ten minutes before."""
    async with ctx.reading() as conn:
        show = await ctx.parts.shows.get(conn, ctx.show)
    starts = datetime.fromtimestamp(show.starts_at / 1000, UTC)
    url = f"{ctx.parts.settings.public_url}/s/{show.id}"
    event = icalendar.Event()
    event.add("uid", f"{show.id}@{ctx.parts.settings.public_url.partition('://')[2]}")
    event.add("dtstamp", datetime.now(UTC))
    event.add("dtstart", starts)
    event.add("dtend", starts + SHOW_LENGTH)
    event.add("summary", show.title)
    event.add("location", url)
    event.add("url", url)
    alarm = icalendar.Alarm()
    alarm.add("action", "DISPLAY")
    alarm.add("description", show.title)
    alarm.add("trigger", -REMIND_BEFORE)
    event.add_component(alarm)
    calendar = icalendar.Calendar()
    calendar.add("prodid", "-//live companion//show//ZH")
    calendar.add("version", "2.0")
    calendar.add("method", "PUBLISH")
    calendar.add_component(event)
    return Raw(
        calendar.to_ical(),
        "text/calendar; charset=utf-8",
        {"content-disposition": f'attachment; filename="{show.id}.ics"'},
    )


# -- cues ------------------------------------------------------------------------------------------


class CuesBody(Body, frozen=True, kw_only=True):
    cues: Annotated[list[CueInput], Meta(max_length=30)]


async def list_cues(ctx: Context) -> Page[Cue]:
    """The prepared cues of a show, in order, with their state."""
    async with ctx.reading() as conn:
        await own_show(ctx, conn, ctx.show)
        return Page(tuple(await ctx.parts.cues.list(conn, ctx.show)))


async def put_cues(ctx: Context, body: CuesBody) -> Page[Cue]:
    """Set the whole list: at most thirty, each with a key of its own. Prices stand here, not in what is typed
    on air."""
    async with ctx.transaction() as t:
        await own_show(ctx, t.conn, ctx.show)
        cues = await ctx.parts.cues.put(t, ctx.actor, ctx.show, body.cues)
        await ctx.audit(t, "cues.put", f"show:{ctx.show}", {"cues": len(cues)})
    return Page(tuple(cues))


async def run_cue(ctx: Context) -> Cue:
    """Run a cue as it was prepared: pin, flash, benefit, poll or announcement."""
    async with asking(ctx), _cue_refusal_noted(ctx), ctx.transaction() as t:
        await own_show(ctx, t.conn, ctx.show)
        cue = await ctx.parts.cues.run(t, ctx.actor, ctx.show, ctx.path["cue"])
        await ctx.audit(t, "cue.run", f"cue:{cue.id}", {"show": ctx.show, "kind": cue.kind})
    return cue


@asynccontextmanager
async def _cue_refusal_noted(ctx: Context) -> AsyncIterator[None]:
    """Around a run of a cue, in a transaction of its own: what was refused is rolled back by then."""
    try:
        yield
    except Unavailable:
        raise
    except Refusal as refusal:
        try:
            async with ctx.transaction() as t:
                await ctx.parts.cues.note_refused(t, ctx.actor, ctx.show, ctx.path["cue"], refusal)
        except Exception:  # the refusal is what is answered, and what a second person is asked about
            log.exception("the refusal of a cue was not noted")
        raise


async def stop_cue(ctx: Context) -> Cue:
    """Stop a running cue: what it opened is closed."""
    async with ctx.transaction() as t:
        await own_show(ctx, t.conn, ctx.show)
        cue = await ctx.parts.cues.stop(t, ctx.actor, ctx.show, ctx.path["cue"])
        await ctx.audit(t, "cue.stop", f"cue:{cue.id}", {"show": ctx.show, "kind": cue.kind})
    return cue


# -- offers ----------------------------------------------------------------------------------------


class OfferBody(Body, frozen=True, kw_only=True):
    """A pin shows a product; a flash offer has a price, pieces and a time of its own."""

    product: IdText
    kind: Literal["pin", "flash"] = "pin"
    audience: Audience = EVERYONE
    flash_fen: Annotated[int, Meta(ge=1, le=100_000_000)] | None = None
    quota: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    per_person: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    seconds: Annotated[int, Meta(ge=5, le=86_400)] | None = None


async def list_offers(ctx: Context, query: PageQuery) -> Page[Offer]:
    """The show's offers in the order they were opened."""
    async with ctx.reading() as conn:
        await own_show(ctx, conn, ctx.show)
        return await ctx.parts.offers.of_show(conn, ctx.show, cursor=query.cursor, limit=query.limit)


async def open_offer(ctx: Context, body: OfferBody) -> Offer:
    """Put a product on offer. Viewers see it at once; quotes and orders refer to it."""
    async with asking(ctx), ctx.transaction() as t:
        await own_show(ctx, t.conn, ctx.show)
        offer = await ctx.parts.offers.open(
            t,
            ctx.actor,
            ctx.show,
            ProductId(body.product),
            body.kind,
            body.audience,
            body.flash_fen,
            body.quota,
            body.per_person,
            body.seconds,
        )
        await ctx.audit(
            t,
            "offer.open",
            f"offer:{offer.id}",
            {"show": ctx.show, "kind": offer.kind, "flash_fen": offer.flash_fen},
        )
    return offer


async def close_offer(ctx: Context) -> Offer:
    """End an offer; again changes nothing. Open quotes are honoured until they expire."""
    offer_id = OfferId(ctx.path["offer"])
    async with ctx.transaction() as t:
        found = await ctx.parts.offers.get(t.conn, None, offer_id)
        await own_show(ctx, t.conn, found.show)
        offer = await ctx.parts.offers.close(t, ctx.actor, found.show, offer_id)
        await ctx.audit(t, "offer.close", f"offer:{offer_id}", {"show": found.show})
    return offer


# -- numbers ---------------------------------------------------------------------------------------


async def read_live_numbers(ctx: Context) -> LiveNumbers:
    """Viewers, comments, claims and sales, now."""
    async with ctx.reading() as conn:
        await own_show(ctx, conn, ctx.show)
        return await ctx.parts.report.live(conn, ctx.show)


async def read_report(ctx: Context) -> EndCard:
    """The end card, once the show is over and it is built."""
    async with ctx.reading() as conn:
        await own_show(ctx, conn, ctx.show)
        card = await ctx.parts.report.get(conn, ctx.show)
    if card is None:
        raise NotFound("The end card is built within a minute after the show's end.", retry_ms=2000)
    return card
