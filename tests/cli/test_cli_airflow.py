"""A failed DAG run is reported as the error that failed it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.airflow import _ERROR_LINE, _failure, airflow_environment, run_dag
from stages.contracts.errors import ConfigError, DataError, EmptyDatasetError, SluiceError, TransientError


@pytest.mark.parametrize(
    ("line", "kind", "words"),
    [
        ("stages.contracts.errors.EmptyDatasetError: found 0 users, allowed 1", EmptyDatasetError, "found 0 users"),
        ("TransientError: warehouse: connection refused", TransientError, "connection refused"),
        ("RuntimeError: something else", SluiceError, "RuntimeError something else"),
    ],
)
def test_the_last_error_keeps_its_type(line: str, kind: type[SluiceError], words: str) -> None:
    named = _ERROR_LINE.search(line)
    assert named is not None
    error = _failure([("DataError", "an earlier one"), (named.group(1), named.group(2))], Path("demo.log"))
    assert type(error) is kind
    assert words in str(error)
    assert "demo.log" in str(error)


def test_a_run_without_an_error_line_still_points_to_its_log() -> None:
    error = _failure([], Path("demo.log"))
    assert type(error) is SluiceError
    assert "demo.log" in str(error)
    assert not isinstance(error, DataError)


def test_airflow_stays_below_the_home_and_reports_to_nobody(tmp_path: Path) -> None:
    environment = airflow_environment(tmp_path, tmp_path / "dags", {"PATH": "/bin"})
    assert environment["AIRFLOW_HOME"] == str(tmp_path / "airflow")
    assert environment["AIRFLOW__USAGE_DATA_COLLECTION__ENABLED"] == "False"
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_folder_without_the_dag_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no train_funnel\.py"):
        run_dag(tmp_path, tmp_path, {}, {}, print)
