"""Identities and their grants: who may play which role in which namespace. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from headrace_core.errors import DomainError, PermissionDenied

EVERY = "*"
"""In a grant: every namespace, and what belongs to none."""
_NAMESPACE = re.compile(r"[a-z0-9_-]{1,64}|\*")


class Role(StrEnum):
    """What somebody may do. See INCLUDES for what a role brings with it."""

    SUBMIT = "submit"
    READ = "read"
    OPERATE = "operate"
    ADMIN = "admin"


Roles = tuple[Role, ...]
"""Roles of which any one is enough."""

INCLUDES: Mapping[Role, frozenset[Role]] = {
    Role.SUBMIT: frozenset({Role.SUBMIT}),
    Role.READ: frozenset({Role.READ}),
    Role.OPERATE: frozenset({Role.OPERATE, Role.READ}),
    Role.ADMIN: frozenset(Role),
}


@dataclass(frozen=True, slots=True)
class Grant:
    """A role in a namespace, or in every one (`*`)."""

    role: Role
    namespace: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "role:namespace". Raises ValueError saying what is allowed."""
        role, separator, namespace = text.partition(":")
        if not separator or role not in set(Role) or not _NAMESPACE.fullmatch(namespace):
            raise ValueError(
                f"{text[:80]!r} is no grant: role:namespace, the role one of {', '.join(Role)},"
                " the namespace [a-z0-9_-]{1,64} or *"
            )
        return cls(Role(role), namespace)

    def __str__(self) -> str:
        return f"{self.role}:{self.namespace}"


class Identity:
    """Somebody who calls. `name` says from where it is known: `token:ci`, `jwt:alice`, `certificate:billing`."""

    __slots__ = ("_known", "_where", "grants", "name")

    def __init__(self, name: str, grants: Iterable[Grant]) -> None:
        self.name = name
        self.grants = frozenset(grants)
        self._known = frozenset(grant.namespace for grant in self.grants)
        self._where = {
            role: frozenset(grant.namespace for grant in self.grants if role in INCLUDES[grant.role]) for role in Role
        }

    def may(self, roles: Roles, namespace: str) -> bool:
        """True with one of these roles in this namespace; EVERY asks for a grant on all of them."""
        return any(EVERY in self._where[role] or namespace in self._where[role] for role in roles)

    def anywhere(self, roles: Roles) -> bool:
        """True with one of these roles in any namespace."""
        return any(self._where[role] for role in roles)

    def knows(self, namespace: str) -> bool:
        """True with any role there: whoever has none is not told what is in it."""
        return EVERY in self._known or namespace in self._known

    def reach(self, roles: Roles) -> tuple[str, ...] | None:
        """The namespaces with one of these roles, in order; None: all of them."""
        found = frozenset[str]().union(*(self._where[role] for role in roles))
        return None if EVERY in found else tuple(sorted(found))

    def covers(self, other: Identity) -> bool:
        """True if this one may do everything that the other may."""
        return all(
            EVERY in self._where[role] or namespaces <= self._where[role] for role, namespaces in other._where.items()
        )

    def require(self, roles: Roles, namespace: str, absent: DomainError | None = None) -> None:
        """Refuse unless one of these roles is there.

        Raises:
            PermissionDenied: the namespace is the caller's and the role is missing, or there is no `absent`.
            DomainError: `absent`, for what is in a namespace that the caller has nothing to do with.
        """
        if self.may(roles, namespace):
            return
        if absent is not None and not self.knows(namespace):
            raise absent
        raise self.denied(roles, f"namespace {namespace!r}" if namespace != EVERY else "every namespace (*)")

    def denied(self, roles: Roles, where: str) -> PermissionDenied:
        """The error that names the missing role."""
        return PermissionDenied(
            f"{self.name} has not the role {' or '.join(roles)} in {where}; whoever owns the access file can grant it",
            metadata={"role": roles[0]},
        )


ANYONE = Identity("anonymous", [Grant(Role.ADMIN, EVERY)])
"""Everybody, where no authentication is configured."""
