"""`python -m fastgan.share`, also `fastgan share`."""

from fastgan.errors import run_module

if __name__ == "__main__":
    run_module("fastgan.cli.share")
