from __future__ import annotations

import os
import sys

import pytest

from benchmarks.environment import in_a_process


def test_the_last_line_is_the_result() -> None:
    code = "import json, os; print('progress'); print(json.dumps({'process': os.getpid(), 'word': os.environ['WORD']}))"
    found = in_a_process([sys.executable, "-c", code], {**os.environ, "WORD": "here"})
    assert found["word"] == "here"
    assert found["process"] != os.getpid()


def test_a_job_that_fails_says_why() -> None:
    with pytest.raises(SystemExit, match="no such data"):
        in_a_process([sys.executable, "-c", "import sys; sys.exit('no such data')"])
