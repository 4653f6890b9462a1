// The little that these tests need of a test framework.
#pragma once

#include <ckv/error.h>

#include <cstdio>
#include <cstdlib>
#include <string>

// Always evaluated, also in release builds. Ends the test at the first failure.
#define CHECK(condition)                                                                 \
    do {                                                                                 \
        if (!(condition)) {                                                              \
            std::fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
            std::exit(1);                                                                \
        }                                                                                \
    } while (false)

// `body` throws ckv::Error of that code, whose message holds `words`.
template <typename Body>
void refuses(ckv::ErrorCode code, std::string const& words, Body const& body) {
    try {
        body();
    } catch (ckv::Error const& error) {
        if (error.code() == code && std::string(error.what()).find(words) != std::string::npos) {
            return;
        }
        std::fprintf(stderr, "not '%s' but: %s\n", words.c_str(), error.what());
        std::exit(1);
    }
    std::fprintf(stderr, "nothing was refused, should be: %s\n", words.c_str());
    std::exit(1);
}
