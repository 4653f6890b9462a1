// Our plugin objects as TensorRT drives them: create, ask, clone, serialize, recreate, enqueue.
//
// Linked to the emulated kernels, so enqueue really computes, on the CPU.
#include <NvInferRuntime.h>

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
#include "fake_builder.h"
#include "plugin_objects.h"

using namespace nvinfer1;
using namespace ckv::tests;

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
        CHECK(one.getFieldNames()->nbFields == (gather ? 0 : 2));
        Plugin const plugin = create(name);
        CHECK(std::string(plugin.core->getPluginName()) == name);
        CHECK(std::string(plugin.core->getPluginVersion()) == "1");
        CHECK(std::string(plugin.core->getPluginNamespace()) == "ckv");
        CHECK(plugin.build->getNbOutputs() == 1);
        ++passed;
    }
}

void bad_fields_make_no_plugin() {
    IPluginCreatorV3One& one = creator("PooledAttention");
    CHECK(!one.createPlugin("n", nullptr, TensorRTPhase::kBUILD));
    int32_t heads = 0;
    float scale = 1.0F;
    PluginField fields[] = {{"num_heads", &heads, PluginFieldType::kINT32, 1},
        {"scale", &scale, PluginFieldType::kFLOAT32, 1}};
    PluginFieldCollection const all{2, fields};
    CHECK(!one.createPlugin("n", &all, TensorRTPhase::kBUILD));
    heads = 1;
    scale = NAN;
    CHECK(!one.createPlugin("n", &all, TensorRTPhase::kBUILD));
    scale = 1.0F;
    fields[0].type = PluginFieldType::kCHAR;
    CHECK(!one.createPlugin("n", &all, TensorRTPhase::kBUILD));
    ++passed;
}

