"""spark-submit jobs/finetune.py --config conf/<file>.yaml [section.key=value ...]: the holdout fit, then the full one."""

import os
import sys

sys.path[0] = os.path.dirname(sys.path[0])  # the checkout instead of jobs/, whose tokenize.py would hide Python's own

from flmrec.stages import finetune
from jobs.common import both_fits, run_job

if __name__ == "__main__":
    sys.exit(run_job("finetune", both_fits(finetune.run)))
