"""A tracking server that does not answer: told from other errors, waited for, and named in one line."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

from urllib3.util import Retry

from tracker.errors import TrackerError

log = logging.getLogger("tracker")
SERVERS = ("http://", "https://")
DENIED = (401, 403)  # such as a token that has expired meanwhile; the next one may do
BUSY = (429, 502, 503, 504)  # what reverse proxies answer while nobody is behind them
LONGEST_PAUSE = 120  # seconds; urllib3's
# Artifact stores that MLflow reaches without the server, by the package whose exceptions they raise.
CLOUDS = ("botocore", "boto3", "google", "azure")
CONNECTIONS = (*CLOUDS, "urllib3")  # below them
AGAIN = "start the same command again once it answers"
SIGN_IN = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, of one who may write"


class ServerLost(TrackerError):
    """The tracking server, or the artifact store behind it, was lost after a run had begun."""


def is_server(uri: str) -> bool:
    """Whether a tracking URI is that of a server, which may go away and come back."""
    return uri.startswith(SERVERS)


@contextlib.contextmanager
def guarded(uri: str, advice: str = AGAIN) -> Iterator[None]:
    """Calls of MLflow's client.

    Args:
        uri: of the tracking store; what goes wrong with a local one is raised as it is.
        advice: what the user can do.

    Raises:
        ServerLost: MLflow has tried again as long as its settings say, in vain.
    """
    try:
        yield
    except ServerLost:
        raise
    except Exception as error:  # every store has its own exceptions
        # MLflow's downloads do not tell why they failed; then the server is asked.
        reason = (why(error) or ("" if answers(uri) else "no answer")) if is_server(uri) else ""
        if not reason:
            raise
        if denied(reason):
            then = "" if advice == AGAIN else f"; {advice}"
            raise ServerLost(f"the tracking server refuses this user ({reason}); {SIGN_IN}{then}") from error
        lost = "artifact storage" if type_of(error) else "tracking server"
        raise ServerLost(f"the {lost} was lost ({reason}); {advice}") from error


def why(error: BaseException) -> str:
    """How a server was lost; empty where an error has another reason."""
    import requests
    from mlflow.exceptions import MlflowException

    for cause in _chain(error):
        if isinstance(cause, requests.HTTPError):
            status = cause.response.status_code if cause.response is not None else 500
        elif isinstance(cause, MlflowException):
            status = cause.get_http_status_code()  # 500 where it says nothing of its own
        elif isinstance(cause, requests.exceptions.RetryError):
            found = re.search(r"too many (\d+) error", str(cause))
            return _status(found[1]) if found else "too many errors"
        elif isinstance(cause, requests.RequestException):
            return type(cause).__name__
        else:
            continue
        if status in (*DENIED, *BUSY) or status > 500:
            return _status(status)
    return type_of(error, CONNECTIONS)


def denied(reason: str) -> bool:
    """Whether what `why` tells is that the server does not know the user, or forbids what was asked."""
    return reason in map(_status, DENIED)


def _status(status: int | str) -> str:
    return f"it answers {status}"


def type_of(error: BaseException, packages: tuple[str, ...] = CLOUDS) -> str:
    """The name of the first exception of some packages behind an error; empty where there is none."""
    types = [type(cause) for cause in _chain(error)]
    return next((one.__name__ for one in types if one.__module__.partition(".")[0] in packages), "")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Calls of MLflow and of S3 are tried once: at the start there is nothing that could be lost."""
    once = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "AWS_MAX_ATTEMPTS": "1"}
    given = {name: os.environ.get(name) for name in once}
    os.environ.update(once)
    try:
        yield
    finally:
        for name, value in given.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


def answers(uri: str) -> bool:
    """Whether a server is there at all, asked once; any other store is taken to be there."""
    if not is_server(uri):
        return True
    import requests

    try:
        requests.get(uri, timeout=5, allow_redirects=False)
    except requests.RequestException:
        return False
    return True


def seconds(factor: float, retries: int) -> float:
    """The pauses before MLflow gives up; the first try comes at once and is not counted."""
    return float(sum(min(LONGEST_PAUSE, factor * 2**power) for power in range(1, retries + 1)))


class Repeated(Retry):
    """MLflow's policy for a request that failed; it tells that the server does not answer, and counts."""

    count = 0  # of requests that were sent again, of which the server may have seen the first as well

    def increment(self, *words: Any, **named: Any) -> Repeated:
        """What is left of the policy after one more failure."""
        left = super().increment(*words, **named)
        Repeated.count += 1
        if len(left.history) == 2:  # the first comes at once: a connection that was idle may have been closed
            status = left.history[-1].status
            what = f"answers {status}" if status else "does not answer"
            log.warning(
                "the tracking server %s; trying again for up to %.0f s",
                what,
                seconds(left.backoff_factor, int(left.total or 0) + 1),
            )
        return left


@functools.cache
def mend_requests() -> None:
    """Let MLflow send a request again whose answer broke off, and tell an outage in one line for each call that waits.

    The line takes the place of urllib3's warning for each try.
    """
    import requests
    from mlflow.utils import request_utils
    from urllib3.exceptions import MaxRetryError

    class Whole(request_utils.TCPKeepAliveHTTPAdapter):
        """Reads an answer before it is given: urllib3's policy ends with the answer's headers."""

        def send(self, request: Any, stream: bool = False, *words: Any, **named: Any) -> Any:
            left = self.max_retries
            while True:
                response = super().send(request, stream, *words, **named)
                try:
                    if not stream:
                        _ = response.content  # kept by the response
                    return response
                except (requests.exceptions.ChunkedEncodingError, requests.ConnectionError) as broken:
                    try:
                        left = left.increment(request.method, request.url, error=broken)
                    except MaxRetryError:
                        raise broken from None
                    left.sleep()
                    if isinstance(request._body_position, int):
                        requests.utils.rewind_body(request)

    request_utils.TCPKeepAliveHTTPAdapter = Whole  # type: ignore[misc]
    request_utils.Retry = Repeated  # type: ignore[misc]
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
