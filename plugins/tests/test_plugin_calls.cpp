// Calls of our plugin objects, as TensorRT makes them: workspace, shapes, tactics, enqueue.
//
// Linked to the emulated kernels, so enqueue really computes, on the CPU.
#include <NvInferRuntime.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "attention_call.h"
#include "check.h"
#include "ckv/pooled_attention.h"
#include "emulator/guarded.h"
#include "fake_builder.h"
#include "inputs.h"
#include "plugin_objects.h"

using namespace nvinfer1;
using namespace ckv::tests;
using ckv::Dtype;
using ckv::Tactic;

namespace {

int passed = 0;

// A plugin for a call, with a workspace for the largest call of a profile that no one may overstep.
struct Running {
    Running(char const* name, AttentionCall const& call) : call(call), plugin(create(name)) {
        std::vector<DynamicPluginTensorDesc> profile;
        for (PluginTensorDesc const& d : call.descs) {
            profile.push_back(dynamic(d));
        }
        int32_t const inputs = static_cast<int32_t>(profile.size());
        CHECK(plugin.build->configurePlugin(profile.data(), inputs, profile.data(), 1) == 0);
        // Room for every tactic, whatever was timed before.
        CHECK(plugin.runtime->setTactic(static_cast<int32_t>(Tactic::kWhole)) == 0);
        size_t const bytes =
            plugin.build->getWorkspaceSize(profile.data(), inputs, profile.data(), 1);
        workspace = ckv::emulator::Guarded(bytes, 16);
        CHECK(plugin.runtime->onShapeChange(call.descs.data(), inputs, call.descs.data(), 1) == 0);
    }

    std::vector<double> run(int32_t tactic) {
        std::memset(workspace.data(), 0xFF, workspace.bytes());
        std::vector<char> out(call.want.size() * ckv::dtype_bytes(call.dtype), '\xFF');
        void* outs[] = {out.data()};
        CHECK(plugin.runtime->setTactic(tactic) == 0);
        // A context begins with the tactic that was chosen.
        Plugin const attached(plugin.runtime->attachToContext(nullptr));
        CHECK(attached.runtime->enqueue(call.descs.data(), call.descs.data(), call.in.data(), outs,
                  workspace.data(), nullptr) == 0);
        std::vector<double> numbers;
        for (size_t i = 0; i < call.want.size(); ++i) {
            numbers.push_back(
                ckv::reference::get(call.dtype, &out[i * ckv::dtype_bytes(call.dtype)]));
        }
        return numbers;
    }
    bool used_workspace() const {
        auto const* first = workspace.data();
        return std::any_of(first, first + workspace.bytes(), [](char c) { return c != '\xFF'; });
    }

