"""`python -m fastgan.generate`, also `fastgan generate`."""

from fastgan.errors import run_module

if __name__ == "__main__":
    run_module("fastgan.cli.generate")
