// Hostile records for a few seconds, under sanitizers:  fuzz_records SECONDS SEED BUNDLE TYPE FILE...
//
// FILEs are good records. Mutated ones, half of them with their checksums put right, are decoded,
// batched and appended to. Each is refused or gives only values that a graph may see.
#include <ckv/error.h>
#include <ckv/record.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>

#include "../src/crc32.h"
#include "check.h"

namespace {

using Record = std::vector<std::uint8_t>;

void mutate(Record& record, std::vector<Record> const& corpus, std::mt19937& random) {
    auto const at = [&](std::size_t size) { return size == 0 ? 0 : random() % size; };
    for (std::uint32_t edits = 1 + random() % 4; edits > 0; --edits) {
        switch (random() % 7) {
            case 0:
                record.resize(at(record.size() + 1));
                break;
            case 1:
                record.insert(record.end(), at(100), static_cast<std::uint8_t>(random()));
                break;
            case 2: {  // a piece of another
                Record const& other = corpus[at(corpus.size())];
                std::size_t const from = at(other.size()), size = at(other.size() - from + 1);
                record.insert(record.begin() + static_cast<std::ptrdiff_t>(at(record.size() + 1)),
                              other.begin() + static_cast<std::ptrdiff_t>(from),
                              other.begin() + static_cast<std::ptrdiff_t>(from + size));
                break;
            }
            case 3:  // a count
                if (record.size() >= 64) {
                    std::uint32_t const value = random() % 3 == 0 ? random() : random() % 40;
                    std::memcpy(record.data() + 32 + 4 * (random() % 4), &value, 4);
                }
                break;
            default:
                if (!record.empty()) {
                    record[at(record.size())] = static_cast<std::uint8_t>(random());
                }
        }
    }
}

// All checksums right, where the counts leave room for sections.
void reseal(ckv::RecordLayout const& layout, Record& record) {
    if (record.size() < 64) {
        return;
    }
    std::uint32_t rows = 0;
    std::memcpy(&rows, record.data() + 36, 4);
    std::size_t const window = std::min(record.size() - 64, rows * layout.window.row_bytes);
    auto const put = [&](std::size_t offset, std::uint32_t value) {
        std::memcpy(record.data() + offset, &value, 4);
    };
    put(48, ckv::detail::crc32(record.data() + 64, window));
    put(52, ckv::detail::crc32(record.data() + 64 + window, record.size() - 64 - window));
    put(60, ckv::detail::crc32(record.data(), 60));
}

void check_values(ckv::RecordLayout const& layout, ckv::HostTensors const& tensors) {
    for (auto const* section : {&layout.window, &layout.events}) {
        for (ckv::Field const& field : section->fields) {
            auto const& bytes = tensors.at(field.name).data;
            for (std::size_t i = 0; i < bytes.size(); i += 4) {
                if (field.type == ckv::ElementType::kInt32) {
                    std::int32_t id = 0;
                    std::memcpy(&id, bytes.data() + i, 4);
                    CHECK(!field.rows || (0 <= id && id < *field.rows));
                } else {
                    float number = 0;
                    std::memcpy(&number, bytes.data() + i, 4);
                    CHECK(std::isfinite(number));
                }
            }
        }
    }
}

// Whether the record was taken.
bool try_one(ckv::RecordLayout const& layout, Record const& record, std::mt19937& random) {
    // Of exactly its size, so that reading past its end is seen.
    auto const exact = std::make_unique<std::uint8_t[]>(record.size());
    std::copy(record.begin(), record.end(), exact.get());
    ckv::Bytes const bytes(exact.get(), record.size());
    try {
        ckv::HostTensors const tensors = ckv::decode(layout, bytes);
        check_values(layout, tensors);
        std::int64_t const events = random() % 30;
        std::map<std::string, Record> memory;
        std::map<std::string, void*> out;
        for (auto const& [name, size] : ckv::batch_bytes(layout, 1, events)) {
            memory[name].resize(size);
            out[name] = memory[name].data();
        }
        ckv::batch(layout, {bytes}, events, out);
        Record grown = record;
        ckv::append(layout, grown, ckv::views(tensors), random() % 50);
        CHECK(ckv::count(layout, grown) <= 50);
        return true;
    } catch (ckv::Error const& error) {
        CHECK(error.code() == ckv::ErrorCode::kRecord);
        return false;
    }
}

}  // namespace

int main(int argc, char** argv) {
    CHECK(argc > 5);
    auto const end = std::chrono::steady_clock::now() +
                     std::chrono::milliseconds(static_cast<int>(1000 * std::atof(argv[1])));
    std::mt19937 random(static_cast<std::uint32_t>(std::strtoul(argv[2], nullptr, 10)));
    auto const layout = ckv::RecordLayout::of(ckv::Bundle::open_unverified(argv[3]).manifest,
                                              static_cast<ckv::UserType>(std::atoi(argv[4])));
    std::vector<Record> corpus;
    for (int i = 5; i < argc; ++i) {
        std::ifstream file(argv[i], std::ios::binary);
        corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
        CHECK(try_one(layout, corpus.back(), random));
    }
    long tried = 0, taken = 0;
    while (std::chrono::steady_clock::now() < end) {
        Record record = corpus[random() % corpus.size()];
        mutate(record, corpus, random);
        bool const sealed = random() % 2 == 0;
        if (sealed) {
            reseal(layout, record);
        }
        bool const good = try_one(layout, record, random);
        CHECK(sealed || !good || std::find(corpus.begin(), corpus.end(), record) != corpus.end());
        ++tried;
        taken += good;
    }
    std::printf("%ld records, %ld taken\n", tried, taken);
}
