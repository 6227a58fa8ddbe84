"""The crowd and locust are tried against a served shop."""

from __future__ import annotations

from tests.live.conftest import served

__all__ = ["served"]
