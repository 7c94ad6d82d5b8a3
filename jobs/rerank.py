"""spark-submit jobs/rerank.py --config conf/<file>.yaml scoring.rerank=50 [section.key=value ...]"""

import os
import sys

sys.path[0] = os.path.dirname(sys.path[0])  # the checkout; tokenize.py in jobs/ would hide Python's own

from flmrec.stages import rerank
from jobs.common import run_job

if __name__ == "__main__":
    sys.exit(run_job("rerank", rerank.run))
