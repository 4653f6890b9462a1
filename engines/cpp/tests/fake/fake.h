// A TensorRT and a CUDA runtime of a few functions, on the CPU, to see what ckv::Engine asks of the
// real ones. Streams are threads: what nothing orders may happen in any order, and does.
//
// The engine's graph is the sample manifest's decode; its score is the sum of a candidate's id, the
// user's history ids and the first number of each k_user vector. What must never happen (a context
// in two calls at once, or destroyed in one; a shape outside the profile) is counted.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <functional>
#include <string>

namespace fake {

// What the next engine is like; set before ckv::Engine is made.
struct Settings {
    bool has_gpu = true;
    bool makes_contexts = true;
    std::string missing_tensor;  // has another name
    std::string other_type;      // is float
    std::string refuses_address;
    int compute_capability = 90;
    bool calls_fail = false;  // when their work is on the stream
};

extern Settings settings;
extern thread_local int gpu;
extern std::atomic<int> violations;
extern std::atomic<int> contexts;  // alive
extern std::atomic<int> calls;     // run
extern std::atomic<int> plugin_loads;

cudaStream_t make_stream();
void destroy_stream(cudaStream_t stream);

bool is_capturing(cudaStream_t stream);

// Put work on a stream; a capturing stream adds it to its graph.
void put(cudaStream_t stream, std::function<void()> work);

}  // namespace fake
