// Joins the spans of a split launch: one block a query, one thread a column.
#include "attention.cuh"
#include "attention_dispatch.cuh"

namespace ckv {
namespace {

constexpr int kThreads = 128;

// 2^(peak of the span - highest peak) makes spans comparable; the pointwise form only adds.
template <typename T, Form kForm>
CKV_DEVICE void combine_column(KernelArgs const& p, int64_t query_row, int column) {
    int const head = column / p.head_width;
    auto const in_heads = [&](int split) {
        return partial_row(p, split, query_row) * p.a.heads + head;
    };
    float highest = -INFINITY;
    if constexpr (kForm == Form::kSoftmax) {
        for (int s = 0; s < p.split.count; ++s) {
            highest = fmaxf(highest, p.peaks[in_heads(s)]);
        }
    }
    float sum = 0.0F;
    float total = 0.0F;
    for (int s = 0; s < p.split.count; ++s) {
        float weight = 1.0F;
        if constexpr (kForm == Form::kSoftmax) {
            weight = device::exp2_(p.peaks[in_heads(s)] - highest);
            total += weight * p.totals[in_heads(s)];
        }
        sum += weight * p.sums[partial_row(p, s, query_row) * p.a.width + column];
    }
    static_cast<T*>(p.a.out)[query_row * p.a.width + column] =
        from_float<T>(sum * divided<T, kForm>(p, query_row, total));
}

template <typename T, Form kForm>
CKV_KERNEL(kThreads) combine_kernel(KernelArgs p) {
    int64_t const query_row = device::block_x();
    for (int column = device::thread(); column < p.a.width; column += kThreads) {
        combine_column<T, kForm>(p, query_row, column);
    }
}

template <typename T>
cudaError_t combine_of(KernelArgs const& p, Form form, cudaStream_t stream) {
    auto* kernel = form == Form::kSoftmax ? combine_kernel<T, Form::kSoftmax>
                                          : combine_kernel<T, Form::kPointwise>;
    return launch(kernel, Grid{int64_t{p.a.batch} * p.a.queries}, kThreads, 0, stream, p);
}

}  // namespace

cudaError_t combine(KernelArgs const& p, Form form, cudaStream_t stream) {
    switch (p.a.dtype) {
        case Dtype::kFloat32: return combine_of<float>(p, form, stream);
        case Dtype::kFloat16: return combine_of<__half>(p, form, stream);
        case Dtype::kBFloat16: return combine_of<__nv_bfloat16>(p, form, stream);
    }
    return cudaErrorInvalidValue;
}

}  // namespace ckv
