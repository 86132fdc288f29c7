"""torchrun, which leaves it to the workers to tell what went wrong: its own traceback says only that one of them ended."""

import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

if __name__ == "__main__":
    try:
        run(parse_args(None))  # type: ignore[no-untyped-call]
    except ChildFailedError:
        sys.exit(1)
