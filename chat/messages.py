"""The shapes of talk on the wire: commands (imperative) and events (past tense).

Shapes only; the rules stand in comments.py, polls.py and reactions.py.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from membership.actor import PollId

Key = Annotated[str, Meta(min_length=1, max_length=64)]
Badge = Literal["host", "plan", "guest", ""]
ReactionKind = Literal["like", "clap", "rice"]
Results = Literal["after_vote", "after_close", "always"]
PublicId = Annotated[str, Meta(pattern="^[a-z2-7]{12}$")]


class Command(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a viewer asks for. `id` is the connection's own number and is always answered."""

    id: int
    key: Key | None = None


class PostComment(Command, tag="comment.post", frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Say one line: 1–200 code points."""

    text: str


class SendReaction(Command, tag="reaction.send", frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tap a reaction `count` times; nodes merge them and the totals are a state."""

    kind: ReactionKind
    count: Annotated[int, Meta(ge=1, le=50)] = 1


class CastBallot(Command, tag="ballot.cast", frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Vote: the numbers of the choices, from 0. One ballot a person; `key` is required."""

    poll: PollId
    choices: Annotated[list[int], Meta(min_length=1, max_length=10)]


class Event(Struct, frozen=True, kw_only=True):
    """A numbered event of the show's log. The store adds `at`, the hub `seq`."""

    seq: int | UnsetType = UNSET
    at: int | UnsetType = UNSET


class CommentPosted(Event, tag="comment.posted", frozen=True, kw_only=True):
    """Someone said a line. `viewer` is a public id good for this show only."""

    text: str
    name: str
    viewer: str
    badge: Badge
    reply_to: int | UnsetType = UNSET
    reply_name: str | UnsetType = UNSET


class CommentHidden(Event, tag="comment.hidden", frozen=True, kw_only=True):
    """A comment was taken from view; it is redacted in every replay."""

    comment: int


class CommentPinned(Event, tag="comment.pinned", frozen=True, kw_only=True):
    """A comment is held in view (state `pinned`)."""

    comment: int
    text: str
    name: str
    badge: Badge


class CommentUnpinned(Event, tag="comment.unpinned", frozen=True, kw_only=True):
    """The pinned comment was let go."""

    comment: int


class AnnouncementSet(Event, tag="announcement.set", frozen=True, kw_only=True):
    """The announcement bar changed; null clears it (state `announcement`)."""

    text: str | None


class ViewerMuted(Event, tag="viewer.muted", frozen=True, kw_only=True):
    """Staff only: a viewer may not comment until `until` (ms)."""

    viewer: str
    until: int
    by: str


class ViewerUnmuted(Event, tag="viewer.unmuted", frozen=True, kw_only=True):
    """Staff only: a viewer may comment again."""

    viewer: str
    by: str


class PollOpened(Event, tag="poll.opened", frozen=True, kw_only=True):
    """A poll was put to its audience (state `poll:<id>`)."""

    poll: PollId
    question: str
    choices: list[str]
    max_choices: int
    results: Results
    closes_at: int | UnsetType = UNSET


class PollClosed(Event, tag="poll.closed", frozen=True, kw_only=True):
    """A poll ended; `tally` holds the ballots for each choice."""

    poll: PollId
    voters: int
    tally: list[int]


ChatCommand = PostComment | SendReaction | CastBallot
ChatEvent = (
    CommentPosted
    | CommentHidden
    | CommentPinned
    | CommentUnpinned
    | AnnouncementSet
    | ViewerMuted
    | ViewerUnmuted
    | PollOpened
    | PollClosed
)


def encoded(event: ChatEvent) -> bytes:
    """The event as the log wants it: an object that begins with its type."""
    return msgspec.json.encode(event)
