#include "aot_run.h"

#include "aot/attention_entry.cuh"
#include "aot/gather_entry.cuh"
#include "emulator/tensors.h"

CKV_AOT_GATHER(gather_4, 4)
CKV_AOT_GATHER(gather_2, 2)

namespace ckv::emulator {
namespace {

// A kernel's arguments as the one struct that the emulator's launch hands over.
struct Call {
    void (*thread)(Call const&) = nullptr;  // what one thread of the kernel does
    float scale = 1.0F;
    bool float_count = true;
    void const* in[10]{};
    int32_t const* n = nullptr;
    void* out = nullptr;
};

int32_t const* whole(void const* p) { return static_cast<int32_t const*>(p); }

aot::Rows rows_of(Call const& c) {
    auto const& i = c.in;
    return {i[0], i[1], whole(i[2]), i[3], i[4], whole(i[5]), i[6]};
}

aot::Sizes sizes_of(Call const& c) {
    int32_t const* n = c.n;
    return {n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10]};
}

template <auto kKernel>
void gather_thread(Call const& c) {
    kKernel(c.in[0], whole(c.in[1]), c.in[2], c.n[0], c.n[1], c.n[2], c.n[3], c.n[4], c.out);
}
template <Form kForm, typename Block>
void attention_thread(Call const& c) {
    if constexpr (kForm == Form::kSoftmax) {
        aot::softmax<Block>(c.scale, rows_of(c), whole(c.in[7]), sizes_of(c), c.out);
    } else {
        aot::pointwise<Block>(c.scale, c.float_count, rows_of(c), c.in[7], whole(c.in[8]),
            c.in[9], sizes_of(c), c.out);
    }
}

using Thread = void (*)(Call const&);

// The most warps whose tiles fit into what a block has without asking; 0 where none do.
template <typename T, int kHead, int kWarps = mma::Sizes<T, kHead>::kMostWarps>
constexpr int warps_of() {
    if constexpr (kWarps == 0) {
        return 0;
    } else if constexpr (sizeof(mma::Shared<T, kHead, kWarps>) <= 48 * 1024) {
        return kWarps;
    } else {
        return warps_of<T, kHead, kWarps / 2>();
    }
}

template <typename T, Form kForm, int kHead>
Thread tensor_cores(AotLaunch const& launch) {
    constexpr int kWarps = warps_of<T, kHead>();
    if constexpr (kWarps > 0) {
        if (launch.warps == kWarps) {
            return attention_thread<kForm, aot::TensorCores<T, kForm, kHead, kWarps>>;
        }
    }
    return nullptr;
}

template <typename T, Form kForm, int kValues>
Thread cores(AotLaunch const& launch) {
    switch (launch.tile) {
        case 1: return attention_thread<kForm, aot::Cores<T, kForm, 1, kValues>>;
        case 4: return attention_thread<kForm, aot::Cores<T, kForm, 4, kValues>>;
        default: return nullptr;
    }
}

template <typename T, Form kForm>
Thread block_of(AotLaunch const& launch) {
    switch (launch.head) {
        case 32: return tensor_cores<T, kForm, 32>(launch);
        case 64: return tensor_cores<T, kForm, 64>(launch);
        case 128: return tensor_cores<T, kForm, 128>(launch);
        case 256: return tensor_cores<T, kForm, 256>(launch);
        default: break;
    }
    return launch.values == 32 ? cores<T, kForm, 32>(launch) : cores<T, kForm, 128>(launch);
}

template <Form kForm>
Thread attention_of(Dtype dtype, AotLaunch const& launch) {
    switch (dtype) {
        case Dtype::kFloat32: return block_of<float, kForm>(launch);
        case Dtype::kFloat16: return block_of<__half, kForm>(launch);
        case Dtype::kBFloat16: return block_of<__nv_bfloat16, kForm>(launch);
    }
    return nullptr;
}

void run(Call call) { call.thread(call); }

int32_t start(AotLaunch const& l, Call const& call) {
    if (call.thread == nullptr) {
        return cudaErrorInvalidValue;
    }
    Grid const grid{l.grid[0], l.grid[1], l.grid[2]};
    return launch(run, grid, l.threads, static_cast<size_t>(l.shared_bytes), nullptr, call);
}

void set_rows(Call& call, Device& device, reference::Attention const& a) {
    call.scale = static_cast<float>(a.scale);
    int64_t const events = int64_t{a.batch} * a.events;
    call.in[0] = device.rows(a.query, int64_t{a.batch} * a.queries, a.width, 0);
    int next = 1;
    for (reference::Side const* part : {&a.key, &a.value}) {
        PooledSide const side = device.side(*part, events);
        call.in[next++] = side.pool;
        call.in[next++] = side.index;
        call.in[next++] = side.user;
    }
}

int32_t finish(
    AotLaunch const& launch, Call& call, Device& device, reference::Attention const& a) {
    int64_t const elements = int64_t{a.batch} * a.queries * a.width;
    int64_t const bytes = dtype_bytes(device.dtype());
    char* const result = device.raw(elements * bytes);
    call.out = result;
    call.n = launch.numbers;
    int32_t const status = start(launch, call);
    for (int64_t i = 0; i < elements; ++i) {
        a.out[i] = reference::get(device.dtype(), result + i * bytes);
    }
    return status;
}

}  // namespace

