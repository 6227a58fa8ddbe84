"""What happens in a round, drawn from the seed and the round's number: the same again for the same two."""

from __future__ import annotations

import random
from typing import Any, Final, Literal

from msgspec import Struct

VICTIMS: Final = ("node 1", "node 2", "jobs", "redis", "postgresql")
STEPS: Final = (5, 140)  # of some 180 that a round has: requests sent and answers taken
PAUSE_MS: Final = (0, 40)  # from that step to the kill
OUT_MS: Final = (50, 600)  # until what was killed is started again
START_MS: Final = 500  # within which people begin
BOTH: Final = 0.15  # of the rounds have two victims
SEATS, JOINERS = 5, 9
GIFTS, CLAIMANTS = 10, 25
PIECES, BUYERS = 5, 8

FAULTS: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"delay_s": 0.3},
    {"copies": 3},
    {"delay_s": 0.2, "copies": 2},
    {"reorder": True},
    {"vanish": True},
)


class Person(Struct, frozen=True):
    """One client: when it begins, at which door, and whether it pays in the end or gives its order up."""

    after_ms: int
    door: int
    act: Literal["pay", "give up", "pay late"] = "pay"


class Plan(Struct, frozen=True, kw_only=True):
    """One round."""

    seed: int
    number: int
    victims: tuple[str, ...]
    step: int  # the kill follows this step of the clients …
    pause_ms: int  # … so much later
    out_ms: int
    faults: dict[str, Any]  # of the payment provider
    opens_after_ms: int  # the benefit for joining; 0: before anybody joins
    joiners: tuple[Person, ...]
    claimants: tuple[Person, ...]
    buyers: tuple[Person, ...]

    def __str__(self) -> str:
        return (
            f"round {self.number} of seed {self.seed}: {' and '.join(self.victims)} killed {self.pause_ms} ms "
            f"after step {self.step}, started again {self.out_ms} ms later; provider {self.faults or 'behaves'}"
        )


def draw(seed: int, number: int, victims: tuple[str, ...] = VICTIMS) -> Plan:
    """The round of this number."""
    chance = random.Random(f"{seed}:{number}")  # to be drawn again, not to be secret

    def people(count: int, acts: tuple[Literal["pay", "give up", "pay late"], ...]) -> tuple[Person, ...]:
        return tuple(
            Person(chance.randrange(START_MS), chance.randrange(2), chance.choice(acts)) for _ in range(count)
        )

    killed = chance.sample(victims, 2 if len(victims) > 1 and chance.random() < BOTH else 1)
    return Plan(
        seed=seed,
        number=number,
        victims=tuple(killed),
        step=chance.randint(*STEPS),
        pause_ms=chance.randint(*PAUSE_MS),
        out_ms=chance.randint(*OUT_MS),
        faults=chance.choice(FAULTS),
        opens_after_ms=0 if chance.random() < 0.7 else chance.randrange(200, START_MS),
        joiners=people(JOINERS, ("pay", "pay", "pay", "pay", "give up", "pay late")),
        claimants=people(CLAIMANTS, ("pay",)),
        buyers=people(BUYERS, ("pay", "pay", "pay", "pay", "give up", "pay late")),
    )
