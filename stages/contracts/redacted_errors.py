"""Takes secrets out of library errors and log records, as ``SluiceError`` does for our own errors."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from stages.contracts.redaction import redacted


def redact_error(error: BaseException) -> BaseException:
    """Take secrets out of an exception, its causes and its notes, and return it.

    The exception is changed in place and keeps its type and traceback. If its text does not come from its arguments, a
    ``RuntimeError`` with the same traceback replaces it.
    """
    return _redact(error, set())


def raise_redacted(error: BaseException) -> NoReturn:
    """Re-raise an exception that is being handled, without secrets; see ``redact_error``."""
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
    """Return a value itself, or its text without secrets if it holds any."""
    if value is None or isinstance(value, bool | int | float):
        return value
    words = str(value)
    clean = redacted(words)
    return value if clean == words else clean


def redact_logs() -> None:
    """Pass the log records of all loggers of this process through ``redacted``; a second call changes nothing."""
    made = logging.getLogRecordFactory()
    if not isinstance(made, _RedactingFactory):
        logging.setLogRecordFactory(_RedactingFactory(made))


class _RedactingFactory:
    """Makes log records as ``made`` does, and takes secrets out of their message, traceback and stack."""

    def __init__(self, made: Callable[..., logging.LogRecord]) -> None:
        self._made = made

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self._made(*args, **kwargs)
        try:
            # As a whole: message and arguments may form a secret only together.
            words = record.getMessage()
        except (TypeError, ValueError, KeyError):  # message and arguments do not match: the handler reports it
            record.msg = _shown(record.msg)
        else:
            if redacted(words) != words:
                record.msg, record.args = redacted(words), None
        if record.exc_info and record.exc_info[1] is not None:
            # A formatter uses this text where it is set; the exception itself stays as it is for whoever handles it.
            record.exc_text = redacted("".join(traceback.format_exception(record.exc_info[1])).rstrip("\n"))
        if record.stack_info:
            record.stack_info = redacted(record.stack_info)
        return record
