// One call's tensors on the GPU, made from host inputs; used for checks and for timings.
#pragma once

#include <vector>

#include "ckv/pool_gather_concat.h"
#include "ckv/pooled_attention.h"
#include "device.h"
#include "inputs.h"

namespace ckv::harness {

inline char const* name_of(Dtype dtype) {
    char const* const names[] = {"fp32", "fp16", "bf16"};
    return names[static_cast<int>(dtype)];
}

// How tensors lie: so many elements follow each row of a pool, of a user part or of gather-concat's
// output, and tensors begin so many after an allocation does. Zeros are what TensorRT hands over.
struct Layout {
    int32_t pool_padding = 0, user_padding = 0, out_padding = 0;
    size_t pools = 0, users = 0, others = 0;
};

class Call {
public:
    Call(reference::Inputs const& in, Dtype dtype, Layout const& layout)
        : out(in.query.size() * dtype_bytes(dtype), layout.others * dtype_bytes(dtype)),
          bad(sizeof(unsigned int)), layout_(layout) {
        bad.clear();
        softmax.dtype = dtype;
        softmax.batch = in.shape.batch;
        softmax.queries = in.shape.queries;
        softmax.events = in.shape.events;
        softmax.heads = in.shape.heads;
        softmax.width = in.shape.width;
        softmax.scale = static_cast<float>(in.scale);
        int64_t const width = in.shape.width;
        softmax.query = keep(Buffer::of_rows(dtype, in.query, width, width, layout.others));
        softmax.key = side(in, 0, dtype);
        softmax.value = side(in, 1, dtype);
        softmax.out = out.data();
        softmax.bad_events = bad.as<unsigned int>();
        softmax.mask = static_cast<int32_t const*>(keep(Buffer::of(in.mask, layout.others)));
        static_cast<AttentionArgs&>(pointwise) = softmax;
        pointwise.bias = keep(Buffer::of_rows(dtype, in.bias, 1, 1, layout.others));
        pointwise.visible =
            static_cast<int32_t const*>(keep(Buffer::of(in.visible, layout.others)));
        pointwise.count = keep(Buffer::of(in.count, layout.others));
        workspace = keep(Buffer(attention_workspace(softmax, Tactic::kAuto)));
    }

    // Keys of all events, materialised.
    PoolGatherConcatArgs gather(void* to) const {
        PoolGatherConcatArgs args;
        args.dtype = softmax.dtype;
        args.rows = int64_t{softmax.batch} * softmax.events;
        args.side = softmax.key;
        args.out = to;
        args.out_stride = softmax.width + layout_.out_padding;
        args.bad_rows = softmax.bad_events;
        return args;
    }

    SoftmaxArgs softmax;
    PointwiseArgs pointwise;
    void* workspace = nullptr;
    Buffer out, bad;

private:
    void* keep(Buffer&& buffer) { return kept_.emplace_back(std::move(buffer)).data(); }

    PooledSide side(reference::Inputs const& in, int which, Dtype dtype) {
        PooledSide s;
        s.pool_rows = in.shape.pool_rows;
        s.pool_width = in.shape.pool_width;
        s.user_width = in.shape.width - in.shape.pool_width;
        s.pool_stride = s.pool_width + layout_.pool_padding;
        s.user_stride = s.user_width + layout_.user_padding;
        s.pool = keep(Buffer::of_rows(
            dtype, in.pool[which], s.pool_width, s.pool_stride, layout_.pools));
        s.user = keep(Buffer::of_rows(
            dtype, in.user[which], s.user_width, s.user_stride, layout_.users));
        s.index = static_cast<int32_t const*>(keep(Buffer::of(in.index[which], layout_.others)));
        return s;
    }

    Layout layout_;
    std::vector<Buffer> kept_;
};

// check.cpp: each returns how many checks failed.
int check_all(uint32_t seed, bool quick);
int check_random(uint32_t seed, int shapes);
// timing.cpp
void time_all();

}  // namespace ckv::harness
