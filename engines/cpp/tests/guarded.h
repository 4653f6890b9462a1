// Functions for Python's ctypes: an error is a negative number, its message in `g_error`.
#pragma once

#include <ckv/error.h>

#include <cstdint>
#include <string>

inline thread_local std::string g_error;

template <typename Body>
std::int64_t guarded(Body const& body) noexcept {
    try {
        return body();
    } catch (ckv::Error const& error) {
        g_error = error.what();
        return -1 - static_cast<int>(error.code());
    }
}
