// The instructions of kernels/device.cuh on the CPU, one fiber a thread.
//
// Fragment layouts follow the PTX manual (mma.m16n8k16, m16n8k8 and ldmatrix), written here from the other
// side: which lane holds element (row, column). A kernel that gets one wrong computes nonsense.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "emulator/scheduler.h"

#define CKV_KERNEL(threads) void
#define CKV_RESIDENT_KERNEL(threads, blocks) void
#define CKV_DEVICE inline
#define CKV_HAS_MMA 1

namespace ckv::device {

inline emulator::Block& block() { return emulator::Block::current(); }

// Before sm_80 a kernel for tensor cores is empty.
inline void need_tensor_cores() {
    if (emulator::capability < 80) {
        std::fputs("the emulated GPU has no such tensor cores\n", stderr);
        std::abort();
    }
}

inline int thread() { return block().thread(); }
inline int lane() { return thread() & 31; }
inline int warp() { return thread() >> 5; }
inline unsigned block_x() { return block().place(0); }
inline unsigned block_y() { return block().place(1); }
inline unsigned block_z() { return block().place(2); }
inline void sync() { block().barrier(); }
inline char* shared_memory() { return block().shared(); }
inline void atomic_add(unsigned* at, unsigned x) { *at += x; }
inline void atomic_min(int* at, int x) { *at = x < *at ? x : *at; }
inline void atomic_max(int* at, int x) { *at = x > *at ? x : *at; }
inline float divide(float x, float y) { return x / y; }
inline float exp2_(float x) { return std::exp2(x); }

inline float shuffle_xor(float x, int distance) {
    auto const* slots = block().exchange(&x, sizeof x);
    float other;
    std::memcpy(&other, slots[lane() ^ distance], sizeof other);
    return other;
}

inline bool all(bool x) {
    auto const* slots = block().exchange(&x, sizeof x);
    bool every = true;
    for (int i = 0; i < 32; ++i) {
        every = every && slots[i][0] != 0;
    }
    return every;
}

template <int kBytes>
void copy_async(void* to, void const* from, int32_t row) {
    block().copy_async({to, row >= 0 ? from : nullptr, kBytes});
}
inline void commit_copies() { block().commit(); }
inline void wait_copies() { block().wait(); }

inline uint16_t const* matrix_row(unsigned char const (*slots)[emulator::Warp::kSlot], int i) {
    uint16_t const* row;
    std::memcpy(&row, slots[i], sizeof row);
    return row;
}

inline void load_matrices(uint32_t (&r)[4], void const* row) {
    auto const* slots = block().exchange(&row, sizeof row);
    for (int i = 0; i < 4; ++i) {
        uint16_t const* from = matrix_row(slots, 8 * i + lane() / 4) + 2 * (lane() % 4);
        r[i] = from[0] | static_cast<uint32_t>(from[1]) << 16;
    }
}

inline void load_transposed(uint32_t (&r)[4], void const* row) {
    auto const* slots = block().exchange(&row, sizeof row);
    for (int i = 0; i < 4; ++i) {
        int const first = 8 * i + 2 * (lane() % 4);
        uint32_t const low = matrix_row(slots, first)[lane() / 4];
        uint32_t const high = matrix_row(slots, first + 1)[lane() / 4];
        r[i] = low | high << 16;
    }
}

inline float number(uint16_t bits, __half) {
    __half_raw raw;
    raw.x = bits;
    return __half2float(raw);
}
inline float number(uint16_t bits, __nv_bfloat16) {
    __nv_bfloat16_raw raw;
    raw.x = bits;
    return __bfloat162float(raw);
}

// The operands of one lane: a[0..3], then b0, b1.
struct Operands {
    uint32_t registers[6];
};

template <typename T>
float operand(
    unsigned char const (*slots)[emulator::Warp::kSlot], int lane, int index, int half) {
    uint32_t word;
    std::memcpy(&word, slots[lane] + 4 * index, sizeof word);
    return number(static_cast<uint16_t>(word >> (16 * half)), T{});
}

template <typename T>
void multiply(float (&c)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1, T) {
    need_tensor_cores();
    Operands const mine{{a[0], a[1], a[2], a[3], b0, b1}};
    auto const* slots = block().exchange(&mine, sizeof mine);
    for (int i = 0; i < 4; ++i) {
        int const row = lane() / 4;  // of the upper or the lower eight
        int const lower = i / 2;
        int const column = 2 * (lane() % 4) + i % 2;
        for (int k = 0; k < 16; ++k) {
            int const quad = k % 8 / 2;
            float const x = operand<T>(slots, 4 * row + quad, lower + 2 * (k / 8), k % 2);
            float const y = operand<T>(slots, 4 * column + quad, 4 + k / 8, k % 2);
            c[i] += x * y;
        }
    }
}

// Of fp32 elements, whose lower 13 bits are not looked at.
inline void multiply(float (&c)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1, float) {
    need_tensor_cores();
    Operands const mine{{a[0], a[1], a[2], a[3], b0, b1}};
    auto const* slots = block().exchange(&mine, sizeof mine);
    auto const at = [&](int lane, int index) {
        uint32_t word;
        std::memcpy(&word, slots[lane] + 4 * index, sizeof word);
        word &= 0xFFFFE000U;
        float x;
        std::memcpy(&x, &word, sizeof x);
        return x;
    };
    for (int i = 0; i < 4; ++i) {
        int const row = lane() / 4;
        int const column = 2 * (lane() % 4) + i % 2;
        for (int k = 0; k < 8; ++k) {
            c[i] += at(4 * row + k % 4, i / 2 + 2 * (k / 4)) * at(4 * column + k % 4, 4 + k / 4);
        }
    }
}

}  // namespace ckv::device
