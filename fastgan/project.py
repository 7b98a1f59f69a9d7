"""`python -m fastgan.project`, also `fastgan project`."""

from fastgan.errors import run_module

if __name__ == "__main__":
    run_module("fastgan.cli.project")
