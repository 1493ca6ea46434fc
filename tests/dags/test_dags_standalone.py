"""One Ctrl-C ends `make airflow`: its parts are told once, and what does not end by itself is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.time_limits import wait_for

# Stands for Airflow: it tells its part to end when it is interrupted, and waits for it. The part leads a session of
# its own, as a running task does, and does not end.
AIRFLOW = """#!{python}
import signal, subprocess, sys, time
PART = '''
import os, pathlib, signal, sys, time
told = pathlib.Path(sys.argv[1])
def tell(number, _frame):
    with told.open("a") as stream:
        stream.write(signal.Signals(number).name + chr(10))
signal.signal(signal.SIGINT, tell)
signal.signal(signal.SIGTERM, tell)
(told.parent / "part").write_text(str(os.getpid()))
while True:
    time.sleep(0.05)
'''
assert sys.argv[1:] == ["standalone"]
part = subprocess.Popen([sys.executable, "-c", PART, "{told}"])
try:
    while True:
        time.sleep(0.05)
except KeyboardInterrupt:
    part.terminate()
    part.wait()
"""
# Whoever runs the tests below nohup ignores a signal.
RUN = """
import signal, sys
from sluice_airflow import standalone
for number in standalone.STOPPING:
    signal.signal(number, signal.SIG_DFL)
standalone.END_SECONDS = 0.5
sys.exit(standalone.main(1.5))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_signal_of_the_terminal_ends_airflow_and_all_that_it_runs(tmp_path: Path, number: signal.Signals) -> None:
    told = tmp_path / "told"
    script = tmp_path / "airflow"
    script.write_text(AIRFLOW.format(python=sys.executable, told=told))
    script.chmod(0o755)
    environ = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    with subprocess.Popen([sys.executable, "-c", RUN], env=environ, start_new_session=True) as launcher:
        wait_for("the part to run", lambda: (tmp_path / "part").exists() and (tmp_path / "part").read_text())
        part = psutil.Process(int((tmp_path / "part").read_text()))
        os.killpg(launcher.pid, number)  # what a terminal does
        assert launcher.wait(60) == 0
    assert not part.is_running() or part.status() == psutil.STATUS_ZOMBIE
    assert told.read_text().splitlines() == ["SIGTERM", "SIGTERM"], "Airflow's, and the one before it is killed"


def test_airflow_that_ends_by_itself_gives_its_exit_code(tmp_path: Path) -> None:
    script = tmp_path / "airflow"
    script.write_text("#!/bin/sh\nexit 3\n")
    script.chmod(0o755)
    environ = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    assert subprocess.run([sys.executable, "-c", RUN], env=environ, check=False, timeout=60).returncode == 3
