"""An upgrade keeps the bundled server's password: the chart asks the cluster for it, here one with two answers."""

from __future__ import annotations

import base64
import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.rendering import CHART, KUBERNETES, LAPTOP
from tests.deploy.tools import tool

KINDS = [{"name": "secrets", "kind": "Secret", "namespaced": True, "verbs": ["get"]}]


@contextmanager
def cluster(secrets: dict[str, Any]) -> Iterator[str]:
    """The address of an API server that knows Secrets only: the given ones, by namespace/name."""
    answers: dict[str, Any] = {"/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": KINDS}}
    for path, data in secrets.items():
        namespace, _, name = path.partition("/")
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": namespace},
            "data": data,
        }
        answers[f"/api/v1/namespaces/{namespace}/secrets/{name}"] = secret
    missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}

    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path.partition("?")[0])
            body = json.dumps(missing if found is None else found).encode()
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: standard error belongs to pytest."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            serving.join()


def password(api: str, home: Path) -> str:
    """The password of the rendered Secret, with the cluster at hand."""
    words = ["template", "headrace", str(CHART), "--values", str(LAPTOP), "--show-only", "templates/postgres.yaml"]
    words += ["--namespace", "tasks", "--kube-version", KUBERNETES, "--dry-run=server", "--kube-apiserver", api]
    environ = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([tool("helm"), *words], capture_output=True, text=True, env=environ, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    (secret,) = [each for each in yaml.safe_load_all(done.stdout) if each["kind"] == "Secret"]
    return base64.b64decode(secret["data"]["password"]).decode()


def test_the_password_that_exists_is_kept(tmp_path: Path) -> None:
    with cluster({"tasks/headrace-postgres": {"password": base64.b64encode(b"as it was").decode()}}) as api:
        assert password(api, tmp_path) == "as it was"


@pytest.mark.parametrize(
    "secrets", [{}, {"other/headrace-postgres": {"password": "eA=="}}, {"tasks/headrace-postgres": {}}]
)
def test_where_there_is_none_a_new_one_is_made(secrets: dict[str, Any], tmp_path: Path) -> None:
    with cluster(secrets) as api:
        assert len(password(api, tmp_path)) == 32
