"""A refusal: understood and declined. An answer, never logged as an error."""

from __future__ import annotations

from typing import ClassVar


class Refusal(Exception):
    """Base of every refusal. Subclasses stand above the method that raises them.

    `code` is the word on the wire; the message is for people; `retry_ms` is set where trying again
    helps. `details` are further public members of the answer (all JSON).
    """

    code: ClassVar[str] = "refused"

    def __init__(
        self,
        message: str | None = None,
        *,
        retry_ms: int | None = None,
        code: str | None = None,
        **details: object,
    ) -> None:
        super().__init__(message or (type(self).__doc__ or self.code).strip().split("\n")[0])
        self.word = code or self.code
        self.retry_ms = retry_ms
        self.details = details


class BadRequest(Refusal):
    """The command is malformed or out of bounds."""

    code = "bad_request"


class Unauthenticated(Refusal):
    """Sign in first."""

    code = "unauthenticated"


class Forbidden(Refusal):
    """Your role does not allow this."""

    code = "forbidden"


class NotFound(Refusal):
    """There is no such thing here."""

    code = "not_found"


class RateLimited(Refusal):
    """Too many in too short a time."""

    code = "rate_limited"


class Unavailable(Refusal):
    """The store did not answer; nothing was decided. Try again."""

    code = "unavailable"


class Away(Unavailable):
    """The store did not answer, so nobody knows: what was asked may have run. Try again."""


class KeyReused(Refusal):
    """This key was used before with another body."""

    code = "key_reused"
