"""The shapes on the wire: strict about commands, an event begins with its type."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from chat.messages import (
    CastBallot,
    ChatCommand,
    CommentPosted,
    PollClosed,
    PollOpened,
    PostComment,
    SendReaction,
    encoded,
)
from membership.actor import PollId


def decode(value: dict[str, Any]) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value), type=ChatCommand)


def test_each_command_is_known_by_its_word() -> None:
    assert decode({"type": "comment.post", "id": 1, "text": "好"}) == PostComment(id=1, text="好")
    assert decode({"type": "reaction.send", "id": 2, "kind": "like"}) == SendReaction(
        id=2, kind="like", count=1
    )
    assert decode({"type": "ballot.cast", "id": 3, "key": "k", "poll": "p", "choices": [0]}) == CastBallot(
        id=3, key="k", poll=PollId("p"), choices=[0]
    )


@pytest.mark.parametrize(
    "command",
    [
        {"type": "comment.post", "id": 1},
        {"type": "comment.post", "id": 1, "text": 5},
        {"type": "comment.post", "id": 1, "text": "好", "badge": "host"},
        {"type": "comment.post", "text": "好"},
        {"type": "comment.post", "id": 1, "text": "好", "key": ""},
        {"type": "comment.post", "id": 1, "text": "好", "key": "k" * 65},
        {"type": "reaction.send", "id": 1, "kind": "love"},
        {"type": "reaction.send", "id": 1, "kind": "like", "count": 51},
        {"type": "reaction.send", "id": 1, "kind": "like", "count": 0},
        {"type": "reaction.send", "id": 1, "kind": "like", "count": 1.5},
        {"type": "ballot.cast", "id": 1, "poll": "p", "choices": []},
        {"type": "ballot.cast", "id": 1, "poll": "p", "choices": ["0"]},
        {"type": "ballot.cast", "id": 1, "poll": "p", "choices": list(range(11))},
        {"type": "comment.shout", "id": 1, "text": "好"},
    ],
)
def test_a_malformed_command_is_no_command(command: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode(command)


def test_an_event_begins_with_its_type_and_leaves_number_and_time_to_the_store() -> None:
    posted = encoded(CommentPosted(text="好", name="王**", viewer="a" * 12, badge="plan"))
    assert posted.startswith(b'{"type":"comment.posted",')
    assert b'"seq"' not in posted and b'"at"' not in posted and b"reply" not in posted
    for event in (
        PollOpened(poll=PollId("p"), question="?", choices=["a", "b"], max_choices=1, results="always"),
        PollClosed(poll=PollId("p"), voters=1, tally=[1, 0]),
    ):
        assert encoded(event).startswith(b'{"type":"poll.')