    AttentionCall const& call;
    Plugin plugin;
    ckv::emulator::Guarded workspace{0, 16};
};

void enqueue_computes(char const* name, bool softmax, Dtype dtype) {
    AttentionCall const call(softmax, dtype);
    Running running(name, call);
    auto const computed = [&](Tactic tactic, bool splits) {
        std::vector<double> got = running.run(static_cast<int32_t>(tactic));
        CHECK(ckv::reference::first_wrong(
                  got, call.want, ckv::reference::tolerance(dtype)) < 0);
        CHECK(running.used_workspace() == splits);
        return got;
    };
    auto const whole = computed(Tactic::kWhole, false);
    auto const split = computed(Tactic::kSplit, true);
    CHECK(computed(Tactic::kAuto, true) == split);
    // Tensor cores round on their way to a sum, so their last bits tell that they were used.
    CHECK(computed(Tactic::kCoresWhole, false) != whole);
    CHECK(computed(Tactic::kCoresSplit, true) != split);
    ++passed;
}

bool accepts(Plugin const& plugin, std::vector<PluginTensorDesc> const& descs) {
    int32_t const inputs = static_cast<int32_t>(descs.size());
    return plugin.runtime->onShapeChange(descs.data(), inputs, &descs[0], 1) == 0;
}

// Whether no other input says how long an axis is: the rows of a pool, softmax's candidates, and
// widths where the output adds them up.
bool is_free(std::string const& name, int32_t input, int32_t axis) {
    if (name == "PoolGatherConcat") {
        return input == 0 || (input == 2 && axis == 2);
    }
    bool const pool = input == 1 || input == 4;
    return (pool && axis == 0) || (name == "PooledAttention" && input == 0 && axis == 1);
}

void contradictory_shapes_are_refused(
    std::string const& name, std::vector<PluginTensorDesc> const& right) {
    Plugin const plugin = create(name.c_str());
    CHECK(accepts(plugin, right));
    for (int32_t i = 0; i < static_cast<int32_t>(right.size()); ++i) {
        std::vector<PluginTensorDesc> descs = right;
        Dims& dims = descs[i].dims;
        for (int32_t axis = 0; axis < dims.nbDims; ++axis) {
            ++dims.d[axis];
            CHECK(accepts(plugin, descs) == is_free(name, i, axis));
            --dims.d[axis];
        }
        dims.d[dims.nbDims++] = 1;
        CHECK(!accepts(plugin, descs));
        dims.nbDims = 0;
        CHECK(!accepts(plugin, descs));
    }
    std::vector<PluginTensorDesc> one_more = right;
    one_more.push_back(right[0]);
    CHECK(!accepts(plugin, one_more));
    ++passed;
}

// An engine must not go on with what a kernel never wrote.
void refused_calls_are_errors() {
    for (bool softmax : {true, false}) {
        AttentionCall const call(softmax, Dtype::kFloat32);
        char const* name = softmax ? "PooledAttention" : "PooledPointwiseAttention";
        std::vector<float> out(call.want.size());
        void* outs[] = {out.data()};
        Plugin const three_heads = create(name, 3);
        CHECK(!accepts(three_heads, call.descs));
        CHECK(three_heads.runtime->enqueue(call.descs.data(), call.descs.data(), call.in.data(),
                  outs, nullptr, nullptr) != 0);
        std::vector<PluginTensorDesc> integers = call.descs;
        integers[0].type = DataType::kINT8;
        CHECK(!accepts(create(name), integers));
    }
    int64_t const rows = int64_t{1} << 50;
    std::vector<PluginTensorDesc> const descs = {desc({3, 2}, DataType::kFLOAT),
        desc({rows}, DataType::kINT32), desc({rows, 1}, DataType::kFLOAT)};
    void const* in[3] = {};
    void* outs[1] = {};
    CHECK(create("PoolGatherConcat")
              .runtime->enqueue(descs.data(), descs.data(), in, outs, nullptr, nullptr) != 0);
    ++passed;
}

// Four events along the axes of `events`; T is as wide as an element, whose bits are but copied.
template <typename T>
void gather_enqueues(DataType element, std::vector<int64_t> const& events) {
    Plugin const plugin = create("PoolGatherConcat");
    std::vector<T> const pool = {1, 2, 3, 4, 5, 6};
    std::vector<int32_t> const index = {2, 0, 9, 1};
    std::vector<T> const user = {7, 8, 9, 10};
    std::vector<int64_t> rows = events;
    rows.push_back(1);
    std::vector<PluginTensorDesc> const descs = {
        desc({3, 2}, element), desc(events, DataType::kINT32), desc(rows, element)};
    std::vector<T> out(12, 99);
    void const* in[] = {pool.data(), index.data(), user.data()};
    void* outs[] = {out.data()};
    CHECK(accepts(plugin, descs));
    CHECK(plugin.runtime->enqueue(descs.data(), &descs[2], in, outs, nullptr, nullptr) == 0);
    CHECK((out == std::vector<T>{5, 6, 7, 1, 2, 8, 0, 0, 9, 3, 4, 10}));
    ++passed;
}

// Kernels step over rows with 32-bit strides and count events a little past the last one.
void sizes_that_kernels_cannot_take_are_refused() {
    constexpr int64_t kLongest = (int64_t{1} << 29) - 1;
    ckv::PointwiseArgs most;
    most.width = 8;
    most.events = INT32_MAX - 256;
    most.key.pool_width = most.value.pool_width = 8;
    most.key.pool_stride = most.key.user_stride = kLongest;
    most.value.pool_stride = most.value.user_stride = kLongest;
    auto const status = [](ckv::PointwiseArgs const& args) {
        ckv::SoftmaxArgs softmax;
        static_cast<ckv::AttentionArgs&>(softmax) = args;
        cudaError_t const of_softmax =
            ckv::pooled_attention(softmax, Tactic::kAuto, nullptr, nullptr);
        CHECK(ckv::pooled_pointwise_attention(args, Tactic::kAuto, nullptr, nullptr) == of_softmax);
        return of_softmax;
    };
    CHECK(status(most) == cudaSuccess);
    using Change = void (*)(ckv::AttentionArgs&);
    for (Change change : {Change{[](auto& a) { a.heads = 0; }}, {[](auto& a) { a.heads = 3; }},
             {[](auto& a) { a.heads = -1; }}, {[](auto& a) { a.width = 0; }},
             {[](auto& a) { a.batch = -1; }}, {[](auto& a) { a.queries = -1; }},
             {[](auto& a) { a.events = -1; }}, {[](auto& a) { ++a.events; }},
             {[](auto& a) { ++a.key.user_width; }}, {[](auto& a) { ++a.value.pool_width; }},
             {[](auto& a) { ++a.key.pool_stride; }}, {[](auto& a) { a.value.pool_stride = -1; }},
             {[](auto& a) { ++a.value.user_stride; }}, {[](auto& a) { a.key.user_stride = -1; }}}) {
        ckv::PointwiseArgs args = most;
        change(args);
        CHECK(status(args) == cudaErrorInvalidValue);
    }
    ++passed;
}

}  // namespace

int main() {
    sizes_that_kernels_cannot_take_are_refused();
    for (bool softmax : {true, false}) {
        char const* name = softmax ? "PooledAttention" : "PooledPointwiseAttention";
        for (Dtype dtype : {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16}) {
            enqueue_computes(name, softmax, dtype);
        }
        contradictory_shapes_are_refused(name, AttentionCall(softmax, Dtype::kFloat32).descs);
    }
    for (std::vector<int64_t> const& events : {std::vector<int64_t>{4}, {2, 2}}) {
        gather_enqueues<uint32_t>(DataType::kFLOAT, events);
        gather_enqueues<uint16_t>(DataType::kHALF, events);
    }
    contradictory_shapes_are_refused("PoolGatherConcat",
        {desc({3, 2}, DataType::kFLOAT), desc({4, 5}, DataType::kINT32),
            desc({4, 5, 1}, DataType::kFLOAT)});
    refused_calls_are_errors();
    std::printf("%d passed, 0 failed\n", passed);
    return 0;
}
