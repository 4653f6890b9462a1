// Our plugin objects as TensorRT asks them: create, describe, clone, serialize, recreate.
#include <NvInferRuntime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "attention_call.h"
#include "attention_plugin.h"
#include "check.h"
#include "fake_builder.h"
#include "plugin_objects.h"
#include "pool_gather_concat_plugin.h"

// Of the dynamic library, whose entry is part of this program.
extern "C" void setLoggerFinder(nvinfer1::ILoggerFinder* finder);

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

// Threads may ask a plugin of one engine at once, such as two that serialize it.
template <typename Ours>
void answers_change_nothing_in_a_plugin() {
    Plugin const plugin = create(Ours::kName);
    auto const* const ours = dynamic_cast<Ours*>(plugin.whole.get());
    std::string const before(reinterpret_cast<char const*>(ours), sizeof *ours);
    CHECK(plugin.runtime->getFieldsToSerialize() != nullptr);
    CHECK(plugin.build->getTimingCacheID() && plugin.build->getMetadataString());
    CHECK(std::memcmp(before.data(), ours, sizeof *ours) == 0);
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
    answers_change_nothing_in_a_plugin<ckv::tensorrt::PoolGatherConcatPlugin>();
    answers_change_nothing_in_a_plugin<ckv::tensorrt::PooledAttentionPlugin>();
    answers_change_nothing_in_a_plugin<ckv::tensorrt::PooledPointwiseAttentionPlugin>();
    output_shapes_follow_the_inputs();
    outputs_have_the_type_of_the_first_input();
    tactics_are_unique_and_valid();
    std::printf("%d passed, 0 failed\n", passed);
    return 0;
}
