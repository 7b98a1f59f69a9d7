"""`python -m fastgan.train`, also `fastgan train`."""

import sys

from fastgan.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
