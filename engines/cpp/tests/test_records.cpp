// Records in C++ alone; that their bytes are Python's is tested from Python.
#include <ckv/record.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <random>
#include <tuple>

#include "../src/crc32.h"
#include "../src/half.h"
#include "check.h"
#include "sample.h"

using ckv::ErrorCode;

namespace {

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

ckv::RecordLayout layout_of(ckv::UserType type) {
    return ckv::RecordLayout::of(ckv::parse_manifest(sample_manifest(), "m"), type);
}

void layout() {
    ckv::RecordLayout const half = layout_of(ckv::UserType::kFloat16);
    CHECK(half.describe() ==
          "window 3\n"
          "window cache_k_index uint16 1\nwindow cache_v_index int32 1\n"
          "window cache_k_user float16 1x2\nwindow cache_v_user float16 1x0\n"
          "events history_item_id int32 1\nevents history_image float32 3\n");
    CHECK(half.window.row_bytes == 10 && half.events.row_bytes == 16);
    CHECK(half.pad_to == 16);  // the profile's longest history, below max_len
    CHECK(half.record_bytes(2) == 64 + 2 * 26 && half.record_bytes(5) == 64 + 30 + 80);
    CHECK(layout_of(ckv::UserType::kInt8).window.row_bytes == 10);
    auto const manifest = ckv::parse_manifest(sample_manifest(), "m");
    refuses(ErrorCode::kRecord, "for a decode graph, got 'prefill'",
            [&] { ckv::RecordLayout::of(manifest, ckv::UserType::kInt8, "prefill"); });
    refuses(ErrorCode::kBundle, "not 'decode_items'",
            [&] { ckv::RecordLayout::of(manifest, ckv::UserType::kInt8, "decode_items"); });
    auto broken = manifest;
    for (std::string const& entries : {std::string(63, '0'), std::string(64, 'g')}) {
        broken.entries = entries;
        refuses(ErrorCode::kRecord, "64 hex digits", [&] { ckv::RecordLayout::of(broken); });
    }
    broken = manifest;
    broken.graphs.at("decode").inputs.clear();
    refuses(ErrorCode::kRecord, "keeps nothing of an event",
            [&] { ckv::RecordLayout::of(broken); });
    broken = manifest;
    for (ckv::TensorSpec& input : broken.graphs.at("decode").inputs) {
        input.name = input.name.substr(0, 6) == "cache_" ? input.name : "other";
    }
    refuses(ErrorCode::kRecord, "keeps nothing of an event",
            [&] { ckv::RecordLayout::of(broken); });
    for (std::vector<double> const& padding : {std::vector<double>{10}, {-1}, {0, 0}}) {
        broken = manifest;
        broken.padding["cache_k_index"] = padding;
        refuses(ErrorCode::kRecord, "the padding of cache_k_index ",
                [&] { ckv::RecordLayout::of(broken); });
    }
    for (char const* range : {"\"S\": \"0:10:32\"", "\"X\": \"0:10:16\""}) {
        auto const text = changed_manifest("\"S\": \"0:10:16\"", range);
        CHECK(ckv::RecordLayout::of(ckv::parse_manifest(text, "m")).pad_to == 20);
    }
    for (auto const& [from, to, why] :
         {std::tuple("[\"B\", 1, \"K\", 2]", "[\"B\", 1]", "'cache_k_user' has too few axes"),
          {"\"history_item_id\", \"dtype\": \"int32\"", "\"history_item_id\", \"dtype\": \"bool\"",
           "'history_item_id' is of a type that records don't hold"},
          {"\"history_image\", \"dtype\": \"float32\"", "\"history_image\", \"dtype\": \"float16\"",
           "'history_image' is of a type that records don't hold"}}) {
        refuses(ErrorCode::kRecord, why, [&, from = from, to = to] {
            ckv::RecordLayout::of(ckv::parse_manifest(changed_manifest(from, to), "m"));
        });
    }
    refuses(ErrorCode::kRecord, "this layout is empty",
            [] { ckv::encode(ckv::RecordLayout(), {}); });
    auto const unlayered = changed_manifest("[\"B\", 1, \"K\", 2", "[\"B\", \"L\", \"K\", 2");
    refuses(ErrorCode::kRecord, "'cache_k_user' has an event of no fixed size",
            [&] { ckv::RecordLayout::of(ckv::parse_manifest(unlayered, "m")); });
    // 2^60 numbers, and products that 64 bits don't hold: 2^64, and 2^90 of them times 0; with layers
    // 2^64 numbers, and 2^63 bytes.
    for (char const* sizes : {"1, \"K\", 1073741824, 1073741824, 1",
                              "1, \"K\", 1073741824, 1073741824, 16",
                              "1, \"K\", 1073741824, 1073741824, 1073741824",
                              "1, \"K\", 1073741824, 1073741824, 1073741824, 0",
                              "1073741824, \"K\", 1073741824, 16",
                              "1073741824, \"K\", 1073741824, 4"}) {
        std::string const axes = std::string("[\"B\", ") + sizes;
        auto const text = changed_manifest("[\"B\", 1, \"K\", 2", axes);
        refuses(ErrorCode::kRecord, " is too large for a record",
                [&] { ckv::RecordLayout::of(ckv::parse_manifest(text, "m")); });
    }
}

void appending_is_encoding_everything(ckv::UserType type) {
    ckv::RecordLayout const layout = layout_of(type);
    std::mt19937 random(7);
    User const user(30, random);
    for (std::int64_t first = 0; first < 9; ++first) {
        for (std::int64_t total = first; total < 14; ++total) {
            auto const start = ckv::encode(layout, user.tensors(0, first));
            auto grown = start;
            ckv::append(layout, grown, user.tensors(first, total));
            CHECK(grown == ckv::encode(layout, user.tensors(0, total)));
            CHECK(ckv::count(layout, grown) == total);
            for (std::int64_t most = 0; most < 14; ++most) {
                std::vector<std::uint8_t> buffer = start;
                buffer.resize(1000, 0xee);
                std::size_t const size = ckv::append_into(layout, buffer.data(), buffer.size(),
                                                          user.tensors(first, total), most);
                CHECK(size == ckv::record_size(layout, buffer));
                auto const kept = user.tensors(std::max<std::int64_t>(total - most, 0), total);
                auto const wanted = ckv::encode(layout, kept);
                CHECK(size == wanted.size());
                CHECK(std::memcmp(buffer.data(), wanted.data(), size) == 0);
                grown = start;
                ckv::append(layout, grown, user.tensors(first, total), most);
                CHECK(grown == wanted);
                for (std::size_t i = std::max(size, start.size()); i < buffer.size(); ++i) {
                    CHECK(buffer[i] == 0xee);
                }
            }
        }
    }
}

void refusals_leave_things_as_they_were() {
    ckv::RecordLayout const layout = layout_of(ckv::UserType::kFloat16);
    std::mt19937 random(8);
    User user(5, random);
    auto record = ckv::encode(layout, user.tensors(0, 3));
    record.reserve(1000);
    auto const before = record;
    auto const refused = [&](std::string const& words, ckv::UserTensors const& tensors) {
        refuses(ErrorCode::kRecord, words, [&] { ckv::append(layout, record, tensors); });
        std::vector<std::uint8_t> buffer = record;
        buffer.resize(1000);
        auto const untouched = buffer;
        refuses(ErrorCode::kRecord, words,
                [&] { ckv::append_into(layout, buffer.data(), buffer.size(), tensors); });
        CHECK(record == before && buffer == untouched);
    };
    ckv::UserTensors const good = user.tensors(3, 5);
    ckv::UserTensors tensors = good;
    tensors.erase("history_image");
    refused("needs 'history_image'", tensors);
    tensors["history_image"] = {user.image.data(), 1};
    refused("as many events each: 'history_image' has 1, 'history_item_id' has 2", tensors);
    tensors["history_image"] = {user.image.data(), 3};
    refused("as many events each: 'history_image' has 3, 'history_item_id' has 2", tensors);
    tensors["history_image"] = {nullptr, 2};
    refused("'history_image' has no data", tensors);
    tensors["history_image"] = {user.image.data(), -1};
    refused("'history_image' has no data", tensors);
    for (char const* name : {"history_image", "history_item_id"}) {
        tensors[name] = {user.item.data(), std::int64_t{1} << 32};
    }
    refused("holds at most 4294967295 events", tensors);
    tensors = good;
    tensors["history_other"] = {user.image.data(), 2};
    refused("has 6 tensors, got 7", tensors);
    tensors = good;
    for (char const* name : {"cache_k_index", "cache_v_index", "cache_k_user", "cache_v_user"}) {
        tensors[name].events = 1;
    }
    refused("cache entries of the last 2 events, got 1", tensors);
    user.item[4] = 9;
    refused("'history_item_id' must lie in [0, 9), got 9", good);
    user.item[4] = 0;
    user.v_index[4] = -1;
    refused("'cache_v_index' must lie in [0, 70000), got -1", good);
    user.v_index[4] = 0;
    user.k_user[9] = std::nanf("");
    refused("'cache_k_user' holds NaN or infinity", good);
    user.k_user[9] = 0;
    refuses(ErrorCode::kRecord, "max_events must be at least 0, got -1",
            [&] { ckv::append(layout, record, good, -1); });
    refuses(ErrorCode::kRecord, "takes 174 bytes, the buffer has 142",
            [&] { ckv::append_into(layout, record.data(), record.size(), good); });
    CHECK(record == before);
    ckv::append(layout, record, good);
    CHECK(record == ckv::encode(layout, user.tensors(0, 5)));
}

// The first reason that RECORD.md lists is the one that is given.
void a_header_that_differs() {
    ckv::RecordLayout const layout = layout_of(ckv::UserType::kFloat16);
    std::mt19937 random(10);
    auto const good = ckv::encode(layout, User(2, random).tensors(0, 2));
    auto const refused = [&](std::size_t at, std::string const& words, bool sealed = true) {
        auto record = good;
        record[at] ^= 0x10;
        if (sealed) {
            std::uint32_t const checksum = ckv::detail::crc32(record.data(), 60);
            std::memcpy(record.data() + 60, &checksum, 4);
        }
        refuses(ErrorCode::kRecord, words, [&] { ckv::count(layout, record); });
    };
    refused(0, "this is no cache record: it starts with 0x534b5652, not 'CKVR'", false);
    refused(4, "format version 17, this library reads 1", false);
    refused(5, "format version 4097", false);
    for (std::size_t at : {8U, 24U, 28U, 32U, 59U, 60U}) {
        refused(at, "header is damaged: its checksum differs", false);
    }
    refused(8, "is of model ef112233445566778899aabbccddeeff, this is ff1122");
    refused(24, "another layout (form of events, dtype of user parts, or graph) than this server's, "
                "which is window 3;window cache_k_index uint16 1;");
    refused(32, "contradicts itself: 2 window rows for 18 events, must be 3");
    refused(36, "contradicts itself: 18 window rows for 2 events, must be 2");
    for (std::size_t at : {6U, 28U, 29U, 30U, 31U, 40U, 44U, 56U}) {
        refused(at, "contradicts its layout");
    }
    ckv::Bytes const record(good);
    refuses(ErrorCode::kRecord, "is truncated: 2 events take 116 bytes, got 115",
            [&] { ckv::count(layout, {record.data, record.size - 1}); });
    auto longer = good;
    longer.push_back(0);
    refuses(ErrorCode::kRecord, "is followed by other bytes: 2 events take 116 bytes, got 117",
            [&] { ckv::count(layout, longer); });
}

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

void events_of_a_call() {
    ckv::RecordLayout const layout = layout_of(ckv::UserType::kFloat16);
    std::vector<std::int32_t> const numbers(18, 3);
    std::array<std::uint8_t, 6> const mask = {0, 1, 0, 1, 1, 0};
    std::map<std::string, void const*> tensors = {{"append_mask", mask.data()}};
    for (char const* name : {"k_index", "v_index", "k_user", "item_id", "image"}) {
        tensors[std::string("append_") + name] = numbers.data();
    }
    using ckv::CallGraph;
    ckv::Sizes const sizes = {{"B", 2}, {"T", 3}};
    auto const taken = ckv::user_events(layout, tensors, sizes, 1, CallGraph::kDecode);
    CHECK(taken.size() == 6 && taken.at("history_item_id").events == 2);
    auto const refused = [&](ckv::Sizes const& of, std::int64_t user) {
        refuses(ErrorCode::kRecord, "sizes must give B, above the user's number, and the events",
                [&] { ckv::user_events(layout, tensors, of, user, CallGraph::kDecode); });
    };
    refused(sizes, -1);
    refused(sizes, 2);
    refused({{"B", 2}, {"S", 3}}, 0);
    refused({{"T", 3}}, 0);
    refused({{"B", 2}, {"T", -1}}, 0);
    for (char const* name : {"append_mask", "append_k_user"}) {
        auto lacking = tensors;
        lacking[name] = nullptr;
        refuses(ErrorCode::kRecord, std::string("lack '") + name + "'",
                [&] { ckv::user_events(layout, lacking, sizes, 0, CallGraph::kDecode); });
    }
    auto const none = ckv::user_events(layout, {}, {{"B", 2}, {"T", 0}}, 1, CallGraph::kDecode);
    CHECK(ckv::encode(layout, ckv::views(none)) == ckv::empty_record(layout));
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

void a_batch_ends_with_each_users_last_events() {
    ckv::RecordLayout const layout = layout_of(ckv::UserType::kFloat32);
    std::mt19937 random(9);
    User const user(9, random);
    auto const one = ckv::encode(layout, user.tensors(0, 9));
    auto const two = ckv::encode(layout, user.tensors(0, 2));
    auto const none = ckv::empty_record(layout);
    std::vector<ckv::Bytes> const records = {one, two, none};
    CHECK(ckv::batch_events(layout, records) == 16);
    auto const bytes = ckv::batch_bytes(layout, 3, 5);
    CHECK(bytes.at("cache_k_user") == 3 * 3 * 2 * 4 && bytes.at("history_mask") == 15);
    std::vector<std::int32_t> item(15, -1), k_index(9, -1), v_index(9, -1);
    std::vector<float> k_user(18, -1), image(45, -1);
    std::vector<std::uint8_t> mask(15, 7);
    std::map<std::string, void*> out = {
        {"history_item_id", item.data()}, {"history_image", image.data()},
        {"cache_k_index", k_index.data()}, {"cache_v_index", v_index.data()},
        {"cache_k_user", k_user.data()}, {"history_mask", mask.data()}};
    ckv::batch(layout, records, 5, out);
    for (std::size_t e = 0; e < 5; ++e) {
        CHECK(item[e] == user.item[4 + e] && image[3 * e + 2] == user.image[3 * (4 + e) + 2]);
        CHECK(item[5 + e] == (e < 3 ? 0 : user.item[e - 3]));
        CHECK(item[10 + e] == 0 && image[3 * (10 + e)] == 0);
        CHECK(mask[e] == 1 && mask[5 + e] == (e >= 3) && mask[10 + e] == 0);
    }
    for (std::size_t e = 0; e < 3; ++e) {
        CHECK(k_index[e] == user.k_index[6 + e] && k_user[2 * e] == user.k_user[2 * (6 + e)]);
        CHECK(v_index[3 + e] == (e < 1 ? 0 : user.v_index[e - 1]));
        CHECK(k_index[6 + e] == 0 && k_user[2 * (6 + e)] == 0);
    }
    auto manifest = ckv::parse_manifest(sample_manifest(), "m");
    manifest.graphs.at("decode").inputs[0].axes[1].size = 2;
    manifest.padding["cache_k_index"] = {3, 4};
    auto const layered = ckv::RecordLayout::of(manifest);
    ckv::batch(layered, {ckv::empty_record(layered)}, 5, out);
    CHECK((std::vector(k_index.begin(), k_index.begin() + 6) == std::vector{3, 3, 3, 4, 4, 4}));
    auto broken = two;
    broken[70] ^= 1;
    refuses(ErrorCode::kRecord, "record 1 of the batch: the record's window section is damaged",
            [&] { ckv::batch(layout, {one, broken}, 5, out); });
    std::int64_t const many = std::int64_t{1} << 40;
    for (auto const& [users, events] : {std::pair(many, many), {-1, 5}, {5, -1}, {1, many << 20}}) {
        refuses(ErrorCode::kRecord, "can't be addressed: ",
                [&] { ckv::batch_bytes(layout, users, events); });
    }
    for (char const* name : {"cache_v_index", "history_image", "history_mask"}) {
        auto lacking = out;
        lacking[name] = nullptr;
        refuses(ErrorCode::kRecord, "lack '" + std::string(name) + "'",
                [&] { ckv::batch(layout, records, 5, lacking); });
        lacking.erase(name);
        refuses(ErrorCode::kRecord, "lack '" + std::string(name) + "'",
                [&] { ckv::batch(layout, records, 5, lacking); });
    }
    ckv::batch(layout, records, 0, {});
    ckv::batch(layout, {}, 5, {});
    refuses(ErrorCode::kRecord, "0 events or more", [&] { ckv::batch(layout, records, -1, out); });
}

}  // namespace

int main() {
    layout();
    for (auto type : {ckv::UserType::kFloat32, ckv::UserType::kFloat16, ckv::UserType::kInt8}) {
        appending_is_encoding_everything(type);
    }
    for (std::int64_t width = 1; width <= 9; ++width) {
        for (std::int64_t events : {1, 255, 256, 257, 700}) {
            every_width(width, events, ckv::UserType::kFloat32);
            every_width(width, events, ckv::UserType::kFloat16);
            every_width(width, events, ckv::UserType::kInt8);
        }
    }
    refusals_leave_things_as_they_were();
    a_header_that_differs();
    values_that_no_graph_may_see(ckv::UserType::kFloat16);
    values_that_no_graph_may_see(ckv::UserType::kInt8);
    numbers_that_no_record_holds(ckv::UserType::kFloat16, 65504, "float16");
    numbers_that_no_record_holds(ckv::UserType::kInt8, 65504 * 127,
                                 "int8 with a float16 scale");
    numbers_between_two();
    events_of_a_call();
    a_batch_ends_with_each_users_last_events();
}
