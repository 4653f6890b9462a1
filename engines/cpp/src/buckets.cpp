#include <ckv/buckets.h>
#include <ckv/error.h>

#include <limits>

namespace ckv {
namespace {

// The reason why `profile` doesn't hold `sizes`; empty where it does.
std::string misfit(GraphSpec const& graph, Profile const& profile, Sizes const& sizes) {
    for (TensorSpec const& input : graph.inputs) {
        auto const shape = input.shape(sizes);
        for (std::size_t i = 0; i < shape.size(); ++i) {
            std::string const& axis = input.axes[i].name;
            auto const range = profile.find(axis);
            if (range != profile.end() && !range->second.holds(shape[i])) {
                return "input '" + input.name + "' of " + graph.name + " has " + axis + " = " +
                       std::to_string(shape[i]) + ", the engine takes " +
                       std::to_string(range->second.min) + " to " +
                       std::to_string(range->second.max);
            }
        }
    }
    return {};
}

bool holds(Sizes const& bucket, Sizes const& sizes) {
    for (auto const& [axis, size] : sizes) {
        auto const found = bucket.find(axis);
        if (found == bucket.end() || found->second < size ||
            (axis == "T" && found->second != size)) {
            return false;
        }
    }
    return true;
}

}  // namespace

void check_sizes(GraphSpec const& graph, Profile const& profile, Sizes const& sizes) {
    std::string const reason = misfit(graph, profile, sizes);
    if (!reason.empty()) {
        throw Error(ErrorCode::kShape,
                    reason + ": build an engine for that range (ckv-export build)");
    }
}

std::size_t choose_profile(GraphSpec const& graph, std::vector<Profile> const& profiles,
                           Sizes const& sizes) {
    for (std::size_t i = 0; i < profiles.size(); ++i) {
        if (misfit(graph, profiles[i], sizes).empty()) {
            return i;
        }
    }
    if (profiles.empty()) {
        throw Error(ErrorCode::kShape, "an engine of " + graph.name + " has no profile");
    }
    check_sizes(graph, profiles.back(), sizes);
    return 0;  // not reached
}

Buckets::Buckets(std::vector<Sizes> buckets) : buckets_(std::move(buckets)) {
    if (buckets_.empty()) {
        throw Error(ErrorCode::kShape, "there must be a bucket at least");
    }
    for (Sizes const& bucket : buckets_) {
        for (auto const& [axis, size] : buckets_.front()) {
            if (bucket.count(axis) == 0 || bucket.size() != buckets_.front().size() || size < 0) {
                throw Error(ErrorCode::kShape,
                            "buckets must name the same axes, with sizes of 0 or more");
            }
        }
    }
}

std::size_t Buckets::choose(GraphSpec const& graph, Sizes const& sizes) const {
    std::size_t best = buckets_.size();
    std::size_t least = std::numeric_limits<std::size_t>::max();
    for (std::size_t i = 0; i < buckets_.size(); ++i) {
        if (!holds(buckets_[i], sizes)) {
            continue;
        }
        std::size_t bytes = 0;
        for (TensorSpec const& input : graph.inputs) {
            bytes += input.bytes(buckets_[i]);
        }
        if (bytes < least) {
            best = i;
            least = bytes;
        }
    }
    if (best == buckets_.size()) {
        std::string wanted;
        for (auto const& [axis, size] : sizes) {
            wanted += (wanted.empty() ? "" : ", ") + axis + " = " + std::to_string(size);
        }
        throw Error(ErrorCode::kShape, "no bucket holds " + wanted);
    }
    return best;
}

}  // namespace ckv
