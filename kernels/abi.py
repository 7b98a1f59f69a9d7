"""The number that a compiled extension and the Python beside it must agree on (csrc/common/abi.h is the other copy)."""

ABI = 8
