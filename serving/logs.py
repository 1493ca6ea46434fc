"""Log lines without secrets, whichever logger and handler they go through."""

from __future__ import annotations

import logging
from typing import Any

from stages.contracts.redaction import redacted

_WORDS = logging.Formatter()


class RedactedRecord(logging.LogRecord):
    """A log record whose message, traceback and stack name no password."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.exc_info and self.exc_info[0] is not None:
            # Formatters take this text where it is there, instead of wording the traceback themselves.
            self.exc_text = redacted(_WORDS.formatException(self.exc_info))
        if self.stack_info:
            self.stack_info = redacted(self.stack_info)

    def getMessage(self) -> str:  # noqa: N802
        """Return the message, redacted."""
        return redacted(super().getMessage())


def redact_logs() -> None:
    """Make every log record of this process a redacted one: ours, uvicorn's, MLflow's and those of any library."""
    logging.setLogRecordFactory(RedactedRecord)
