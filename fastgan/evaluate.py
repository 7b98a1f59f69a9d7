"""`python -m fastgan.evaluate`, also `fastgan evaluate`."""

from fastgan.errors import run_module

if __name__ == "__main__":
    run_module("fastgan.cli.evaluate")
