"""Who is let in: static tokens, JSON Web Tokens from a real issuer, and everything that only looks like one."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from headrace_core.access import authenticator as authenticator_module
from headrace_core.access import keys as keys_module
from headrace_core.access.authenticator import Authenticator, credentials_of
from headrace_core.access.file import read_access_file
from headrace_core.access.identity import Role
from headrace_core.access.keys import KeysError, fetch
from headrace_core.errors import KeysUnavailable, Unauthenticated
from headrace_core.settings.errors import SettingsError
from tests.access_rig import Issuer, jwt_table, key_server, token_of, write_access_file

RSA_KEY = rsa.generate_private_key(65537, 2048)


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    made = Issuer()
    made.keys["rsa"] = RSA_KEY
    (tmp_path / "keys.json").write_bytes(made.jwks())
    return made


@pytest.fixture
def access(tmp_path: Path, issuer: Issuer) -> Authenticator:
    path = write_access_file(tmp_path / "access.toml", {"ci": ["submit:own"]}, jwt_table('jwks_file = "keys.json"'))
    return Authenticator(path)


async def identify(access: Authenticator, token: str) -> Any:
    return await access.identify(credentials_of([f"Bearer {token}"]))


async def refusal(access: Authenticator, token: str) -> str:
    with pytest.raises(Unauthenticated) as caught:
        await identify(access, token)
    assert token not in caught.value.message
    return caught.value.message


async def test_a_static_token_and_a_jwt_say_who_calls(access: Authenticator, issuer: Issuer) -> None:
    ci, alice = await identify(access, token_of("ci")), await identify(access, issuer.token())
    assert (ci.name, {str(grant) for grant in ci.grants}) == ("token:ci", {"submit:own"})
    assert (alice.name, {str(grant) for grant in alice.grants}) == ("jwt:alice", {"admin:own"})
    assert (await identify(access, issuer.token("rsa"))).may((Role.ADMIN,), "own")


async def test_no_token_a_wrong_one_and_nonsense_are_refused(access: Authenticator) -> None:
    with pytest.raises(Unauthenticated):
        await access.identify(credentials_of([]))
    for wrong in (token_of("other"), "x-y-z", "a.b.c", "e30.e30.", "." * 30):
        assert "not accepted" in await refusal(access, wrong)
    for values in (["Basic abc"], ["Bearer "], ["Bearer a", "Bearer b"], ["Bearer \u0660"], [b"Bearer x"]):
        with pytest.raises(Unauthenticated):
            credentials_of(values)


async def test_an_oversized_token_is_refused_before_anything_is_computed() -> None:
    with pytest.raises(Unauthenticated, match="8192 characters"):
        credentials_of(["Bearer " + "a" * 8192])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"exp": int(time.time()) - 60}, "expired"),
        ({"nbf": int(time.time()) + 600}, "not valid yet"),
        ({"iat": int(time.time()) + 600}, "not valid yet"),
        ({"aud": "another"}, "audience"),
        ({"iss": "https://evil.example"}, "issuer"),
        ({"exp": None}, "claim is missing"),
        ({"aud": None}, "claim is missing"),
        ({"iss": None}, "claim is missing"),
        ({"sub": None}, "claim is missing"),
        ({"sub": "a\x00b"}, "printable"),
        ({"sub": ""}, "printable"),
        ({"exp": "soon"}, "malformed"),
        ({"exp": 1e400}, "malformed"),
    ],
)
async def test_a_token_with_wrong_claims_is_refused_in_words(
    access: Authenticator, issuer: Issuer, changes: dict[str, Any], said: str
) -> None:
    assert said in await refusal(access, issuer.token(**changes))


async def test_the_algorithm_is_never_the_tokens_to_choose(access: Authenticator, issuer: Issuer) -> None:
    claims = jwt.decode(issuer.token(), options={"verify_signature": False})
    nothing = jwt.encode(claims, "", "none", {"kid": "first"})
    assert "algorithm" in await refusal(access, nothing)
    public = RSA_KEY.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )

    # As an attacker would: the public key as the secret of HS256, signed without the library, which refuses to.
    def part(value: bytes) -> bytes:
        return base64.urlsafe_b64encode(value).rstrip(b"=")

    head = part(json.dumps({"alg": "HS256", "kid": "rsa"}).encode()) + b"." + part(json.dumps(claims).encode())
    forged = head + b"." + part(hmac.new(public, head, hashlib.sha256).digest())
    assert "algorithm" in await refusal(access, forged.decode())
    # An allowed algorithm with a key of another type, and one that is not among the allowed ones.
    assert "key id" in await refusal(access, jwt.encode(claims, RSA_KEY, "RS256", {"kid": "first"}))
    assert "algorithm" in await refusal(access, jwt.encode(claims, RSA_KEY, "RS512", {"kid": "rsa"}))
    assert "signature" in await refusal(access, jwt.encode(claims, Issuer().keys["first"], "ES256", {"kid": "first"}))


async def test_grants_that_are_none_give_nothing(access: Authenticator, issuer: Issuer) -> None:
    mixed = [7, None, "root:own", "read:NO", "read:own", "read", ["read:x"]]
    found = await identify(access, issuer.token(headrace_grants=mixed))
    assert {str(grant) for grant in found.grants} == {"read:own"}
    for nothing in ("admin:*", {"admin": "*"}, None):
        assert not (await identify(access, issuer.token(headrace_grants=nothing, jti=str(nothing)))).grants


async def test_a_verified_token_is_remembered_until_it_expires(access: Authenticator, issuer: Issuer) -> None:
    token = issuer.token(exp=int(time.time()) + 600)
    first = await identify(access, token)
    assert await identify(access, token) is first
    (verified,) = access._verified.values()
    object.__setattr__(verified, "until", time.time() - 1)
    assert await identify(access, token) is not first


async def test_the_memory_of_verified_tokens_is_bounded(
    access: Authenticator, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authenticator_module, "MAX_VERIFIED", 3)
    for number in range(5):
        await identify(access, issuer.token(sub=f"user{number}"))
    assert [one.identity.name for one in access._verified.values()] == ["jwt:user2", "jwt:user3", "jwt:user4"]


async def test_a_changed_file_holds_at_once_and_a_broken_one_not_at_all(tmp_path: Path, access: Authenticator) -> None:
    path = tmp_path / "access.toml"
    assert not access.reload()
    write_access_file(path, {"new": ["read:own"]})
    assert access.reload()
    assert (await identify(access, token_of("new"))).name == "token:new"
    await refusal(access, token_of("ci"))
    path.write_text("[[tokens]]\nname = 1", encoding="utf-8")
    assert not access.reload()
    path.unlink()
    assert not access.reload()
    assert (await identify(access, token_of("new"))).name == "token:new"


async def test_a_change_while_the_file_is_read_is_not_missed(
    tmp_path: Path, access: Authenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = tmp_path / "access.toml", read_access_file

    def changed_meanwhile(of: Path) -> Any:
        found = read(of)
        write_access_file(path, {"second": ["read:own"]})
        return found

    write_access_file(path, {"first": ["read:own"]})
    monkeypatch.setattr(authenticator_module, "read_access_file", changed_meanwhile)
    assert access.reload()
    monkeypatch.setattr(authenticator_module, "read_access_file", read)
    assert access.reload()
    assert (await identify(access, token_of("second"))).name == "token:second"
    assert not access.reload()


async def test_keys_in_a_file_rotate(tmp_path: Path, access: Authenticator, issuer: Issuer) -> None:
    old = issuer.token()
    await identify(access, old)
    issuer.keys = {"second": Issuer().keys["first"]}
    (tmp_path / "keys.json").write_bytes(issuer.jwks())
    assert access.reload()
    assert (await identify(access, issuer.token("second"))).name == "jwt:alice"
    assert "key id" in await refusal(access, old)


# -- keys over HTTP -----------------------------------------------------------------------------------------------


@pytest.fixture
async def remote(tmp_path: Path, issuer: Issuer) -> AsyncIterator[Any]:
    async with key_server(issuer.jwks()) as server:
        access = Authenticator(write_access_file(tmp_path / "remote.toml", {}, jwt_table(f'jwks_url = "{server.url}"')))
        yield access, server
        await access.close()


async def test_keys_are_fetched_once_and_again_for_an_unknown_one(
    remote: Any, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    access, server = remote
    found = await asyncio.gather(*(identify(access, issuer.token(sub=f"user{number}")) for number in range(20)))
    assert len({identity.name for identity in found}) == 20
    assert server.asked == 1
    issuer.keys = {"second": Issuer().keys["first"]}
    server.content = issuer.jwks()
    # So soon after the last question nobody is asked, however many unknown keys come.
    for _ in range(5):
        assert "key id" in await refusal(access, issuer.token("second"))
    assert server.asked == 1
    monkeypatch.setattr(keys_module, "LEAST_SECONDS_BETWEEN", 0.0)
    assert (await identify(access, issuer.token("second"))).name == "jwt:alice"
    assert server.asked == 2


async def test_a_withdrawn_key_is_forgotten_with_the_tokens_that_it_signed(remote: Any, issuer: Issuer) -> None:
    access, server = remote
    old = issuer.token()
    await identify(access, old)
    issuer.keys = {"second": Issuer().keys["first"]}
    server.content = issuer.jwks()
    await access._remote.refresh(0.0)
    assert "key id" in await refusal(access, old)


@pytest.mark.parametrize("broken", ["500 Oops", "302 Found", "no json", "too large", "gone"])
async def test_an_issuer_that_fails_leaves_the_known_keys(remote: Any, issuer: Issuer, broken: str) -> None:
    access, server = remote
    await identify(access, issuer.token())
    if broken[0].isdigit():
        server.status = broken
    server.content = {"no json": b"{", "too large": b" " * (256 * 1024 + 1)}.get(broken, server.content)
    if broken == "gone":
        access._remote.url = "http://127.0.0.1:1/keys"
    await access._remote.refresh(0.0)
    assert (await identify(access, issuer.token(sub="bob"))).name == "jwt:bob"


async def test_without_any_keys_a_jwt_is_told_to_come_again(remote: Any, issuer: Issuer) -> None:
    access, server = remote
    server.status = "503 Away"
    with pytest.raises(KeysUnavailable):
        await identify(access, issuer.token())


async def test_an_answer_that_drips_is_given_up() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        stopped = False
        while not stopped:
            writer.write(b" ")
            try:
                await writer.drain()
                await asyncio.wait_for(reader.read(1), 0.02)
                stopped = True
            except TimeoutError:
                continue
        writer.close()

    async with await asyncio.start_server(drip, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        started = time.monotonic()
        with pytest.raises(KeysError, match="takes too long"):
            await asyncio.to_thread(fetch, f"http://127.0.0.1:{port}/", 0.3)
        assert time.monotonic() - started < 3.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = ", "is no TOML"),
        ("[other]", "unknown key other"),
        ("[[tokens]]\nname = 'a'\ngrants = ['read:*']", "sha256 must be"),
        ("[[tokens]]\nname = 'a'\nsha256 = 'my-secret-token'\ngrants = ['read:*']", "sha256 must be"),
        (f"[[tokens]]\nname = 'a'\nsha256 = '{'0' * 64}'\ngrants = ['root:*']", "role:namespace"),
        (f"[[tokens]]\nname = 'a'\nsha256 = '{'0' * 64}'\ngrants = []", "grants"),
        ("[[certificates]]\nname = 'a'\ngrants = ['read:*']\n" * 2, "is there twice"),
        ("[jwt]\nissuer = 'i'\naudience = 'a'", "either jwks_file or jwks_url"),
        ("[jwt]\nissuer = 'i'\naudience = 'a'\njwks_url = 'http://issuer.example/keys'", "https://"),
        ("[jwt]\nissuer = 'i'\naudience = 'a'\njwks_file = 'none.json'", "cannot be read"),
        ("[jwt]\nissuer = 'i'\naudience = 'a'\njwks_file = 'k'\nalgorithms = ['HS256']", "'HS256' is not allowed"),
        ("[jwt]\nissuer = 'i'\naudience = 'a'\njwks_file = 'k'\nalgorithms = ['none']", "'none' is not allowed"),
    ],
)
def test_a_file_that_cannot_work_is_said_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "access.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        Authenticator(path)
    assert said in caught.value.message
    assert str(tmp_path) in caught.value.message
    assert "my-secret-token" not in caught.value.message


async def test_certificates_name_their_owner_and_a_token_decides_alone(tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    more = '[[certificates]]\nname = "billing.example"\ngrants = ["submit:billing"]\n'
    access = Authenticator(write_access_file(path, {"ci": ["read:own"]}, more))
    found = await access.identify(credentials_of([], ["other", "billing.example"]))
    assert found.name == "certificate:billing.example"
    with pytest.raises(Unauthenticated):
        await access.identify(credentials_of([], ["other"]))
    with pytest.raises(Unauthenticated):
        await access.identify(credentials_of(["Bearer nonsense"], ["billing.example"]))


async def test_no_secret_gets_into_the_log(
    access: Authenticator, issuer: Issuer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    token = issuer.token(aud="another")
    await refusal(access, token)
    (tmp_path / "access.toml").write_text(f"[[tokens]]\nsha256 = '{token_of('ci')}'", encoding="utf-8")
    access.reload()
    credentials = credentials_of([f"Bearer {token}"])
    said = "".join(capfd.readouterr()) + repr(credentials) + str(credentials)
    assert token not in said
    assert token_of("ci") not in said
