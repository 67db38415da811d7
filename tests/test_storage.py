"""What lies behind an `mlflow server` (S3-compatible storage, users, PostgreSQL), and a run without it."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from test_interruption import until
from test_remote import PATIENT, Command, Server, same, store_of
from test_sweep_cluster import database

pytestmark = [pytest.mark.skipif(os.name != "posix", reason="process groups"), pytest.mark.slow]
KEY, SECRET = "AKIAOFTHEBUCKET", "s3cr3t-of-the-bucket"
ONCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "AWS_MAX_ATTEMPTS": "2"}


class Storage:
    """S3-compatible storage in memory, which can be stopped and started again."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.environment = {
            "MLFLOW_S3_ENDPOINT_URL": self.uri,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self.server = ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self.start()

    def start(self) -> None:
        self.server.start()

    def stop(self) -> None:
        self.server.stop()
        self.server._server.server_close()

    @property
    def client(self) -> object:
        import boto3

        own = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
        return boto3.client("s3", endpoint_url=self.uri, **own)

    def files(self, bucket: str, below: str = "") -> dict[str, bytes]:
        """What is stored, by its name."""
        client = self.client
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=below)
        keys = [found["Key"] for page in pages for found in page.get("Contents", [])]
        read = {key: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}
        return {key.removeprefix(below): content for key, content in read.items()}


@pytest.fixture(scope="module")
def storage() -> Iterator[Storage]:
    pytest.importorskip("moto")
    storage = Storage()
    for bucket in ("proxied", "direct"):
        storage.client.create_bucket(Bucket=bucket)
    yield storage
    storage.stop()


def server_of(folder: Path, storage: Storage, *words: str) -> Iterator[Server]:
    # The storage's own patience is short, in a server that answers 500 after it.
    server = Server(folder, *words, **storage.environment, AWS_MAX_ATTEMPTS="1")
    server.start()
    server.await_start()
    yield server
    server.stop()


