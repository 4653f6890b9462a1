# TensorRT's headers and, where there is one, its library.
#
# Sets CkvTensorRT_VERSION and CkvTensorRT_MAJOR; defines CkvTensorRT::headers and, where a
# library is found, CkvTensorRT::nvinfer. Archives since 11.2.1 bring CMake files of their own;
# older layouts are searched under TensorRT_ROOT and /usr/local/tensorrt. TensorRT_LIBRARY names
# a library by hand.
set(TensorRT_ROOT "$ENV{TensorRT_ROOT}" CACHE PATH "Where TensorRT is installed")

find_package(TensorRT-Enterprise CONFIG QUIET HINTS ${TensorRT_ROOT})
if(TARGET TRT::tensorrt_headers)
  get_target_property(_ckv_include TRT::tensorrt_headers INTERFACE_INCLUDE_DIRECTORIES)
  find_path(TensorRT_INCLUDE_DIR NvInferRuntime.h PATHS ${_ckv_include} NO_DEFAULT_PATH)
endif()
find_path(TensorRT_INCLUDE_DIR NvInferRuntime.h
  HINTS ${TensorRT_ROOT} PATHS /usr/local/tensorrt /usr/include/x86_64-linux-gnu
        /usr/include/aarch64-linux-gnu
  PATH_SUFFIXES include)

if(EXISTS "${TensorRT_INCLUDE_DIR}/NvInferVersion.h")
  # 11 names its version TRT_*_ENTERPRISE and derives NV_TENSORRT_* from it; 10 has numbers there.
  file(READ "${TensorRT_INCLUDE_DIR}/NvInferVersion.h" _ckv_version)
  foreach(part MAJOR MINOR)
    if(_ckv_version MATCHES "#define TRT_${part}_ENTERPRISE ([0-9]+)")
      set(CkvTensorRT_${part} ${CMAKE_MATCH_1})
    elseif(_ckv_version MATCHES "#define NV_TENSORRT_${part} ([0-9]+)")
      set(CkvTensorRT_${part} ${CMAKE_MATCH_1})
    endif()
  endforeach()
  set(CkvTensorRT_VERSION "${CkvTensorRT_MAJOR}.${CkvTensorRT_MINOR}")
endif()

# The library must be of the headers' major: enums and vtables moved between them.
find_library(TensorRT_LIBRARY NAMES nvinfer libnvinfer.so.${CkvTensorRT_MAJOR}
  HINTS ${TensorRT_ROOT} PATHS /usr/local/tensorrt PATH_SUFFIXES lib lib64)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(CkvTensorRT
  REQUIRED_VARS TensorRT_INCLUDE_DIR CkvTensorRT_MAJOR VERSION_VAR CkvTensorRT_VERSION)

if(CkvTensorRT_FOUND AND NOT TARGET CkvTensorRT::headers)
  add_library(CkvTensorRT::headers INTERFACE IMPORTED)
  target_include_directories(CkvTensorRT::headers SYSTEM INTERFACE ${TensorRT_INCLUDE_DIR})
  if(TARGET TRT::tensorrt)
    add_library(CkvTensorRT::nvinfer INTERFACE IMPORTED)
    target_link_libraries(CkvTensorRT::nvinfer INTERFACE TRT::tensorrt)
  elseif(TensorRT_LIBRARY)
    add_library(CkvTensorRT::nvinfer UNKNOWN IMPORTED)
    set_target_properties(CkvTensorRT::nvinfer PROPERTIES IMPORTED_LOCATION ${TensorRT_LIBRARY})
  endif()
endif()
