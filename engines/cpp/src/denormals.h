// A thread's way with numbers too small for a float's full precision.
#pragma once

#include <cstdint>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace ckv::detail {

// They are zero in this thread while this lives; nothing changes on processors other than x86 and
// 64-bit Arm.
class DenormalsAreZero {
public:
    DenormalsAreZero() : before_(read()) { write(before_ | kZero); }
    ~DenormalsAreZero() { write(before_); }
    DenormalsAreZero(DenormalsAreZero const&) = delete;
    DenormalsAreZero& operator=(DenormalsAreZero const&) = delete;

private:
#if defined(__SSE__)
    static constexpr std::uint64_t kZero = 0x8040;  // results, and operands
    static std::uint64_t read() { return _mm_getcsr(); }
    static void write(std::uint64_t word) { _mm_setcsr(static_cast<unsigned>(word)); }
#elif defined(__aarch64__)
    static constexpr std::uint64_t kZero = std::uint64_t{1} << 24;
    static std::uint64_t read() {
        std::uint64_t word = 0;
        asm volatile("mrs %0, fpcr" : "=r"(word));
        return word;
    }
    static void write(std::uint64_t word) { asm volatile("msr fpcr, %0" : : "r"(word)); }
#else
    static constexpr std::uint64_t kZero = 0;
    static std::uint64_t read() { return 0; }
    static void write(std::uint64_t) {}
#endif

    std::uint64_t before_;
};

}  // namespace ckv::detail
