"""A moment as it goes over the wire: whole milliseconds since 1970."""

from __future__ import annotations

from datetime import datetime


def in_ms(moment: datetime) -> int:
    """Rounded to the nearest, as PostgreSQL casts a number to an integer."""
    return round(moment.timestamp() * 1000)
