"""A rank that trains several jobs in one process group: python -m torch.distributed.run ... ranks.py JOB..."""

import json
import logging
import os
import signal
import sys
import time
import warnings
from collections import Counter
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


def count_orders_of_steps():
    """Return a counter of the orders in which a batch's lookup, what its loss masks and its towers begin."""
    from stages.candidate.towers.two_tower import TwoTower
    from stages.candidate.training import objective

    orders, begun = Counter(), []

    def marked(owner, name):
        function = getattr(owner, name)

        def marking(*arguments, **named):
            begun.append(name)
            if name == "forward":
                orders[" ".join(begun)] += 1
                begun.clear()
            return function(*arguments, **named)

        setattr(owner, name, marking)

    marked(objective, "start_lookup")
    marked(objective.LossOfBatch, "_loss_of")
    marked(TwoTower, "forward")
    return orders


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
        orders = count_orders_of_steps()
        for job in sys.argv[1:]:
            orders.clear()
            worker.train(Path(job), progress=False)
            cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
            seen = {"orders": orders, "cores": cores}
            Path(job, f"seen-{os.environ['RANK']}.json").write_text(json.dumps(seen))
        dist.destroy_process_group()
