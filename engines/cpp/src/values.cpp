#include "values.h"

#include <ckv/error.h>

#include <cmath>
#include <cstring>

#include "half.h"

namespace ckv::detail {
namespace {

[[noreturn]] void refuse(std::string const& what) { throw Error(ErrorCode::kRecord, what); }

template <typename T>
void write(std::uint8_t* at, T value) {
    std::memcpy(at, &value, sizeof value);
}

[[noreturn]] void too_large(Field const& field, float number, char const* type) {
    refuse("'" + field.name + "' holds " + std::to_string(number) + ", too large for " + type +
           ": store user parts as float32");
}

std::uint16_t to_half(Field const& field, float number) {
    std::uint16_t const half = float_to_half(checked(field, number));
    if ((half & 0x7fff) == 0x7c00) {
        too_large(field, number, "float16");
    }
    return half;
}

// The smallest half that is not below max|x| / 127.
std::uint16_t scale_of(Field const& field, float const* vector) {
    float most = 0;
    for (std::int64_t j = 0; j < field.width; ++j) {
        most = std::fmax(most, std::fabs(checked(field, vector[j])));
    }
    std::uint16_t half = float_to_half(most / 127.0F);
    half = static_cast<std::uint16_t>(half + (half_to_float(half) < most / 127.0F));
    if (half >= 0x7c00) {
        too_large(field, most, "int8 with a float16 scale");
    }
    return half;
}

// Calls body(first element of the vector in its tensor, its row, its layer) for each vector.
template <typename Pointer, typename Body>
void each_vector(Field const& field, Strides strides, std::int64_t start, std::int64_t count,
                 Pointer rows, std::size_t row_bytes, Body const& body) {
    for (std::int64_t e = 0; e < count; ++e, rows += row_bytes) {
        for (std::int64_t l = 0; l < field.layers; ++l) {
            body(strides.layer * l + strides.event * (start + e), rows + field.offset, l);
        }
    }
}

std::int64_t scale_bytes(Field const& field) { return 2 * field.layers; }

}  // namespace

std::int32_t checked(Field const& field, std::int32_t id) {
    if (field.rows && (id < 0 || id >= *field.rows)) {
        refuse("'" + field.name + "' must lie in [0, " + std::to_string(*field.rows) + "), got " +
               std::to_string(id));
    }
    return id;
}

float checked(Field const& field, float number) {
    if (!std::isfinite(number)) {
        refuse("'" + field.name + "' holds NaN or infinity");
    }
    return number;
}

Strides contiguous(Field const& field, std::int64_t events) {
    return {field.layered ? events * field.width : 0, field.width};
}

void store(Field const& field, void const* tensor, Strides strides, std::int64_t start,
           std::int64_t count, std::uint8_t* rows, std::size_t row_bytes) {
    std::int64_t const width = field.width;
    if (width == 0) {
        return;
    }
    auto const* const ids = static_cast<std::int32_t const*>(tensor);
    auto const* const numbers = static_cast<float const*>(tensor);
    // Number by number: `convert(element)` gives what is stored.
    auto const store_each = [&](auto const& convert) {
        using Stored = decltype(convert(0));
        each_vector(field, strides, start, count, rows, row_bytes,
                    [&](std::int64_t from, std::uint8_t* row, std::int64_t layer) {
                        std::uint8_t* to = row + layer * width * std::int64_t{sizeof(Stored)};
                        for (std::int64_t j = 0; j < width; ++j, to += sizeof(Stored)) {
                            write(to, convert(from + j));
                        }
                    });
    };
    switch (field.stored) {
        case StoredType::kUint16:
            return store_each([&](std::int64_t i) {
                return static_cast<std::uint16_t>(checked(field, ids[i]));
            });
        case StoredType::kInt32:
            return store_each([&](std::int64_t i) { return checked(field, ids[i]); });
        case StoredType::kFloat32:
            return store_each([&](std::int64_t i) { return checked(field, numbers[i]); });
        case StoredType::kFloat16:
            return store_each([&](std::int64_t i) { return to_half(field, numbers[i]); });
        case StoredType::kInt8:
            return each_vector(
                field, strides, start, count, rows, row_bytes,
                [&](std::int64_t from, std::uint8_t* row, std::int64_t layer) {
                    std::uint16_t const half = scale_of(field, numbers + from);
                    float const scale = half == 0 ? 1.0F : half_to_float(half);
                    write(row + 2 * layer, half);
                    std::uint8_t* const to = row + scale_bytes(field) + layer * width;
                    for (std::int64_t j = 0; j < width; ++j) {
                        write(to + j, static_cast<std::int8_t>(
                                          std::nearbyint(numbers[from + j] / scale)));
                    }
                });
        case StoredType::kNone: return;
    }
}

}  // namespace ckv::detail
