// Attention on the tensor cores (mma, sm_80 and later), heads up to 256.
//
// A warp owns 16 queries; the warps of a block share each tile of gathered keys and values in
// shared memory. Scores stay in registers: the accumulator layout of one product is the operand
// layout of the next. While a tile is worked on, the rows of the next one arrive (cp.async, two
// stages). Sums are fp32; weights are rounded to T before they meet the values.
#pragma once

#include "attention_mma_products.cuh"
#include "launch.h"

namespace ckv::mma {

#if CKV_HAS_MMA && (defined(__CUDA_ARCH__) || defined(CKV_EMULATE))

// Over the four lanes that share a row.
CKV_DEVICE float quad_max(float x) {
    x = fmaxf(x, device::shuffle_xor(x, 1));
    return fmaxf(x, device::shuffle_xor(x, 2));
}
CKV_DEVICE float quad_sum(float x) {
    x += device::shuffle_xor(x, 1);
    return x + device::shuffle_xor(x, 2);
}

struct Softmax {
    float peak[2];
    float total[2];  // of this lane's events only, until the end
};

// Whether every event of the tile is seen: the same answer in the whole warp.
template <int kEvents>
CKV_DEVICE bool all_seen(int32_t const (&state)[kEvents]) {
    bool seen = true;
    for (int r = device::lane(); r < kEvents; r += 32) {
        seen = seen && state[r] == kSeen;
    }
    return device::all(seen);
}

// Scores -> weights under the rows' new peaks; what was summed under the old ones is rescaled.
// kPlain: every event is seen and `scale` is not negative, so the highest score is the highest
// logit, and one multiply-add makes an exponent of a score.
template <bool kPlain, int kBlocks, int kColumns>
CKV_DEVICE void softmax_step(float (&scores)[kBlocks][4], float (&sums)[kColumns][4],
    Softmax& running, int32_t const* state, float scale) {
    int const first = 2 * (device::lane() & 3);
    float const to_log2 = scale * kLog2E;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        float highest = -INFINITY;
#pragma unroll
        for (int i = 0; i < 2 * kBlocks; ++i) {
            float& x = scores[i / 2][2 * row + i % 2];
            if constexpr (!kPlain) {
                int32_t const s = state[i / 2 * 8 + first + i % 2];
                x = s == kSeen ? x * to_log2 : (s == kMasked ? kMaskedLog2 : -INFINITY);
            }
            highest = fmaxf(highest, x);
        }
        // Every tile holds an event of the span, so the peak is finite from the first tile on.
        highest = quad_max(highest);
        float const peak = fmaxf(running.peak[row], kPlain ? highest * to_log2 : highest);
        float const shrink = device::exp2_(running.peak[row] - peak);
        float total = running.total[row] * shrink;
#pragma unroll
        for (int i = 0; i < 2 * kBlocks; ++i) {
            float& x = scores[i / 2][2 * row + i % 2];
            x = device::exp2_(kPlain ? x * to_log2 - peak : x - peak);
            total += x;
        }
        running.peak[row] = peak;
        running.total[row] = total;
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
            sums[c][2 * row] *= shrink;
            sums[c][2 * row + 1] *= shrink;
        }
    }
}

template <typename T, int kBlocks>
CKV_DEVICE void pointwise_step(float (&scores)[kBlocks][4], KernelArgs const& p, int32_t batch,
    int32_t first_query, int32_t first_event, int32_t const* state) {
    int const first = 2 * (device::lane() & 3);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        int const query = first_query + device::lane() / 4 + 8 * row;
        int64_t const query_row = int64_t{batch} * p.a.queries + query;
        Pairing<T> pairings[2 * kBlocks];
#pragma unroll
        for (int i = 0; i < 2 * kBlocks; ++i) {
            int const e = i / 2 * 8 + first + i % 2;
            bool const exists = query < p.a.queries && state[e] == kSeen;
            pairings[i] = read_pairing<T>(p, query_row, first_event + e, exists);
        }
#pragma unroll
        for (int i = 0; i < 2 * kBlocks; ++i) {
            float& x = scores[i / 2][2 * row + i % 2];
            x = pointwise_weight(pairings[i], x * p.a.scale);
        }
    }
}

#endif  // CKV_HAS_MMA

}  // namespace ckv::mma
