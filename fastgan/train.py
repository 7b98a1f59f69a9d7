"""`python -m fastgan.train`, also `fastgan train`."""

from fastgan.errors import run_module

if __name__ == "__main__":
    run_module("fastgan.cli.train")
