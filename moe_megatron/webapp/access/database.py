"""The database of who may look: a SQLite file of its owner alone, or a PostgreSQL server.

It knows the tables, and not what is done with them. Secrets are kept as digests, so whoever reads
it cannot log in.
"""

import hashlib
import os
import stat
from contextlib import suppress
from pathlib import Path

from sqlalchemy import (
    Column,
    Double,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    select,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from moe_megatron.errors import BackendUnavailableError, ConfigError
from moe_megatron.files import user_path

_SERVER = "postgresql+psycopg"
_PATIENCE = {"connect_timeout": "5", "options": "-c statement_timeout=5000"}
"""A server that does not answer must not hold up those who look."""
_DIGEST_CHARACTERS = 64
NAME_CHARACTERS, RUN_CHARACTERS, ANSWER_CHARACTERS = 64, 256, 512
"""Most characters of a name, of a run's name and of an answer."""

tables = MetaData()
access_tokens = Table(
    "access_tokens",
    tables,
    Column("name", String(NAME_CHARACTERS), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("digest", String(_DIGEST_CHARACTERS), nullable=False, unique=True),
    Column("made", Double, nullable=False, comment="seconds since 1970"),
)
sessions = Table(
    "sessions",
    tables,
    Column("digest", String(_DIGEST_CHARACTERS), primary_key=True),
    Column("token_digest", String(_DIGEST_CHARACTERS), nullable=False),
    Column("ends", Double, nullable=False, comment="seconds since 1970"),
)
wrong_tokens = Table(
    "wrong_tokens",
    tables,
    Column("number", Integer, primary_key=True),
    Column("address", String(NAME_CHARACTERS), nullable=False, index=True),
    Column("time", Double, nullable=False, comment="seconds since 1970"),
)
audit = Table(
    "audit",
    tables,
    Column("number", Integer, primary_key=True),
    Column("time", Double, nullable=False, comment="seconds since 1970"),
    Column("name", String(NAME_CHARACTERS), nullable=False, comment="of the token"),
    Column("what", String(NAME_CHARACTERS), nullable=False),
    Column("run", String(RUN_CHARACTERS), nullable=False),
    Column("address", String(NAME_CHARACTERS), nullable=False),
    Column("answer", String(ANSWER_CHARACTERS), nullable=False),
)


def digest(secret: str) -> str:
    """What is kept of a secret with 256 random bits: its SHA-256, in hexadecimal."""
    return hashlib.sha256(secret.encode()).hexdigest()


def open_database(given: str, *, create: bool = False) -> Engine:
    """Open it, and make the tables that it lacks.

    Args:
        given: Path of a file, or `postgresql+psycopg://USER@HOST/DATABASE`.
        create: Whether a file that is not there is made.

    Raises:
        ConfigError: It is neither, others may read the file, or a password stands in it.
        BackendUnavailableError: The driver is missing, or the server does not answer.
    """
    address = _server(given) if "://" in given else _file(user_path(given), create=create)
    try:
        engine = create_engine(address, pool_pre_ping=True, hide_parameters=True)
    except ImportError as error:
        raise BackendUnavailableError(
            f"{_SERVER} needs psycopg, which is not installed ({error}); install it with: pip "
            "install 'open-moe-trainer-lab[postgresql]'"
        ) from error
    try:
        _make_tables(engine)
    except SQLAlchemyError as error:
        engine.dispose()
        why = " ".join(str(getattr(error, "orig", error)).split())
        if address.drivername == _SERVER:
            raise BackendUnavailableError(
                f"the database {given} cannot be used ({why}); check that the server runs and lets "
                "you in (the password comes from ~/.pgpass or the variable PGPASSWORD)."
            ) from error
        raise ConfigError(
            f"the database {given} cannot be used ({why}); give a file that `moe-megatron "
            "dashboard token` has made, in a folder that you may write to."
        ) from error
    return engine


def _make_tables(engine: Engine) -> None:
    try:
        tables.create_all(engine)
    except DBAPIError:  # another process may have made them in between
        tables.create_all(engine)
    with engine.connect() as connection:
        for table in tables.sorted_tables:  # one of that name may be something else
            connection.execute(select(table).limit(0))


def _server(given: str) -> URL:
    try:
        found = make_url(given)
    except (ArgumentError, ValueError):
        found = None
    if found is None or found.drivername != _SERVER:
        scheme = given.partition("://")[0]
        raise ConfigError(
            f"a database is the path of a file or {_SERVER}://USER@HOST/DATABASE, not "
            f"{scheme}://...; give one of them with --database."
        )
    if found.password is not None or "password" in found.query:
        raise ConfigError(
            "the password of a database must not stand on the command line, where others see it; "
            "put it into ~/.pgpass or the variable PGPASSWORD and leave it out of --database."
        )
    return found.update_query_dict({k: v for k, v in _PATIENCE.items() if k not in found.query})


def _file(path: Path, *, create: bool) -> URL:
    if create:
        with suppress(FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"the database {path} cannot be opened ({why}); make it, with a first token, with: "
            f"moe-megatron dashboard token NAME --role viewer --database {path}"
        ) from error
    if not stat.S_ISREG(mode):
        raise ConfigError(f"the database {path} is not a file; give the path of one.")
    if mode & 0o077:
        raise ConfigError(
            f"the database {path} can be read or written by others (mode {mode & 0o777:04o}); make "
            f"it yours alone: chmod 600 {path}"
        )
    return URL.create("sqlite+pysqlite", database=str(path))
