"""`python -m fastgan.share`, also `fastgan share`."""

import sys

from fastgan.cli.share import main

if __name__ == "__main__":
    sys.exit(main())
