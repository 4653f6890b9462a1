// The little that our C++ tests need of a test framework.
#pragma once

#include <cstdio>
#include <cstdlib>

// Always evaluated, also in release builds. Ends the test at the first failure.
#define CHECK(condition)                                                            \
    do {                                                                            \
        if (!(condition)) {                                                         \
            std::fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
            std::exit(1);                                                           \
        }                                                                           \
    } while (false)
