"""`python -m fastgan.doctor`, also `fastgan doctor`."""

import sys

from fastgan.cli.doctor import main

if __name__ == "__main__":
    sys.exit(main())
