"""Run a job in this process for the one that watches it: ``python -m benchmarks.scale.child DIRECTORY``.

``DIRECTORY/job.json`` holds the arguments of ``sluice.jobs.run``. ``steps.txt`` gets the name of each step before it
starts, and ``done.json`` the results.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

JOB, STEPS, DONE = "job.json", "steps.txt", "done.json"


def main(directory: Path) -> None:
    """Run the job and keep what each step returned."""
    from sluice.jobs import run

    with (directory / STEPS).open("w", encoding="utf-8") as steps:

        def began(step: str) -> None:
            print(step, file=steps, flush=True)

        done = run(**json.loads((directory / JOB).read_text(encoding="utf-8")), progress=began)
    results = {step: result.model_dump(mode="json") for step, result in done.results.items()}
    (directory / DONE).write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
