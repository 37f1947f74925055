"""The environment of a service: what is read, what is refused and with which words."""

from pathlib import Path

import pytest

from headrace_core.settings.environment import ServiceSettings, load_settings
from headrace_core.settings.errors import SettingsError


def load(tmp_path: Path, **variables: str) -> ServiceSettings:
    environ = {f"HEADRACE_{name}": value for name, value in variables.items()} | {"PATH": "/bin"}
    return load_settings(environ, default_listen="127.0.0.1:50051", cwd=tmp_path)


def test_nothing_set_gives_the_documented_defaults(tmp_path: Path) -> None:
    settings = load(tmp_path)
    assert settings.listen == "127.0.0.1:50051"
    assert (settings.broker, settings.subject_prefix, settings.stream_prefix) == ("nats", "headrace", "HEADRACE")
    assert settings.grace_seconds == 20.0
    assert (settings.retention_days, settings.retention_events_days) == (30.0, 7.0)
    assert (settings.max_connection_age_seconds, settings.max_connection_age_grace_seconds) == (0.0, 30.0)
    assert settings.pod_deletion_cost is False
    assert list(settings.topology.queues) == ["default"]


def test_variables_are_typed(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        HANDLERS="shop.images, shop.mail,",
        GRACE_SECONDS="2.5",
        CREATE_QUEUES="true",
        READY_FILE="/run/ready",
        LISTEN="[::1]:0",
        NATS_URL="nats://a:4222,nats://b:4222",
    )
    assert settings.handlers == ["shop.images", "shop.mail"]
    assert (settings.grace_seconds, settings.create_queues) == (2.5, True)
    assert settings.ready_file == Path("/run/ready")
    assert settings.listen == "[::1]:0"


def test_an_empty_variable_counts_as_not_set(tmp_path: Path) -> None:
    assert load(tmp_path, GRACE_SECONDS="", CONFIG="", BROKER="").grace_seconds == 20.0


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        ("HEADRACE_DATABSE_URL", "HEADRACE_DATABASE_URL"),
        ("HEADRACE_GRACE", "HEADRACE_GRACE_SECONDS"),
        ("HEADRACE_TLS_CERT", "HEADRACE_TLS_CERT_FILE"),
    ],
)
def test_an_unknown_variable_is_named_with_the_closest_known_one(tmp_path: Path, name: str, closest: str) -> None:
    with pytest.raises(SettingsError, match=f"unknown variable {name} .* {closest}"):
        load(tmp_path, **{name.removeprefix("HEADRACE_"): "8080"})


def test_variables_that_kubernetes_makes_are_ignored(tmp_path: Path) -> None:
    made = {
        "PRODUCER_SERVICE_HOST": "10.0.0.1",
        "PRODUCER_SERVICE_PORT": "50051",
        "PRODUCER_SERVICE_PORT_GRPC": "50051",
        "PRODUCER_PORT": "tcp://10.0.0.1:50051",
        "PRODUCER_PORT_50051_TCP": "tcp://10.0.0.1:50051",
        "PRODUCER_PORT_50051_TCP_PROTO": "tcp",
        "PRODUCER_PORT_50051_TCP_PORT": "50051",
        "PRODUCER_PORT_50051_TCP_ADDR": "10.0.0.1",
        "SERVICE_HOST": "10.0.0.2",
        "PORT": "tcp://10.0.0.2:80",
    }
    assert load(tmp_path, **made).listen == "127.0.0.1:50051"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("LISTEN", "50051", "host:port"),
        ("LISTEN", "0.0.0.0:99999", "host:port"),
        ("DATABASE_URL", "mysql://x", "postgresql://"),
        ("NATS_URL", "localhost", "nats://"),
        ("BROKER", "kafka", "nats or none"),
        ("GRACE_SECONDS", "-1", "0 to 3600"),
        ("GRACE_SECONDS", "soon", "0 to 3600"),
        ("RETENTION_DAYS", "0.01", "at least an hour"),
        ("RETENTION_EVENTS_DAYS", "-1", "0 to 36500"),
        ("RETENTION_SHARE", "0", "more than 0"),
        ("MAX_CONNECTION_AGE_SECONDS", "-1", "0 to 86400"),
        ("MAX_CONNECTION_AGE_GRACE_SECONDS", "-1", "0 to 86400"),
        ("POD_DELETION_COST", "perhaps", "valid boolean"),
        ("LOG_LEVEL", "loud", "debug or info or warning or error"),
        ("SUBJECT_PREFIX", "a.b", "A-Z"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(tmp_path: Path, name: str, value: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, **{name: value})
    assert f"HEADRACE_{name}" in caught.value.message
    assert value in caught.value.message
    assert said in caught.value.message


@pytest.mark.parametrize("name", ["HEADRACE_FOO", "HEADRACE_TOPOLOGY", "HEADRACE_PORT"])
def test_no_guess_is_made_where_nothing_is_close(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, **{name.removeprefix("HEADRACE_"): "8080"})
    assert caught.value.message == f"unknown variable {name} in the environment; docs/configuration.md has all of them"


def test_a_server_for_ai_analyze_needs_a_model(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="HEADRACE_AI_BACKEND = openai needs HEADRACE_AI_MODEL too"):
        load(tmp_path, AI_BACKEND="openai")
    assert load(tmp_path, AI_BACKEND="openai", AI_MODEL="small").ai_model == "small"


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, "HEADRACE_POD_NAME and HEADRACE_POD_NAMESPACE"),
        ({"POD_NAME": "consumer-1"}, "needs HEADRACE_POD_NAMESPACE"),
        ({"POD_NAMESPACE": "tasks"}, "needs HEADRACE_POD_NAME too"),
    ],
)
def test_the_deletion_cost_needs_to_know_its_pod(tmp_path: Path, given: dict[str, str], missing: str) -> None:
    with pytest.raises(SettingsError, match=missing) as caught:
        load(tmp_path, POD_DELETION_COST="true", **given)
    assert caught.value.message.startswith("HEADRACE_POD_DELETION_COST = true needs")
    assert load(tmp_path, **given).pod_deletion_cost is False
    assert load(tmp_path, POD_DELETION_COST="true", POD_NAME="a", POD_NAMESPACE="b").pod_deletion_cost is True


def test_secrets_are_never_shown(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, DATABASE_URL="mysql://joe:hunter2@db/x", AI_API_KEY="hunter3", AI_TIMEOUT_SECONDS="0")
    assert "hunter" not in caught.value.message
    assert "HEADRACE_AI_TIMEOUT_SECONDS" in caught.value.message
    assert "hunter3" not in repr(load(tmp_path, AI_API_KEY="hunter3"))


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    (tmp_path / "headrace.toml").write_text('broker = "none"\nsubject_prefix = "blue"\n')
    from_file = load(tmp_path)
    assert (from_file.broker, from_file.subject_prefix, from_file.stream_prefix) == ("none", "blue", "BLUE")
    overridden = load(tmp_path, BROKER="nats", SUBJECT_PREFIX="green", STREAM_PREFIX="G")
    assert (overridden.broker, overridden.subject_prefix, overridden.stream_prefix) == ("nats", "green", "G")
    assert overridden.topology.broker == "nats"
