"""spark-submit jobs/click.py --config conf/<file>.yaml [section.key=value ...]"""

import os
import sys

sys.path[0] = os.path.dirname(sys.path[0])  # the checkout; tokenize.py in jobs/ would hide Python's own

from flmrec.stages import click
from jobs.common import run_job

if __name__ == "__main__":
    sys.exit(run_job("click", click.run))
