"""What a client's certificate says of it."""

from __future__ import annotations

from typing import Any

import grpc


def certificate_names(context: grpc.aio.ServicerContext[Any, Any]) -> list[str]:
    """The subject alternative names of the client's certificate, which the server has verified; empty without one."""
    found = context.auth_context().get("x509_subject_alternative_name", ())
    return [name.decode("utf-8", "replace") for name in found]
