"""The decisions around TLS that need no socket: settings, exposure, names, targets, hints."""

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from headrace.bearer import stays_here
from headrace.file_state import read_together, state_of
from headrace.handshakes import hint
from headrace_core.rpc.peer import certificate_names
from headrace_core.settings.environment import ServiceSettings, load_settings
from headrace_core.settings.errors import SettingsError
from headrace_core.tls.exposure import check_exposure
from headrace_core.tls.naming import names_in


def load(tmp_path: Path, **variables: str) -> ServiceSettings:
    environ = {f"HEADRACE_{name}": value for name, value in variables.items()}
    return load_settings(environ, default_listen="127.0.0.1:50051", cwd=tmp_path)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"TLS_CERT_FILE": "a"},
            "^a certificate and its key need each other: set both HEADRACE_TLS",
        ),
        (
            {"TLS_KEY_FILE": "a"},
            "^a certificate and its key need each other: set both HEADRACE_TLS",
        ),
        ({"TLS_CLIENT_CA_FILE": "a"}, "HEADRACE_TLS_CLIENT_CA_FILE needs HEADRACE_TLS_CERT_FILE"),
    ],
)
def test_files_that_need_each_other_are_named(tmp_path: Path, variables: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load(tmp_path, **variables)
    assert load(tmp_path, TLS_CERT_FILE="a", TLS_KEY_FILE="b", TLS_CLIENT_CA_FILE="c").tls_client_ca_file == Path("c")


def test_what_clients_read_is_accepted_and_the_token_is_not_shown(tmp_path: Path) -> None:
    names = ("TLS", "TLS_CA_FILE", "CLIENT_CERT_FILE", "CLIENT_KEY_FILE", "TOKEN", "TOKEN_FILE")
    assert "s3cret" not in repr(load(tmp_path, **dict.fromkeys(names, "s3cret"))).replace("file='s3cret'", "").replace(
        "tls='s3cret'", ""
    )


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1"])
def test_loopback_needs_no_tls(tmp_path: Path, listen: str) -> None:
    with capture_logs() as logged:
        check_exposure("producer", load(tmp_path, LISTEN=listen, REQUIRE_AUTH="true"))
        # The HTTP port is the status service's alone.
        check_exposure("producer", load(tmp_path, LISTEN=listen, HTTP_LISTEN="0.0.0.0:1"))
    assert logged == []


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "producer.example:1"])
def test_other_addresses_are_told_or_refused(tmp_path: Path, listen: str) -> None:
    with capture_logs() as logged:
        check_exposure("consumer", load(tmp_path, LISTEN=listen))
        check_exposure("status", load(tmp_path, HTTP_LISTEN=listen))
        check_exposure("producer", load(tmp_path, LISTEN=listen, TLS_CERT_FILE="a", TLS_KEY_FILE="b"))
    assert [(entry["action"], entry["listen"]) for entry in logged] == [("tls.off", [listen])] * 2
    with pytest.raises(SettingsError, match="HEADRACE_REQUIRE_AUTH = true and no TLS on"):
        check_exposure("status", load(tmp_path, HTTP_LISTEN=listen, REQUIRE_AUTH="true"))


class Context:
    """What gRPC tells of the other end."""

    def __init__(self, **found: list[bytes]) -> None:
        self._found = found

    def auth_context(self) -> dict[str, list[bytes]]:
        return self._found


def test_names_come_in_order_each_once_and_bytes_that_are_no_text_match_nothing() -> None:
    found = Context(
        x509_common_name=[b"b"], x509_subject_alternative_name=[b"a", b"b", b"\xff", b""], peer_uri=[b"ignored"]
    )
    assert certificate_names(found) == ["a", "b", "\\xff"]
    assert certificate_names(Context()) == []


def test_https_names_are_the_same_ones() -> None:
    certificate: Any = {
        "subject": ((("countryName", "CH"),), (("commonName", "b"),)),
        "subjectAltName": (("DNS", "a"), ("URI", "spiffe://x/y"), ("IP Address", "10.0.0.1"), ("DirName", ((),))),
    }
    assert names_in(certificate) == ["a", "spiffe://x/y", "10.0.0.1", "b"]
    assert names_in({}) == []


@pytest.mark.parametrize(
    ("target", "here"),
    [
        ("127.0.0.1:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("dns:///localhost:1", True),
        ("ipv4:127.0.0.1:1,127.0.0.2:1", True),
        ("unix:/run/headrace", True),
        ("10.0.0.1:1", False),
        ("localhost.example:1", False),
        ("dns:///headrace-producer:1", False),
        ("dns://127.0.0.1/headrace-producer:1", False),
        ("ipv4:127.0.0.1:1,10.0.0.1:1", False),
        ("0.0.0.0:1", False),
        ("xds:///headrace", False),
        ("", False),
    ],
)
def test_what_stays_on_this_machine(target: str, here: bool) -> None:
    assert stays_here(target) is here


def test_a_connection_that_broke_later_is_no_handshake() -> None:
    assert hint("Socket closed", encrypted=True) == ""
    assert hint("failed to connect to all addresses; last error: Connection refused", encrypted=False) == ""


def test_files_that_are_swapped_while_they_are_read_are_read_again(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    two.write_text("1")
    swaps = iter([True, False])

    def read() -> str:
        found = one.read_text()
        if next(swaps, False):
            one.write_text("22")
            two.write_text("22")
        if found != two.read_text():
            raise ValueError("not a pair")
        return found

    state, found = read_together([one, two], read)
    assert found == "22"
    assert state == state_of([one, two])
