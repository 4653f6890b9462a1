#include "ptx/memory.h"

#include <cinttypes>
#include <cstdio>

#include "ptx/module.h"

namespace ckv::ptx {
namespace {

[[noreturn]] void fault(char const* what, uint64_t address, int64_t bytes) {
    char text[160];
    std::snprintf(text, sizeof text, "%s, %" PRId64 " bytes at 0x%" PRIx64, what, bytes, address);
    throw Fault(text);
}

void check_alignment(uint64_t address, int bytes) {
    if (address % bytes != 0) {
        fault("misaligned access", address, bytes);
    }
}

constexpr uint32_t kAtomicThread = 0xFFFFFFFF;

}  // namespace

SharedMemory::SharedMemory(size_t bytes)
    : bytes_(bytes), grains_((bytes + kGrain - 1) / kGrain) {}

void SharedMemory::begin_block() {
    first_ = ++epoch_;
    for (Grain& grain : grains_) {
        grain.copying = false;
    }
}

void SharedMemory::check_range(uint32_t address, int bytes) const {
    if (address + static_cast<uint64_t>(bytes) > bytes_.size()) {
        fault("shared memory: access beyond its end", address, bytes);
    }
    check_alignment(address, bytes);
}

bool SharedMemory::read(Grain& grain, uint32_t address, int thread) const {
    bool const again =
        grain.read == epoch_ && (grain.reader == thread || grain.reader == kSeveral);
    if (again && grain.written != epoch_ && !grain.copying) {
        return grain.reader == kSeveral;
    }
    if (grain.copying) {
        fault("shared memory: read before its copy was waited for", address, kGrain);
    }
    if (grain.written < first_) {
        fault("shared memory: read before it was written", address, kGrain);
    }
    if (grain.written == epoch_ && grain.writer != thread) {
        fault("shared memory: read races a write", address, kGrain);
    }
    if (!again) {
        grain.reader = static_cast<int16_t>(grain.read == epoch_ ? int{kSeveral} : thread);
        grain.read = epoch_;
    }
    return false;
}

void SharedMemory::write(Grain& grain, uint32_t address, int thread) const {
    if (grain.copying) {
        fault("shared memory: written while a copy is under way", address, kGrain);
    }
    if (grain.written == epoch_ && grain.writer != thread) {
        fault("shared memory: write races a write", address, kGrain);
    }
    if (grain.read == epoch_ && grain.reader != thread) {
        fault("shared memory: write races a read", address, kGrain);
    }
    grain.written = epoch_;
    grain.writer = static_cast<int16_t>(thread);
}

char* SharedMemory::at(uint32_t address, int bytes, Access access, int thread) {
    char* const place = bytes_.data() + address;
    Shown& shown = shown_[address / 4 % shown_.size()];
    if (access == Access::kRead && shown.address == address && shown.epoch == epoch_ &&
        shown.bytes == bytes) {
        return place;
    }
    check_range(address, bytes);
    bool settled = access == Access::kRead;
    for (uint32_t g = address / kGrain; g < (address + bytes) / kGrain; ++g) {
        Grain& grain = grains_[g];
        switch (access) {
            case Access::kRead: settled = read(grain, g * kGrain, thread) && settled; break;
            case Access::kWrite: write(grain, g * kGrain, thread); break;
            case Access::kAtomic:
                if (grain.written < first_) {
                    fault("shared memory: read before it was written", address, bytes);
                }
                write(grain, g * kGrain, kAtomics);
                break;
        }
    }
    if (settled) {
        shown = {address, epoch_, bytes};
    }
    return place;
}

void SharedMemory::begin_copy(uint32_t address, int bytes, int thread) {
    at(address, bytes, Access::kWrite, thread);
    for (uint32_t g = address / kGrain; g < (address + bytes) / kGrain; ++g) {
        grains_[g].copying = true;
    }
}

char* SharedMemory::end_copy(uint32_t address, int bytes, int thread) {
    for (uint32_t g = address / kGrain; g < (address + bytes) / kGrain; ++g) {
        grains_[g].copying = false;
    }
    return at(address, bytes, Access::kWrite, thread);
}

Allocation::Allocation(size_t count)
    : storage(new char[count + 256]), bytes(count), written(count / kGrain + 1),
      writer(count / kGrain + 1) {
    uint64_t const first = reinterpret_cast<uint64_t>(storage.get());
    begin = storage.get() + (256 - first % 256) % 256;
}

void* GlobalMemory::allocate(size_t bytes) {
    Allocation made(bytes);
    char* const begin = made.begin;
    allocations_.emplace(reinterpret_cast<uint64_t>(begin), std::move(made));
    return begin;
}

bool GlobalMemory::free(void* pointer) {
    latest_ = nullptr;
    return allocations_.erase(reinterpret_cast<uint64_t>(pointer)) > 0;
}

Allocation& GlobalMemory::find(uint64_t address, size_t bytes, char const* what) {
    auto const inside = [&](Allocation const& a) {
        uint64_t const first = address - reinterpret_cast<uint64_t>(a.begin);  // wraps if before
        return first <= a.bytes && bytes <= a.bytes - first;
    };
    if (latest_ == nullptr || !inside(*latest_)) {
        auto after = allocations_.upper_bound(address);
        if (after == allocations_.begin() || !inside((--after)->second)) {
            fault(what, address, static_cast<int64_t>(bytes));
        }
        latest_ = &after->second;
    }
    return *latest_;
}

void GlobalMemory::host(void const* pointer, size_t bytes, Access access) {
    uint64_t const address = reinterpret_cast<uint64_t>(pointer);
    if (bytes == 0) {
        return;
    }
    Allocation& a = find(address, bytes, "host: access outside every allocation");
    size_t const first = address - reinterpret_cast<uint64_t>(a.begin);
    for (size_t g = first / kGrain; g < (first + bytes + kGrain - 1) / kGrain; ++g) {
        if (access == Access::kRead && !a.written[g]) {
            fault("host: read before it was written", address, static_cast<int64_t>(bytes));
        }
        a.written[g] = true;
    }
}

char* GlobalMemory::at(uint64_t address, int bytes, Access access, uint32_t thread) {
    Allocation& a = find(address, bytes, "global memory: access outside every allocation");
    check_alignment(address, bytes);
    size_t const first = address - reinterpret_cast<uint64_t>(a.begin);
    uint64_t const me = launch_ << 32 | (access == Access::kAtomic ? kAtomicThread : thread);
    for (size_t g = first / kGrain; g < (first + bytes) / kGrain; ++g) {
        if (access != Access::kWrite && !a.written[g]) {
            fault("global memory: read before it was written", address, bytes);
        }
        if (a.writer[g] >> 32 == launch_ && a.writer[g] != me) {
            fault("global memory: races another thread's write", address, bytes);
        }
        if (access != Access::kRead) {
            a.written[g] = true;
            a.writer[g] = me;
        }
    }
    return a.begin + first;
}

}  // namespace ckv::ptx
