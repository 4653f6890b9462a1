// Dynamic flavour: the two symbols that IPluginRegistry::loadLibrary looks for. No link to
// libnvinfer, so an engine can carry this library inside.
#include "creators.h"
#include "log.h"

#define CKV_EXPORT extern "C" __attribute__((visibility("default")))

// Declared first: TensorRT's headers declare neither.
CKV_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count);
CKV_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder);

nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    return ckv::tensorrt::creators(count);
}

void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
    ckv::tensorrt::set_logger_finder(finder);
}
