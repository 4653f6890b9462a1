#include "log.h"

#include <atomic>
#include <cstdio>

namespace ckv::tensorrt {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept { logger_finder = finder; }

void report(char const* where, char const* what) noexcept {
    try {
        char line[512];
        std::snprintf(line, sizeof line, "ckv %s: %s", where, what);
        nvinfer1::ILoggerFinder* finder = logger_finder;
        nvinfer1::ILogger* logger = finder ? finder->findLogger() : nullptr;
        if (logger) {
            logger->log(nvinfer1::ILogger::Severity::kERROR, line);
        } else {
            std::fprintf(stderr, "%s\n", line);
        }
    } catch (...) {
        // An error about an error has nowhere to go.
    }
}

}  // namespace ckv::tensorrt
