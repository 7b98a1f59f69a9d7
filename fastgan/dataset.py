"""`python -m fastgan.dataset`, also `fastgan dataset`."""

import sys

from fastgan.cli.dataset import main

if __name__ == "__main__":
    sys.exit(main())
