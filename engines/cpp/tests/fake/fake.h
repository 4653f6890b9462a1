// A TensorRT and a CUDA runtime of a few functions, on the CPU, to see what ckv::Engine asks of the
// real ones. Streams are threads: what nothing orders may happen in any order, and does.
//
// The engine's graph is decode of `manifest()`; its score is the sum of a candidate's id, the
// user's history ids and the first number of each k_user vector. What must never happen (a context
// in two calls at once, or destroyed in one; a shape outside the profile) is counted.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <functional>
#include <string>

#include "../sample.h"

namespace fake {

// The sample's, with tensors of every type.
inline std::string manifest() {
    return changed_manifest("\"history_image\", \"dtype\": \"float32\"",
                            "\"history_image\", \"dtype\": \"float16\"");
}

// What the next engine is like; set before ckv::Engine is made.
struct Settings {
    std::string fails;     // the function, and its tensor: "setInputShape history_mask"
    bool remarks = false;  // every function of TensorRT logs its name, as an error
    int more_tensors = 0;
    std::string missing_tensor;  // has another name
    std::string other_type;      // is float
    std::string other_rank;
    int compute_capability = 90;
};

extern Settings settings;
extern thread_local int gpu;
extern std::atomic<int> violations;
extern std::atomic<int> contexts;  // alive
extern std::atomic<int> objects;   // of CUDA, alive: events and graphs
extern std::atomic<int> calls;     // run
extern std::atomic<int> plugin_loads;

cudaStream_t make_stream();
void destroy_stream(cudaStream_t stream);

bool is_capturing(cudaStream_t stream);

// Put work on a stream; a capturing stream adds it to its graph.
void put(cudaStream_t stream, std::function<void()> work);

}  // namespace fake
