// Tensors of an emulated launch, in its element type and in guarded memory.
#pragma once

#include <vector>

#include "elements.h"
#include "emulator/guarded.h"
#include "emulator/launch.h"
#include "emulator/run.h"

namespace ckv::emulator {

// The "device" side of one call: tensors in the dtype, kept alive until it ends.
class Device {
public:
    explicit Device(Options const& options) : options_(options) {
        seed = options.seed;
        capability = options.capability;
    }

    Dtype dtype() const { return static_cast<Dtype>(options_.dtype); }
    int64_t padding() const { return options_.padding; }

    // Rows of `width` elements, `padding` poisoned ones after each.
    void const* rows(float const* from, int64_t count, int64_t width, int64_t padding) {
        int64_t const stride = width + padding;
        char* to = raw(count * stride * dtype_bytes(dtype()));
        reference::put_rows(dtype(), to, stride, from, count, width);
        return to;
    }
    template <typename T>
    T const* plain(T const* from, int64_t count) {
        char* to = raw(count * static_cast<int64_t>(sizeof(T)));
        if (count) {
            std::memcpy(to, from, count * sizeof(T));
        }
        return reinterpret_cast<T const*>(to);
    }
    char* raw(int64_t bytes) {
        size_t const alignment = static_cast<size_t>(options_.alignment);
        return kept_.emplace_back(static_cast<size_t>(bytes), alignment).data();
    }
    PooledSide side(reference::Side const& side, int64_t events) {
        PooledSide s;
        s.pool = rows(side.pool, side.pool_rows, side.pool_width, padding());
        s.index = plain(side.index, events);
        s.user = rows(side.user, events, side.user_width, padding());
        s.pool_rows = side.pool_rows;
        s.pool_stride = side.pool_width + padding();
        s.user_stride = side.user_width + padding();
        s.pool_width = side.pool_width;
        s.user_width = side.user_width;
        return s;
    }

private:
    Options const& options_;
    std::vector<Guarded> kept_;
};

}  // namespace ckv::emulator
