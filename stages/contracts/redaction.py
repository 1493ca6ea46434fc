"""Takes secrets out of text before a person or a log sees it.

Addresses carry passwords (``postgresql://user:secret@host/db``), and libraries quote addresses in their errors.
Whatever leaves the process as words goes through ``redacted``: logs, HTTP answers, alerts, reports.
"""

from __future__ import annotations

import re

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


def redacted(text: str) -> str:
    """Return ``text`` with passwords, tokens and webhook paths replaced by ``***``.

    User names, hosts, ports and paths stay, for they say which address was meant. Redacting twice changes nothing.
    """
    text = _USER_INFO.sub(rf"\g<before>:{MASK}@", text)
    text = _TOKEN_INFO.sub(rf"\g<before>{MASK}@", text)
    for pattern in (_ASSIGNED, _HEADER, _SLACK):
        text = pattern.sub(rf"\g<before>{MASK}", text)
    return text
