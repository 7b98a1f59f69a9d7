// The one place that numbers the interface between the compiled extension and kernels/*.py. Raise it with every change
// of a bound function's arguments, here and in kernels/abi.py: a test compares the two, and the import refuses
// an extension of another number.
#pragma once

#define FASTGAN_ABI 8
