"""Where a show lives in Redis: one of 64 partitions, all keys of one show on one node."""

from __future__ import annotations

import zlib

from membership.actor import ShowId

PARTITIONS = 64  # fixed for life: a show's keys carry the number


def partition(show: ShowId) -> int:
    """0–63, by the show's id."""
    return zlib.crc32(show.encode()) % PARTITIONS


def tag(show: ShowId) -> str:
    """`p00` to `p63`: what the show's keys share, so that a Cluster keeps them on one node."""
    return f"p{partition(show):02d}"


def show_key(show: ShowId, name: str) -> str:
    """`{p17}:show:<id>:<name>`; a Cluster places a key by what stands in the braces."""
    return f"{{{tag(show)}}}:show:{show}:{name}"


SPINE = ("log", "meta", "states", "versions", "counts", "replies", "behaviour")


def spine(show: ShowId) -> list[str]:
    """The seven keys every show script is given first, in the prelude's order."""
    return [show_key(show, name) for name in SPINE]
