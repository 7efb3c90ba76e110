"""URLs of stores: what is accepted, and what of one may be shown.

A URL may hold a password, and one that is wrong may hold it anywhere: behind an '@' or a '/' that was not escaped, in
the place of a host, of a port, of an option. So a URL is only shown as far as it was understood, a wrong one masked.
"""

from __future__ import annotations

import functools
import importlib.util
import re

import sqlalchemy as sa
from sqlalchemy.engine import URL

from ddstudy.errors import UserError

VALID = "Valid: sqlite:///FILE.db or postgresql://USER:PASSWORD@HOST/DATABASE."
_ESCAPE = "In a user or password write %40 for '@', %3A ':', %2F '/', %3F '?', %23 '#', %25 '%'."
_POSTGRESQL = ("postgres", "postgresql", "postgresql+psycopg", "postgresql+psycopg2")  # all by psycopg 3
_OTHERS = ("mysql", "mariadb", "oracle", "mssql", "redis", "mongodb", "http", "https", "file")


def parse_url(url: str) -> URL:
    """A store's URL, as SQLAlchemy has it.

    Raises:
        UserError: not a URL of SQLite or PostgreSQL; the message does not repeat it, it may hold a password. Or what
            PostgreSQL needs is not installed.
    """
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise UserError(f"the store is not a database URL{_masked(url)}", VALID) from None
    kind = parsed.drivername.partition("+")[0]
    if parsed.drivername == "sqlite":
        if parsed.database in (None, "", ":memory:") or parsed.host or parsed.password:
            raise UserError("the store's URL names no SQLite file", VALID)
        if parsed.query:
            raise UserError("the store's URL has options, SQLite takes none", VALID)
        return parsed
    if parsed.drivername not in _POSTGRESQL:
        known = kind in (*_OTHERS, "sqlite", "postgresql")
        raise UserError(f"the store is a {kind if known else 'foreign'} URL", VALID)
    if importlib.util.find_spec("psycopg") is None:
        raise UserError(
            "the store is PostgreSQL: psycopg is not installed", "Install it: pip install 'ddstudy[postgres]'."
        )
    for wrong, is_wrong in (
        ("has more than one '@'", url.count("@") > 1),
        ("has an '@' where none belongs", "@" in url and parsed.username is None),
        ("has no valid user", not re.fullmatch(r"[\w.@+-]*", parsed.username or "")),
        ("has no valid host", not re.fullmatch(r"[\w.-]*|[0-9a-fA-F:.%]+", parsed.host or "")),
        ("has no valid port", parsed.port is not None and not 0 < parsed.port < 65536),
        ("has no valid database", bool(re.search(r"[@:/?#{}\\\s]", parsed.database or ""))),
        ("has an option that is none of PostgreSQL's", not parsed.query.keys() <= _options()),
    ):
        if is_wrong:
            raise UserError(f"the store's URL {wrong}{_masked(url)}", _ESCAPE)
    return parsed.set(drivername="postgresql+psycopg")


@functools.cache
def _options() -> frozenset[str]:
    """What libpq takes."""
    from psycopg.pq import Conninfo

    return frozenset(option.keyword.decode() for option in Conninfo.get_defaults())


def _masked(url: str) -> str:
    """Where a URL is wrong: its punctuation, behind a scheme that is known."""
    scheme, found, rest = url.partition("://")
    if not found or scheme not in (*_POSTGRESQL, *_OTHERS, "sqlite"):
        return ""
    return f": {scheme}://{re.sub(r'[^@:/?]+', '***', rest)}"


def shown(url: URL) -> str:
    """A parsed URL for people: without password and options, and without what may be one that lost its '@'."""
    if url.drivername == "sqlite":
        return f"sqlite:///{shown_path(url.database or '')}"
    if url.password is None:
        url = url.set(username=None, port=url.port if url.username else None)
    return url.set(query={}).render_as_string(hide_password=True)


def shown_path(path: object) -> str:
    """A path for people; what stands before an '@' may be the password of a URL with the wrong scheme."""
    *_, found, rest = str(path).rpartition("@")
    return f"***@{rest}" if found else rest


def said(error: BaseException, url: URL | None) -> str:
    """What a database says first in an error, which a library may have wrapped, without the secrets of its URL."""
    cause = error.__cause__ or error
    line = str(getattr(cause, "orig", cause)).strip().partition("\n")[0]
    return (_without_secrets(line, url) if url is not None else line)[:200]


def _without_secrets(line: str, url: URL) -> str:
    """What a database says, without what `shown` does not show."""
    options = [value for values in url.normalized_query.values() for value in values]
    secrets = [url.password, *options] + ([url.username, url.port] if url.password is None else [])
    if url.drivername == "sqlite" and "@" in (url.database or ""):
        secrets += [url.database]
    for secret in sorted((str(secret) for secret in secrets if secret), key=len, reverse=True):
        line = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", line)
    return line
