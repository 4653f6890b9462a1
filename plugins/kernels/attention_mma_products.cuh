// The two products of a tile on the tensor cores: queries with keys, weights with values.
//
// An fp32 number is the sum of two that tensor cores can take (TF32, 11 bits each), and a product
// three of theirs: that is right to about 22 bits. Tensor cores cut their sums off instead of
// rounding them. So no sum of theirs goes beyond a tile, and small products have one of their own.
#pragma once

#include "attention_mma_load.cuh"

namespace ckv::mma {

#if CKV_HAS_MMA && (defined(__CUDA_ARCH__) || defined(CKV_EMULATE))

template <typename T>
struct Products {
    // scores [16 queries, events] of the warp, from zeros; register pair i of block n: row
    // lane / 4 + 8 i, events 8 n + 2 (lane % 4) and the next.
    template <int kHead, int kBlocks>
    CKV_DEVICE static void add_scores(float (&scores)[kBlocks][4],
        T const (*query)[Sizes<T, kHead>::kPitch], T const (*key)[Sizes<T, kHead>::kPitch]) {
        int const lane = device::lane();
#pragma unroll
        for (int k = 0; k < kHead; k += 16) {
            uint32_t a[4];
            device::load_matrices(a, &query[lane & 15][k + (lane >> 4) * 8]);
#pragma unroll
            for (int n = 0; n < kBlocks; n += 2) {
                uint32_t b[4];
                int const event = n * 8 + (lane & 7) + (lane >> 4) * 8;
                device::load_matrices(b, &key[event][k + ((lane >> 3) & 1) * 8]);
                device::multiply(scores[n], a, b[0], b[1], T{});
                device::multiply(scores[n + 1], a, b[2], b[3], T{});
            }
        }
    }

    // sums [16 queries, kHead] += weights . values; the layout of scores, columns for events.
    template <int kHead, int kBlocks>
    CKV_DEVICE static void add_values(float (&sums)[kHead / 8][4],
        float const (&weights)[kBlocks][4], T const (*value)[Sizes<T, kHead>::kPitch]) {
        int const lane = device::lane();
#pragma unroll
        for (int n = 0; n < kBlocks; n += 2) {
            uint32_t const a[4] = {pack<T>(weights[n][0], weights[n][1]),
                pack<T>(weights[n][2], weights[n][3]),
                pack<T>(weights[n + 1][0], weights[n + 1][1]),
                pack<T>(weights[n + 1][2], weights[n + 1][3])};
#pragma unroll
            for (int c = 0; c < kHead; c += 16) {
                uint32_t b[4];
                device::load_transposed(b, &value[n * 8 + (lane & 15)][c + (lane >> 4) * 8]);
                device::multiply(sums[c / 8], a, b[0], b[1], T{});
                device::multiply(sums[c / 8 + 1], a, b[2], b[3], T{});
            }
        }
    }
};

// Elements of an fp32 matrix as sums of two TF32 numbers each.
template <int kCount>
struct Halves {
    uint32_t big[kCount], small[kCount];

    CKV_DEVICE void set(int i, float x) {
        big[i] = (bits_as<uint32_t>(x) + 0x1000U) & 0xFFFFE000U;
        small[i] = bits_as<uint32_t>(x - bits_as<float>(big[i]));
    }
};

// large + small += a b.
CKV_DEVICE void multiply(
    float (&large)[4], float (&small)[4], Halves<4> const& a, Halves<2> const& b) {
    device::multiply(small, a.small, b.big[0], b.big[1], float{});
    device::multiply(small, a.big, b.small[0], b.small[1], float{});
    device::multiply(large, a.big, b.big[0], b.big[1], float{});
}

template <>
struct Products<float> {
    // An 8 x 8 matrix of 16 bits is one of 8 x 4 fp32 elements: rows of ldmatrix hold four each.
    template <int kHead, int kBlocks>
    CKV_DEVICE static void add_scores(float (&scores)[kBlocks][4],
        float const (*query)[Sizes<float, kHead>::kPitch],
        float const (*key)[Sizes<float, kHead>::kPitch]) {
        int const lane = device::lane();
        float small[kBlocks][4] = {};
#pragma unroll
        for (int k = 0; k < kHead; k += 16) {
            Halves<4> a[2];
#pragma unroll
            for (int step = 0; step < 2; ++step) {
                uint32_t q[4];
                device::load_matrices(q, &query[lane & 15][k + 8 * step + (lane >> 4) * 4]);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    a[step].set(i, bits_as<float>(q[i]));
                }
            }
#pragma unroll
            for (int n = 0; n < kBlocks; ++n) {
                uint32_t b[4];
                device::load_matrices(b, &key[n * 8 + (lane & 7)][k + (lane >> 3) * 4]);
#pragma unroll
                for (int step = 0; step < 2; ++step) {
                    Halves<2> halves;
                    halves.set(0, bits_as<float>(b[2 * step]));
                    halves.set(1, bits_as<float>(b[2 * step + 1]));
                    multiply(scores[n], small[n], a[step], halves);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 4 * kBlocks; ++i) {
            scores[i / 4][i % 4] += small[i / 4][i % 4];
        }
    }

    // Column t of a weight fragment is event 2 t, column t + 4 event 2 t + 1: in any order of the
    // events the sum is the same, and in this one the accumulators of the scores are operands.
    template <int kHead, int kBlocks>
    CKV_DEVICE static void add_values(float (&sums)[kHead / 8][4],
        float const (&weights)[kBlocks][4], float const (*value)[Sizes<float, kHead>::kPitch]) {
        int const lane = device::lane();
        Halves<4> a[kBlocks];
#pragma unroll
        for (int n = 0; n < kBlocks; ++n) {
            a[n].set(0, weights[n][0]);
            a[n].set(1, weights[n][2]);
            a[n].set(2, weights[n][1]);
            a[n].set(3, weights[n][3]);
        }
#pragma unroll
        for (int c = 0; c < kHead / 8; ++c) {
            float large[4] = {};
            float small[4] = {};
#pragma unroll
            for (int n = 0; n < kBlocks; ++n) {
                int const event = 8 * n + 2 * (lane & 3);
                Halves<2> b;
                b.set(0, value[event][8 * c + lane / 4]);
                b.set(1, value[event + 1][8 * c + lane / 4]);
                multiply(large, small, a[n], b);
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                sums[c][i] += large[i] + small[i];
            }
        }
    }
};

#endif  // CKV_HAS_MMA

}  // namespace ckv::mma
