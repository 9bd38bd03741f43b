"""Dagster's own storage, chosen by the environment: SQLite files, or the ledger's PostgreSQL.

One ``dagster.yaml`` serves both::

    storage:
      custom:
        module: beampipe_dagster.defs.storage
        class: EnvironmentStorage
        config: {}
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from dagster import DagsterInstance
from dagster._config.config_schema import UserConfigSchema
from dagster._core.storage.base_storage import DagsterStorage
from dagster._core.storage.event_log.base import EventLogStorage
from dagster._core.storage.runs.base import RunStorage
from dagster._core.storage.schedules.base import ScheduleStorage
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._serdes import ConfigurableClass, ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from beampipe_dagster.errors import ConfigError

_FOLDER = "dagster"


class EnvironmentStorage(DagsterStorage, ConfigurableClass):
    """PostgreSQL when ``BEAMPIPE_DATABASE_URL`` names one, else SQLite below ``BEAMPIPE_HOME``.

    It is a front for Dagster's own storages, to which everything is handed on.

    Parameters
    ----------
    inner
        The storage that does the work.
    inst_data
        Where Dagster had this class from.
    """

    def __init__(
        self,
        inner: DagsterSqliteStorage | DagsterPostgresStorage,
        inst_data: ConfigurableClassData | None = None,
    ) -> None:
        self._inner = inner
        self._inst_data = inst_data
        super().__init__()  # type: ignore[no-untyped-call]  # Dagster left it without annotations

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """What Dagster makes this storage from again in another process."""
        return self._inst_data

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """It takes no configuration but the environment's."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> Self:
        """The storage for the present environment."""
        del config_value
        return cls(_make(os.environ), inst_data)

    def register_instance(self, instance: DagsterInstance) -> None:
        """Tell the storages which instance they serve."""
        super().register_instance(instance)
        if not self._inner.has_instance:
            self._inner.register_instance(instance)

    @property
    def event_log_storage(self) -> EventLogStorage[DagsterInstance]:
        """Storage of the events."""
        return self._inner.event_log_storage

    @property
    def run_storage(self) -> RunStorage[DagsterInstance]:
        """Storage of the runs."""
        return self._inner.run_storage

    @property
    def schedule_storage(self) -> ScheduleStorage[DagsterInstance]:
        """Storage of the sensors' and schedules' ticks."""
        return self._inner.schedule_storage

    # None: "made through the storage as a whole". The parts are never made on their own, and so a
    # password never gets into a serialised instance.
    @property
    def event_storage_data(self) -> ConfigurableClassData | None:
        """Not described on its own."""
        return None

    @property
    def run_storage_data(self) -> ConfigurableClassData | None:
        """Not described on its own."""
        return None

    @property
    def schedule_storage_data(self) -> ConfigurableClassData | None:
        """Not described on its own."""
        return None

    def dispose(self) -> None:
        """Close what is open."""
        for part in (self.event_log_storage, self.run_storage, self.schedule_storage):
            part.dispose()


def _make(environment: Mapping[str, str]) -> DagsterSqliteStorage | DagsterPostgresStorage:
    url = environment.get("BEAMPIPE_DATABASE_URL", "").strip()
    postgres = psycopg2_url(url) if url else None
    if postgres is not None:
        return DagsterPostgresStorage(postgres)
    home = environment.get("BEAMPIPE_HOME", "").strip() or "~/.beampipe"
    folder = Path(home).expanduser()
    if not folder.is_absolute():
        raise ConfigError(
            f"BEAMPIPE_HOME is {home!r}, which is not an absolute path.",
            code="invalid_home",
            hint="Give the whole path, as in /srv/beampipe.",
        )
    return DagsterSqliteStorage.from_local(str(folder / _FOLDER))


def psycopg2_url(url: str) -> str | None:
    """The URL of a PostgreSQL database with psycopg2 as its driver; ``None`` for SQLite.

    Raises
    ------
    ConfigError
        ``invalid_database_url``: it is no database URL, or one of another database. The message
        never holds the URL, which may hold a password.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        parsed = None
    dialect = parsed.get_backend_name() if parsed is not None else ""
    if parsed is None or dialect not in {"postgresql", "postgres", "sqlite"}:
        raise ConfigError(
            "BEAMPIPE_DATABASE_URL is not the URL of a PostgreSQL or SQLite database.",
            code="invalid_database_url",
            hint="Write it as postgresql://user:password@host:5432/database, or leave it out.",
        )
    if dialect == "sqlite":
        return None
    # A bare postgresql:// may mean another driver than the one that dagster-postgres brings.
    return parsed.set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)
