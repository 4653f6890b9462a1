// Static flavour: registers our creators when the library is loaded, for programs that only
// dlopen (Triton's plugins=, ONNX Runtime, LD_PRELOAD). Linked to libnvinfer for its registry.
#include "creators.h"
#include "plugin_base.h"

namespace ckv::tensorrt {
namespace {

struct Registration {
    Registration() {
        int32_t count = 0;
        nvinfer1::IPluginCreatorInterface* const* all = creators(count);
        for (int32_t i = 0; i < count; ++i) {
            // False where the dynamic flavour came first; TensorRT's log says so.
            getPluginRegistry()->registerCreator(*all[i], kNamespace);
        }
    }
};

Registration const registration;

}  // namespace
}  // namespace ckv::tensorrt
