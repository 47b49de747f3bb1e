"""The command line: ``python -m egraff_utils {run,campaign,pages,demo} ...``."""

import sys

from egraff_utils.running.batch import main

if __name__ == "__main__":
    sys.exit(main())
