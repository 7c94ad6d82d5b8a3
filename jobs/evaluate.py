"""spark-submit jobs/evaluate.py --config conf/<file>.yaml [section.key=value ...]: measures, then asks the gate."""

import os
import sys

sys.path[0] = os.path.dirname(sys.path[0])  # the checkout; tokenize.py in jobs/ would hide Python's own

from flmrec.evaluation import gate
from flmrec.stages import evaluate
from jobs.common import in_turn, run_job

if __name__ == "__main__":
    sys.exit(run_job("evaluate", in_turn(evaluate.run, gate.run)))
