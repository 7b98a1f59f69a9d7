"""`python -m fastgan.directions`, also `fastgan directions`."""

import sys

from fastgan.cli.directions import main

if __name__ == "__main__":
    sys.exit(main())
