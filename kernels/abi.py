"""The number that a compiled extension and the Python beside it must agree on (csrc/abi.h holds the other copy)."""

ABI = 8
