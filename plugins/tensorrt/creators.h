// The creators of our plugins; both flavours of the library hand out the same ones.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>

namespace ckv::tensorrt {

// Live as long as the library.
nvinfer1::IPluginCreatorInterface* const* creators(int32_t& count);

}  // namespace ckv::tensorrt
