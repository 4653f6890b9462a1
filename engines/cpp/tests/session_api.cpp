// ckv::Session for Python's ctypes.
#include <ckv/session.h>

#include <cfenv>

#include "guarded.h"

extern "C" {

char const* ckv_session_error() { return g_error.c_str(); }

ckv::Session* ckv_session(char const* folder, char const* graph, int threads) {
    ckv::Session* session = nullptr;
    guarded([&] {
        auto const bundle = ckv::Bundle::open_unverified(folder);
        session = new ckv::Session(bundle, graph, ckv::SessionOptions{threads});
        return 0;
    });
    return session;
}

void ckv_session_free(ckv::Session* session) { delete session; }

std::int64_t ckv_session_run(ckv::Session const* session, int axes, char const** axis_names,
                             std::int64_t const* sizes, int count, char const** names,
                             void** data) {
    return guarded([&] {
        ckv::Sizes given;
        for (int i = 0; i < axes; ++i) {
            given[axis_names[i]] = sizes[i];
        }
        ckv::Buffers buffers;
        for (int i = 0; i < count; ++i) {
            buffers[names[i]] = data[i];
        }
        session->run(given, buffers);
        return 0;
    });
}

// Whether this thread's numbers may be smaller than 1.2e-38.
int ckv_has_denormals() {
    float volatile const smallest = 1.2e-38F;
    float volatile const half = smallest / 2;
    return half > 0 ? 1 : 0;
}

// This thread's numbers are as a new process has them.
void ckv_default_numbers() { std::fesetenv(FE_DFL_ENV); }

char const* ckv_onnxruntime_version() {
    static std::string const version = ckv::onnxruntime_version();
    return version.c_str();
}

}  // extern "C"
