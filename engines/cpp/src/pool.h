// A few costly things (execution contexts) that threads take turns with.
#pragma once

#include <ckv/error.h>

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace ckv::detail {

template <typename Slot>
class Pool {
public:
    // Gives its slot back when it goes.
    class Lease {
    public:
        Lease(Pool* pool, std::unique_ptr<Slot> slot, bool held)
            : pool_(pool), slot_(std::move(slot)), held_(held) {}
        Lease(Lease&& other) noexcept = default;
        Lease& operator=(Lease&&) = delete;
        ~Lease() {
            if (slot_ != nullptr) {
                pool_->give_back(std::move(slot_), held_);
            }
        }

        Slot* operator->() const { return slot_.get(); }
        Slot& operator*() const { return *slot_; }

    private:
        Pool* pool_;
        std::unique_ptr<Slot> slot_;
        bool held_;
    };

    // `make` is called, from the thread that needs one, at most `most` times and never at once.
    Pool(std::size_t most, std::function<std::unique_ptr<Slot>()> make)
        : most_(most), make_(std::move(make)) {
        free_.reserve(most);
    }

    // Waits for a slot. Throws kEngine where all are held, since that wait might never end.
    Lease take() { return next(false); }

    // The same for someone who keeps it.
    Lease hold() { return next(true); }

private:
    Lease next(bool held) {
        std::unique_lock lock(mutex_);
        for (;;) {
            if (!free_.empty()) {
                std::unique_ptr<Slot> slot = std::move(free_.back());
                free_.pop_back();
                held_ += held;
                return Lease(this, std::move(slot), held);
            }
            if (made_ < most_) {
                std::unique_ptr<Slot> slot = make_();
                ++made_;
                held_ += held;
                return Lease(this, std::move(slot), held);
            }
            if (held_ == most_) {
                throw Error(ErrorCode::kEngine,
                            "all " + std::to_string(most_) +
                                " contexts are held by captured calls: raise "
                                "EngineOptions::contexts");
            }
            changed_.wait(lock);
        }
    }

    void give_back(std::unique_ptr<Slot> slot, bool held) noexcept {
        {
            std::lock_guard const lock(mutex_);
            held_ -= held;
            free_.push_back(std::move(slot));  // reserved: never throws
        }
        // All: one that waits may have to learn that all are held now.
        changed_.notify_all();
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<std::unique_ptr<Slot>> free_;
    std::size_t const most_;
    std::size_t made_ = 0;
    std::size_t held_ = 0;
    std::function<std::unique_ptr<Slot>()> make_;
};

}  // namespace ckv::detail
