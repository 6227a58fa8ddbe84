"""What `companion verify` asks of the world: a file, or over HTTP a server's public key and a benefit's ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import msgspec
from msgspec import Struct

from commerce.receipts import CHARS_MAX, Link, Receipt, Unverified, broken_link, digest_of, read_core

WAIT_S = 10.0
PAGE = 500
PAGES_MAX = 400  # of 500 links; a quota is at most 100,000
ANSWER_BYTES_MAX = 8 * 1024 * 1024


class NoAnswer(Exception):
    """One line: the server asked is none of ours, or away."""


class _Key(Struct):
    key: str


class _Ranks(Struct):
    items: tuple[Link, ...]
    next: str | None = None


def read_given(what: str) -> str | Path:
    """A receipt, given itself or in a file; or the path of an archive."""
    text = what.strip()
    try:
        with Path(text).open("rb") as file:
            start = file.read(CHARS_MAX + 2)
    except (OSError, ValueError):  # no file: also a name that is too long to be one
        return text
    return Path(text) if start.startswith(b"{") else start.decode("utf-8", "replace").strip()


def read_key(address: str) -> str:
    """The public key of the server at this address. Raises NoAnswer."""
    return str(_get(address, "/v1/receipts/key", {}, _Key).key)


def check_chain(address: str, said: Receipt) -> str:
    """Recompute the whole chain that a receipt is a link of; says what was found. Raises Unverified, NoAnswer."""
    cores: list[str] = []
    after = "0"
    for _ in range(PAGES_MAX):
        query = {"after": after, "limit": str(PAGE)}
        page: _Ranks = _get(address, f"/v1/benefits/{said.benefit}/ranks", query, _Ranks)
        cores += [_checked(link) for link in page.items]
        if page.next is None:
            break
        after = page.next
    if broken := broken_link(cores):
        raise Unverified(f"the chain is broken: {broken}")
    if said.link > len(cores) or read_core(cores[said.link - 1]) != said:
        raise Unverified("the receipt is no link of the chain that the server shows")
    return f"unbroken: {len(cores)} links, and this is number {said.link}"


def _checked(link: Link) -> str:
    """The core of a listed link, when it says what the list says."""
    try:
        core = read_core(link.core)
    except msgspec.DecodeError:
        raise Unverified(f"link {link.link} of the chain cannot be read") from None
    listed = (link.rank, link.viewer, link.at, link.digest)
    if (core.rank, core.viewer, core.at, digest_of(link.core)) != listed:
        raise Unverified(f"link {link.link} of the chain says otherwise than its row in the list")
    return link.core


def _get(address: str, path: str, query: dict[str, str], kind: Any) -> Any:
    where = address.rstrip("/") + path
    try:
        with httpx2.Client(timeout=WAIT_S) as client:
            answer = client.get(where, params=query)
        answer.raise_for_status()
        if len(answer.content) > ANSWER_BYTES_MAX:
            raise NoAnswer(f"{where} answers more than a companion does")
        return msgspec.json.decode(answer.content, type=kind)
    except (httpx2.HTTPError, httpx2.InvalidURL, msgspec.DecodeError) as error:
        raise NoAnswer(f"{where} does not answer as a companion does: {error}") from None
