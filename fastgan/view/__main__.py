"""`python -m fastgan.view`, also `fastgan view`."""

from fastgan.errors import run_module

if __name__ == "__main__":
    run_module("fastgan.cli.view")
