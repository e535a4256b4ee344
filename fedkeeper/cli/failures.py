"""How the commands end badly: every error leaves here, with its exit code and hint, without a traceback."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import click

from fedkeeper import logs
from fedkeeper.errors import FedKeeperError


class Failure(click.ClickException):
    """A FedKeeperError on its way out."""

    # An instance's own, and not click's class variable: each kind of error has its code.
    exit_code: int  # type: ignore[misc]

    def __init__(self, error: FedKeeperError) -> None:
        super().__init__(logs.redact(str(error)))
        self.hint = logs.redact(error.hint)
        self.exit_code = error.exit_code

    def show(self, file: IO[Any] | None = None) -> None:
        """Print problem and hint on stderr."""
        click.echo(f"Error: {self.message}", file=file, err=True)
        if self.hint:
            click.echo(f"Hint: {self.hint}", file=file, err=True)


@contextmanager
def reported(*, verbose: bool) -> Iterator[None]:
    """Turn what is raised inside into a Failure; the traceback goes to a file, with -v to stderr as well."""
    try:
        yield
    except FedKeeperError as exc:
        raise _failure(exc, verbose=verbose) from exc
    except BaseExceptionGroup as exc:
        known = _first(exc)
        if known is None:
            raise _unexpected(exc, verbose=verbose) from exc
        raise _failure(known, verbose=verbose) from exc
    except click.ClickException:
        raise
    except Exception as exc:  # the outer edge: nobody else could report it
        if isinstance(exc, click.exceptions.Exit | click.Abort):
            raise
        if isinstance(exc, OSError) and exc.errno == errno.EPIPE:
            raise  # click ends quietly when nobody reads any more
        raise _unexpected(exc, verbose=verbose) from exc


def _failure(error: FedKeeperError, *, verbose: bool) -> Failure:
    if verbose:
        click.echo(logs.redact("".join(traceback.format_exception(error))), err=True)
    return Failure(error)


def _first(group: BaseExceptionGroup[BaseException]) -> FedKeeperError | None:
    """The first of our own errors in a task group's."""
    for inner in group.exceptions:
        found = _first(inner) if isinstance(inner, BaseExceptionGroup) else inner
        if isinstance(found, FedKeeperError):
            return found
    return None


def _unexpected(error: BaseException, *, verbose: bool) -> Failure:
    text = logs.redact("".join(traceback.format_exception(error)))
    if verbose:
        click.echo(text, err=True)
    where = _keep(text)
    problem = f"unexpected {type(error).__name__}: {' '.join(str(error).split()) or '(no message)'}"
    hint = f"this is a fault of FedKeeper; the traceback is in {where}" if where else "-v shows the traceback"
    return Failure(FedKeeperError(problem, hint=hint))


def _keep(text: str) -> str:
    """Write the traceback beside the logs; empty if the disk would not."""
    path = Path("logs") / f"error-{datetime.now(UTC):%Y%m%dT%H%M%S%f}.txt"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{' '.join(sys.argv[:1])}\n{text}", encoding="utf-8")
    except OSError:
        return ""
    return str(path)
