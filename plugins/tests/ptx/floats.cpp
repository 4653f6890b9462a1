// Floating point.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <limits>

#include "ptx/lanewise.h"

namespace ckv::ptx {
namespace {

// Of a number and a NaN, the number.
struct MaxFloat {
    float operator()(float a, float b) const { return std::fmax(a, b); }
};
struct AddFloat {
    float operator()(float a, float b) const { return a + b; }
};
struct SubtractFloat {
    float operator()(float a, float b) const { return a - b; }
};
struct MultiplyFloat {
    float operator()(float a, float b) const { return a * b; }
};
struct Fma {
    float operator()(float a, float b, float c) const { return std::fma(a, b, c); }
};
struct Reciprocal {
    float operator()(float a) const { return 1.0F / a; }
};
// PTX ISA, div.approx: 0 for divisors beyond 2^126.
struct DivideApproximately {
    float operator()(float a, float b) const {
        return std::fabs(b) > 0x1p126F && std::isfinite(b) ? std::copysign(0.0F, a * b) : a / b;
    }
};
// PTX ISA, ex2.approx.ftz: denormal results are zero.
struct Exp2 {
    float operator()(float a) const {
        float const y = std::exp2(a);
        return y < std::numeric_limits<float>::min() ? 0.0F : y;
    }
};

struct NegateFloat {
    float operator()(float a) const { return -a; }
};

struct LessOrUnordered {
    bool operator()(float a, float b) const { return !(a >= b); }
};

template <typename Half>
struct Narrow {
    uint16_t operator()(float x) const {
        Half const half(x);
        uint16_t bits;
        std::memcpy(&bits, &half, sizeof bits);
        return bits;
    }
};
template <typename Half>
struct Widen {
    float operator()(uint16_t bits) const { return widen<Half>(bits); }
};

}  // namespace

void add_floats(Table& t) {
    t["add.f32"] = {binary<float, AddFloat>, "4"};
    t["sub.f32"] = {binary<float, SubtractFloat>, "4"};
    t["mul.f32"] = {binary<float, MultiplyFloat>, "4"};
    t["fma.rn.f32"] = {ternary<float, Fma>, "4"};
    t["max.f32"] = {binary<float, MaxFloat>, "4"};
    t["selp.f32"] = {select<float>, "4"};
    t["mov.f32"] = {unary<uint32_t, Same>, "4"};
    t["neg.f32"] = {unary<float, NegateFloat>, "4"};
    t["rcp.rn.f32"] = {unary<float, Reciprocal>, "4"};
    t["div.approx.f32"] = {binary<float, DivideApproximately>, "4"};
    t["ex2.approx.ftz.f32"] = {unary<float, Exp2>, "4"};
    t["setp.ltu.f32"] = {compare<float, LessOrUnordered>, "4"};
    t["cvt.rn.f16.f32"] = {unary<float, Narrow<__half>>, "4"};
    t["cvt.rn.bf16.f32"] = {unary<float, Narrow<__nv_bfloat16>>, "4"};
    t["cvt.f32.f16"] = {unary<uint16_t, Widen<__half>>, "4"};
    t["cvt.f32.bf16"] = {unary<uint16_t, Widen<__nv_bfloat16>>, "4"};
}

}  // namespace ckv::ptx
