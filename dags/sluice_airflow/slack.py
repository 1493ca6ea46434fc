"""Sends a message to Slack once, and says what to do if it was not accepted."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from http.client import HTTPException

from airflow.exceptions import AirflowNotFoundException
from airflow.models import Connection
from airflow.providers.slack.hooks.slack_webhook import SlackWebhookHook

from sluice_airflow.backoff import wait_seconds

DEFAULT_CONNECTION = "slack_webhook_default"
SEND_SECONDS = 10


class NotConfigured(Exception):
    """There is no connection to send through."""


class NotAccepted(Exception):
    """The message was not delivered.

    Attributes:
        wait_seconds: pause that Slack asks for, in seconds; None if it asks for none.
        busy: whether the next message would fail as well (no answer, a 429 or a 5xx).
    """

    def __init__(self, message: str, wait_seconds: float | None = None, *, busy: bool = True) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds
        self.busy = busy


class _Hook(SlackWebhookHook):
    """The provider's hook outside a task: there the connection comes from Airflow's own secrets backends."""

    @classmethod
    def get_connection(cls, conn_id: str) -> Connection:
        return Connection.get_connection_from_secrets(conn_id)


def connection_name() -> str:
    """Return the name of the Airflow connection."""
    return os.environ.get("SLUICE_SLACK_CONN_ID") or DEFAULT_CONNECTION


def send(text: str) -> None:
    """Send one message.

    Raises:
        NotConfigured: if the connection does not exist or holds no webhook.
        NotAccepted: if Slack cannot be reached, is too slow, or refuses.
    """
    name = connection_name()
    try:
        timeout = _Hook.get_connection(name).extra_dejson.get("timeout")
        # No handler: retries are the outbox's work, and a second request here could send the message twice.
        hook = _Hook(slack_webhook_conn_id=name, timeout=int(timeout or SEND_SECONDS), retry_handlers=[])
        client = hook.client
    except AirflowNotFoundException:
        raise NotConfigured(f"no Airflow connection {name}") from None
    try:
        answer = client.send(text=text, unfurl_links=False, unfurl_media=False)
    except (OSError, HTTPException) as error:
        raise NotAccepted(f"{type(error).__name__}: {error}") from error
    status = answer.status_code
    if status != 200:
        wait = wait_seconds(answer.headers or {}, datetime.now(UTC))
        raise NotAccepted(f"HTTP {status}: {str(answer.body)[:200]}", wait, busy=status == 429 or status >= 500)
