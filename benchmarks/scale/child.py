"""Run a job in this process for the one that watches it: ``python -m benchmarks.scale.child DIRECTORY``.

``DIRECTORY/job.json`` holds the arguments of ``sluice.jobs.run``. ``steps.txt`` gets the name of each step before it
starts, and ``done.json`` the results with the processor seconds of each step.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

JOB, STEPS, DONE = "job.json", "steps.txt", "done.json"


def processor_s() -> float:
    """Return the processor seconds of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main(directory: Path) -> None:
    """Run the job and keep what each step returned."""
    from sluice.jobs import run

    started: list[float] = []
    with (directory / STEPS).open("w", encoding="utf-8") as steps:

        def began(step: str) -> None:
            started.append(processor_s())
            print(step, file=steps, flush=True)

        done = run(**json.loads((directory / JOB).read_text(encoding="utf-8")), progress=began)
    started.append(processor_s())
    results = {
        step: {**result.model_dump(mode="json"), "processor_seconds": end - start}
        for (step, result), start, end in zip(done.results.items(), started, started[1:], strict=False)
    }
    (directory / DONE).write_text(json.dumps({"processor_seconds": started[-1], "results": results}), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
