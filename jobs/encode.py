"""spark-submit jobs/encode.py --config conf/<file>.yaml [section.key=value ...]: both fits."""

import os
import sys

sys.path[0] = os.path.dirname(sys.path[0])  # the checkout; tokenize.py in jobs/ would hide Python's own

from flmrec.stages import encode
from jobs.common import both_fits, run_job

if __name__ == "__main__":
    sys.exit(run_job("encode", both_fits(encode.run)))
