"""The rows use the stages of trade."""

from __future__ import annotations

from tests.commerce.conftest import shop, stage

__all__ = ["shop", "stage"]
