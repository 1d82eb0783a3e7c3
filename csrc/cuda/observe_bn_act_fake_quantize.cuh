// observe_bn_act_fake_quantize on the GPU: minimum and maximum over the batch of v = act((x - mean)
// * a + bias + residual), a = weight / sqrt(var + eps), in float32, move a range; then
// bn_act_fake_quantize.cuh computes v again and quantizes it over the moved range.
//
// elementwise_range.cuh reads the batch by the operator of bn_act.cuh, and
// observe_fake_quantize.cuh merges its blocks' results: all device code is that of the two
// operators this one is made of. Bytes per element: s here, 2s more to quantize; with a residual 2s
// and 3s. Deterministic: minimum and maximum don't depend on order. A NaN makes the range NaN.
//
// Not yet run on a GPU: run on the CPU stand-in of tests/standin, and compiled.
#pragma once

#include "bn_act.cuh"
#include "elementwise_range.cuh"
#include "observe_bn_act_fake_quantize.h"
