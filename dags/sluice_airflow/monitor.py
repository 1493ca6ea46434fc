"""Watches for runs that ended in failure and reports each of them once: a process beside the scheduler.

    python -m sluice_airflow.monitor [--once]

The plugin starts it and wakes it through its standard input, one JSON line per failed run. It also looks at intervals,
so that what was missed (the scheduler was down, Slack was away) is sent later. It ends with its parent.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
import time

from sluice_airflow import metadata
from sluice_airflow.backoff import retry_seconds
from sluice_airflow.commands import Surroundings
from sluice_airflow.message import failure_message, short_message
from sluice_airflow.metadata import Key
from sluice_airflow.outbox import Message, Outbox, now_ms
from sluice_airflow.slack import NotAccepted, NotConfigured, connection_name, send
from stages.contracts.redaction import redacted

log = logging.getLogger("sluice_airflow.monitor")

POLL_SECONDS = float(os.environ.get("SLUICE_ALERT_POLL_SECONDS") or 15)
FIRST_RETRY_SECONDS = float(os.environ.get("SLUICE_ALERT_RETRY_SECONDS") or 15)
LOOK_BACK_MS = 7 * 86_400_000
"""Older failures are not reported, and a message that could not be sent for so long is given up."""

UNCONFIGURED_MS = 3_600_000
"""How long a message waits until somebody configures a connection; after that it would only confuse."""

TOLD_SECONDS = 60.0
"""How long the monitor waits for the transaction of a run that the scheduler reported."""


def look(outbox: Outbox, told: dict[Key, float]) -> None:
    """Put each failed run that has no row yet into the outbox.

    Args:
        outbox: where the messages go.
        told: runs that the scheduler reported, and until when to wait for each (``time.monotonic``); finished ones are
            removed.
    """
    keys = metadata.unreported(max(outbox.since_ms(), now_ms() - LOOK_BACK_MS))
    for key in dict.fromkeys([*keys, *metadata.confirmed(told)]):
        told.pop(key, None)
        if not outbox.holds(*key):
            outbox.add(*key, _text(key))
    for key in [key for key, until in told.items() if time.monotonic() > until]:
        del told[key]


def deliver(outbox: Outbox) -> None:
    """Send the messages that are due. Where Slack does not answer, the rest waits for the next call."""
    for message in outbox.due():
        try:
            send(message.text)
        except NotConfigured as error:
            _wait_for_connection(outbox, message, str(error))
        except NotAccepted as error:
            _postpone(outbox, message, error)
            if error.busy:
                return
        except Exception as error:  # such as a connection that cannot be parsed
            log.exception("The alert of %s could not be sent", message.run)
            _postpone(outbox, message, NotAccepted(f"{type(error).__name__}: {error}", busy=False))
        else:
            outbox.sent(message)
            log.info("Failure alert sent: %s", message.run)


def main() -> None:
    """Look once, or until the parent is gone."""
    outbox = Outbox(metadata.engine())
    if "--once" in sys.argv[1:]:
        outbox.prepare()
        look(outbox, {})
        deliver(outbox)
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the scheduler's; this process ends with it
    _watch(outbox, os.getppid())


def _watch(outbox: Outbox, parent: int) -> None:
    told: dict[Key, float] = {}
    prepared, open_input, next_look = False, True, 0.0
    while open_input and os.getppid() == parent:
        if time.monotonic() >= next_look:
            try:
                if not prepared:
                    outbox.prepare()
                    prepared = True
                look(outbox, told)
                deliver(outbox)
            except Exception:
                log.exception("Failed runs could not be looked for; the next try is in %.0f s", POLL_SECONDS)
            next_look = time.monotonic() + (1.0 if told else POLL_SECONDS)
        open_input, keys = _listen(1.0)
        for key in keys:
            told[key] = time.monotonic() + TOLD_SECONDS
            next_look = min(next_look, time.monotonic() + 0.3)


def _listen(seconds: float) -> tuple[bool, list[Key]]:
    """Return whether the parent still holds its end of the pipe open, and the runs that it reported."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    if not ready:
        return True, []
    data = os.read(sys.stdin.fileno(), 65_536)
    keys = []
    for line in data.splitlines():
        try:
            run = json.loads(line)
            keys.append((run["dag_id"], run["run_id"], run["attempt"]))
        except (ValueError, KeyError, TypeError):
            log.debug("half a line: %r", line)  # the next look finds the run all the same
    return bool(data), keys


def _text(key: Key) -> str:
    try:
        return failure_message(metadata.read_run(key), Surroundings())
    except Exception:
        log.exception("The failed run %s could not be read", key)
        return short_message(*key[:2])


def _postpone(outbox: Outbox, message: Message, error: NotAccepted) -> None:
    words = redacted(str(error))
    if now_ms() - message.created_ms > LOOK_BACK_MS:
        outbox.give_up(message, words)
        log.error("The failure alert of %s is given up after %d tries: %s", message.run, message.tries, words)
        return
    pause = retry_seconds(message.tries, FIRST_RETRY_SECONDS, error.wait_seconds)
    outbox.postpone(message, words, int(pause * 1000), everything=error.wait_seconds is not None)
    log.warning("Alert of %s not delivered (try %d), next in %.0f s: %s", message.run, message.tries, pause, words)


def _wait_for_connection(outbox: Outbox, message: Message, words: str) -> None:
    if message.tries == 1:
        log.info("No Airflow connection %s: no failure alert is sent for %s", connection_name(), message.run)
    if now_ms() - message.created_ms > UNCONFIGURED_MS:
        outbox.give_up(message, words)
    else:
        outbox.postpone(message, words, int(retry_seconds(message.tries, FIRST_RETRY_SECONDS) * 1000))


if __name__ == "__main__":
    main()
