"""`python -m fastgan.evaluate`, also `fastgan evaluate`."""

import sys

from fastgan.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
