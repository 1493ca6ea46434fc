"""Run the training DAG as a real Airflow DAG run on an embedded metadata database (SQLite).

Airflow is called as a program: this package never imports it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from stages.contracts import errors
from stages.contracts.errors import ConfigError, SluiceError
from stages.contracts.redaction import redacted

DAG_ID = "train_funnel"
_ERROR_LINE = re.compile(r"(?:^|[\s.])(\w+(?:Error|Exception)): (.+?)\s*$")
_PLAIN = re.compile(r"\x1b\[[0-9;]*m")
_STEP_LINE = re.compile(r"\[sluice\] (.*?)(?:\s+\[[\w.]+\])?(?:\s+loc=\S+)?\s*$")


def airflow_environment(home: Path, dags: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of an Airflow whose database, logs and settings live in ``home``."""
    return {
        **environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), environ.get("PATH", "")]),
        "AIRFLOW_HOME": str(home / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags.resolve()),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
    }


def run_dag(
    home: Path, dags: Path, params: Mapping[str, object], environ: Mapping[str, str], echo: Callable[[str], None]
) -> Path:
    """Run ``train_funnel`` once and wait for it.

    Args:
        home: directory of the run's Airflow, warehouse and outputs.
        dags: folder that holds the DAG files.
        params: the run's parameters.
        environ: environment to build on.
        echo: called with each line that a step logs.

    Returns:
        Path of the full log.

    Raises:
        ConfigError: if the DAG folder is missing.
        SluiceError: if the DAG run failed, of the type of its last error; the message names the log.
    """
    if not (dags / f"{DAG_ID}.py").is_file():
        raise ConfigError(f"--dags {dags}: holds no {DAG_ID}.py")
    environment = airflow_environment(home, dags, environ)
    log = home / "airflow" / "demo.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as stream:
        migrated = subprocess.run(
            [sys.executable, "-m", "airflow", "db", "migrate"],
            env=environment,
            stdout=stream,
            stderr=stream,
            check=False,
        )
        if migrated.returncode:
            raise SluiceError(f"airflow db migrate failed, see {log}")
        command = [sys.executable, "-m", "airflow", "dags", "test", DAG_ID, "-c", json.dumps(dict(params))]
        failures = []
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process:
            for line in _tee(process.stdout or (), stream):
                found = _STEP_LINE.search(line)
                if found:
                    echo(found.group(1))
                elif named := _ERROR_LINE.search(line):
                    failures.append((named.group(1), named.group(2)))
    if process.returncode:
        raise _failure(failures, log)
    return log


def _failure(failures: Sequence[tuple[str, str]], log: Path) -> SluiceError:
    """Return the last error of a failed run as its own type, so that the exit code says the same."""
    kind, words = failures[-1] if failures else ("", "no error line")
    found = getattr(errors, kind, None)
    if isinstance(found, type) and issubclass(found, SluiceError):
        return found(f"the DAG run failed: {words} (log: {log})")
    return SluiceError(f"the DAG run failed: {kind} {words} (log: {log})")


def _tee(lines: Iterable[str], stream: TextIO) -> Iterator[str]:
    for line in lines:
        plain = redacted(_PLAIN.sub("", line))
        stream.write(plain)
        stream.flush()
        yield plain
