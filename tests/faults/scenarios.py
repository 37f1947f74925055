"""What is run: the seeded mixture, and named scenarios, each a fixed list of faults around one kind of trouble."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.faults.schedule import WIRE_FAULTS, Strike, schedule
from tests.faults.workload.intentions import Mix

MIXTURE = "mixture"
RATE = 12.0
SECONDS_OF_MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run: `seconds` of load at `rate` tasks per second under `strikes`, on `nodes` NATS servers."""

    name: str
    about: str
    seconds: float
    strikes: tuple[Strike, ...]
    mix: Mix = field(default_factory=Mix)
    rate: float = RATE
    nodes: int = 1
    consumers: int = 2
    concurrency: int = 0
    """`max_concurrency` of the queue: few slots make tasks wait in the stream."""


def mixture(seed: int, minutes: float, nodes: int = 1) -> Scenario:
    """Every fault that one NATS server allows, or a cluster of three, in an order that the seed decides."""
    seconds = minutes * SECONDS_OF_MINUTE
    strikes = schedule(seed, seconds, nodes=nodes)
    return Scenario(MIXTURE, "all faults, drawn by the seed", seconds, strikes, nodes=nodes)


def _each(fault: str, targets: tuple[str, ...], seconds: float, pause: float = 2.5) -> tuple[Strike, ...]:
    """The same fault on one target after the other."""
    step = seconds + pause
    return tuple(Strike(3.0 + step * turn, fault, target, seconds) for turn, target in enumerate(targets))


def _in_turn(faults: tuple[str, ...], target: str, seconds: float, pause: float = 2.0) -> tuple[Strike, ...]:
    """One fault after the other on the same target."""
    step = seconds + pause
    return tuple(Strike(3.0 + step * turn, fault, target, seconds) for turn, fault in enumerate(faults))


FEW_SLOTS = 4
LONG = Mix(weights={"slow": 10, "plain": 10, "sharded": 3}, watched=0.4)
FAILING = Mix(weights={"hopeless": 10, "plain": 5, "flaky": 3, "sharded_failing": 3, "crashing": 1})

_ALL = (
    Scenario("calm", "no fault at all: what is found here is wrong without any", 12.0, ()),
    Scenario(
        "consumers-killed",
        "kill -9 of consumers in the middle of their work",
        18.0,
        _each("kill", ("consumer-1", "consumer-2", "consumer-1"), 1.0),
    ),
    Scenario(
        "consumers-frozen",
        "SIGSTOP of consumers for longer than a lease: when they go on, their tasks are somebody else's",
        24.0,
        _each("freeze", ("consumer-1", "consumer-2"), 6.0),
        LONG,
    ),
    Scenario(
        "roll-outs",
        "SIGTERM and restart of all consumers, again and again, under tasks of several seconds",
        25.0,
        _each("roll_out", ("consumers",) * 4, 0.0, pause=5.0),
        LONG,
        rate=6.0,
    ),
    Scenario(
        "producer-killed",
        "kill -9 and SIGSTOP of the producer while submits are on their way",
        20.0,
        (*_each("kill", ("producer", "producer"), 0.5), Strike(11.0, "freeze", "producer", 5.0)),
        Mix(repeated=0.5),
    ),
    Scenario(
        "status-killed",
        "kill -9, SIGSTOP and roll-out of the status service under many watchers",
        20.0,
        (
            *_each("kill", ("status", "status"), 0.5),
            Strike(9.0, "freeze", "status", 4.0),
            Strike(15.0, "roll_out", "status"),
        ),
        Mix(watched=0.9),
    ),
    Scenario(
        "postgres-killed",
        "kill -9 of the postmaster, twice, with recovery",
        20.0,
        _each("kill", ("postgres", "postgres"), 2.0),
    ),
    Scenario(
        "postgres-frozen",
        "SIGSTOP of all of Postgres for three leases: nobody is charged, nothing is taken over by its clock",
        24.0,
        (Strike(5.0, "freeze", "postgres", 9.5),),
        LONG,
    ),
    Scenario(
        "broker-killed",
        "kill -9 of nats-server: away for a while, then for a moment",
        22.0,
        (Strike(3.0, "kill", "nats", 8.0), Strike(15.0, "kill", "nats", 0.2)),
    ),
    Scenario(
        "broker-frozen",
        "SIGSTOP of nats-server: connections stay and nobody answers",
        20.0,
        (Strike(4.0, "freeze", "nats", 7.0),),
    ),
    Scenario(
        "store-wiped",
        "nats-server killed and its data deleted while many tasks wait in it",
        20.0,
        (Strike(5.0, "wipe", "nats", 1.0), Strike(12.0, "wipe", "nats", 0.1)),
        LONG,
        concurrency=FEW_SLOTS,
    ),
    Scenario(
        "streams-deleted",
        "all streams deleted while many tasks wait in them, the server itself stays",
        20.0,
        (Strike(5.0, "delete_streams", "nats"), Strike(12.0, "delete_streams", "nats")),
        LONG,
        concurrency=FEW_SLOTS,
    ),
    Scenario(
        "duplicates",
        "messages of tasks published again, of ended ones too, under ids that the stream has not seen",
        15.0,
        _each("duplicate", ("tasks",) * 4, 0.0),
    ),
    Scenario(
        "wires-to-postgres",
        "the wire from a consumer to Postgres cut, held, held one way, delayed, half closed",
        32.0,
        _in_turn(WIRE_FAULTS, "consumer-1>postgres", 3.5),
    ),
    Scenario(
        "wires-to-broker",
        "the wire from a consumer to NATS cut, held, held one way, delayed, half closed",
        32.0,
        _in_turn(WIRE_FAULTS, "consumer-1>nats", 3.5),
    ),
    Scenario(
        "producers-wires",
        "the wires of the producer to both servers cut, held, held one way, delayed, half closed",
        32.0,
        (
            *_in_turn(WIRE_FAULTS, "producer>postgres", 2.0, pause=3.5),
            *_in_turn(tuple(reversed(WIRE_FAULTS)), "producer>nats", 3.0, pause=2.5),
        ),
    ),
    Scenario(
        "clients-wires",
        "the wires of the clients to both services cut, held, held one way, delayed, half closed",
        32.0,
        (
            *_in_turn(WIRE_FAULTS, "clients>producer", 2.5, pause=3.0),
            *_in_turn(tuple(reversed(WIRE_FAULTS)), "clients>status", 3.5),
        ),
        Mix(watched=0.6, repeated=0.5),
    ),
    Scenario(
        "failures-under-outage",
        "tasks that fail for good, and redrives, while the broker is frozen, killed and wiped",
        24.0,
        (
            Strike(3.0, "freeze", "nats", 3.0),
            Strike(8.0, "kill", "nats", 3.0),
            Strike(13.0, "wipe", "nats", 0.5),
            Strike(17.0, "kill", "producer", 0.5),
        ),
        FAILING,
    ),
    Scenario(
        "leader-lost",
        "three NATS servers with R3 streams: the leader of the task stream is killed, three times",
        32.0,
        tuple(Strike(4.0 + 8.5 * turn, "kill_leader", "nats", 3.0) for turn in range(3)),
        nodes=3,
    ),
    Scenario(
        "quorum-lost",
        "two of three NATS servers killed: the third answers and can decide nothing",
        24.0,
        (Strike(4.0, "kill", "n1", 8.0), Strike(4.5, "kill", "n2", 8.0)),
        nodes=3,
    ),
)
SCENARIOS: Mapping[str, Scenario] = {scenario.name: scenario for scenario in _ALL}
