"""Processes of the house, forked from one that has imported everything: a start takes a tenth of a second.

    python -P -m tests.outage.nursery [--hurried] [--without GUARD]

A line of JSON on stdin asks for a process: its arguments as on the command line, its environment, where its
output goes. The answer is its id. `--hurried` shortens five waits of the product that a round would otherwise
sit out: they only say when the tables, or the provider, are asked about what was left. `--without` takes a
guard out of the product, so that who looks for what is lost or oversold can be seen to find some.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import signal
import sys
from collections.abc import Callable
from typing import Any, Final, NoReturn

import msgspec
import uuid_utils

import commerce.payment_health
import commerce.pieces
import commerce.seats
import live.__main__
import live.closing
import live.http
import live.jobs
import live.sandbox.serving
import live.server
from commerce.payments import Payments
from commerce.pieces import Pieces
from live import process

HOLD_LOOKED_AT_MS: Final = 3_000  # 60 s in the product
MONEY_ASKED_FOR_S: Final = 2.0  # 30 s in the product
KEY_FREE_MS: Final = 2_000  # of a request that died with its process; 60 s in the product
MONEY_ROUND_S: Final = 1.0  # 5 s in the product
LOOKED_BACK_S: Final = 2  # at money found late, before a flash starts; 600 s in the product


class Asked(msgspec.Struct, frozen=True):
    """One process to start."""

    arguments: list[str]
    environment: dict[str, str]
    output: str


def hurry() -> None:
    """What is asked for or looked at only after a while is so after a moment."""
    assert hasattr(commerce.pieces, "UNSETTLED_MS") and hasattr(live.jobs, "MONEY_S")
    commerce.pieces.UNSETTLED_MS = HOLD_LOOKED_AT_MS
    live.jobs.MONEY_S = MONEY_ROUND_S  # type: ignore[misc]
    assert hasattr(live.http, "KEY_RUNNING_MS") and hasattr(commerce.payment_health, "LOOKED_BACK_S")
    commerce.payment_health.LOOKED_BACK_S = LOOKED_BACK_S
    live.http.KEY_RUNNING_MS = KEY_FREE_MS  # type: ignore[misc]
    defaults = Payments.ask_due.__kwdefaults__
    assert defaults is not None and "after_s" in defaults
    defaults["after_s"] = MONEY_ASKED_FOR_S


# -- guards that can be taken out ------------------------------------------------------------------


def without_pieces() -> None:
    """Nobody counts pieces: no hold in Redis, no conditional update of quota and stock in PostgreSQL."""

    async def nothing(self: Pieces, *_: Any, **__: Any) -> None:
        return None

    for name in ("hold", "take", "give_back"):
        assert hasattr(Pieces, name)
        setattr(Pieces, name, nothing)


def without_settling() -> None:
    """What a crash leaves stays as it is: no job compares Redis with the tables, or tells what was not told."""

    async def nothing(self: live.jobs.Rounds) -> None:
        return None

    live.jobs.Rounds._tend = nothing  # type: ignore[method-assign]
    live.jobs.Rounds._settle_orders = nothing  # type: ignore[method-assign]


GUARDS: Final[dict[str, Callable[[], None]]] = {"pieces": without_pieces, "settling": without_settling}


# -- the parent ------------------------------------------------------------------------------------


def child(asked: Asked) -> NoReturn:
    """The process itself: as if started anew from the command line."""
    code = 1
    try:
        os.setsid()  # Ctrl-C in the terminal is not for us
        process.end_with_parent()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDONLY)
        said = os.open(asked.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for number, of in enumerate((nothing, said, said)):
            os.dup2(of, number)
        os.environ.clear()
        os.environ.update(asked.environment)
        random.seed()
        uuid_utils.reseed_rng()
        code = live.__main__.main(asked.arguments)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.outage.nursery")
    parser.add_argument("--hurried", action="store_true")
    parser.add_argument("--without", choices=sorted(GUARDS))
    given = parser.parse_args()
    if given.hurried:
        hurry()
    if given.without:
        GUARDS[given.without]()
    process.end_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a child ended
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()
    decoder = msgspec.json.Decoder(Asked)
    for line in sys.stdin.buffer:
        pid = os.fork()
        if pid == 0:
            child(decoder.decode(line))
        print(pid, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
