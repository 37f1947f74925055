"""What each service has to be allowed on NATS, and no more: as a file that nats-server includes.

Pure: the subjects follow from the names. `headrace topology permissions` prints it, deploy/nats/permissions.conf is its
output for the default names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace_core.bus.access import INBOX
from headrace_core.bus.declaration import ADVISORY_DURABLE, StreamNames

SERVICES = ("producer", "consumer", "status")
ADMIN = "admin"
"""Who runs `headrace topology apply`."""
_INFO = "$JS.API.INFO"
_HEAD = """\
# What each service of Headrace may do on NATS. Made by: headrace topology permissions
#
# Include it in the configuration of nats-server, and give the server's process the four passwords in its environment.
# A user that is missing here can do nothing; docs/privileges.md says what each of them could do at worst.
"""


@dataclass(frozen=True, slots=True)
class Permissions:
    """The subjects that a user may publish on and subscribe to."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def inbox(names: StreamNames, user: str) -> str:
    """What begins the subjects on which `user` is answered: nobody else may listen there."""
    return f"{INBOX}.{names.subjects}-{user}"


def permissions(names: StreamNames) -> dict[str, Permissions]:
    """For each service and the administrator."""
    producer = [
        names.task_subject("*.*"),
        names.dead_letter_subject("*", "*"),
        names.wake_subject,
        names.cancel_subject,
        *_api(names.tasks, "STREAM.INFO", "STREAM.MSG.GET", "STREAM.MSG.DELETE", "CONSUMER.LIST"),
        *_api(names.dead_letters, "STREAM.INFO", "STREAM.MSG.GET", "STREAM.PURGE"),
        f"$JS.API.CONSUMER.MSG.NEXT.{names.advisories}.{ADVISORY_DURABLE}",
        *_acknowledgements(names.advisories),
    ]
    consumer = [
        names.task_subject("*.resume"),
        names.dead_letter_subject("*", "*"),
        names.wake_subject,
        *_api(names.tasks, "CONSUMER.LIST"),
        f"$JS.API.CONSUMER.MSG.NEXT.{names.tasks}.*",
        *_api(names.dead_letters, "STREAM.MSG.GET"),
        *_acknowledgements(names.tasks),
    ]
    status = [*_api(names.tasks, "STREAM.INFO", "CONSUMER.LIST"), *_api(names.dead_letters, "STREAM.INFO")]
    return {
        "producer": _for(names, "producer", producer),
        "consumer": _for(names, "consumer", consumer, names.cancel_subject),
        "status": _for(names, "status", status, names.wake_subject),
        ADMIN: _for(names, ADMIN, _administration(names)),
    }


def document(names: StreamNames) -> str:
    """The file."""
    users = "".join(_user(name, found) for name, found in permissions(names).items())
    return f"{_HEAD}authorization {{\n  users = [\n{users}  ]\n}}\n"


def _for(names: StreamNames, user: str, publish: Sequence[str], *subscribe: str) -> Permissions:
    # Answers come on the own inbox; a message to it, sent round, tells that everything before has arrived.
    own = f"{inbox(names, user)}.>"
    return Permissions((_INFO, *publish, own), (*subscribe, own))


def _api(stream: str, *verbs: str) -> list[str]:
    return [f"$JS.API.{verb}.{stream}" for verb in verbs]


def _acknowledgements(stream: str) -> list[str]:
    """Newer servers say the domain and the account as well."""
    return [f"$JS.ACK.{stream}.>", f"$JS.ACK.*.*.{stream}.>"]


def _administration(names: StreamNames) -> list[str]:
    streams = (names.tasks, names.dead_letters, names.advisories)
    asked = [
        subject
        for stream in streams
        for subject in _api(stream, "STREAM.INFO", "STREAM.CREATE", "STREAM.UPDATE", "CONSUMER.LIST")
    ]
    return [*asked, *(f"$JS.API.CONSUMER.DURABLE.CREATE.{stream}.*" for stream in streams)]


def _user(name: str, found: Permissions) -> str:
    return (
        f"    {{\n      user: {name}\n      password: $NATS_{name.upper()}_PASSWORD\n      permissions: {{\n"
        f"        publish: {_allow(found.publish)}\n        subscribe: {_allow(found.subscribe)}\n      }}\n    }}\n"
    )


def _allow(subjects: Sequence[str]) -> str:
    lines = "".join(f'          "{subject}"\n' for subject in subjects)
    return f"{{ allow: [\n{lines}        ] }}"
