// Microseconds that ckv::batch takes, the median of many calls; its last tensors go to a file.
//
//   time_batch MANIFEST RECORDS USERS EVENTS float32|float16|int8 OUT
//
// RECORDS: as many records of one size, one after another. OUT: the tensors by name, one after another.
#include <ckv/manifest.h>
#include <ckv/record.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

namespace {

std::string contents(char const* path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

ckv::UserType user_type(std::string const& name) {
    return name == "float32"   ? ckv::UserType::kFloat32
           : name == "float16" ? ckv::UserType::kFloat16
                               : ckv::UserType::kInt8;
}

double microseconds(std::chrono::steady_clock::duration time) {
    return std::chrono::duration<double, std::micro>(time).count();
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 7) {
        return EXIT_FAILURE;
    }
    auto const manifest = ckv::parse_manifest(contents(argv[1]), argv[1]);
    auto const layout = ckv::RecordLayout::of(manifest, user_type(argv[5]));
    std::string const stored = contents(argv[2]);
    auto const users = static_cast<std::size_t>(std::atoi(argv[3]));
    std::int64_t const events = std::atoi(argv[4]);
    std::vector<ckv::Bytes> records;
    for (std::size_t user = 0; user < users; ++user) {
        records.emplace_back(stored.data() + user * (stored.size() / users), stored.size() / users);
    }
    std::map<std::string, std::vector<char>> tensors;
    std::map<std::string, void*> out;
    for (auto const& [name, bytes] :
         ckv::batch_bytes(layout, static_cast<std::int64_t>(users), events)) {
        tensors[name].resize(bytes);
        out[name] = tensors[name].data();
    }
    std::vector<double> times;
    for (int call = 0; call < 300; ++call) {
        auto const start = std::chrono::steady_clock::now();
        ckv::batch(layout, records, events, out);
        times.push_back(microseconds(std::chrono::steady_clock::now() - start));
    }
    std::nth_element(times.begin(), times.begin() + 150, times.end());
    std::printf("%.1f\n", times[150]);
    std::ofstream file(argv[6], std::ios::binary);
    for (auto const& [name, data] : tensors) {
        file.write(data.data(), static_cast<std::streamsize>(data.size()));
    }
    return file ? EXIT_SUCCESS : EXIT_FAILURE;
}
