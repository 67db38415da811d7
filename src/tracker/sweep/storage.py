"""Where studies are kept: Optuna's storages by URL, and a lock that all who share one wait for."""

from __future__ import annotations

import contextlib
import logging
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracker.errors import TrackerError
from tracker.sweep.tickets import TicketLock
from tracker.tracking import sqlite
from tracker.tracking.store import SQLITE, database_file, without_password, without_secrets

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from sqlalchemy.engine import Engine

JOURNAL, GRPC = "journal://", "grpc://"
SECONDS_TO_CONNECT = 15
SECONDS_FOR_SQLITE = 120  # a process waits so long for the others' writes
SECONDS_FOR_MYSQL = 7 * 24 * 3600  # it has a lock for which one waits without end, MariaDB has not
DRIVERS = {"postgresql": ("psycopg", "tracker[postgresql]"), "mysql": ("pymysql", "tracker[mysql]")}  # module and extra
KINDS = "sqlite:///FILE, postgresql://..., mysql://..., journal://FILE or grpc://HOST:PORT"


def default_url(tracking_uri: str) -> str:
    """A SQLite file beside the MLflow store; below ``mlruns/`` where that is a server."""
    file = database_file(tracking_uri)
    folder = file.parent if file is not None else Path("mlruns").absolute()
    return f"{SQLITE}{folder / 'optuna.db'}"


