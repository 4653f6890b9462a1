// Records in C++ alone; that their bytes are Python's is tested from Python.
#include <ckv/record.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <random>
#include <tuple>

#include "../src/crc32.h"
#include "check.h"
#include "user.h"

using ckv::ErrorCode;

namespace {

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

void a_batch_ends_with_each_users_last_events() {
    ckv::RecordLayout const layout = layout_of(ckv::UserType::kFloat32);
    std::mt19937 random(9);
    User const user(9, random);
    auto const one = ckv::encode(layout, user.tensors(0, 9));
    auto const two = ckv::encode(layout, user.tensors(0, 2));
    auto const none = ckv::empty_record(layout);
    std::vector<ckv::Bytes> const records = {one, two, none};
    CHECK(ckv::batch_events(layout, records) == 16);
    CHECK(ckv::batch_events(layout, records, 3) == 13);
    CHECK(ckv::batch_events(layout, records, 16) == 0);
    for (std::int64_t appended : {-1, 17}) {
        refuses(ErrorCode::kRecord, "a call appends 0 to 16 events, got " + std::to_string(appended),
                [&] { ckv::batch_events(layout, records, appended); });
    }
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
    refusals_leave_things_as_they_were();
    a_header_that_differs();
    events_of_a_call();
    a_batch_ends_with_each_users_last_events();
}
