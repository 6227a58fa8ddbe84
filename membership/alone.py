"""One of many: what fails is tried again at its next turn, and holds up none of the others."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from membership.refusal import Refusal


@contextlib.contextmanager
def alone(what: str, log: logging.Logger, *, refused: int = logging.WARNING) -> Iterator[None]:
    """`refused` is the level at which a refusal is noted; any other error is one of ours, with its trace."""
    try:
        yield
    except Refusal as refusal:
        log.log(refused, "%s: %s", what, refusal)
    except Exception:
        log.exception("%s failed; it is tried again", what)
