"""The exceptions that users see.

    SluiceError
    ├── ConfigError        a configuration value, command-line option or unknown key
    ├── DataError          input data that no retry will fix
    │   ├── EmptyDatasetError   a selection that removed every row
    │   └── ContractError       data that break a contract of the recipe
    ├── ReleaseError       a release whose artifacts are missing or do not match
    │   ├── GateError      a release that did not pass the promotion gate
    │   └── RegistryError  a registry that is missing or refuses access
    ├── RequestError       a malformed request to the serving layer (HTTP 4xx)
    └── TransientError     a fault that may pass: retried with back-off
        └── OutOfSpaceError     a disk that is full: other processes, or a person, may make room

Every message names the field or file, what was found and what is allowed.
Anything that is not a ``TransientError`` is permanent: workflows do not retry it.
No message holds a password: the base class passes each through ``redacted``.
"""

from __future__ import annotations

from stages.contracts.redaction import redacted


class SluiceError(Exception):
    """Base of all errors that are meant for users; secrets are taken out of the message."""

    def __init__(self, message: str = "") -> None:
        super().__init__(redacted(message))


class ConfigError(SluiceError):
    """A configuration value is not allowed."""


class DataError(SluiceError):
    """Input data is missing, unreadable or breaks a contract."""


class EmptyDatasetError(DataError):
    """A selection threshold removed every row."""


class ContractError(DataError):
    """Data contracts are broken; the message names each with its numbers, limits and rows to look at."""


class ReleaseError(SluiceError):
    """A release is incomplete, corrupt or made of artifacts that do not match."""


class GateError(ReleaseError):
    """A release did not pass the promotion gate."""


class RegistryError(ReleaseError):
    """The registry is missing or refuses access, so that the champion is unknown."""


class RequestError(SluiceError):
    """A request is malformed; the message names the field, its value and what is allowed."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


class TransientError(SluiceError):
    """A fault that may pass, such as a connection that was refused."""


class OutOfSpaceError(TransientError):
    """A disk is full; nothing half-written was left behind.

    Attributes:
        step: the step that ran out of space, None where it is not known yet.
    """

    def __init__(self, message: str, step: str | None = None) -> None:
        super().__init__(message)
        self.step = step
