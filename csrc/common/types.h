// What the calls of all operations have in common.
#pragma once

#include <stdint.h>

namespace fastgan {

// Of activations and their gradients. All else is float, or double where they are; so is the arithmetic.
enum class Dtype : int { float32, bfloat16, float16, float64 };

}  // namespace fastgan
