// CUDA's side: streams, events, graphs, memory.
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "fake.h"

using Work = std::function<void()>;

struct CUgraph_st {
    std::vector<Work> works;
};

struct CUgraphExec_st {
    std::vector<Work> works;
};

struct CUstream_st {
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<Work> queue;
    bool busy = false, ends = false;
    std::unique_ptr<CUgraph_st> capture;
    std::thread thread{[this] { run(); }};

    void run() {
        std::unique_lock lock(mutex);
        for (;;) {
            changed.wait(lock, [&] { return ends || !queue.empty(); });
            if (queue.empty()) {
                return;
            }
            Work const work = std::move(queue.front());
            queue.pop_front();
            busy = true;
            lock.unlock();
            work();
            lock.lock();
            busy = false;
            changed.notify_all();
        }
    }

    void add(Work work) {
        std::lock_guard const lock(mutex);
        if (capture != nullptr) {
            capture->works.push_back(std::move(work));
        } else {
            queue.push_back(std::move(work));
            changed.notify_all();
        }
    }

    void drain() {
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return queue.empty() && !busy; });
    }

    ~CUstream_st() {
        {
            std::lock_guard const lock(mutex);
            ends = true;
        }
        changed.notify_all();
        thread.join();
    }
};

struct Recorded {
    std::mutex mutex;
    std::condition_variable changed;
    int recorded = 0, done = 0;

    void wait_for(int record) {
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return done >= record; });
    }

    int latest() {
        std::lock_guard const lock(mutex);
        return recorded;
    }
};

// Work on a stream outlives an event that is destroyed, as CUDA has it.
struct CUevent_st {
    std::shared_ptr<Recorded> state = std::make_shared<Recorded>();
};

namespace {

CUstream_st* or_default(cudaStream_t stream) {
    static auto* const standard = new CUstream_st;  // for the whole process
    return stream != nullptr ? stream : standard;
}

cudaError_t outcome(char const* function) {
    return fake::settings.fails == function ? cudaErrorUnknown : cudaSuccess;
}

}  // namespace

namespace fake {

Settings settings;
thread_local int gpu = 3;
std::atomic<int> violations{0};
std::atomic<int> contexts{0};
std::atomic<int> objects{0};
std::atomic<int> calls{0};
std::atomic<int> plugin_loads{0};

cudaStream_t make_stream() { return new CUstream_st; }

void destroy_stream(cudaStream_t stream) { delete stream; }

bool is_capturing(cudaStream_t stream) {
    CUstream_st& of = *or_default(stream);
    std::lock_guard const lock(of.mutex);
    return of.capture != nullptr;
}

void put(cudaStream_t stream, Work work) { or_default(stream)->add(std::move(work)); }

}  // namespace fake

extern "C" {

char const* cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorNoDevice ? "no CUDA-capable device is detected" : "some error";
}

cudaError_t cudaGetDeviceCount(int* count) {
    bool const none = outcome(__func__) != cudaSuccess;
    *count = none ? 0 : 1;
    return none ? cudaErrorNoDevice : cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
    *device = fake::gpu;
    return outcome(__func__);
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    bool const major = attribute == cudaDevAttrComputeCapabilityMajor;
    bool const known = major || attribute == cudaDevAttrComputeCapabilityMinor;
    int const capability = fake::settings.compute_capability;
    *value = major ? capability / 10 : capability % 10;
    return known && device == 3 ? outcome(__func__) : cudaErrorInvalidValue;
}

cudaError_t cudaMalloc(void** memory, size_t size) {
    if (outcome(__func__) != cudaSuccess) {
        return cudaErrorUnknown;
    }
    *memory = std::malloc(size);
    return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
    std::free(memory);
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int) {
    if (outcome(__func__) != cudaSuccess) {
        return cudaErrorUnknown;
    }
    *event = new CUevent_st;
    ++fake::objects;
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete event;
    --fake::objects;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    if (outcome(__func__) != cudaSuccess) {
        return cudaErrorUnknown;
    }
    int record = 0;
    {
        std::lock_guard const lock(event->state->mutex);
        record = ++event->state->recorded;
    }
    or_default(stream)->add([state = event->state, record] {
        std::lock_guard const lock(state->mutex);
        state->done = record;
        state->changed.notify_all();
    });
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    event->state->wait_for(event->state->latest());
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int) {
    if (outcome(__func__) != cudaSuccess) {
        return cudaErrorUnknown;
    }
    // What was recorded by now is waited for, not what will be.
    or_default(stream)->add([state = event->state, record = event->state->latest()] {
        state->wait_for(record);
    });
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    or_default(stream)->drain();
    return outcome(__func__);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    if (stream == nullptr) {
        return cudaErrorStreamCaptureUnsupported;
    }
    std::lock_guard const lock(stream->mutex);
    stream->capture = std::make_unique<CUgraph_st>();
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    std::lock_guard const lock(stream->mutex);
    auto captured = std::move(stream->capture);
    if (outcome(__func__) != cudaSuccess) {
        return cudaErrorUnknown;
    }
    *graph = captured.release();
    ++fake::objects;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* made, cudaGraph_t graph,
                                          unsigned long long) {
    if (outcome(__func__) != cudaSuccess) {
        return cudaErrorUnknown;
    }
    *made = new CUgraphExec_st{graph->works};
    ++fake::objects;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
    if (outcome(__func__) != cudaSuccess) {
        return cudaErrorUnknown;
    }
    for (Work const& work : graph->works) {
        or_default(stream)->add(work);
    }
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    --fake::objects;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
    delete graph;
    --fake::objects;
    return cudaSuccess;
}

}  // extern "C"
