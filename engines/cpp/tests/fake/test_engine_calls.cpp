// What ckv::Engine asks of TensorRT and CUDA:  test_engine_calls SCRATCH-FOLDER
#include <chrono>
#include <thread>

#include "requests.h"

namespace {

void sizes_outside_every_profile(ckv::Bundle const& bundle) {
    ckv::Engine engine(bundle, "decode", with_contexts(0));  // one all the same
    int const before = fake::calls;
    for (auto const& [axis, words] : std::map<std::string, std::string>{
             {"C", "candidate_item_id' of decode has C = 17, the engine takes 5 to 9"},
             {"S", "history_mask' of decode has S = 17, the engine takes 0 to 16"},
             {"B", "cache_k_index' of decode has B = 0, the engine takes 1 to 8"}}) {
        Request request(engine.graph(), 1, 1, 1);
        request.sizes[axis] = axis == "B" ? 0 : 17;
        refuses(ErrorCode::kShape, words,
                [&] { engine.enqueue(request.sizes, request.buffers, nullptr); });
    }
    cudaStreamSynchronize(nullptr);
    CHECK(fake::calls == before);
    Request request(engine.graph(), 1, 1, 0);  // tensors without elements are null
    std::mt19937 random(1);
    request.draw(random);
    engine.enqueue(request.sizes, request.buffers, nullptr);
    cudaStreamSynchronize(nullptr);
    CHECK(request.is_right() && fake::calls == before + 1);
    cudaStream_t const stream = fake::make_stream();
    {
        ckv::CapturedCall const held(engine, request.sizes, request.buffers, stream);
        refuses(ErrorCode::kEngine, "all 1 contexts are held",
                [&] { engine.enqueue(request.sizes, request.buffers, nullptr); });
    }
    fake::destroy_stream(stream);
}

// More workers than contexts, each with its stream, sizes of both profiles in turn; a worker has two
// calls under way at a time.
void many_workers(ckv::Bundle const& bundle) {
    ckv::Engine engine(bundle, "decode", with_contexts(3));
    std::vector<std::thread> workers;
    for (unsigned worker = 0; worker < 6; ++worker) {
        workers.emplace_back([&engine, worker] {
            std::mt19937 random(worker);
            cudaStream_t const streams[] = {fake::make_stream(), fake::make_stream()};
            for (int i = 0; i < 60; ++i) {
                auto const draw = [&](std::int64_t least, std::int64_t most) {
                    return least + static_cast<std::int64_t>(random()) % (most - least + 1);
                };
                Request first(engine.graph(), draw(1, 8), draw(1, 9), draw(0, 16));
                Request second(engine.graph(), draw(1, 8), draw(1, 9), draw(0, 16));
                first.draw(random);
                second.draw(random);
                engine.enqueue(first.sizes, first.buffers, streams[0]);
                engine.enqueue(second.sizes, second.buffers, streams[1]);
                cudaStreamSynchronize(streams[0]);
                cudaStreamSynchronize(streams[1]);
                CHECK(first.is_right() && second.is_right());
            }
            fake::destroy_stream(streams[0]);
            fake::destroy_stream(streams[1]);
        });
    }
    for (std::thread& worker : workers) {
        worker.join();
    }
    CHECK(fake::contexts >= 1 && fake::contexts <= 3);
}

void captured_calls(ckv::Bundle const& bundle) {
    std::mt19937 random(5);
    cudaStream_t const stream = fake::make_stream(), other = fake::make_stream();
    {
        ckv::Engine engine(bundle, "decode", with_contexts(2));
        Request small(engine.graph(), 1, 2, 4), large(engine.graph(), 8, 9, 16);
        ckv::CapturedCall captured(engine, large.sizes, large.buffers, stream);
        for (int i = 0; i < 30; ++i) {
            large.draw(random);
            small.draw(random);
            captured.launch(i % 2 == 0 ? stream : other);
            engine.enqueue(small.sizes, small.buffers, i % 3 == 0 ? stream : other);
            cudaStreamSynchronize(stream);
            cudaStreamSynchronize(other);
            CHECK(large.is_right() && small.is_right());
        }
        // On two streams, without waiting in between: one context, so one after the other.
        large.draw(random);
        for (int i = 0; i < 20; ++i) {
            captured.launch(i % 2 == 0 ? stream : other);
        }
        refuses(ErrorCode::kCuda, "on the default stream nothing can be", [&] {
            ckv::CapturedCall(engine, small.sizes, small.buffers, nullptr);
        });
        Request wide(engine.graph(), 1, 1, 1);
        wide.sizes["B"] = 9;
        refuses(ErrorCode::kShape, "has B = 9",
                [&] { ckv::CapturedCall(engine, wide.sizes, wide.buffers, stream); });
        {
            ckv::CapturedCall second(engine, small.sizes, small.buffers, stream);
            refuses(ErrorCode::kEngine, "all 2 contexts are held",
                    [&] { engine.enqueue(small.sizes, small.buffers, stream); });
            second.launch(other);
        }
        small.draw(random);
        engine.enqueue(small.sizes, small.buffers, stream);
        cudaStreamSynchronize(stream);
        CHECK(small.is_right());
        captured.launch(other);  // under way when all of it goes
    }
    CHECK(fake::contexts == 0);
    fake::destroy_stream(stream);
    fake::destroy_stream(other);
}

// A context whose call failed is used again behind what that call had put on its stream: its
// kernels, or the change to its profile alone.
void a_call_that_fails(ckv::Bundle const& bundle, std::string const& function) {
    std::mt19937 random(8);
    cudaStream_t const stream = fake::make_stream(), other = fake::make_stream();
    {
        ckv::Engine engine(bundle, "decode");
        Request first(engine.graph(), 8, 9, 16), second(engine.graph(), 8, 9, 16);
        second.draw(random);
        std::atomic<bool> free{false};
        fake::put(stream, [&] {
            while (!free) {
                std::this_thread::yield();
            }
        });
        int const before = fake::calls;
        fake::settings.fails = function;
        refuses(ErrorCode::kEngine, "",
                [&] { engine.enqueue(first.sizes, first.buffers, stream); });
        fake::settings = {};
        engine.enqueue(second.sizes, second.buffers, other);
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        CHECK(fake::calls == before);
        free = true;
        cudaStreamSynchronize(other);
        CHECK(second.is_right());
    }
    fake::destroy_stream(stream);
    fake::destroy_stream(other);
}

void a_thread_with_another_gpu(ckv::Bundle const& bundle) {
    ckv::Engine engine(bundle, "decode");
    Request request(engine.graph(), 1, 1, 1);
    cudaStream_t const stream = fake::make_stream();
    auto captured =
        std::make_unique<ckv::CapturedCall>(engine, request.sizes, request.buffers, stream);
    int const before = fake::calls;
    std::thread([&] {
        fake::gpu = 0;
        refuses(ErrorCode::kCuda, "the engine is on GPU 3", [&] { captured->launch(stream); });
        refuses(ErrorCode::kCuda, "the engine is on GPU 3, this thread's is 0: call cudaSetDevice",
                [&] { engine.enqueue(request.sizes, request.buffers, nullptr); });
        refuses(ErrorCode::kCuda, "the engine is on GPU 3",
                [&] { ckv::CapturedCall(engine, request.sizes, request.buffers, nullptr); });
    }).join();
    captured.reset();
    fake::destroy_stream(stream);
    CHECK(fake::calls == before && fake::contexts == 1);
}

// What was enqueued is finished before the contexts go.
void an_engine_waits_for_its_calls(ckv::Bundle const& bundle) {
    std::mt19937 random(7);
    cudaStream_t const stream = fake::make_stream();
    std::vector<std::unique_ptr<Request>> requests;
    {
        ckv::Engine engine(bundle, "decode", with_contexts(2));
        for (int i = 0; i < 10; ++i) {
            requests.push_back(std::make_unique<Request>(engine.graph(), 8, 9, 16));
            requests.back()->draw(random);
            engine.enqueue(requests.back()->sizes, requests.back()->buffers, stream);
        }
    }
    for (auto const& request : requests) {
        CHECK(request->is_right());
    }
    fake::destroy_stream(stream);
}

// A captured call keeps its engine's parts alive.
void the_engine_goes_first(ckv::Bundle const& bundle) {
    std::mt19937 random(6);
    cudaStream_t const stream = fake::make_stream();
    auto engine = std::make_unique<ckv::Engine>(bundle, "decode");
    Request request(engine->graph(), 2, 3, 4);
    {
        ckv::CapturedCall captured(*engine, request.sizes, request.buffers, stream);
        engine.reset();
        request.draw(random);
        captured.launch(stream);
        cudaStreamSynchronize(stream);
        CHECK(request.is_right());
    }
    CHECK(fake::contexts == 0);
    fake::destroy_stream(stream);
}

}  // namespace

int main(int argc, char** argv) {
    CHECK(argc == 2);
    ckv::Bundle const bundle = make_bundle(fs::path(argv[1]) / "good", "plan");
    sizes_outside_every_profile(bundle);
    a_call_that_fails(bundle, "enqueueV3");
    a_call_that_fails(bundle, "setTensorAddress score");
    a_thread_with_another_gpu(bundle);
    many_workers(bundle);
    CHECK(fake::contexts == 0);
    captured_calls(bundle);
    the_engine_goes_first(bundle);
    an_engine_waits_for_its_calls(bundle);
    CHECK(fake::violations == 0 && fake::objects == 0);
    CHECK(fake::calls > 700);
}
