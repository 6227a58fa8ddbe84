"""`python -m live.sandbox`: the provider as a process of its own, with the shop's COMPANION_SECRET."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import uvicorn

from live.sandbox.app import create_sandbox


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m live.sandbox",
        description="A payment provider for trying the shop. No money moves.",
        epilog="example: COMPANION_SECRET=… python -m live.sandbox --port 8010 --file /tmp/sandbox.sqlite3",
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8010)
    parser.add_argument(
        "--file", type=Path, default=None, help="what it remembers; without it, until it ends"
    )
    given = parser.parse_args()
    secret = os.environ.get("COMPANION_SECRET", "")
    if not secret:
        print("set COMPANION_SECRET to the secret of the shop", file=sys.stderr)  # noqa: T201
        return 2
    uvicorn.run(create_sandbox(secret, given.file), host=given.host, port=given.port, log_level="warning")
    return 0


if __name__ == "__main__":
    sys.exit(main())
