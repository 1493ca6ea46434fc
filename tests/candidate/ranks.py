"""A rank that trains several jobs in one process group: python -m torch.distributed.run ... ranks.py JOB..."""

import json
import logging
import os
import signal
import sys
import time
import warnings
from pathlib import Path

JOINING, SAVING = 0, -1


def arm(rank, where):
    """Make a rank die, or hang, before it writes checkpoint number ``where``, before it joins or saves its result."""
    from stages.candidate.training import checkpoint, worker

    owner, name = checkpoint.Checkpoints, "save"
    if where in (JOINING, SAVING):
        owner, name = worker, "initialise" if where == JOINING else "save"
    called, function = [], getattr(owner, name)

    def killing(*arguments):
        called.append(1)
        if len(called) == max(where, 1) and int(os.environ["RANK"]) == rank:
            if (end := os.environ.get("KILL_WITH", "SIGKILL")) == "SLEEP":
                time.sleep(600)
            os.kill(os.getpid(), getattr(signal, end))
        return function(*arguments)

    setattr(owner, name, killing)


def count_draws_of_backward():
    """Return a list of one number, to which each batch adds one that is asked for in a backward pass."""
    from stages.candidate.distributed.ahead import SentAhead

    count, advancing, draw, advance = [0], [], SentAhead.draw, SentAhead.advance

    def counted(self):
        count[0] += not advancing
        draw(self)

    def marked(self):
        advancing.append(True)
        advance(self)
        advancing.pop()

    SentAhead.draw, SentAhead.advance = counted, marked
    return count


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("torchrec").setLevel(logging.ERROR)
    import torch.distributed as dist

    from stages.candidate.training import worker

    if "KILL_AT" in os.environ:
        arm(*map(int, os.environ["KILL_AT"].split(":")))  # RANK:WHERE
    if len(sys.argv) == 2:
        worker.main(Path(sys.argv[1]))
    else:
        worker.initialise(worker.job(Path(sys.argv[1])).candidate)
        count = count_draws_of_backward()
        for job in sys.argv[1:]:
            count[0] = 0
            worker.train(Path(job), progress=False)
            cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
            seen = {"draws_of_backward": count[0], "cores": cores}
            Path(job, f"seen-{os.environ['RANK']}.json").write_text(json.dumps(seen))
        dist.destroy_process_group()
