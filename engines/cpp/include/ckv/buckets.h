// Which sizes a graph takes, and which of a few prepared sizes to use.
#pragma once

#include <ckv/tensor.h>

#include <cstddef>
#include <string>
#include <vector>

namespace ckv {

// Throws kShape, naming an input and its axis, unless `profile` holds every size that the graph's
// inputs have.
void check_sizes(GraphSpec const& graph, Profile const& profile, Sizes const& sizes);

// Position of the first profile that holds the sizes. Throws kShape as `check_sizes` does for the
// last one.
std::size_t choose_profile(GraphSpec const& graph, std::vector<Profile> const& profiles,
                           Sizes const& sizes);

// A few sizes that calls are padded to, so that captured CUDA graphs can be replayed.
//
// Of T (appended events) only exact sizes are used: a masked appended event takes a place in the
// window of a target-attention model.
class Buckets {
public:
    // Throws kShape for no bucket, or buckets that name different axes.
    explicit Buckets(std::vector<Sizes> buckets);

    // Position of the bucket with the fewest input bytes of `graph` that holds `sizes`. Throws
    // kShape where none does.
    std::size_t choose(GraphSpec const& graph, Sizes const& sizes) const;

    Sizes const& operator[](std::size_t position) const { return buckets_[position]; }
    std::size_t size() const { return buckets_.size(); }

private:
    std::vector<Sizes> buckets_;
};

}  // namespace ckv
