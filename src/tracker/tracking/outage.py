"""A tracking server that does not answer: told from other errors, waited for, and named in one line."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from tracker.errors import TrackerError

log = logging.getLogger("tracker")
SERVERS = ("http://", "https://")
REFUSED = (401, 403, 429)  # such as a token that has expired meanwhile; the next one may do
LONGEST_PAUSE = 120  # seconds; urllib3's
# Artifact stores that MLflow reaches without the server, by the package whose exceptions they raise.
CLOUDS = ("botocore", "boto3", "urllib3", "google", "azure")


class ServerLost(TrackerError):
    """The tracking server, or the artifact store behind it, was lost after a run had begun."""


def is_server(uri: str) -> bool:
    """Whether a tracking URI is that of a server, which may go away and come back."""
    return uri.startswith(SERVERS)


@contextlib.contextmanager
def guarded(uri: str, advice: str = "start the same command again once it answers") -> Iterator[None]:
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
        raise ServerLost(f"the tracking server was lost ({reason}); {advice}") from error


def why(error: BaseException) -> str:
    """How a server was lost; empty where an error has another reason."""
    import requests
    from mlflow.exceptions import MlflowException

    for cause in _chain(error):
        if isinstance(cause, requests.HTTPError):
            status = cause.response.status_code if cause.response is not None else 500
        elif isinstance(cause, MlflowException):
            status = cause.get_http_status_code()  # 500 where it says nothing of its own
        elif isinstance(cause, requests.RequestException):
            return "too many errors" if isinstance(cause, requests.exceptions.RetryError) else type(cause).__name__
        else:
            if type(cause).__module__.partition(".")[0] in CLOUDS:
                return type(cause).__name__
            continue
        if status in REFUSED or status > 500:
            return f"it answers {status}"
    return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


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


class _Notice(logging.Filter):
    """In the place of urllib3's warning for each try: one line when the second one has failed as well."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is shown as it is."""
        arguments = record.args if isinstance(record.args, tuple) else ()
        if not str(record.msg).startswith("Retrying (") or not hasattr(next(iter(arguments), None), "history"):
            return True
        retries: Any = arguments[0]
        if len(retries.history) == 2:  # the first comes at once: a connection that was idle may have been closed
            log.warning("the tracking server does not answer; trying again for up to %.0f s", _seconds(retries))
        return False


def _seconds(retries: object) -> float:
    """The pauses that are left before MLflow gives up."""
    factor, left = getattr(retries, "backoff_factor", 0), getattr(retries, "total", 0) or 0
    return float(sum(min(LONGEST_PAUSE, factor * 2**power) for power in range(1, left + 2)))


def tell_in_one_line() -> None:
    """Let an outage be told in one line for each call that waits."""
    logger = logging.getLogger("urllib3.connectionpool")
    if not any(isinstance(found, _Notice) for found in logger.filters):
        logger.addFilter(_Notice())
