"""The text of a failure alert: plain text in, Slack's markup out; nothing here needs Airflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sluice_airflow.commands import Surroundings, hidden_addresses, sluice_command, trigger_command
from stages.contracts.redaction import redacted

ERROR_LENGTH = 2400
"""Characters of errors that a message carries in all; Slack cuts a text off at a few thousand."""

MOST_STEPS = 8
"""Failed steps that are listed one by one."""

COMMAND_LENGTH = 4000

KILLED = (
    "no error was recorded: the step's process was killed (SIGKILL), or its machine went away.\n"
    "Most often the machine ran out of memory. Look at the end of the step's log, for `oom` in the kernel's log\n"
    "(dmesg -T), or at OOMKilled of the container. Give the workers more memory, or make the step smaller."
)


@dataclass(frozen=True)
class FailedStep:
    """A task that failed for good.

    Attributes:
        name: the task, with ``[n]`` for the n-th of a mapped one.
        try_number: the try that failed, from 1.
        host: on which it ran, if it ran.
        seconds: how long the try took.
        error: text of the exception; None if the process left none.
        events: what Airflow noticed from outside, such as missing heartbeats.
        log_url: page of the try's log, if Airflow's address is configured.
    """

    name: str
    try_number: int
    host: str | None = None
    seconds: float | None = None
    error: str | None = None
    events: Sequence[str] = ()
    log_url: str | None = None


@dataclass(frozen=True)
class FailedRun:
    """A DAG run that ended in failure.

    Attributes:
        params: the run's parameters, with the DAG's defaults.
        steps: the failed ones; empty if the run timed out, or was marked by hand.
        ended: when the run was over, UTC.
        url: page of the run, if Airflow's address is configured.
        cleared: whether a person had cleared the run before it was read.
    """

    dag_id: str
    run_id: str
    params: Mapping[str, Any] = field(default_factory=dict)
    steps: Sequence[FailedStep] = ()
    ended: datetime | None = None
    url: str | None = None
    cleared: bool = False


def error_words(error: BaseException) -> str:
    """Return an exception as a message may carry it: type and text, without secrets, rows or great length."""
    text = f"{type(error).__name__}: {error}"
    if type(error).__name__ == "ContractError":
        text = _without_rows(text)
    return _shorten(redacted(text), ERROR_LENGTH)


def failure_message(run: FailedRun, around: Surroundings) -> str:
    """Return the message: run, failed steps, their errors with the numbers, and how to run it again."""
    params = {name: value for name, value in run.params.items() if value is not None}
    lines = [_headline(run), _run_line(run)]
    for step in run.steps[:MOST_STEPS]:
        lines += _step_lines(step, ERROR_LENGTH // min(len(run.steps), MOST_STEPS))
    if len(run.steps) > MOST_STEPS:
        lines.append(f"… and {len(run.steps) - MOST_STEPS} steps more")
    if not run.steps:
        why = "it has been cleared since" if run.cleared else "it timed out, could not go on, or was marked by hand"
        lines.append(f"no failed step is known: {why}")
    commands = [trigger_command(run.dag_id, params, around), sluice_command(run.dag_id, params, around)]
    lines.append("run it again; steps that had finished are re-used. In Airflow, or without it:")
    lines += [f"```{_escape(_shorten(redacted(command), COMMAND_LENGTH))}```" for command in commands]
    if not around.prefix:
        lines.append("The second runs where the home lies, on the machine of the workers.")
    lines += [f"Set it first: {_escape(hidden)}" for hidden in hidden_addresses(around)]
    return "\n".join(lines)


def short_message(dag_id: str, run_id: str) -> str:
    """Return the message for a run that could not be read."""
    return redacted(
        f":rotating_light: *{_escape(dag_id)}* failed\nrun: `{_escape(run_id)}`\n"
        "its steps and errors could not be read, see Airflow's pages and the scheduler's log"
    )


def _headline(run: FailedRun) -> str:
    names = ", ".join(f"*{_escape(step.name)}*" for step in run.steps[:MOST_STEPS])
    where = f" in step{'s' if len(run.steps) > 1 else ''} {names}" if names else ""
    return f":rotating_light: *{_escape(run.dag_id)}* failed{where}"


def _run_line(run: FailedRun) -> str:
    parts = [f"run: `{_escape(redacted(run.run_id))}`"]
    if run.ended:
        parts.append(f"{run.ended:%Y-%m-%d %H:%M:%S} UTC")
    if run.url:
        parts.append(f"<{_escape(run.url)}|open the run>")
    return ", ".join(parts)


def _step_lines(step: FailedStep, room: int) -> list[str]:
    parts = [f"*{_escape(step.name)}*: try {step.try_number}"]
    if step.host:
        parts.append(f"host {_escape(step.host)}")
    if step.seconds is not None:
        parts.append(f"after {step.seconds:,.0f} s")
    if step.log_url:
        parts.append(f"<{_escape(step.log_url)}|its log>")
    reason = "\n".join([step.error or KILLED, *step.events])
    return [", ".join(parts), f"```{_escape(_shorten(redacted(reason), room))}```"]


def _without_rows(text: str) -> str:
    """Drop the example rows of broken contracts: they may hold ids of users."""
    first, *rest = text.splitlines()
    kept = [line for line in rest if line.startswith(("- ", "full report"))]
    return "\n".join([first, *kept])


def _shorten(text: str, room: int) -> str:
    """Cut the middle out: the numbers stand at the start, the cause of a long error at its end."""
    if len(text) <= room:
        return text
    half = room // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"


def _escape(text: str) -> str:
    """Escape the three characters that Slack reads as markup, and what would close a code block."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("```", "'''")
