"""`python -m fastgan.project`, also `fastgan project`."""

import sys

from fastgan.cli.project import main

if __name__ == "__main__":
    sys.exit(main())
