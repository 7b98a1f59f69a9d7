"""`python -m fastgan.doctor`, also `fastgan doctor`."""

from fastgan.errors import run_module

if __name__ == "__main__":
    run_module("fastgan.cli.doctor")
