// In place of torch's: a stopped launch becomes an exception.
#pragma once

#include <c10/util/Exception.h>

#include "cuda_runtime_api.h"

extern "C" const char* standin_error();

#define C10_CUDA_CHECK(launch) TORCH_CHECK((launch) == cudaSuccess, standin_error())