@pytest.fixture
def proxied(storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that passes artifacts on."""
    yield from server_of(tmp_path_factory.mktemp("proxied"), storage, "--artifacts-destination", "s3://proxied")


@pytest.fixture
def direct(storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that sends its clients to the storage."""
    words = ("--no-serve-artifacts", "--default-artifact-root", "s3://direct")
    yield from server_of(tmp_path_factory.mktemp("direct"), storage, *words)


def assert_secret(*where: Path | str | bytes) -> None:
    for one in where:
        if isinstance(one, Path):
            assert_secret(*(path.read_bytes() for path in one.rglob("*") if path.is_file()))
        else:
            assert SECRET not in str(one) and KEY not in str(one)


def stored(run: object, storage: Storage, bucket: str) -> dict[str, bytes]:
    """The artifacts of a run in its bucket."""
    below = str(run.info.artifact_uri).removeprefix("mlflow-artifacts:/").removeprefix(f"s3://{bucket}/")
    return storage.files(bucket, f"{below}/")


def test_storage_behind_the_server(
    tmp_path: Path, storage: Storage, proxied: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "werkzeug")  # the storage's own log
    command = Command(tmp_path, proxied, "tracking.registered_model=true", **PATIENT)
    command.until_encoding()
    storage.stop()
    command.go_on()
    with pytest.raises(subprocess.TimeoutExpired):
        command.process.wait(3)
    storage.start()
    status, out, err = command.ended()
    assert (status, err) == (0, ""), err
    assert out.count("; trying again for up to") == 1 and "the tracking server" in out
    (run,) = command.runs("compression")
    (model,) = store_of(proxied).search_logged_models([run.info.experiment_id])
    assert (run.info.status, model.status) == ("FINISHED", "READY")
    files = stored(run, storage, "proxied")
    manifest = json.loads(files["bitstream/manifest.json"])
    assert {f"bitstream/{name}" for name in manifest["files"]} <= set(files)
    # All that the client wrote and read went through the server, as it may not reach the storage.
    assert "PUT /proxied/" in caplog.text and "X-Amz-Signature" not in caplog.text
    assert_secret(out, tmp_path, proxied.folder, *storage.files("proxied").values())

    storage.stop()
    status, out, err = command.ended(command.start("tracker", *command.words))
    storage.start()
    assert status == 1 and err.startswith("error: the artifact storage of the MLflow server cannot be used"), err
    assert err.count("\n") == 1 and len(command.runs("compression")) == 1


def test_storage_that_the_client_writes_to(tmp_path: Path, storage: Storage, direct: Server) -> None:
    command = Command(tmp_path, direct, **ONCE, **storage.environment)
    without = tmp_path / "without"
    without.mkdir()
    (without / "boto3.py").write_text("raise ModuleNotFoundError(\"No module named 'boto3'\", name='boto3')")
    path = os.pathsep.join(filter(None, [str(without), os.environ.get("PYTHONPATH")]))
    status, out, err = command.ended(command.start("tracker", *command.words, PYTHONPATH=path))
    assert status == 1 and err.endswith("the package boto3 is not installed; pip install boto3\n"), err
    assert err.count("\n") == 1 and "digits" not in out
    command.until_encoding()
    storage.stop()
    command.go_on()
    status, out, err = command.ended()
    (folder,) = (tmp_path / "mlruns" / "unsent").iterdir()
    assert status == 1 and err.startswith("error: the tracking server was lost; the result is kept"), err
    assert err.count("\n") == 1 and "transparent" in out and "Traceback" not in out
    assert out.count("the artifact storage does not answer; trying again") == 1
    assert "the artifact storage was lost (EndpointConnectionError)" in out
    assert_secret(out, err, tmp_path)
    storage.start()
    assert command.send() == (0, f"run {folder.name}: sent, FINISHED\n", "")
    (run,) = command.runs("compression")
    (model,) = store_of(direct).search_logged_models([run.info.experiment_id])
    assert (run.info.status, model.status) == ("FINISHED", "READY")
    assert {"bitstream/manifest.json", "tensors.json"} <= set(stored(run, storage, "direct"))
    assert_secret(tmp_path, direct.folder, *storage.files("direct").values())


USERS = """
import os, sys
from mlflow import MlflowClient
from mlflow.server import get_app_client
client = get_app_client("basic-auth", tracking_uri=sys.argv[1])
for name in ("writer", "reader"):
    client.create_user(name, f"pa55-of-the-{name}")
os.environ.update(MLFLOW_TRACKING_USERNAME="writer", MLFLOW_TRACKING_PASSWORD="pa55-of-the-writer")
MlflowClient(sys.argv[1]).create_experiment(sys.argv[2])
"""


def test_users_of_the_server(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("flask_wtf")
    folder = tmp_path_factory.mktemp("users")
    settings = f"""
        [mlflow]
        default_permission = READ
        database_uri = sqlite:///{folder}/users.db
        admin_username = admin
        admin_password = pa55-of-the-admin
        authorization_function = mlflow.server.auth:authenticate_request_basic_auth
        auth_cache_ttl_seconds = 600
        """
    (folder / "auth.ini").write_text(textwrap.dedent(settings))
    own = {"MLFLOW_AUTH_CONFIG_PATH": f"{folder}/auth.ini", "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-the-server"}
    server = Server(folder, "--app-name", "basic-auth", **own)
    server.start()
    try:
        server.await_start()
        admin = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "pa55-of-the-admin"}
        words = [sys.executable, "-c", USERS, server.uri, f"of-{tmp_path.name}"]
        subprocess.run(words, env={**os.environ, **admin}, check=True)
        writer = {"MLFLOW_TRACKING_USERNAME": "writer", "MLFLOW_TRACKING_PASSWORD": "pa55-of-the-writer"}
        command = Command(tmp_path, server, **writer)
        command.go_on()
        wrong = command.start("tracker", *command.words, MLFLOW_TRACKING_PASSWORD="wr0ng")
        reader = {"MLFLOW_TRACKING_USERNAME": "reader", "MLFLOW_TRACKING_PASSWORD": "pa55-of-the-reader"}
        other = command.start("tracker", *command.words, **reader)
        for process, answer in ((wrong, "401"), (other, "403")):
            status, out, err = command.ended(process)
            assert status == 1 and err.startswith("error: ") and err.count("\n") == 1, err
            assert f"(it answers {answer}); set MLFLOW_TRACKING_USERNAME" in err and "Traceback" not in out
            assert "wr0ng" not in out + err and "pa55" not in out + err
        status, out, err = command.ended()
        assert (status, err) == (0, ""), err
        (run,) = command.runs("compression")
        assert run.info.status == "FINISHED"
    finally:
        server.stop()


def test_database_that_is_stopped_and_started(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with database() as (given, pg_ctl):
        url = given.replace("postgresql:", "postgresql+psycopg:")
        server = Server(tmp_path_factory.mktemp("server"), "--backend-store-uri", url)
        server.start()
        try:
            server.await_start()
            command = Command(tmp_path, server, MLFLOW_HTTP_REQUEST_MAX_RETRIES="1")
            command.until_encoding()
            pg_ctl("stop")
            command.go_on()
            status, _, err = command.ended()
            (folder,) = (tmp_path / "mlruns" / "unsent").iterdir()
            assert status == 1 and err.startswith("error: the tracking server was lost; the result is kept"), err
            status, _, err = command.send()
            assert status == 1 and err.startswith("error: ") and err.count("\n") == 1, err
            pg_ctl("start")
            assert command.send() == (0, f"run {folder.name}: sent, FINISHED\n", "")

            command.sign.unlink()
            (tmp_path / "sign.go").unlink()
            again = command.start("tracker", *command.words, **PATIENT)
            until(command.sign.exists, again)
            pg_ctl("stop")
            command.go_on()
            with pytest.raises(subprocess.TimeoutExpired):
                again.wait(3)
            pg_ctl("start")
            status, _, err = command.ended(again)
            assert (status, err) == (0, ""), err
            client = MlflowClient(url)
            found = client.search_runs(["1"], "tags.`tracker.kind` = 'compression'")
            assert [run.info.status for run in found] == ["FINISHED", "FINISHED"]
            same(*found)
            assert [model.status for model in client.search_logged_models(["1"])] == ["READY", "READY"]
        finally:
            server.stop()
