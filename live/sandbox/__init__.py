"""A payment provider for trying the shop: its own app, its own store, its own page. No money moves.

It behaves as real ones do: signed requests, a hosted page, webhooks that are signed, repeated until they are
answered, and may come twice or late. Mounted at /sandbox in the demo; `python -m live.sandbox` runs it alone.
"""

from live.sandbox.app import create_sandbox

__all__ = ["create_sandbox"]
