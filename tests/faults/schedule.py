"""Which fault strikes when: a seed becomes a list of strikes. Pure, so the same seed is the same list for ever."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SERVERS = ("postgres", "nats")
NODES = ("n1", "n2", "n3")
WIRE_FAULTS = ("cut", "hold", "hold_replies", "delay", "half_close")
FIRST_STRIKE = 4.0
"""Seconds of work without faults at the beginning."""
LAST_HEAL = 6.0
"""Seconds without faults at the end."""


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault: begins `at` seconds after the start of the run and lasts `seconds`.

    `target` is a part of the stack (`producer`, `consumer-1`, `postgres`, …), all consumers (`consumers`), or a wire
    (`consumer-1>nats`, `clients>producer`).
    """

    at: float
    fault: str
    target: str
    seconds: float = 0.0

    @property
    def end(self) -> float:
        """Seconds after the start of the run at which the fault is to be over."""
        return self.at + self.seconds


@dataclass(frozen=True, slots=True)
class Card:
    """A fault that can be drawn: with one of `targets`, for a time between `shortest` and `longest` seconds."""

    fault: str
    targets: tuple[str, ...]
    shortest: float
    longest: float


def schedule(seed: int, seconds: float, *, consumers: int = 2, nodes: int = 1) -> tuple[Strike, ...]:
    """The strikes of a run of `seconds`, in order of time.

    Two lanes, each one fault after the other: the servers and their wires, the services and the clients' wires. So at
    most two faults meet. Each lane draws from a shuffled pack until it is used up, so a long run meets every fault.
    """
    names = _services(consumers)
    servers = server_cards if nodes == 1 else cluster_cards
    lanes = (("servers", servers(names)), ("services", service_cards(names)))
    strikes = [strike for name, cards in lanes for strike in _lane(random.Random(f"{seed}/{name}"), cards, seconds)]
    return tuple(sorted(strikes, key=lambda strike: (strike.at, strike.fault, strike.target)))


def server_cards(services: Sequence[str]) -> tuple[Card, ...]:
    """What can happen to Postgres, to NATS, and between them and the services."""
    wires = tuple(f"{service}>{server}" for service in services for server in SERVERS)
    return (
        Card("kill", ("nats",), 0.5, 6.0),
        Card("freeze", ("nats",), 1.0, 6.0),
        Card("wipe", ("nats",), 0.2, 3.0),
        *_common_cards(wires),
    )


def cluster_cards(services: Sequence[str]) -> tuple[Card, ...]:
    """The same with a cluster of three NATS servers, which services reach without a wire of ours."""
    return (
        Card("kill_leader", ("nats",), 1.0, 5.0),
        Card("kill", NODES, 0.5, 6.0),
        Card("freeze", NODES, 1.0, 6.0),
        *_common_cards(tuple(f"{service}>postgres" for service in services)),
    )


def _common_cards(wires: tuple[str, ...]) -> tuple[Card, ...]:
    return (
        Card("kill", ("postgres",), 0.2, 4.0),
        Card("freeze", ("postgres",), 1.0, 7.0),
        Card("delete_streams", ("nats",), 0.0, 0.0),
        *(Card(fault, wires, 1.0, 6.0) for fault in WIRE_FAULTS),
    )


def service_cards(services: Sequence[str]) -> tuple[Card, ...]:
    """What can happen to the services, between them and the clients, and to deliveries."""
    consumers = tuple(name for name in services if name.startswith("consumer"))
    groups = (("producer",), ("status",), consumers)
    clients = ("clients>producer", "clients>status")
    return (
        *(Card("kill", targets, 0.1, 3.0) for targets in groups),
        Card("kill", consumers, 0.1, 3.0),
        *(Card("freeze", targets, 1.0, 6.0) for targets in groups),
        *(Card("roll_out", (name,), 0.0, 0.0) for name in ("producer", "status", "consumers", "consumers")),
        *(Card(fault, clients, 0.5, 5.0) for fault in WIRE_FAULTS),
        Card("duplicate", ("tasks",), 0.0, 0.0),
        Card("duplicate", ("tasks",), 0.0, 0.0),
    )


def _services(consumers: int) -> tuple[str, ...]:
    return ("producer", "status", *(f"consumer-{number}" for number in range(1, consumers + 1)))


def _lane(rng: random.Random, cards: Sequence[Card], seconds: float) -> Iterator[Strike]:
    at = FIRST_STRIKE + rng.uniform(0.0, 3.0)
    for card in _drawn(rng, cards):
        strike = Strike(
            at=round(at, 2),
            fault=card.fault,
            target=rng.choice(card.targets),
            seconds=round(rng.uniform(card.shortest, card.longest), 2),
        )
        if strike.end > seconds - LAST_HEAL:
            return
        yield strike
        at = strike.end + rng.uniform(1.0, 5.0)


def _drawn(rng: random.Random, cards: Sequence[Card]) -> Iterator[Card]:
    while True:
        yield from rng.sample(cards, len(cards))
