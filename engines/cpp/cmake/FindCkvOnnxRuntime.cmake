# ONNX Runtime's C header and, where there is one, its library.
#
# Defines CkvOnnxRuntime::headers and, where a library is found, CkvOnnxRuntime::onnxruntime.
# Searched under onnxruntime_ROOT (Microsoft's archives) and in /usr/local/onnxruntime and the
# system's folders. onnxruntime_LIBRARY names a library by hand: the one in the Python package will
# do.
set(onnxruntime_ROOT "$ENV{onnxruntime_ROOT}" CACHE PATH "Where ONNX Runtime is installed")

find_path(onnxruntime_INCLUDE_DIR onnxruntime_c_api.h
  HINTS ${onnxruntime_ROOT} PATHS /usr/local/onnxruntime
  PATH_SUFFIXES include include/onnxruntime onnxruntime)
find_library(onnxruntime_LIBRARY NAMES onnxruntime
  HINTS ${onnxruntime_ROOT} PATHS /usr/local/onnxruntime PATH_SUFFIXES lib lib64)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(CkvOnnxRuntime REQUIRED_VARS onnxruntime_INCLUDE_DIR)

if(CkvOnnxRuntime_FOUND AND NOT TARGET CkvOnnxRuntime::headers)
  add_library(CkvOnnxRuntime::headers INTERFACE IMPORTED)
  target_include_directories(CkvOnnxRuntime::headers SYSTEM INTERFACE ${onnxruntime_INCLUDE_DIR})
  if(onnxruntime_LIBRARY)
    add_library(CkvOnnxRuntime::onnxruntime UNKNOWN IMPORTED)
    set_target_properties(CkvOnnxRuntime::onnxruntime PROPERTIES
      IMPORTED_LOCATION ${onnxruntime_LIBRARY})
  endif()
endif()
