"""Secrets leave text; what says which address was meant stays."""

from __future__ import annotations

import pytest

from stages.contracts.redaction import redacted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "postgresql+psycopg2://sluice:p@ss/w:rd@host:5432/db refused",
            "postgresql+psycopg2://sluice:***@host:5432/db refused",
        ),
        ("redis://:hunter2@h:1/0", "redis://:***@h:1/0"),
        ("http://user:pw@mlflow:5000/api?token=abc&x=1", "http://user:***@mlflow:5000/api?token=***&x=1"),
        ("http://ghp_token@example.org/x", "http://***@example.org/x"),
        (
            "two: postgresql://a:b@h/x and postgresql://c:d@h/y",
            "two: postgresql://a:***@h/x and postgresql://c:***@h/y",
        ),
        ("host=h password=hunter2 dbname=x", "host=h password=*** dbname=x"),
        ("{'password': 'hunter2', \"api_key\": \"k\"}", "{'password': '***', \"api_key\": \"***\"}"),
        ("MLFLOW_TRACKING_PASSWORD=hunter2", "MLFLOW_TRACKING_PASSWORD=***"),
        ("Authorization: Bearer abcdefghijkl", "Authorization: Bearer ***"),
        ("https://hooks.example.com/services/T000/B000/XXXX", "https://hooks.example.com/services/***"),
    ],
)
def test_a_secret_is_masked_wherever_it_stands(text: str, wanted: str) -> None:
    assert redacted(text) == wanted
    assert redacted(wanted) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "http://host:5000/mail/a@b: refused",
        "see http://host:8080/path and write to me@example.org",
        "the token is bad; tokens: 5, n_tokens = 12, secretary=ok",
        "sources.trending.segment = 'region' must be one of ['a', 'b']",
        "item_id = 'x', allowed is an item id of release 20240101-0123456789ab (5 items)",
        "sqlite:////srv/mlflow.db",
    ],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert redacted(text) == text
