// Our plugin objects as TensorRT drives them: create, ask, clone, serialize, recreate, enqueue.
//
// Linked to the emulated kernels, so enqueue really computes, on the CPU.
#include <NvInferRuntime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "attention_call.h"
#include "check.h"
#include "ckv/pooled_attention.h"
#include "emulator/guarded.h"
#include "fake_builder.h"
#include "inputs.h"
#include "plugin_objects.h"

// Of the dynamic library, whose entry is part of this program.
extern "C" void setLoggerFinder(nvinfer1::ILoggerFinder* finder);

using namespace nvinfer1;
using namespace ckv::tests;
using ckv::Dtype;
using ckv::Tactic;

namespace {

int passed = 0;

DataType type_of(char kind, DataType element) {
    return kind == 'I' ? DataType::kINT32 : element;
}

void creators_introduce_themselves() {
    int32_t count = 0;
    ckv::tensorrt::creators(count);
    CHECK(count == 3);
    for (char const* name : kNames) {
        IPluginCreatorV3One& one = creator(name);
        CHECK(std::string(one.getPluginNamespace()) == "ckv");
        CHECK(std::string(one.getPluginVersion()) == "1");
        CHECK(std::string(one.getInterfaceInfo().kind) == "PLUGIN CREATOR_V3ONE");
        bool const gather = std::string(name) == "PoolGatherConcat";
        PluginFieldCollection const& names = *one.getFieldNames();
        CHECK(names.nbFields == (gather ? 0 : 2));
        if (!gather) {
            CHECK(std::string(names.fields[0].name) == "num_heads");
            CHECK(names.fields[0].type == PluginFieldType::kINT32);
            CHECK(std::string(names.fields[1].name) == "scale");
            CHECK(names.fields[1].type == PluginFieldType::kFLOAT32);
        }
        Plugin const plugin = create(name);
        CHECK(std::string(plugin.core->getPluginName()) == name);
        CHECK(std::string(plugin.core->getPluginVersion()) == "1");
        CHECK(std::string(plugin.core->getPluginNamespace()) == "ckv");
        CHECK(plugin.build->getNbOutputs() == 1);
        ++passed;
    }
}

// The timing id of a plugin made from these two attributes, or nothing where none was made.
std::string made_from(PluginField heads, PluginField scale) {
    heads.name = "num_heads";
    scale.name = "scale";
    PluginField const fields[] = {scale, heads};
    PluginFieldCollection const all{2, fields};
    IPluginV3* made = creator("PooledAttention").createPlugin("n", &all, TensorRTPhase::kBUILD);
    return made ? Plugin(made).build->getTimingCacheID() : "";
}

PluginField field(int32_t const& x) { return {"", &x, PluginFieldType::kINT32, 1}; }
PluginField field(int64_t const& x) { return {"", &x, PluginFieldType::kINT64, 1}; }
PluginField field(float const& x) { return {"", &x, PluginFieldType::kFLOAT32, 1}; }
PluginField field(double const& x) { return {"", &x, PluginFieldType::kFLOAT64, 1}; }

void attributes_are_read_from_any_number() {
    std::string const id = create("PooledAttention", 4, 0.1F).build->getTimingCacheID();
    CHECK(made_from(field(int32_t{4}), field(0.1F)) == id);
    CHECK(made_from(field(int64_t{4}), field(0.1)) == id);
    CHECK(made_from(field(4.0), field(0.1F)) == id);
    // What a timing depends on is all of it.
    CHECK(made_from(field(int32_t{2}), field(0.1F)) != id);
    CHECK(made_from(field(int32_t{4}), field(std::nextafter(0.1F, 1.0F))) != id);
    ++passed;
}

void bad_fields_make_no_plugin() {
    CHECK(!creator("PooledAttention").createPlugin("n", nullptr, TensorRTPhase::kBUILD));
    int32_t const heads = 1;
    float const scale = 1.0F;
    CHECK(!made_from(field(heads), field(scale)).empty());
    for (double wrong : {0.0, -1.0, 1.5, 1.0 + UINT32_MAX, double{NAN}}) {
        CHECK(made_from(field(wrong), field(scale)).empty());
    }
    CHECK(made_from(field((int64_t{1} << 32) + 1), field(scale)).empty());
    CHECK(made_from(field(heads), field(float{NAN})).empty());
    for (PluginField const& wrong : {PluginField{"", &heads, PluginFieldType::kCHAR, 1},
             PluginField{"", &heads, PluginFieldType::kINT32, 2},
             PluginField{"", nullptr, PluginFieldType::kINT32, 1}}) {
        CHECK(made_from(wrong, field(scale)).empty());
    }
    ++passed;
}

void errors_go_to_the_logger_of_tensorrt() {
    struct Log final : ILogger {
        void log(Severity severity, AsciiChar const* line) noexcept override {
            CHECK(severity == Severity::kERROR);
            last = line;
        }
        std::string last;
    } log;
    struct Finder final : ILoggerFinder {
        explicit Finder(ILogger* logger) : logger(logger) {}
        ILogger* findLogger() override { return logger; }
        ILogger* logger;
    } finder(&log);
    setLoggerFinder(&finder);
    CHECK(!creator("PooledAttention").createPlugin("n", nullptr, TensorRTPhase::kBUILD));
    CHECK(log.last == "ckv PooledAttention: the attribute num_heads is missing");
    finder.logger = nullptr;  // to stderr then
    CHECK(!creator("PooledAttention").createPlugin("n", nullptr, TensorRTPhase::kBUILD));
    setLoggerFinder(nullptr);
    ++passed;
}

void only_consistent_types_are_supported(std::string const& name, DataType element) {
    Plugin const plugin = create(name.c_str());
    std::string const all = kinds(name) + "E";
    int32_t const inputs = static_cast<int32_t>(all.size()) - 1;
    std::vector<DynamicPluginTensorDesc> descs;
    for (size_t i = 0; i < all.size(); ++i) {
        // What is not decided yet when an earlier position is asked for.
        descs.push_back(dynamic(desc({1}, static_cast<DataType>(-1))));
    }
    auto const supported = [&](int32_t at) {
        return plugin.build->supportsFormatCombination(at, descs.data(), inputs, 1);
    };
    for (int32_t i = 0; i <= inputs; ++i) {
        descs[i].desc.type = type_of(all[i], element);
        CHECK(supported(i));
        DataType const right = descs[i].desc.type;
        for (DataType wrong : {DataType::kINT8, DataType::kINT64, DataType::kBOOL}) {
            descs[i].desc.type = wrong;
            CHECK(!supported(i));
        }
        if (all[i] == 'E' && i > 0) {
            descs[i].desc.type =
                element == DataType::kFLOAT ? DataType::kHALF : DataType::kFLOAT;
            CHECK(!supported(i));
        }
        if (all[i] == 'D') {
            descs[i].desc.type = DataType::kFLOAT;
            CHECK(supported(i));
        }
        descs[i].desc.type = right;
        for (TensorFormat wrong : {TensorFormat::kCHW2, TensorFormat::kCHW4, TensorFormat::kHWC}) {
            descs[i].desc.format = wrong;
            CHECK(!supported(i));
        }
        descs[i].desc.format = TensorFormat::kLINEAR;
    }
    ++passed;
}

void output_shapes_follow_the_inputs() {
    Builder builder;
    std::vector<DimsExprs> in = {
        builder.dims({100, 62}), builder.dims({3, 7}), builder.dims({3, 7, 2})};
    DimsExprs out{};
    Plugin const gather = create("PoolGatherConcat");
    CHECK(gather.build->getOutputShapes(in.data(), 3, nullptr, 0, &out, 1, builder) == 0);
    CHECK(out.nbDims == 3 && out.d[0] == in[2].d[0] && out.d[1] == in[2].d[1]);
    CHECK(out.d[2]->getConstantValue() == 64);
    in[1] = builder.dims({3, 7, 1});
    CHECK(gather.build->getOutputShapes(in.data(), 3, nullptr, 0, &out, 1, builder) != 0);
    CHECK(gather.build->getOutputShapes(in.data(), 2, nullptr, 0, &out, 1, builder) != 0);
    in[0] = builder.dims({100, 62, 1});
    in[1] = builder.dims({3, 7});
    CHECK(gather.build->getOutputShapes(in.data(), 3, nullptr, 0, &out, 1, builder) != 0);

    in.assign(8, builder.dims({3, 7, 64}));
    in[0] = builder.dims({3, 5, 64});
    Plugin const attention = create("PooledAttention");
    CHECK(attention.build->getOutputShapes(in.data(), 8, nullptr, 0, &out, 1, builder) == 0);
    CHECK(out.nbDims == 3 && std::equal(out.d, out.d + 3, in[0].d));
    in[0] = builder.dims({3, 64});
    CHECK(attention.build->getOutputShapes(in.data(), 8, nullptr, 0, &out, 1, builder) != 0);
    ++passed;
}

void outputs_have_the_type_of_the_first_input() {
    DataType const types[8] = {DataType::kBF16};
    DataType type = DataType::kFLOAT;
    Plugin const attention = create("PooledAttention");
    CHECK(attention.build->getOutputDataTypes(&type, 1, types, 8) == 0);
    CHECK(type == DataType::kBF16);
    CHECK(attention.build->getOutputDataTypes(&type, 1, types, 7) != 0);
    CHECK(attention.build->getOutputDataTypes(&type, 2, types, 8) != 0);
    ++passed;
}

// Serialized fields are read after the object that was asked has moved on: they must be its own.
void plugins_survive_clone_and_serialization(std::string const& name) {
    auto first = std::make_unique<Plugin>(create(name.c_str(), 4, 0.125F));
    PluginFieldCollection const* const original = first->runtime->getFieldsToSerialize();
    Plugin copy(first->whole->clone());
    PluginFieldCollection const* fields = copy.runtime->getFieldsToSerialize();
    CHECK(fields->nbFields == (name == "PoolGatherConcat" ? 0 : 2));
    for (int32_t i = 0; i < fields->nbFields; ++i) {
        CHECK(fields->fields[i].data != original->fields[i].data);
    }
    std::string const id = first->build->getTimingCacheID();
    first.reset();
    CHECK(copy.build->getTimingCacheID() == id);
    Plugin const recreated(
        creator(name.c_str()).createPlugin("n", fields, TensorRTPhase::kRUNTIME));
    CHECK(recreated.build->getTimingCacheID() == id);
    CHECK(name == "PoolGatherConcat" || id != create(name.c_str()).build->getTimingCacheID());
    Plugin const attached(copy.runtime->attachToContext(nullptr));
    CHECK(attached.build->getTimingCacheID() == id);
    ++passed;
}

// What was handed out still reads when the plugin is asked again, whichever question it is.
void answers_stay_where_they_are(char const* name) {
    Plugin const plugin = create(name);
    char const* const id = plugin.build->getTimingCacheID();
    CHECK(plugin.build->getMetadataString() == id && plugin.build->getTimingCacheID() == id);
    CHECK(std::string(id).find(name) == 0);
    CHECK(std::string(id).find(ckv::kVersion) != std::string::npos);
    PluginField const* const fields = plugin.runtime->getFieldsToSerialize()->fields;
    CHECK(plugin.runtime->getFieldsToSerialize()->fields == fields);
    ++passed;
}

void tactics_are_unique_and_valid() {
    Plugin const plugin = create("PooledAttention");
    std::vector<DynamicPluginTensorDesc> in;
    for (char kind : kinds("PooledAttention")) {
        in.push_back(dynamic(desc({1}, type_of(kind, DataType::kFLOAT))));
    }
    CHECK(plugin.build->configurePlugin(in.data(), 8, in.data(), 1) == 0);
    CHECK(plugin.build->configurePlugin(in.data(), 7, in.data(), 1) != 0);
    CHECK(plugin.build->configurePlugin(in.data(), 8, in.data(), 2) != 0);
    std::vector<int32_t> tactics(plugin.build->getNbTactics());
    CHECK(tactics.size() == 4);
    CHECK(plugin.build->getValidTactics(tactics.data(), 3) != 0);
    CHECK(plugin.build->getValidTactics(tactics.data(), 4) == 0);
    std::set<int32_t> const unique(tactics.begin(), tactics.end());
    CHECK(unique.size() == tactics.size() && *unique.begin() > 0);
    for (int32_t tactic : tactics) {
        CHECK(plugin.runtime->setTactic(tactic) == 0);
    }
    CHECK(plugin.runtime->setTactic(*unique.rbegin() + 1) != 0);
    CHECK(plugin.runtime->setTactic(-1) != 0);
    ++passed;
}

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
    creators_introduce_themselves();
    attributes_are_read_from_any_number();
    bad_fields_make_no_plugin();
    errors_go_to_the_logger_of_tensorrt();
    for (char const* name : kNames) {
        for (DataType element : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16}) {
            only_consistent_types_are_supported(name, element);
        }
        plugins_survive_clone_and_serialization(name);
        answers_stay_where_they_are(name);
    }
    output_shapes_follow_the_inputs();
    outputs_have_the_type_of_the_first_input();
    tactics_are_unique_and_valid();
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
