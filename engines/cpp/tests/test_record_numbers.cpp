// Which numbers a record holds, and how exactly.
#include <ckv/record.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../src/crc32.h"
#include "../src/half.h"
#include "check.h"
#include "user.h"

using ckv::ErrorCode;

namespace {

// The first value outside, in the first of many rows, under checksums that are right.
void values_that_no_graph_may_see(ckv::UserType type) {
    std::string const text = changed_manifest("\"window\": 4", "\"window\": 900");
    auto const layout = ckv::RecordLayout::of(ckv::parse_manifest(text, "m"), type);
    std::mt19937 random(11);
    auto const good = ckv::encode(layout, User(300, random).tensors(0, 300));
    std::size_t const events = 64 + 300 * layout.window.row_bytes;
    auto const refused = [&](std::size_t at, std::uint32_t value, std::size_t size,
                             std::string const& words) {
        auto record = good;
        std::memcpy(record.data() + at, &value, size);
        std::uint32_t const sections[] = {
            ckv::detail::crc32(record.data() + 64, events - 64),
            ckv::detail::crc32(record.data() + events, record.size() - events)};
        std::memcpy(record.data() + 48, sections, 8);
        std::uint32_t const header = ckv::detail::crc32(record.data(), 60);
        std::memcpy(record.data() + 60, &header, 4);
        refuses(ErrorCode::kRecord, words, [&] { ckv::decode(layout, record); });
    };
    refused(64, 10, 2, "'cache_k_index' must lie in [0, 10), got 10");
    refused(66, 70000, 4, "'cache_v_index' must lie in [0, 70000), got 70000");
    // A number of float16, the scale of int8.
    refused(70, 0x7c00, 2, "'cache_k_user' holds NaN or infinity");
    refused(events, 9, 4, "'history_item_id' must lie in [0, 9), got 9");
    refused(events + 4, 0x7f800000, 4, "'history_image' holds NaN or infinity");
}

// The largest number, of either sign, and what lies above.
void numbers_that_no_record_holds(ckv::UserType type, float most, std::string const& name) {
    ckv::RecordLayout const layout = layout_of(type);
    std::mt19937 random(12);
    User user(1, random);
    auto const refused = [&](std::string const& words) {
        refuses(ErrorCode::kRecord, words, [&] { ckv::encode(layout, user.tensors(0, 1)); });
    };
    for (float const number : {most, -most}) {
        user.k_user = {0, number};
        auto const read = ckv::decode(layout, ckv::encode(layout, user.tensors(0, 1)));
        CHECK(std::memcmp(read.at("cache_k_user").data.data(), user.k_user.data(), 8) == 0);
        user.k_user[1] *= 1.001F;
        refused(std::to_string(std::fabs(user.k_user[1])) + ", too large for " + name +
                ": store user parts as float32");
    }
    user.k_user[1] = std::nanf("");
    refused("'cache_k_user' holds NaN or infinity");
}

// A number halfway between two goes to the even one, as Python's does.
void numbers_between_two() {
    ckv::RecordLayout const layout = layout_of(ckv::UserType::kInt8);
    std::mt19937 random(13);
    User user(1, random);
    for (auto const& [number, wanted] : {std::pair(2.5F, 2.0F), {-0.5F, -0.0F}, {3.5F, 4.0F}}) {
        user.k_user = {127, number};  // a scale of 1
        auto const read = ckv::decode(layout, ckv::encode(layout, user.tensors(0, 1)));
        float got[2];
        std::memcpy(got, read.at("cache_k_user").data.data(), sizeof got);
        CHECK(got[0] == 127 && got[1] == wanted);
    }
}

// A step is a vector's largest number over 127, rounded up to a half: by a thousandth at most.
void within_half_a_step(std::vector<float> const& wanted, float const* got, std::int64_t width) {
    for (std::size_t start = 0; start < wanted.size(); start += static_cast<std::size_t>(width)) {
        auto const first = wanted.begin() + static_cast<std::ptrdiff_t>(start);
        auto const less = [](float a, float b) { return std::fabs(a) < std::fabs(b); };
        float const most = std::fabs(*std::max_element(first, first + width, less));
        for (std::size_t i = start; i < start + static_cast<std::size_t>(width); ++i) {
            CHECK(std::fabs(got[i] - wanted[i]) <= most / 127 / 2 * 1.001F);
        }
    }
}

// Vectors of every width that is read in its own way, over one block of rows and into the next.
void every_width(std::int64_t width, std::int64_t events, ckv::UserType type) {
    std::string text = changed_manifest("\"K\", 2]", "\"K\", " + std::to_string(width) + "]");
    text.replace(text.find("\"window\": 4"), 11, "\"window\": 900");
    ckv::RecordLayout const layout = ckv::RecordLayout::of(ckv::parse_manifest(text, "m"), type);
    std::mt19937 random(static_cast<unsigned>(10 * width + events));
    User user(events, random);
    std::normal_distribution<float> normal;
    user.k_user.resize(static_cast<std::size_t>(events * width));
    std::generate(user.k_user.begin(), user.k_user.end(), [&] { return normal(random); });
    auto const record = ckv::encode(layout, user.tensors(0, events));
    auto const read = ckv::decode(layout, record);
    auto const same = [&](char const* name, void const* wanted, std::size_t bytes) {
        auto const& data = read.at(name).data;
        CHECK(data.size() == bytes && std::memcmp(data.data(), wanted, bytes) == 0);
    };
    auto const count = static_cast<std::size_t>(events);
    same("cache_k_index", user.k_index.data(), 4 * count);
    same("cache_v_index", user.v_index.data(), 4 * count);
    same("history_item_id", user.item.data(), 4 * count);
    same("history_image", user.image.data(), 12 * count);
    if (type == ckv::UserType::kInt8) {
        auto const* numbers = reinterpret_cast<float const*>(read.at("cache_k_user").data.data());
        within_half_a_step(user.k_user, numbers, width);
        return;
    }
    if (type == ckv::UserType::kFloat16) {
        for (float& number : user.k_user) {
            number = ckv::detail::half_to_float(ckv::detail::float_to_half(number));
        }
    }
    same("cache_k_user", user.k_user.data(), 4 * user.k_user.size());
}

}  // namespace

int main() {
    for (std::int64_t width = 1; width <= 9; ++width) {
        for (std::int64_t events : {1, 255, 256, 257, 700}) {
            every_width(width, events, ckv::UserType::kFloat32);
            every_width(width, events, ckv::UserType::kFloat16);
            every_width(width, events, ckv::UserType::kInt8);
        }
    }
    values_that_no_graph_may_see(ckv::UserType::kFloat16);
    values_that_no_graph_may_see(ckv::UserType::kInt8);
    numbers_that_no_record_holds(ckv::UserType::kFloat16, 65504, "float16");
    numbers_that_no_record_holds(ckv::UserType::kInt8, 65504 * 127,
                                 "int8 with a float16 scale");
    numbers_between_two();
}
