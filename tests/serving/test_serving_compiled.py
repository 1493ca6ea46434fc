"""No request and no event of a server waits for the compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from serving import service as serving_service
from serving.service import Service
from tests.conftest import environment

SERVE = """
import sys
from pathlib import Path
from serving.events import Event
from serving.funnel import Funnel
from serving.release import load_release
from stages.compile_ahead.served import compile_served

def compiled():
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("stages.")]
    functions = [each for module in modules for each in vars(module).values() if hasattr(each, "signatures")]
    return {f"{each.__module__}.{each.__name__} {signature}" for each in functions for signature in each.signatures}

compile_served()
funnel = Funnel(load_release(Path(sys.argv[1])))
before = compiled()
assert any("apply_events" in name for name in before)
for user in (*funnel.known_users(1), "nobody"):
    (*_, item) = funnel.recommend(user, 3).items
    event = Event("e", user, item.item_id, "click", 1.0, funnel.clock())
    assert not funnel.contains(event)
    funnel.apply_event(event)
    assert funnel.contains(event)
    funnel.recommend(user, 3)
print(sorted(compiled() - before))
"""


def test_requests_and_events_need_nothing_else_compiled(job: Any) -> None:
    command = [sys.executable, "-c", SERVE, str(job.release)]
    done = subprocess.run(command, env=environment(job.settings.home), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_a_service_compiles_before_it_loads_a_release(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(serving_service, "compile_served", lambda: called.append("compile"))
    monkeypatch.setattr(serving_service, "load_release", lambda fetched: called.append("load") or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Service(None, None)._load(os.curdir)
    assert called == ["compile", "load"]
