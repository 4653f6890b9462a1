// Loads, stores, atomic operations and asynchronous copies.
#include <functional>
#include <type_traits>
#include <utility>

#include "ptx/instructions.h"

namespace ckv::ptx {
namespace {

enum class Space { kParameter, kShared, kGlobal };

template <Space kSpace>
char const* place(Warp& w, Instruction const& i, int row, int lane, int bytes, Access access) {
    BlockState& block = w.block();
    if constexpr (kSpace == Space::kShared) {
        uint32_t const at = w.get<uint32_t>(row, lane) + static_cast<uint32_t>(i.offset);
        return block.shared.at(at, bytes, access, w.thread(lane));
    } else {
        uint64_t const at = w.get<uint64_t>(row, lane) + static_cast<uint64_t>(i.offset);
        if constexpr (kSpace == Space::kGlobal) {
            uint32_t const thread = block.first_thread + static_cast<uint32_t>(w.thread(lane));
            return block.global.at(at, bytes, access, thread);
        }
        if (at + static_cast<uint64_t>(bytes) > block.parameter_bytes || at % bytes != 0) {
            throw Fault("access beyond the kernel's parameters, or misaligned");
        }
        return block.parameters + at;
    }
}

template <Space kSpace, typename T, int kCount>
void load(Warp& w, Instruction const& i, uint32_t lanes) {
    each(lanes, [&](int l) {
        char const* from =
            place<kSpace>(w, i, i.rows[kCount], l, kCount * sizeof(T), Access::kRead);
        for (int e = 0; e < kCount; ++e) {
            T x;
            std::memcpy(&x, from + e * sizeof(T), sizeof x);
            if constexpr (std::is_integral_v<T>) {  // a wider register: the sign goes on
                if (i.wide[e]) {
                    w.put(i.rows[e], l, static_cast<int64_t>(x));
                } else {
                    w.put(i.rows[e], l, static_cast<int32_t>(x));
                }
            } else {
                w.put(i.rows[e], l, x);
            }
        }
    });
}

template <Space kSpace, typename T, int kCount>
void store(Warp& w, Instruction const& i, uint32_t lanes) {
    each(lanes, [&](int l) {
        char* to = const_cast<char*>(
            place<kSpace>(w, i, i.rows[0], l, kCount * sizeof(T), Access::kWrite));
        for (int e = 0; e < kCount; ++e) {
            T const x = w.get<T>(i.rows[1 + e], l);
            std::memcpy(to + e * sizeof(T), &x, sizeof x);
        }
    });
}

template <Space kSpace, typename T, typename F>
void atomic(Warp& w, Instruction const& i, uint32_t lanes) {
    each(lanes, [&](int l) {
        char* at = const_cast<char*>(
            place<kSpace>(w, i, i.rows[1], l, sizeof(T), Access::kAtomic));
        T before;
        std::memcpy(&before, at, sizeof before);
        T const after = F{}(before, w.get<T>(i.rows[2], l));
        std::memcpy(at, &after, sizeof after);
        w.put(i.rows[0], l, before);
    });
}

// cp.async [to], [from], bytes, unless: the shared bytes change when they are waited for.
void copy_async(Warp& w, Instruction const& i, uint32_t lanes) {
    each(lanes, [&](int l) {
        int const bytes = w.get<int32_t>(i.rows[2], l);
        bool const zeros = w.get<uint32_t>(i.rows[3], l) != 0;
        Copy const copy{w.get<uint32_t>(i.rows[0], l),
            zeros ? 0 : w.get<uint64_t>(i.rows[1], l), bytes};
        BlockState& block = w.block();
        if (!zeros) {
            uint32_t const thread = block.first_thread + static_cast<uint32_t>(w.thread(l));
            block.global.at(copy.from, bytes, Access::kRead, thread);
        }
        block.shared.begin_copy(copy.to, bytes, w.thread(l));
        w.copies(l).open.push_back(copy);
    });
}

void commit_copies(Warp& w, Instruction const& /*i*/, uint32_t lanes) {
    each(lanes, [&](int l) {
        Warp::Pending& copies = w.copies(l);
        copies.committed.push_back(std::move(copies.open));
        copies.open.clear();
    });
}

// cp.async.wait_group n: all groups but the latest n.
void wait_copies(Warp& w, Instruction const& i, uint32_t lanes) {
    each(lanes, [&](int l) {
        auto& groups = w.copies(l).committed;
        size_t const may_stay = w.get<uint32_t>(i.rows[0], l);
        while (groups.size() > may_stay) {
            for (Copy const& copy : groups.front()) {
                char* const to = w.block().shared.end_copy(copy.to, copy.bytes, w.thread(l));
                if (copy.from == 0) {
                    std::memset(to, 0, static_cast<size_t>(copy.bytes));
                } else {
                    std::memcpy(to, reinterpret_cast<void const*>(copy.from),
                        static_cast<size_t>(copy.bytes));
                }
            }
            groups.erase(groups.begin());
        }
    });
}

template <Space kSpace, typename T, int kCount>
void add_access(Table& t, std::string const& space, std::string const& type) {
    std::string const vector = kCount == 1 ? "" : ".v" + std::to_string(kCount);
    t["ld." + space + vector + "." + type] = {load<kSpace, T, kCount>, "*"};
    if constexpr (kSpace != Space::kParameter) {
        t["st." + space + vector + "." + type] = {store<kSpace, T, kCount>, "*"};
    }
}

template <Space kSpace>
void add_space(Table& t, std::string const& space) {
    add_access<kSpace, uint8_t, 1>(t, space, "u8");
    add_access<kSpace, uint16_t, 1>(t, space, "u16");
    add_access<kSpace, uint32_t, 1>(t, space, "u32");
    add_access<kSpace, int32_t, 1>(t, space, "s32");
    add_access<kSpace, uint64_t, 1>(t, space, "u64");
    add_access<kSpace, float, 1>(t, space, "f32");
    add_access<kSpace, uint32_t, 2>(t, space, "u32");
    add_access<kSpace, uint32_t, 4>(t, space, "u32");
    add_access<kSpace, float, 2>(t, space, "f32");
    add_access<kSpace, float, 4>(t, space, "f32");
}

}  // namespace

void add_memory(Table& t) {
    add_space<Space::kParameter>(t, "param");
    add_space<Space::kShared>(t, "shared");
    add_space<Space::kGlobal>(t, "global");
    t["atom.global.add.u32"] = {atomic<Space::kGlobal, uint32_t, std::plus<uint32_t>>, "484"};
    t["atom.shared.min.s32"] = {atomic<Space::kShared, int32_t, Min>, "4"};
    t["atom.shared.max.s32"] = {atomic<Space::kShared, int32_t, Max>, "4"};
    t["cp.async.ca.shared.global"] = {copy_async, "484"};
    t["cp.async.commit_group"] = {commit_copies, "4"};
    t["cp.async.wait_group"] = {wait_copies, "4"};
}

}  // namespace ckv::ptx
