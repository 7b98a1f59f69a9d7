"""`python -m fastgan.export`, also `fastgan export`."""

import sys

from fastgan.cli.export import main

if __name__ == "__main__":
    sys.exit(main())
