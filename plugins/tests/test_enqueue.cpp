// Our plugins as an engine runs them on a GPU: made from serialized fields, attached to a context,
// with one workspace for every shape of a profile, on the caller's stream and in a CUDA graph.
//
//   test_enqueue [SEED]    exits with 77 where there is no GPU
//
// Linked with tests/ptx it runs without one.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "attention_call.h"
#include "call.h"
#include "plugin_objects.h"

using namespace ckv;
using namespace ckv::tests;
using harness::must;
using nvinfer1::PluginTensorDesc;

namespace {

constexpr int kNoGpu = 77;

// B, C, N, heads, d, d_g, M of the calls within a profile; the last one is the largest.
constexpr reference::Shape kProfiles[][4] = {
    {{1, 1, 0, 2, 64, 62, 11}, {3, 17, 70, 2, 64, 62, 11}, {1, 1, 1, 2, 64, 62, 11},
        {3, 20, 130, 2, 64, 62, 11}},
    {{1, 1, 300, 1, 40, 37, 9}, {2, 2, 33, 1, 40, 37, 9}, {1, 9, 64, 1, 40, 37, 9},
        {2, 9, 300, 1, 40, 37, 9}}};

// One call of an operator on the GPU: what an engine hands over, and what must come out.
struct Task {
    Task(std::string const& name, reference::Inputs const& in, Dtype dtype)
        : call(in, dtype, harness::Layout{}) {
        int64_t const b = in.shape.batch, c = in.shape.queries, n = in.shape.events;
        DataType const element = type_of(dtype);
        if (name == "PoolGatherConcat") {
            add_side(call.softmax.key, b, n, element);
            out_desc = desc({b, n, in.shape.width}, element);
            std::vector<float> rows(static_cast<size_t>(b * n * in.shape.width));
            reference::pool_gather_concat(in.side(0), b * n, rows.data());
            want.assign(rows.begin(), rows.end());
            return;
        }
        out_desc = desc({b, c, in.shape.width}, element);
        add({b, c, in.shape.width}, element, call.softmax.query);
        add_side(call.softmax.key, b, n, element);
        add_side(call.softmax.value, b, n, element);
        reference::Attention const truth = in.attention(want);
        if (name == "PooledAttention") {
            add({b, n}, DataType::kINT32, call.softmax.mask);
            reference::pooled_attention(truth, in.mask.data());
        } else {
            add({b, c, n}, element, call.pointwise.bias);
            add({b, c, n}, DataType::kINT32, call.pointwise.visible);
            add({b, c}, DataType::kFLOAT, call.pointwise.count);
            reference::pooled_pointwise_attention(
                truth, in.bias.data(), in.visible.data(), in.count.data());
        }
    }

    std::vector<nvinfer1::DynamicPluginTensorDesc> profile() const {
        std::vector<nvinfer1::DynamicPluginTensorDesc> all;
        for (PluginTensorDesc const& d : descs) {
            all.push_back(dynamic(d));
        }
        return all;
    }
    int32_t inputs() const { return static_cast<int32_t>(descs.size()); }

    harness::Call call;
    std::vector<PluginTensorDesc> descs;
    std::vector<void const*> in;
    PluginTensorDesc out_desc{};
    std::vector<double> want;

private:
    void add(std::vector<int64_t> const& extents, DataType type, void const* at) {
        descs.push_back(desc(extents, type));
        in.push_back(at);
    }
    void add_side(PooledSide const& side, int64_t batch, int64_t events, DataType element) {
        add({side.pool_rows, side.pool_width}, element, side.pool);
        add({batch, events}, DataType::kINT32, side.index);
        add({batch, events, side.user_width}, element, side.user);
    }
};

// A plugin as it is after the engine was written, read and given a context.
Plugin deserialized(Plugin const& built, char const* name) {
    Plugin const read(creator(name).createPlugin(
        "node", built.runtime->getFieldsToSerialize(), nvinfer1::TensorRTPhase::kRUNTIME));
    return Plugin(read.runtime->attachToContext(nullptr));
}

std::vector<int32_t> tactics_of(Plugin const& plugin) {
    std::vector<int32_t> all(static_cast<size_t>(plugin.build->getNbTactics()));
    int32_t const count = static_cast<int32_t>(all.size());
    CHECK(count == 0 || plugin.build->getValidTactics(all.data(), count) == 0);
    all.push_back(0);
    return all;
}

// It waits for what the default stream was given before: the harness's copies and poison.
class Stream {
public:
    Stream() { must(cudaStreamCreate(&stream_), "a stream"); }
    Stream(Stream const&) = delete;
    Stream& operator=(Stream const&) = delete;
    ~Stream() { cudaStreamDestroy(stream_); }
    operator cudaStream_t() const { return stream_; }
    void wait() const { must(cudaStreamSynchronize(stream_), "what the stream was given"); }

private:
    cudaStream_t stream_ = nullptr;
};

// What `work` queues on the stream, as a CUDA graph.
template <typename F>
cudaGraphExec_t captured(Stream const& stream, F const& work) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t ready = nullptr;
    must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "to begin a capture");
    work();
    must(cudaStreamEndCapture(stream, &graph), "to end a capture");
    must(cudaGraphInstantiate(&ready, graph, 0), "to instantiate a graph");
    cudaGraphDestroy(graph);
    return ready;
}

