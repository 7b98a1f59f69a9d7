"""`python -m fastgan`, also `fastgan`."""

from fastgan.errors import run_module

if __name__ == "__main__":
    run_module("fastgan.cli")
