// A user with histories of the sample's model, for records of it.
#pragma once

#include <ckv/record.h>

#include <random>

#include "sample.h"

struct User {
    std::int64_t events = 0;
    std::vector<std::int32_t> k_index, v_index, item;
    std::vector<float> k_user, image;

    User(std::int64_t count, std::mt19937& random) : events(count) {
        std::normal_distribution<float> normal;
        for (std::int64_t e = 0; e < count; ++e) {
            k_index.push_back(static_cast<std::int32_t>(random() % 10));
            v_index.push_back(static_cast<std::int32_t>(random() % 70000));
            item.push_back(static_cast<std::int32_t>(random() % 9));
            for (int j = 0; j < 2; ++j) {
                k_user.push_back(normal(random));
            }
            for (int j = 0; j < 3; ++j) {
                image.push_back(normal(random));
            }
        }
    }

    ckv::UserTensors tensors(std::int64_t start, std::int64_t end) const {
        std::int64_t const n = end - start;
        return {{"cache_k_index", {k_index.data() + start, n}},
                {"cache_v_index", {v_index.data() + start, n}},
                {"cache_k_user", {k_user.data() + 2 * start, n}},
                {"cache_v_user", {nullptr, n}},
                {"history_item_id", {item.data() + start, n}},
                {"history_image", {image.data() + 3 * start, n}}};
    }
};

inline ckv::RecordLayout layout_of(ckv::UserType type) {
    return ckv::RecordLayout::of(ckv::parse_manifest(sample_manifest(), "m"), type);
}
