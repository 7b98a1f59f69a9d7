"""`python -m fastgan.view`, also `fastgan view`."""

import sys

from fastgan.cli.view import main

if __name__ == "__main__":
    sys.exit(main())
