// Reading rows: loops that look at every number and stop at none, for it is the busiest code of a
// request. What they find wrong is looked for once more, to be named.
#include <ckv/error.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "half.h"
#include "values.h"

namespace ckv::detail {
namespace {

[[noreturn]] void refuse(std::string const& what) { throw Error(ErrorCode::kRecord, what); }

template <typename T>
T read(std::uint8_t const* at) {
    T value{};
    std::memcpy(&value, at, sizeof value);
    return value;
}

constexpr std::int64_t kIds = std::int64_t{1} << 31;  // what an int32 can tell apart

struct Rows {
    std::uint8_t const* first;
    std::size_t bytes;
    std::int64_t count;
};

// Numbers that a graph must not take: ids at or above a limit, infinity and NaN.
struct Ids {
    std::uint32_t limit;
    bool refuse(std::int32_t id) const { return static_cast<std::uint32_t>(id) >= limit; }
};
struct AnyIds {
    bool refuse(std::int32_t /*id*/) const { return false; }
};
struct Finite {
    bool refuse(float number) const { return (bits_of(number) & 0x7f800000) == 0x7f800000; }
};

// Converts one number; 1 where it was refused.
template <typename Stored, typename Element, typename Convert, typename Fit>
std::uint32_t convert_one(std::uint8_t const* from, std::int64_t i, Element* to,
                          Convert const& convert, Fit const& fit) {
    to[i] = convert(read<Stored>(from + i * std::int64_t{sizeof(Stored)}));
    return static_cast<std::uint32_t>(fit.refuse(to[i]));
}

// Numbers one after another; whether one was refused.
template <typename Stored, typename Element, typename Convert, typename Fit>
bool convert_run(std::uint8_t const* from, std::int64_t count, Element* to, Convert const& convert,
                 Fit const& fit) {
    std::uint32_t refused = 0;
    for (std::int64_t i = 0; i < count; ++i) {
        refused |= convert_one<Stored>(from, i, to, convert, fit);
    }
    return refused != 0;
}

// A vector of kWidth numbers in each row.
template <typename Stored, int kWidth, typename Element, typename Convert, typename Fit>
bool convert_vectors(std::uint8_t const* from, Rows rows, Element* to, Convert const& convert,
                     Fit const& fit) {
    std::uint32_t refused = 0;
    for (std::int64_t e = 0; e < rows.count; ++e, from += rows.bytes, to += kWidth) {
        for (int j = 0; j < kWidth; ++j) {
            refused |= convert_one<Stored>(from, j, to, convert, fit);
        }
    }
    return refused != 0;
}

// The same for halves, whose conversion takes longer than moving them: vectors are put together
// first, and converted several numbers at a time.
template <typename Stored, int kWidth, typename Element, typename Convert, typename Fit>
bool convert_together(std::uint8_t const* from, Rows rows, Element* to, Convert const& convert,
                      Fit const& fit) {
    constexpr std::int64_t kVectors = 256;
    constexpr std::size_t kBytes = kWidth * sizeof(Stored);
    std::uint8_t together[kVectors * kBytes];
    bool refused = false;
    for (std::int64_t start = 0; start < rows.count; start += kVectors) {
        std::int64_t const count = std::min(kVectors, rows.count - start);
        for (std::int64_t e = 0; e < count; ++e, from += rows.bytes) {
            std::memcpy(together + static_cast<std::size_t>(e) * kBytes, from, kBytes);
        }
        refused |= convert_run<Stored>(together, count * kWidth, to + start * kWidth, convert, fit);
    }
    return refused;
}

// Calls body(std::integral_constant) for the widths whose loops are unrolled, else with 0.
template <typename Body>
bool with_width(std::int64_t width, Body const& body) {
    switch (width) {
        case 1: return body(std::integral_constant<int, 1>{});
        case 2: return body(std::integral_constant<int, 2>{});
        case 4: return body(std::integral_constant<int, 4>{});
        case 8: return body(std::integral_constant<int, 8>{});
        default: return body(std::integral_constant<int, 0>{});
    }
}

template <typename Stored, typename Element, typename Convert, typename Fit>
bool convert_layer(Field const& field, std::uint8_t const* from, Rows rows, Element* to,
                   Convert const& convert, Fit const& fit) {
    return with_width(field.width, [&](auto width) {
        constexpr int kWidth = decltype(width)::value;
        if constexpr (kWidth == 0) {
            bool refused = false;
            for (std::int64_t e = 0; e < rows.count; ++e, from += rows.bytes, to += field.width) {
                refused |= convert_run<Stored>(from, field.width, to, convert, fit);
            }
            return refused;
        } else if constexpr (std::is_same_v<Element, float> && sizeof(Stored) == 2) {
            return convert_together<Stored, kWidth>(from, rows, to, convert, fit);
        } else {
            return convert_vectors<Stored, kWidth>(from, rows, to, convert, fit);
        }
    });
}

// `layer`: elements from one layer to the next.
template <typename Stored, typename Element, typename Convert, typename Fit>
bool convert_all(Field const& field, Rows rows, Element* to, std::int64_t layer,
                 Convert const& convert, Fit const& fit) {
    std::int64_t const bytes = field.width * std::int64_t{sizeof(Stored)};
    bool refused = false;
    for (std::int64_t l = 0; l < field.layers; ++l) {
        auto const* from = rows.first + field.offset + l * bytes;
        refused |= convert_layer<Stored>(field, from, rows, to + l * layer, convert, fit);
    }
    return refused;
}

// A layer of int8 with a scale for each vector; `row` where the scales begin.
template <int kWidth>
bool convert_scaled_layer(Field const& field, std::uint8_t const* row, std::int64_t layer,
                          Rows rows, float* to) {
    std::int64_t const width = kWidth == 0 ? field.width : kWidth;
    std::int64_t const vector = 2 * field.layers + layer * width;
    std::uint32_t refused = 0, signs = 0;
    for (std::int64_t e = 0; e < rows.count; ++e, row += rows.bytes, to += width) {
        auto const half = read<std::uint16_t>(row + 2 * layer);
        float const scale = half_to_float(half);
        signs |= half;
        auto const scaled = [&](std::int8_t whole) { return static_cast<float>(whole) * scale; };
        for (std::int64_t j = 0; j < width; ++j) {
            refused |= convert_one<std::int8_t>(row + vector, j, to, scaled, Finite{});
        }
    }
    if ((signs & 0x8000) != 0) {
        refuse("a scale of '" + field.name + "' is negative");
    }
    return refused != 0;
}

bool convert_scaled(Field const& field, Rows rows, float* numbers, std::int64_t stride) {
    return with_width(field.width, [&](auto width) {
        bool refused = false;
        for (std::int64_t l = 0; l < field.layers; ++l) {
            refused |= convert_scaled_layer<decltype(width)::value>(
                field, rows.first + field.offset, l, rows, numbers + l * stride);
        }
        return refused;
    });
}

bool convert_numbers(Field const& field, Rows rows, float* to, std::int64_t layer) {
    switch (field.stored) {
        case StoredType::kFloat16:
            return convert_all<std::uint16_t>(
                field, rows, to, layer, [](std::uint16_t half) { return half_to_float(half); },
                Finite{});
        case StoredType::kInt8: return convert_scaled(field, rows, to, layer);
        default:
            return convert_all<float>(
                field, rows, to, layer, [](float number) { return number; }, Finite{});
    }
}

// Throws, naming the first that is refused.
template <typename Element>
[[noreturn]] void refuse_first(Field const& field, std::int64_t count, Element const* elements,
                               std::int64_t layer) {
    for (std::int64_t l = 0; l < field.layers; ++l) {
        for (std::int64_t i = 0; i < count * field.width; ++i) {
            checked(field, elements[l * layer + i]);
        }
    }
    refuse("'" + field.name + "' changed while it was read");
}

template <typename Stored>
void load_ids(Field const& field, Rows rows, std::int32_t* ids, std::int64_t layer) {
    auto const convert = [](Stored id) { return static_cast<std::int32_t>(id); };
    if (!field.rows) {
        convert_all<Stored>(field, rows, ids, layer, convert, AnyIds{});
        return;
    }
    Ids const fit{static_cast<std::uint32_t>(std::min(*field.rows, kIds))};
    if (convert_all<Stored>(field, rows, ids, layer, convert, fit)) {
        refuse_first(field, rows.count, ids, layer);
    }
}

}  // namespace

void load(Field const& field, std::uint8_t const* rows, std::size_t row_bytes, std::int64_t count,
          void* tensor, std::int64_t events) {
    std::int64_t const layer = events * field.width;
    Rows const from{rows, row_bytes, count};
    if (field.width == 0 || field.stored == StoredType::kNone) {
        return;
    }
    switch (field.stored) {
        case StoredType::kUint16:
            return load_ids<std::uint16_t>(field, from, static_cast<std::int32_t*>(tensor), layer);
        case StoredType::kInt32:
            return load_ids<std::int32_t>(field, from, static_cast<std::int32_t*>(tensor), layer);
        default: {
            auto* const numbers = static_cast<float*>(tensor);
            if (convert_numbers(field, from, numbers, layer)) {
                refuse_first(field, count, numbers, layer);
            }
        }
    }
}

}  // namespace ckv::detail
