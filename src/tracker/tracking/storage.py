"""Where artifacts go: that the storage is there and takes them, before any work starts."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tracker.errors import TrackerError
from tracker.tracking import outage, store

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger("tracker")
LONGEST_WAIT = 300  # seconds between two tries
THROUGH_SERVER = "mlflow-artifacts"
PACKAGES = {"s3": "boto3", "gs": "google-cloud-storage"}
CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and MLFLOW_S3_ENDPOINT_URL where it is not Amazon's"
SERVER_SIDE = "its log tells why; the server needs the storage's package, credentials and bucket"


def check(client: MlflowClient, experiment: str) -> None:
    """Ask the storage of an experiment's artifacts once for a folder that need not be there.

    Args:
        client: of the tracking store.
        experiment: the experiment's id.

    Raises:
        TrackerError: a package or credentials are missing, or it does not answer.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with outage.guarded(str(client.tracking_uri)):
        location = client.get_experiment(experiment).artifact_location
    scheme = urlsplit(location).scheme
    if scheme in ("", "file"):
        return
    name = "of the MLflow server" if scheme == THROUGH_SERVER else store.without_secrets(location)
    try:
        with outage.at_once():
            get_artifact_repository(location).list_artifacts("tracker")
    except ImportError as error:
        package = PACKAGES.get(scheme, error.name or "that it needs")
        raise TrackerError(
            f"artifacts go to {name}, and the package {package} is not installed; pip install {package}"
        ) from error
    except Exception as error:  # every storage has its own exceptions
        if scheme not in ("s3", THROUGH_SERVER):  # others may miss the folder
            return
        reason = outage.why(error) or str(error).splitlines()[0][:200]
        advice = SERVER_SIDE if scheme == THROUGH_SERVER else CREDENTIALS
        raise TrackerError(f"the artifact storage {name} cannot be used ({reason}); {advice}") from error
    finally:
        wait_for_s3()


class _Notice(logging.Filter):
    """In the place of what the client of S3 says of each try: one line for as long as it waits."""

    last = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is shown as it is."""
        if str(record.msg).startswith("Retry needed"):
            if time.monotonic() - self.last > LONGEST_WAIT:
                log.warning("the artifact storage does not answer; trying again")
            self.last = time.monotonic()
        return record.levelno > logging.DEBUG


def wait_for_s3() -> None:
    """Let the client of S3 try about as long as MLflow asks its server; its pauses are ten seconds on average."""
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR, MLFLOW_HTTP_REQUEST_MAX_RETRIES

    told = logging.getLogger("botocore.retries.standard")
    if not any(isinstance(found, _Notice) for found in told.filters):
        told.addFilter(_Notice())
        told.setLevel(logging.DEBUG)
    factor, retries = MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR.get(), MLFLOW_HTTP_REQUEST_MAX_RETRIES.get()
    os.environ.setdefault("AWS_RETRY_MODE", "standard")
    os.environ.setdefault("AWS_MAX_ATTEMPTS", str(4 + round(outage.seconds(factor, retries) / 10)))
    if used := sys.modules.get("mlflow.store.artifact.s3_artifact_repo"):
        used._cached_get_s3_client.cache_clear()  # which tries once
