"""Errors of libraries, and log records, without secrets: what ``SluiceError`` does for our own errors."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from stages.contracts.redaction import redacted


def redact_error(error: BaseException) -> BaseException:
    """Take secrets out of an exception, its causes and its notes, and return it.

    It is changed in place, so that its type and traceback stay. Only where its words do not come from its
    arguments, a ``RuntimeError`` with the same traceback takes its place.
    """
    return _redact(error, set())


def raise_redacted(error: BaseException) -> NoReturn:
    """Raise an exception that is being handled again, without secrets; see ``redact_error``."""
    clean = redact_error(error)
    if clean is error:
        raise error
    raise clean.with_traceback(error.__traceback__) from clean.__cause__


def _redact(error: BaseException, seen: set[int]) -> BaseException:
    if id(error) in seen:
        return error
    seen.add(id(error))
    error.args = tuple(_redact(arg, seen) if isinstance(arg, BaseException) else _shown(arg) for arg in error.args)
    notes = getattr(error, "__notes__", [])
    notes[:] = [redacted(str(note)) for note in notes]
    clean = error
    if redacted(str(error)) != str(error):
        clean = RuntimeError(f"{type(error).__name__}: {redacted(str(error))}").with_traceback(error.__traceback__)
    hidden, cause, context = error.__suppress_context__, error.__cause__, error.__context__
    clean.__cause__ = None if cause is None else _redact(cause, seen)
    clean.__context__ = None if context is None else _redact(context, seen)
    clean.__suppress_context__ = hidden
    return clean


def _shown(value: Any) -> Any:
    """Return a value itself, or its words without secrets if there are any in them."""
    if value is None or isinstance(value, bool | int | float):
        return value
    words = str(value)
    clean = redacted(words)
    return value if clean == words else clean


def redact_logs() -> None:
    """Let every log record of this process, of whichever logger, pass through ``redacted``; again changes nothing."""
    made = logging.getLogRecordFactory()
    if not isinstance(made, _RedactingFactory):
        logging.setLogRecordFactory(_RedactingFactory(made))


class _RedactingFactory:
    """Makes log records as ``made`` does, and takes secrets out of their words, traceback and stack."""

    def __init__(self, made: Callable[..., logging.LogRecord]) -> None:
        self._made = made

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self._made(*args, **kwargs)
        try:
            # As a whole: a secret may be put together of the words and their arguments.
            words = record.getMessage()
        except (TypeError, ValueError, KeyError):  # words and arguments that do not match: the handler reports it
            record.msg = _shown(record.msg)
        else:
            if redacted(words) != words:
                record.msg, record.args = redacted(words), None
        if record.exc_info and record.exc_info[1] is not None:
            # A formatter takes this text where it is set; the exception itself is still somebody's to handle.
            record.exc_text = redacted("".join(traceback.format_exception(record.exc_info[1])).rstrip("\n"))
        if record.stack_info:
            record.stack_info = redacted(record.stack_info)
        return record
