"""Takes secrets out of text before a person or a log sees it.

Addresses carry passwords (``postgresql://user:secret@host/db``), and libraries quote addresses in their errors.
All text that leaves the process goes through ``redacted``: logs, HTTP answers, alerts, reports. Our own errors are
redacted when they are made (``SluiceError``), library errors and log records by ``redacted_errors``.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from urllib.parse import unquote

MASK = "***"

_NAMES = (
    r"(?:[\w-]*[_-])?(?:(?:ssl)?password|passwd|passphrase|secret|token|pwd|sig|signature"
    r"|(?:api|access|secret|account|jwt)[_-]?key)"
)

# A password may hold "@" and "/" unquoted: the last "@" before white space or a quote ends it. A port is no password.
_USER_INFO = re.compile(
    r"(?P<before>\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s/:@'\"<>]*):(?!\d{1,5}[/?#])(?P<secret>[^\s'\"<>]*)@"
)
_TOKEN_INFO = re.compile(r"(?P<before>\bhttps?://)(?P<secret>[^\s/:@'\"<>]+)@")
_ASSIGNED = re.compile(
    rf"(?P<before>(?<![\w-]){_NAMES}(?:[\"']?\s*=\s*[\"']?|[\"']\s*:\s*[\"']?|:(?=\S)))"
    r"(?P<secret>[^\s&;,\"'<>)\]}]+)",
    re.IGNORECASE,
)
_HEADER = re.compile(r"(?P<before>\b(?:Bearer|Basic)\s+)(?P<secret>[A-Za-z0-9._~+/=-]{8,})", re.IGNORECASE)
_SLACK = re.compile(r"(?P<before>https?://[^\s/'\"<>]+/(?:services|workflows|triggers)/)(?P<secret>[A-Za-z0-9_/-]+)")


SECRET_VARIABLES = (
    "SLUICE_WAREHOUSE_URL",
    "SLUICE_MLFLOW_URI",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_REGISTRY_URI",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "PGPASSWORD",
)
"""Variables of the environment that are a secret, or an address that may hold one."""

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_NO_ADDRESS = re.compile(r":(?P<secret>\S*)@")
_SHORTEST = 4
"""Length of the shortest secret that is looked for on its own; a shorter one would also hide ordinary words."""
_ORDINARY = frozenset({"sluice", "airflow", "mlflow", "postgres"})
"""Words of many messages: they are not masked, even if one is used as a password."""


def redacted(text: str) -> str:
    """Return ``text`` with passwords, tokens and webhook paths replaced by ``***``.

    User names, hosts, ports and paths stay, since they show which address was meant. Secrets of this process's
    environment (``SECRET_VARIABLES``) are masked on their own as well, since libraries quote pieces of an address that
    they could not read. Redacting twice changes nothing.
    """
    text = _USER_INFO.sub(rf"\g<before>:{MASK}@", text)
    text = _TOKEN_INFO.sub(rf"\g<before>{MASK}@", text)
    for pattern in (_ASSIGNED, _HEADER, _SLACK):
        text = pattern.sub(rf"\g<before>{MASK}", text)
    known = _either(environment_secrets())
    return known.sub(MASK, text) if known else text


def environment_secrets() -> frozenset[str]:
    """Return the passwords and tokens in this process's environment, as written and decoded, and their pieces.

    Pieces of a password with an unquoted ``@`` or ``/`` appear in errors about hosts and ports.
    """
    return _secrets_of(tuple((name, os.environ.get(name, "")) for name in SECRET_VARIABLES))


@lru_cache(maxsize=8)
def _secrets_of(variables: tuple[tuple[str, str], ...]) -> frozenset[str]:
    secrets: set[str] = set()
    for name, value in variables:
        if name.endswith(("PASSWORD", "TOKEN")):
            secrets.add(value)
            continue
        # In a value that is not an address, any text between a colon and an "@" may be a password.
        patterns = (_USER_INFO, _TOKEN_INFO, _ASSIGNED) if _SCHEME.match(value) else (_NO_ADDRESS, _ASSIGNED)
        found = [match["secret"] for pattern in patterns for match in pattern.finditer(value)]
        secrets.update(found, map(unquote, found), *(re.split(r"[@/:?#]", secret) for secret in found))
    return frozenset(secret for secret in secrets if len(secret) >= _SHORTEST and secret not in _ORDINARY)


@lru_cache(maxsize=8)
def _either(secrets: frozenset[str]) -> re.Pattern[str] | None:
    """Return a pattern that matches any of them as a whole word, the longest first."""
    words = "|".join(re.escape(secret) for secret in sorted(secrets, key=lambda secret: (-len(secret), secret)))
    return re.compile(rf"(?<!\w)(?:{words})(?!\w)") if words else None