void only_consistent_types_are_supported(std::string const& name, DataType element) {
    Plugin const plugin = create(name.c_str());
    std::string const all = kinds(name) + "E";
    int32_t const inputs = static_cast<int32_t>(all.size()) - 1;
    std::vector<DynamicPluginTensorDesc> descs;
    for (char kind : all) {
        descs.push_back(dynamic(desc({1}, type_of(kind, element))));
    }
    auto const supported = [&](int32_t at) {
        return plugin.build->supportsFormatCombination(at, descs.data(), inputs, 1);
    };
    for (int32_t i = 0; i <= inputs; ++i) {
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
        descs[i].desc.format = TensorFormat::kCHW4;
        CHECK(!supported(i));
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

    in.assign(8, builder.dims({3, 5, 64}));
    Plugin const attention = create("PooledAttention");
    CHECK(attention.build->getOutputShapes(in.data(), 8, nullptr, 0, &out, 1, builder) == 0);
    CHECK(out.nbDims == 3 && out.d[1] == in[0].d[1]);
    DataType const types[8] = {DataType::kBF16};
    DataType type = DataType::kFLOAT;
    CHECK(attention.build->getOutputDataTypes(&type, 1, types, 8) == 0);
    CHECK(type == DataType::kBF16);
    ++passed;
}

// Serialized fields are read after the object that was asked has moved on: they must be its own.
void plugins_survive_clone_and_serialization(std::string const& name) {
    auto first = std::make_unique<Plugin>(create(name.c_str(), 4, 0.125F));
    first->runtime->getFieldsToSerialize();
    Plugin copy(first->whole->clone());
    std::string const id = first->build->getTimingCacheID();
    first.reset();
    CHECK(copy.build->getTimingCacheID() == id);
    PluginFieldCollection const* fields = copy.runtime->getFieldsToSerialize();
    CHECK(fields->nbFields == (name == "PoolGatherConcat" ? 0 : 2));
    Plugin const recreated(
        creator(name.c_str()).createPlugin("n", fields, TensorRTPhase::kRUNTIME));
    CHECK(recreated.build->getTimingCacheID() == id);
    CHECK(name == "PoolGatherConcat" || id != create(name.c_str()).build->getTimingCacheID());
    Plugin const attached(copy.runtime->attachToContext(nullptr));
    CHECK(attached.build->getTimingCacheID() == id);
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
    std::vector<int32_t> tactics(plugin.build->getNbTactics());
    CHECK(tactics.size() == 4);
    CHECK(plugin.build->getValidTactics(tactics.data(), 3) != 0);
    CHECK(plugin.build->getValidTactics(tactics.data(), 4) == 0);
    std::set<int32_t> const unique(tactics.begin(), tactics.end());
    CHECK(unique.size() == tactics.size() && *unique.begin() > 0);
    for (int32_t tactic : tactics) {
        CHECK(plugin.runtime->setTactic(tactic) == 0);
    }
    CHECK(plugin.runtime->setTactic(99) != 0);
    ++passed;
}

void enqueue_computes(char const* name, bool softmax) {
    Plugin const plugin = create(name);
    AttentionCall const call(softmax);
    int32_t const inputs = static_cast<int32_t>(call.in.size());
    std::vector<DynamicPluginTensorDesc> profile;
    for (PluginTensorDesc const& d : call.descs) {
        profile.push_back(dynamic(d));
    }
    PluginTensorDesc const out_desc = call.descs[0];
    CHECK(plugin.build->configurePlugin(profile.data(), inputs, profile.data(), 1) == 0);
    size_t const bytes =
        plugin.build->getWorkspaceSize(profile.data(), inputs, profile.data(), 1);
    std::vector<float> workspace(bytes / 4 + 1, NAN);
    CHECK(plugin.runtime->onShapeChange(call.descs.data(), inputs, &out_desc, 1) == 0);
    for (int32_t tactic = 0; tactic <= 2; ++tactic) {
        std::vector<float> out(call.want.size(), NAN);
        void* outs[] = {out.data()};
        CHECK(plugin.runtime->setTactic(tactic) == 0);
        CHECK(plugin.runtime->enqueue(call.descs.data(), &out_desc, call.in.data(), outs,
                  workspace.data(), nullptr) == 0);
        for (size_t i = 0; i < out.size(); ++i) {
            CHECK(std::abs(out[i] - call.want[i]) < 1e-5);
        }
    }
    ++passed;
}

void contradictory_shapes_are_refused(char const* name, bool softmax) {
    Plugin const plugin = create(name);
    AttentionCall const call(softmax);
    int32_t const inputs = static_cast<int32_t>(call.in.size());
    for (int32_t i = 0; i < inputs; ++i) {
        std::vector<PluginTensorDesc> descs = call.descs;
        descs[i].dims.d[descs[i].dims.nbDims - 1] += 1;
        CHECK(plugin.runtime->onShapeChange(descs.data(), inputs, &descs[0], 1) != 0);
    }
    Plugin const three_heads = create(name, 3);
    CHECK(three_heads.runtime->onShapeChange(call.descs.data(), inputs, &call.descs[0], 1) != 0);
    ++passed;
}

void gather_enqueues() {
    Plugin const plugin = create("PoolGatherConcat");
    std::vector<float> const pool = {1, 2, 3, 4, 5, 6};
    std::vector<int32_t> const index = {2, 0, 9};
    std::vector<float> const user = {7, 8, 9};
    std::vector<PluginTensorDesc> const descs = {desc({3, 2}, DataType::kFLOAT),
        desc({3}, DataType::kINT32), desc({3, 1}, DataType::kFLOAT)};
    std::vector<float> out(9, NAN);
    void const* in[] = {pool.data(), index.data(), user.data()};
    void* outs[] = {out.data()};
    CHECK(plugin.runtime->onShapeChange(descs.data(), 3, &descs[2], 1) == 0);
    CHECK(plugin.runtime->enqueue(descs.data(), &descs[2], in, outs, nullptr, nullptr) == 0);
    CHECK((out == std::vector<float>{5, 6, 7, 1, 2, 8, 0, 0, 9}));
    ++passed;
}

// Kernels step over rows with 32-bit strides.
void rows_too_long_are_refused() {
    ckv::SoftmaxArgs args;
    args.width = 8;
    args.key.pool_width = args.value.pool_width = 8;
    args.key.pool_stride = args.value.pool_stride = (int64_t{1} << 29) - 1;
    CHECK(ckv::pooled_attention(args, ckv::Tactic::kAuto, nullptr, nullptr) == cudaSuccess);
    ++args.value.pool_stride;
    CHECK(ckv::pooled_attention(args, ckv::Tactic::kAuto, nullptr, nullptr) ==
          cudaErrorInvalidValue);
    ++passed;
}

}  // namespace

int main() {
    creators_introduce_themselves();
    bad_fields_make_no_plugin();
    for (char const* name : kNames) {
        for (DataType element : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16}) {
            only_consistent_types_are_supported(name, element);
        }
        plugins_survive_clone_and_serialization(name);
    }
    output_shapes_follow_the_inputs();
    tactics_are_unique_and_valid();
    gather_enqueues();
    rows_too_long_are_refused();
    for (bool softmax : {true, false}) {
        char const* name = softmax ? "PooledAttention" : "PooledPointwiseAttention";
        enqueue_computes(name, softmax);
        contradictory_shapes_are_refused(name, softmax);
    }
    std::printf("%d passed, 0 failed\n", passed);
    return 0;
}
