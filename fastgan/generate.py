"""`python -m fastgan.generate`, also `fastgan generate`."""

import sys

from fastgan.cli.generate import main

if __name__ == "__main__":
    sys.exit(main())
