"""Triton kernels: one module an operation, whose launchers take a call of `fastgan_kernels.calls`."""
