// What nvcc puts beside the host code.
#pragma once

#include <string>

namespace ckv::ptx {

// The uncompressed PTX of a fat binary, as nvcc's host code registers one.
std::string ptx_of(void const* fat_binary);

}  // namespace ckv::ptx