// A plugin with what an engine keeps for it: workspace for the largest call of a profile, a stream.
class Context {
public:
    Context(char const* name, Task const& largest, int32_t heads, float scale)
        : built_(create(name, heads, scale)), tactics_(configured(built_, largest)),
          workspace_(workspace_for(built_, largest)), plugin_(deserialized(built_, name)) {}

    std::vector<int32_t> const& tactics() const { return tactics_; }

    void check(Task const& task, Dtype dtype, int32_t tactic) {
        CHECK(plugin_.runtime->setTactic(tactic) == 0);
        CHECK(plugin_.runtime->onShapeChange(
                  task.descs.data(), task.inputs(), &task.out_desc, 1) == 0);
        harness::Buffer out(task.want.size() * dtype_bytes(dtype));
        enqueue(task, out);
        expect(task, out, dtype);
        cudaGraphExec_t const graph = captured(stream_, [&] { enqueue(task, out); });
        for (int replay = 0; replay < 2; ++replay) {
            out.poison();
            workspace_.poison();
            must(cudaGraphLaunch(graph, stream_), "to launch a graph");
            expect(task, out, dtype);
        }
        cudaGraphExecDestroy(graph);
    }

private:
    static std::vector<int32_t> configured(Plugin const& plugin, Task const& largest) {
        auto const in = largest.profile();
        CHECK(plugin.build->configurePlugin(in.data(), largest.inputs(), in.data(), 1) == 0);
        return tactics_of(plugin);
    }
    static size_t workspace_for(Plugin const& plugin, Task const& largest) {
        auto const in = largest.profile();
        return plugin.build->getWorkspaceSize(in.data(), largest.inputs(), in.data(), 1);
    }
    void enqueue(Task const& task, harness::Buffer const& out) {
        void* outs[] = {out.data()};
        CHECK(plugin_.runtime->enqueue(task.descs.data(), &task.out_desc, task.in.data(), outs,
                  workspace_.data(), stream_) == 0);
    }
    void expect(Task const& task, harness::Buffer const& out, Dtype dtype) const {
        stream_.wait();
        auto const got = out.numbers(dtype, task.want.size());
        CHECK(reference::first_wrong(got, task.want, reference::tolerance(dtype)) < 0);
    }

    Plugin built_;
    std::vector<int32_t> tactics_;
    harness::Buffer workspace_;
    Plugin plugin_;
    Stream stream_;
};

// The shapes one after the other in one context, its workspace made for the last of them.
// Returns how many calls came out right; the first that doesn't ends the test.
int check_profile(
    char const* name, reference::Shape const (&shapes)[4], Dtype dtype, uint32_t seed) {
    reference::Inputs const most(shapes[3], dtype, seed);
    Context context(
        name, Task(name, most, dtype), shapes[3].heads, static_cast<float>(most.scale));
    int passed = 0;
    for (reference::Shape const& shape : shapes) {
        Task const task(name, reference::Inputs(shape, dtype, ++seed), dtype);
        for (int32_t tactic : context.tactics()) {
            context.check(task, dtype, tactic);
            ++passed;
        }
    }
    return passed;
}

}  // namespace

int main(int argc, char** argv) {
    int gpus = 0;
    if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus == 0) {
        std::fprintf(stderr, "test_enqueue needs an NVIDIA GPU and its driver: none answers here\n");
        return kNoGpu;
    }
    uint32_t seed = argc > 1 ? static_cast<uint32_t>(std::strtoul(argv[1], nullptr, 10)) : 1;
    std::printf("seed %u\n", seed);
    int passed = 0;
    for (char const* name : kNames) {
        for (auto const& shapes : kProfiles) {
            for (Dtype dtype : {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16}) {
                passed += check_profile(name, shapes, dtype, seed += 100);
            }
        }
    }
    std::printf("%d passed, 0 failed\n", passed);
    return 0;
}