extern "C" {

int32_t ckv_emulated_aot_pool_gather_concat(Options const* options, AotLaunch const* launch,
    reference::Side const* side, int64_t rows, float* out) {
    Device device(*options);
    PooledSide const s = device.side(*side, rows);
    int64_t const bytes = dtype_bytes(device.dtype());
    int64_t const elements = rows * s.width();
    char* const result = device.raw(elements * bytes);
    Call call;
    call.thread = bytes == 4 ? gather_thread<gather_4> : gather_thread<gather_2>;
    call.in[0] = s.pool;
    call.in[1] = s.index;
    call.in[2] = s.user;
    call.n = launch->numbers;
    call.out = result;
    int32_t const status = start(*launch, call);
    for (int64_t i = 0; i < elements; ++i) {
        out[i] = reference::get(device.dtype(), result + i * bytes);
    }
    return status;
}

int32_t ckv_emulated_aot_pooled_attention(Options const* options, AotLaunch const* launch,
    reference::Attention const* a, int32_t const* mask) {
    Device device(*options);
    Call call;
    call.thread = attention_of<Form::kSoftmax>(device.dtype(), *launch);
    set_rows(call, device, *a);
    call.in[7] = device.plain(mask, int64_t{a->batch} * a->events);
    return finish(*launch, call, device, *a);
}

int32_t ckv_emulated_aot_pooled_pointwise_attention(Options const* options,
    AotLaunch const* launch, reference::Attention const* a, float const* bias,
    int32_t const* visible, float const* count) {
    Device device(*options);
    bool const wide = launch->float_count != 0 || device.dtype() == Dtype::kFloat32;
    Call call;
    call.thread = attention_of<Form::kPointwise>(device.dtype(), *launch);
    call.float_count = wide;
    set_rows(call, device, *a);
    int64_t const queries = int64_t{a->batch} * a->queries;
    call.in[7] = device.rows(bias, queries, a->events, 0);
    call.in[8] = device.plain(visible, queries * a->events);
    call.in[9] = wide ? device.plain(count, queries) : device.rows(count, queries, 1, 0);
    return finish(*launch, call, device, *a);
}

int64_t ckv_aot_shared_bytes(int32_t tile, int32_t values) {
    if (values == 32) {
        return tile == 1 ? sizeof(cores::Shared<1, 32>) : sizeof(cores::Shared<4, 32>);
    }
    return tile == 1 ? sizeof(cores::Shared<1, 128>) : sizeof(cores::Shared<4, 128>);
}

int64_t ckv_aot_tensor_core_block(int32_t element_bytes, int32_t head, int32_t* warps) {
    auto const answer = [&](auto element, auto columns) -> int64_t {
        using T = decltype(element);
        constexpr int kHead = decltype(columns)::value;
        constexpr int kWarps = warps_of<T, kHead>();
        *warps = kWarps;
        if constexpr (kWarps > 0) {
            return sizeof(mma::Shared<T, kHead, kWarps>);
        }
        return 0;
    };
    auto const of_head = [&](auto columns) {
        return element_bytes == 4 ? answer(float{}, columns) : answer(__half{}, columns);
    };
    switch (head) {
        case 32: return of_head(std::integral_constant<int, 32>{});
        case 64: return of_head(std::integral_constant<int, 64>{});
        case 128: return of_head(std::integral_constant<int, 128>{});
        default: return of_head(std::integral_constant<int, 256>{});
    }
}
}

}  // namespace ckv::emulator
