"""Logging, set up once a process: readable lines on a terminal, JSON elsewhere. Never anything secret."""

from __future__ import annotations

import logging
import sys

import structlog


def set_up(level: str) -> None:
    stamps: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.CallsiteParameterAdder([structlog.processors.CallsiteParameter.PROCESS]),
    ]
    terminal = sys.stderr.isatty()
    drawn: list[structlog.typing.Processor] = (
        [
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        ]  # no locals: they hold secrets
        if terminal
        else [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(sort_keys=True, ensure_ascii=False),
        ]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=stamps,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *drawn],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # These tell of every single thing they do.
    for name in ("procrastinate", "httpx2", "alembic", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)
