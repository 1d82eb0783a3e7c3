// The host's part of the stand-in: types that launchers name.
#pragma once

#include <cstddef>

enum cudaError_t { cudaSuccess = 0, cudaErrorUnknown = 999 };
using cudaStream_t = void*;
