// Types shared by the calls of all operations.
#pragma once

#include <stdint.h>

namespace fastgan {

// Element type of activations and their gradients. Parameters, statistics and arithmetic are float, or double where the
// activations are.
enum class Dtype : int { float32, bfloat16, float16, float64 };

}  // namespace fastgan
