#include "aot_run.h"

#include "aot/attention_entry.cuh"
#include "aot/gather_entry.cuh"
#include "emulator/tensors.h"

namespace {
// nvcc compiles the scale in; here it changes from call to call.
float scale_now = 1.0F;
}  // namespace

CKV_AOT_GATHER(gather_4, 4)
CKV_AOT_GATHER(gather_2, 2)

#define CKV_EACH_TILE(form, T, name)                                                              \
    form(name##_1_32, T, 1, 32) form(name##_4_32, T, 4, 32) form(name##_1_128, T, 1, 128)         \
        form(name##_4_128, T, 4, 128)
#define CKV_SOFTMAX(name, T, rows, values) CKV_AOT_SOFTMAX(name, T, rows, values, scale_now)
#define CKV_POINTWISE(name, T, rows, values)                                                      \
    CKV_AOT_POINTWISE(name, T, rows, values, scale_now, true)
#define CKV_NARROW_COUNT(name, T, rows, values)                                                   \
    CKV_AOT_POINTWISE(name, T, rows, values, scale_now, false)

CKV_EACH_TILE(CKV_SOFTMAX, float, softmax_0)
CKV_EACH_TILE(CKV_SOFTMAX, __half, softmax_1)
CKV_EACH_TILE(CKV_SOFTMAX, __nv_bfloat16, softmax_2)
CKV_EACH_TILE(CKV_POINTWISE, float, pointwise_0)
CKV_EACH_TILE(CKV_POINTWISE, __half, pointwise_1)
CKV_EACH_TILE(CKV_POINTWISE, __nv_bfloat16, pointwise_2)
CKV_EACH_TILE(CKV_NARROW_COUNT, __half, narrow_1)
CKV_EACH_TILE(CKV_NARROW_COUNT, __nv_bfloat16, narrow_2)

namespace ckv::emulator {
namespace {

using Softmax = decltype(&softmax_0_1_32);
using Pointwise = decltype(&pointwise_0_1_32);
using Gather = decltype(&gather_4);

#define CKV_CHOICE(name)                                                                          \
    { name##_1_32, name##_4_32, name##_1_128, name##_4_128 }
constexpr Softmax kSoftmax[3][4] = {
    CKV_CHOICE(softmax_0), CKV_CHOICE(softmax_1), CKV_CHOICE(softmax_2)};
constexpr Pointwise kPointwise[2][3][4] = {
    {CKV_CHOICE(pointwise_0), CKV_CHOICE(narrow_1), CKV_CHOICE(narrow_2)},
    {CKV_CHOICE(pointwise_0), CKV_CHOICE(pointwise_1), CKV_CHOICE(pointwise_2)}};

int choice(AotLaunch const& launch) { return (launch.tile == 4) + 2 * (launch.values == 128); }

// A kernel's arguments as the one struct that the emulator's launch hands over.
template <typename Kernel>
struct Call {
    Kernel kernel;
    void const* in[10];
    int32_t const* n;
    void* out;
};

int32_t const* whole(void const* p) { return static_cast<int32_t const*>(p); }

void run_gather(Call<Gather> c) {
    c.kernel(c.in[0], whole(c.in[1]), c.in[2], c.n[0], c.n[1], c.n[2], c.n[3], c.n[4], c.out);
}
void run_softmax(Call<Softmax> c) {
    auto const& i = c.in;
    int32_t const* n = c.n;
    c.kernel(i[0], i[1], whole(i[2]), i[3], i[4], whole(i[5]), i[6], whole(i[7]), n[0], n[1], n[2],
        n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], c.out);
}
void run_pointwise(Call<Pointwise> c) {
    auto const& i = c.in;
    int32_t const* n = c.n;
    c.kernel(i[0], i[1], whole(i[2]), i[3], i[4], whole(i[5]), i[6], i[7], whole(i[8]), i[9], n[0],
        n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], c.out);
}

template <typename Kernel>
int32_t start(void (*run)(Call<Kernel>), AotLaunch const& l, Call<Kernel> const& call) {
    Grid const grid{l.grid[0], l.grid[1], l.grid[2]};
    return launch(run, grid, l.threads, static_cast<size_t>(l.shared_bytes), nullptr, call);
}

template <typename Kernel>
void set_rows(Call<Kernel>& call, Device& device, reference::Attention const& a) {
    scale_now = static_cast<float>(a.scale);
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

template <typename Kernel>
int32_t finish(void (*run)(Call<Kernel>), AotLaunch const& launch, Call<Kernel>& call,
    Device& device, reference::Attention const& a) {
    int64_t const elements = int64_t{a.batch} * a.queries * a.width;
    int64_t const bytes = dtype_bytes(device.dtype());
    char* const result = device.raw(elements * bytes);
    call.out = result;
    call.n = launch.numbers;
    int32_t const status = start(run, launch, call);
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
    Call<Gather> const call{bytes == 4 ? gather_4 : gather_2, {s.pool, s.index, s.user},
        launch->numbers, result};
    int32_t const status = start(run_gather, *launch, call);
    for (int64_t i = 0; i < elements; ++i) {
        out[i] = reference::get(device.dtype(), result + i * bytes);
    }
    return status;
}

int32_t ckv_emulated_aot_pooled_attention(Options const* options, AotLaunch const* launch,
    reference::Attention const* a, int32_t const* mask) {
    Device device(*options);
    Call<Softmax> call{kSoftmax[options->dtype][choice(*launch)], {}, nullptr, nullptr};
    set_rows(call, device, *a);
    call.in[7] = device.plain(mask, int64_t{a->batch} * a->events);
    return finish(run_softmax, *launch, call, device, *a);
}

int32_t ckv_emulated_aot_pooled_pointwise_attention(Options const* options,
    AotLaunch const* launch, reference::Attention const* a, float const* bias,
    int32_t const* visible, float const* count) {
    Device device(*options);
    bool const wide = launch->float_count != 0 || device.dtype() == Dtype::kFloat32;
    Call<Pointwise> call{
        kPointwise[wide][options->dtype][choice(*launch)], {}, nullptr, nullptr};
    set_rows(call, device, *a);
    int64_t const queries = int64_t{a->batch} * a->queries;
    call.in[7] = device.rows(bias, queries, a->events, 0);
    call.in[8] = device.plain(visible, queries * a->events);
    call.in[9] = wide ? device.plain(count, queries) : device.rows(count, queries, 1, 0);
    return finish(run_pointwise, *launch, call, device, *a);
}

int64_t ckv_aot_shared_bytes(int32_t tile, int32_t values) {
    if (values == 32) {
        return tile == 1 ? sizeof(cores::Shared<1, 32>) : sizeof(cores::Shared<4, 32>);
    }
    return tile == 1 ? sizeof(cores::Shared<1, 128>) : sizeof(cores::Shared<4, 128>);
}
}

}  // namespace ckv::emulator
