"""torchrun, which ends with one line where it would print a traceback of itself: the failed process printed its own.

    python tools/launch.py --standalone --nproc_per_node 8 tools/train.py CONFIG --launcher pytorch

tools/dist_train.sh and tools/dist_test.sh call it.
"""

import logging
import os
import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

if __name__ == '__main__':
    os.environ.setdefault('OMP_NUM_THREADS', '1')  # torchrun's default, of which it warns
    # A machine that comes back cannot join a shared store (pytorch issue 135712).
    os.environ.setdefault('TORCH_DISABLE_SHARE_RDZV_TCP_STORE', '1')
    logging.getLogger('torch.distributed.elastic.multiprocessing.api').setLevel(logging.CRITICAL)
    try:
        main()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        how = failure.message if failure.exitcode < 0 else f'exit code {failure.exitcode}'
        print(f'Process {rank} of the job failed first: {how}.', file=sys.stderr)
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)
