"""The sandbox as a process: one uvicorn on a socket that is bound already."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn

from live.sandbox.app import create_sandbox

STOP_S = 3  # for requests under way


def run_sandbox(
    secret: str,
    path: Path,
    bound: socket.socket,
    *,
    timezone: str,
    ready: Callable[[], Any],
) -> None:
    """Serve until SIGTERM or SIGINT. Connections made since the binding wait in the socket's queue."""
    app = create_sandbox(secret, path, timezone=timezone)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=STOP_S)
    ready()
    uvicorn.Server(config).run(sockets=[bound])
