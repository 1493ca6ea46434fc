"""A rank that trains several jobs in one process group: python -m torch.distributed.run ... ranks.py JOB..."""

import logging
import os
import signal
import sys
import warnings
from pathlib import Path

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("torchrec").setLevel(logging.ERROR)
    import torch.distributed as dist

    from stages.candidate import checkpoint, worker

    kill = os.environ.get("KILL_AT")  # "RANK:N": that rank dies when it is about to write its Nth checkpoint
    if kill:
        rank, wanted = map(int, kill.split(":"))
        saved, save = [], checkpoint.Checkpoints.save

        def killing(self, *arguments):
            saved.append(1)
            if len(saved) == wanted and int(os.environ["RANK"]) == rank:
                os.kill(os.getpid(), getattr(signal, os.environ.get("KILL_WITH", "SIGKILL")))
            save(self, *arguments)

        checkpoint.Checkpoints.save = killing
    if len(sys.argv) == 2:
        worker.main(Path(sys.argv[1]))
    else:
        worker.initialise(worker.job(Path(sys.argv[1])).candidate)
        for job in sys.argv[1:]:
            worker.train(Path(job), progress=False)
        dist.destroy_process_group()
