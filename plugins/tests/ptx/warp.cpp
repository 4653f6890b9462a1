#include "ptx/warp.h"

#include <algorithm>

namespace ckv::ptx {

Warp::Warp(Program const& program, int first_thread)
    : program_(program), first_thread_(first_thread),
      file_(static_cast<size_t>(program.file_bytes)), copies_(kLanes) {
    for (Constant const& c : program.constants) {
        for (int lane = 0; lane < kLanes; ++lane) {
            if (c.wide) {
                put<uint64_t>(c.row, lane, c.bits);
            } else {
                put<uint32_t>(c.row, lane, static_cast<uint32_t>(c.bits));
            }
        }
    }
}

void Warp::begin(BlockState& block, int lanes) {
    block_ = &block;
    alive_ = lanes == kLanes ? kAllLanes : (1U << lanes) - 1;
    groups_.assign(1, {0, alive_});
    state_ = State::kRuns;
    for (int lane = 0; lane < kLanes; ++lane) {
        copies_[lane] = {};
        if (program_.specials.thread >= 0) {
            put<int32_t>(program_.specials.thread, lane, thread(lane));
        }
        for (int axis = 0; axis < 3; ++axis) {
            if (program_.specials.block[axis] >= 0) {
                put<uint32_t>(program_.specials.block[axis], lane, block.place[axis]);
            }
        }
    }
}

Warp::State Warp::run(int statements) {
    for (; statements > 0 && state_ == State::kRuns; --statements) {
        step();
    }
    return state_;
}

size_t Warp::next_group() const {
    size_t next = groups_.size();
    for (size_t g = 0; g < groups_.size(); ++g) {
        if (!groups_[g].waits && (next == groups_.size() || groups_[g].at < groups_[next].at)) {
            next = g;
        }
    }
    if (next == groups_.size()) {
        throw Fault("lanes of a warp wait for each other at different places");
    }
    return next;
}

uint32_t Warp::guarded(Instruction const& i, uint32_t lanes) const {
    if (i.guard < 0) {
        return lanes;
    }
    uint32_t passing = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
        passing |= static_cast<uint32_t>((get<uint32_t>(i.guard, lane) != 0) != i.unless) << lane;
    }
    return lanes & passing;
}

void Warp::step() {
    size_t const g = groups_.size() == 1 ? 0 : next_group();
    Instruction const& i = program_.instructions.at(static_cast<size_t>(groups_[g].at));
    try {
        take(g, i, guarded(i, groups_[g].lanes));
    } catch (Fault const& fault) {
        throw Fault(std::string(fault.what()) + "; warp from thread " +
                    std::to_string(first_thread_) + ", line " +
                    std::to_string(i.statement->line) + " of the PTX: " + i.statement->opcode);
    }
    if (groups_.size() > 1) {
        join(std::min(g, groups_.size() - 1));
    }
}

void Warp::take(size_t g, Instruction const& i, uint32_t lanes) {
    switch (i.flow) {
        case Flow::kNext:
            if (i.together && !all_here(g, lanes, kAllLanes)) {
                return;
            }
            if (lanes != 0) {
                i.run(*this, i, lanes);
            }
            ++groups_[g].at;
            return;
        case Flow::kBranch: branch(g, i.target, lanes); return;
        case Flow::kExit: exit(g, lanes); return;
        case Flow::kBarrier:
            if (all_here(g, lanes, alive_)) {
                ++groups_[g].at;
                state_ = State::kAtBarrier;
            }
            return;
    }
}

// False where the group has to wait for lanes that may still come; throws where none can.
bool Warp::all_here(size_t group, uint32_t lanes, uint32_t wanted) {
    if (lanes == wanted) {
        return true;
    }
    if (groups_.size() == 1 || lanes != groups_[group].lanes) {
        throw Fault("some lanes of the warp never come here");
    }
    groups_[group].waits = true;
    return false;
}

void Warp::branch(size_t group, int target, uint32_t taken) {
    uint32_t const staying = groups_[group].lanes & ~taken;
    if (staying == 0) {
        groups_[group].at = target;
        return;
    }
    groups_[group].lanes = staying;
    ++groups_[group].at;
    if (taken != 0) {
        groups_.push_back({target, taken});
        join(groups_.size() - 1);
    }
}

// Merges the group with one that stands where it stands.
void Warp::join(size_t group) {
    for (size_t other = 0; other < groups_.size(); ++other) {
        if (other != group && groups_[other].at == groups_[group].at) {
            groups_[other].lanes |= groups_[group].lanes;
            groups_[other].waits = false;
            groups_.erase(groups_.begin() + static_cast<std::ptrdiff_t>(group));
            return;
        }
    }
}

void Warp::exit(size_t group, uint32_t lanes) {
    check_copies(lanes);
    alive_ &= ~lanes;
    groups_[group].lanes &= ~lanes;
    ++groups_[group].at;
    for (Group& other : groups_) {
        other.waits = false;  // there are fewer lanes to wait for
    }
    if (groups_[group].lanes == 0) {
        groups_.erase(groups_.begin() + static_cast<std::ptrdiff_t>(group));
    }
    if (groups_.empty()) {
        state_ = State::kEnded;
    }
}

void Warp::check_copies(uint32_t lanes) const {
    for (int lane = 0; lane < kLanes; ++lane) {
        Pending const& copies = copies_[lane];
        if ((lanes >> lane & 1U) && !(copies.open.empty() && copies.committed.empty())) {
            throw Fault("a thread ends without having waited for its copies");
        }
    }
}

}  // namespace ckv::ptx
