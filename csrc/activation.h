// The activation in front of a quantizer, without a header of torch.
#pragma once

namespace gdfq {

enum class Activation { none, relu, relu6 };

}  // namespace gdfq
