"""A payment provider for trying the shop: its own app, its own store, its own page. No money moves.

It behaves as real ones do: signed requests, a hosted page, webhooks that are signed, repeated until they are
answered, and may come twice or late; told to, it misbehaves. `companion sandbox` runs it as a process of its
own, which the demo does; without COMPANION_SANDBOX_URL it is mounted at /sandbox of the server process.
"""

from live.sandbox.app import create_sandbox
from live.sandbox.forward import create_forward

__all__ = ["create_forward", "create_sandbox"]
