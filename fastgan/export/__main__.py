"""`python -m fastgan.export`, also `fastgan export`."""

from fastgan.errors import run_module

if __name__ == "__main__":
    run_module("fastgan.cli.export")