class Storage:
    """An open storage.

    Attributes:
        url: as it was given.
        backend: Optuna's.
    """

    def __init__(self, url: str) -> None:
        """Open it; a new one is set up, by one process at a time.

        Raises:
            TrackerError: it cannot be reached, its driver is not installed, or it is of no kind that Optuna knows.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self.url = url
        self.tickets: dict[str, TicketLock] = {}
        if not url.startswith((SQLITE, JOURNAL, GRPC, *DRIVERS)):
            raise TrackerError(f"hydra.sweeper.storage={without_secrets(url)} is no storage; give {KINDS}")
        try:
            if (file := self._file()) is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
            elif url.startswith(GRPC):
                self.backend = self._proxy()
                self.backend.get_all_studies()
                return
            else:
                self.engine = self._engine()
            with self.locked("setup"):
                self.backend = self._open()
        except TrackerError:
            raise
        except ModuleNotFoundError as error:
            packages = {name: package for name, (_, package) in DRIVERS.items()} | {"grpc": "tracker[grpc]"}
            package = next((package for name, package in packages.items() if f"{name}://" in url), error.name)
            raise TrackerError(
                f"hydra.sweeper.storage={without_secrets(url)} needs {error.name}; pip install '{package}'"
            ) from error
        except Exception as error:  # every database has its own exceptions
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            if self._file() is not None:
                raise TrackerError(
                    f"hydra.sweeper.storage={url} cannot be opened ({reason[:200]}); give a file in a folder that can "
                    "be written to"
                ) from error
            raise TrackerError(
                f"hydra.sweeper.storage={without_secrets(url)} cannot be reached "
                f"({without_password(reason, url)[:200]}); look whether it runs and whether address, user, password "
                f"and database are right, or give another: {KINDS}"
            ) from error

    def _open(self) -> BaseStorage:
        if self.url.startswith(JOURNAL):
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend

            return JournalStorage(JournalFileBackend(self.url.removeprefix(JOURNAL)))
        from optuna.storages import RDBStorage
        from optuna.storages._cached_storage import _CachedStorage

        options: dict[str, Any] = {"connect_args": {"timeout": SECONDS_FOR_SQLITE}}
        file = database_file(self.url)
        if file is not None:
            sqlite.write_ahead(file)
            sqlite.quick_commits()
        else:
            options = self._server_options
        return _CachedStorage(RDBStorage(self._database, engine_kwargs=options))

    @property
    def _database(self) -> str:
        """The URL with the driver that the extras install; which one SQLAlchemy would take depends on its version."""
        scheme, separator, rest = self.url.partition("://")
        return f"{scheme}+{DRIVERS[scheme][0]}{separator}{rest}" if scheme in DRIVERS else self.url

    @property
    def _server_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"connect_timeout": SECONDS_TO_CONNECT}
        if self.url.startswith("postgresql"):
            options["client_encoding"] = "utf8"  # psycopg gives bytes where the server's is SQL_ASCII
        return {"connect_args": options, "pool_pre_ping": True}

    def _engine(self) -> Engine:
        """For locks, which are there before Optuna's tables: two processes that make these at once would fail."""
        from sqlalchemy import create_engine

        return create_engine(self._database, isolation_level="AUTOCOMMIT", **self._server_options)

    def _proxy(self) -> BaseStorage:
        import grpc
        from optuna.exceptions import ExperimentalWarning
        from optuna.storages import GrpcStorageProxy

        host, _, port = self.url.removeprefix(GRPC).rstrip("/").rpartition(":")
        if not host or not port.isdigit():
            raise TrackerError(f"hydra.sweeper.storage={self.url} is not complete; write grpc://HOST:PORT")
        with grpc.insecure_channel(f"{host}:{port}") as channel:
            try:
                grpc.channel_ready_future(channel).result(timeout=SECONDS_TO_CONNECT)
            except grpc.FutureTimeoutError as error:
                raise TrackerError(
                    f"hydra.sweeper.storage={self.url} does not answer; start it by "
                    "optuna.storages.run_grpc_proxy_server"
                ) from error
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return GrpcStorageProxy(host=host, port=int(port))

    def _file(self) -> Path | None:
        if self.url.startswith(JOURNAL):
            return Path(self.url.removeprefix(JOURNAL)).absolute()
        return database_file(self.url)

    @property
    def for_dashboard(self) -> str:
        """What optuna-dashboard is to be given; empty where it cannot open it."""
        if self.url.startswith(JOURNAL):
            return self.url.removeprefix(JOURNAL)
        return "" if self.url.startswith(GRPC) else self.shown

    @property
    def shown(self) -> str:
        """The URL as it may be shown."""
        return without_secrets(self.url)

    @contextlib.contextmanager
    def locked(self, what: str) -> Iterator[None]:
        """Hold a lock of that name, which all who use this storage share; it ends with the process.

        A file beside a file, an advisory lock of a database server, tickets behind a gRPC proxy.
        """
        file = self._file()
        if file is not None:
            from filelock import FileLock

            lock = file.with_name(f".{file.name}.locks") / f"{zlib.crc32(what.encode()):08x}.lock"
            lock.parent.mkdir(exist_ok=True)
            lock.touch()  # tells why it cannot be made; FileLock would try for ever
            with FileLock(lock):
                yield
        elif self.url.startswith(tuple(DRIVERS)):
            with self._advisory_lock(zlib.crc32(what.encode())):
                yield
        else:
            if what not in self.tickets:
                self.tickets[what] = TicketLock(self.backend, what)
            with self.tickets[what].held():
                yield

    @contextlib.contextmanager
    def _advisory_lock(self, key: int) -> Iterator[None]:
        """PostgreSQL 13.3.5 Advisory Locks; MySQL 14.14 Locking Functions."""
        from sqlalchemy import text

        take, give = "SELECT 1 FROM pg_advisory_lock(:key)", "SELECT pg_advisory_unlock(:key)"
        if self.url.startswith("mysql"):
            take = f"SELECT GET_LOCK(CONCAT('tracker', :key), {SECONDS_FOR_MYSQL})"
            give = "SELECT RELEASE_LOCK(CONCAT('tracker', :key))"
        with self.engine.connect() as connection:
            if connection.execute(text(take), {"key": key}).scalar() != 1:
                raise TrackerError(f"hydra.sweeper.storage={self.shown} gives no lock; start the command again")
            try:
                yield
            finally:
                connection.execute(text(give), {"key": key})
