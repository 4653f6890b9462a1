// A bundle with the engine that fake TensorRT has, and requests for it with their right answers.
#pragma once

#include <ckv/engine.h>

#include <cstring>
#include <fstream>
#include <random>

#include "../../src/sha256.h"
#include "../check.h"
#include "fake.h"

namespace fs = std::filesystem;
using ckv::ErrorCode;

// Writes a file of the bundle, and its hash into the manifest.
inline void add_file(ckv::Bundle& bundle, std::string const& name, std::string const& text) {
    std::ofstream(bundle.file(name)) << text;
    ckv::detail::Sha256 digest;
    digest.update(text.data(), text.size());
    bundle.manifest.files[name] = {digest.finish(), text.size()};
}

inline ckv::Bundle make_bundle(fs::path const& folder, std::string const& plan) {
    fs::create_directories(folder);
    ckv::Bundle bundle{folder, ckv::parse_manifest(fake::manifest(), "sample")};
    add_file(bundle, "decode.onnx", plan);  // the sample's engine for TensorRT 11.1.0
    return bundle;
}

inline ckv::EngineOptions with_contexts(int count) {
    ckv::EngineOptions options;
    options.contexts = count;
    return options;
}

// Sizes, memory and the right answer of a call.
class Request {
public:
    Request(ckv::GraphSpec const& graph, std::int64_t users, std::int64_t candidates,
            std::int64_t events)
        : sizes{{"B", users}, {"S", events}, {"K", std::min<std::int64_t>(events, 3)}, {"T", 0},
                {"C", candidates}} {
        for (auto const* tensors : {&graph.inputs, &graph.outputs}) {
            for (ckv::TensorSpec const& tensor : *tensors) {
                auto& bytes = memory_[tensor.name];
                bytes.assign((tensor.bytes(sizes) + 3) / 4, 0);
                buffers[tensor.name] = tensor.bytes(sizes) == 0 ? nullptr : bytes.data();
            }
        }
    }

    void draw(std::mt19937& random) {
        for (auto const* name : {"history_item_id", "candidate_item_id"}) {
            for (std::int32_t& id : memory_.at(name)) {
                id = static_cast<std::int32_t>(random() % 9);
            }
        }
        for (std::int32_t& number : memory_.at("cache_k_user")) {
            float const value = static_cast<float>(random() % 100) / 4;
            std::memcpy(&number, &value, 4);
        }
        for (std::int32_t& number : memory_.at("score")) {
            number = 0;
        }
    }

    bool is_right() const {
        std::int64_t const users = sizes.at("B"), count = sizes.at("C");
        std::int64_t const events = sizes.at("S"), cached = sizes.at("K");
        for (std::int64_t b = 0; b < users; ++b) {
            float sum = 0;
            for (std::int64_t e = 0; e < events; ++e) {
                sum += static_cast<float>(at("history_item_id", b * events + e));
            }
            for (std::int64_t e = 0; e < cached; ++e) {
                sum += number("cache_k_user", 2 * (b * cached + e));
            }
            for (std::int64_t c = b * count; c < (b + 1) * count; ++c) {
                float const wanted = sum + static_cast<float>(at("candidate_item_id", c));
                if (number("score", c) != wanted) {
                    return false;
                }
            }
        }
        return true;
    }

    ckv::Sizes sizes;
    ckv::Buffers buffers;

private:
    std::int32_t at(char const* name, std::int64_t i) const {
        return memory_.at(name)[static_cast<std::size_t>(i)];
    }
    float number(char const* name, std::int64_t i) const {
        std::int32_t const bits = at(name, i);
        float value = 0;
        std::memcpy(&value, &bits, 4);
        return value;
    }

    std::map<std::string, std::vector<std::int32_t>> memory_;
};
