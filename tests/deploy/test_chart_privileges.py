"""A Secret that exists may hold a URL for each service: each container gets its own, or the one that all share."""

import pytest

from tests.deploy.rendering import containers, pods, render

GIVEN = {"database.existingSecret.name": "ours", "nats.existingSecret.name": "ours"}
SERVICES = ("producer", "consumer", "status")
OWN = {f"{part}.existingSecret.{name}Key": f"{part}-{name}" for part in ("database", "nats") for name in SERVICES} | {
    "database.existingSecret.migrateKey": "database-owner",
    "nats.existingSecret.adminKey": "nats-admin",
}


def keys(values: dict[str, str]) -> dict[str, dict[str, str]]:
    """Container to variable to the key of the Secret; `producer/wait-for-schema` for a service's init container."""
    found: dict[str, dict[str, str]] = {}
    for _, pod in pods(render(sets=values)):
        main = pod["spec"]["containers"][0]["name"]
        for container in containers(pod):
            name = container["name"] if container["name"] == main else f"{main}/{container['name']}"
            secrets = {
                variable["name"]: variable["valueFrom"]["secretKeyRef"]["key"]
                for variable in container.get("env", [])
                if "secretKeyRef" in variable.get("valueFrom", {})
            }
            found[name] = {key: secrets[key] for key in secrets if key.endswith("_URL")}
    return found


def test_each_container_gets_its_own_key() -> None:
    found = keys(GIVEN | OWN)
    for service in SERVICES:
        own = {"HEADRACE_DATABASE_URL": f"database-{service}", "HEADRACE_NATS_URL": f"nats-{service}"}
        assert found[service] == own
        assert found[f"{service}/wait-for-schema"]["HEADRACE_DATABASE_URL"] == f"database-{service}"
    assert found["topology/migrate"] == {"HEADRACE_DATABASE_URL": "database-owner"}
    assert found["topology"] == {"HEADRACE_NATS_URL": "nats-admin"}


def test_what_has_no_key_of_its_own_shares_the_one() -> None:
    found = keys(GIVEN | {"database.existingSecret.statusKey": "reader"})
    assert found["status"] == {"HEADRACE_DATABASE_URL": "reader", "HEADRACE_NATS_URL": "url"}
    assert found["producer"] == {"HEADRACE_DATABASE_URL": "url", "HEADRACE_NATS_URL": "url"}
    assert found["topology/migrate"] == {"HEADRACE_DATABASE_URL": "url"}


@pytest.mark.parametrize("name", ["database.existingSecret.adminKey", "nats.existingSecret.migrateKey"])
def test_a_key_that_the_chart_does_not_know_is_refused(name: str) -> None:
    with pytest.raises(AssertionError, match="dditional propert"):
        render(sets=GIVEN | {name: "mine"})
