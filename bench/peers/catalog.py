"""The peers: which servers they need, how their workers are started, and what their figures mean."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Server = Literal["postgres", "nats", "redis", "rabbitmq"]

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(__file__).resolve().parent / "scripts"
HEADRACE = "headrace"

# Which program says that a server is there, and how to get it. Postgres and NATS come with our own wheels.
PROGRAMS: Mapping[Server, tuple[str, str]] = {
    "redis": ("redis-server", "apt-get install --no-install-recommends redis-server"),
    "rabbitmq": ("rabbitmq-server", "apt-get install --no-install-recommends rabbitmq-server"),
}


@dataclass(frozen=True)
class Peer:
    """A task queue in the configuration that its documentation and a short search showed to be its best.

    `worker` are the arguments of the interpreter of `environment` that start a worker, `workers` how many of it.
    `settings` go to workers and clients; `latency_settings` replace them for the measure of latency where one task at
    a time is served better otherwise. `most_tasks` caps the slow ones. `keeps` says what is left of a finished task.
    """

    name: str
    servers: frozenset[Server]
    keeps: str
    worker: tuple[str, ...] = ()
    workers: int = 1
    settings: Mapping[str, str] = field(default_factory=dict)
    latency_settings: Mapping[str, str] = field(default_factory=dict)
    most_tasks: int = 1_000_000
    environment: str = ".venv-peers"

    @property
    def python(self) -> Path:
        """The interpreter of its environment."""
        return ROOT / self.environment / "bin" / "python"

    @property
    def script(self) -> Path:
        """Its client, and its worker where the library has no command for that."""
        return SCRIPTS / f"peer_{self.name}.py"


PEERS = (
    Peer(HEADRACE, frozenset(), "return value, every event, Postgres", environment=".venv"),
    Peer(
        "pgqueuer",
        frozenset({"postgres"}),
        "status only, Postgres",
        worker=("peer_pgqueuer.py", "work"),
        settings={"PEER_BATCH": "500"},
        # A batch that is not full is written 0.1 s later.
        latency_settings={"PEER_BATCH": "1"},
    ),
    Peer(
        "taskiq",
        frozenset({"postgres", "nats"}),
        "return value, Postgres",
        worker=(
            *("-m", "taskiq", "worker", "peer_taskiq:broker", "--workers", "2", "--max-async-tasks", "100"),
            *("--ack-type", "when_saved", "--log-level", "WARNING"),
        ),
        settings={"PEER_BATCH": "100", "PEER_PULL_SECONDS": "0.05"},
        latency_settings={"PEER_BATCH": "1"},
    ),
    Peer(
        "procrastinate",
        frozenset({"postgres"}),
        "status only, Postgres",
        worker=("-m", "procrastinate", "--app=peer_procrastinate.app", "worker", "-c", "10", "-q", "peers"),
        workers=2,
        most_tasks=2000,
    ),
    Peer(
        "dramatiq",
        frozenset({"rabbitmq", "redis"}),
        "return value, redis, 10 minutes",
        worker=("-m", "dramatiq", "peer_dramatiq", "--processes", "2", "--threads", "4"),
    ),
    Peer(
        "celery",
        frozenset({"redis", "postgres"}),
        "return value, Postgres",
        worker=(
            *("-m", "celery", "-A", "peer_celery", "worker", "-P", "prefork", "-c", "2", "-l", "WARNING"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        ),
        most_tasks=2000,
    ),
    Peer(
        "arq",
        frozenset({"redis"}),
        "return value, redis, 1 hour",
        worker=("-m", "arq", "peer_arq.WorkerSettings"),
        environment=".venv-peers-arq",
    ),
)
