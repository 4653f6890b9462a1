// SHA-256 and CRC-32 against published values, in one piece and in many.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "../src/crc32.h"
#include "../src/half.h"
#include "../src/sha256.h"
#include "check.h"

namespace {

std::string sha256(std::string const& text, std::size_t piece) {
    ckv::detail::Sha256 digest;
    for (std::size_t at = 0; at < text.size(); at += piece) {
        digest.update(text.data() + at, std::min(piece, text.size() - at));
    }
    return digest.finish();
}

// FIPS 180-4 examples and NIST's short and long message vectors.
void published_digests() {
    std::string const two_blocks = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
    std::string const long_message =
        "abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmn"
        "hijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu";
    for (std::size_t piece : {1U, 3U, 55U, 64U, 65U, 1000U}) {
        CHECK(sha256("", piece) ==
              "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        CHECK(sha256("abc", piece) ==
              "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        CHECK(sha256(two_blocks, piece) ==
              "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
        CHECK(sha256(long_message, piece) ==
              "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1");
        CHECK(sha256("\xd3", piece) ==
              "28969cdfa74a12c82f3bad960b0b000aca2ac329deea5c2328ebc6f2ba9802c1");
    }
    CHECK(sha256(std::string(1000000, 'a'), 4096) ==
          "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

void published_crcs() {
    CHECK(ckv::detail::crc32("", 0) == 0);
    CHECK(ckv::detail::crc32("123456789", 9) == 0xcbf43926);
    std::string const text = "The quick brown fox jumps over the lazy dog";
    CHECK(ckv::detail::crc32(text.data(), text.size()) == 0x414fa339);
    for (std::size_t cut = 0; cut <= text.size(); ++cut) {
        std::uint32_t const first = ckv::detail::crc32(text.data(), cut);
        CHECK(ckv::detail::crc32(text.data() + cut, text.size() - cut, first) == 0x414fa339);
    }
}

// Bit by bit, as the polynomial is defined.
std::uint32_t slow_crc(std::string const& bytes, std::uint32_t previous) {
    std::uint32_t crc = ~previous;
    for (char const byte : bytes) {
        crc ^= static_cast<std::uint8_t>(byte);
        for (int bit = 0; bit < 8; ++bit) {
            crc = (crc & 1) != 0 ? crc >> 1 ^ 0xedb88320U : crc >> 1;
        }
    }
    return ~crc;
}

// Short ones go through tables, long ones are folded in blocks of 64 and 16 bytes where the
// processor can: every length around those, from addresses of any alignment.
void crcs_of_every_length() {
    std::mt19937 random(3);
    std::string bytes(700, '\0');
    for (char& byte : bytes) {
        byte = static_cast<char>(random());
    }
    for (std::size_t size = 0; size + 16 <= bytes.size(); ++size) {
        std::size_t const start = size % 16;
        auto const previous = static_cast<std::uint32_t>(random());
        CHECK(ckv::detail::crc32(bytes.data() + start, size, previous) ==
              slow_crc(bytes.substr(start, size), previous));
    }
}

// Every half there is comes back; numbers between two go to the nearer, ties to the even one.
void halves() {
    using ckv::detail::float_to_half;
    using ckv::detail::half_to_float;
    for (std::uint32_t bits = 0; bits < 0x7c00; ++bits) {
        auto const half = static_cast<std::uint16_t>(bits);
        float const value = half_to_float(half), next = half_to_float(static_cast<std::uint16_t>(half + 1));
        CHECK(float_to_half(value) == half);
        CHECK(float_to_half(-value) == (half | 0x8000));
        if (bits == 0x7bff) {
            continue;  // the next one is infinity
        }
        float const middle = value + (next - value) / 2;
        CHECK(value < middle && middle < next);
        CHECK(float_to_half(middle) == half + (half & 1));
        CHECK(float_to_half(ckv::detail::float_of(ckv::detail::bits_of(middle) - 1)) == half);
        CHECK(float_to_half(ckv::detail::float_of(ckv::detail::bits_of(middle) + 1)) == half + 1);
    }
    CHECK(half_to_float(0x7c00) == std::numeric_limits<float>::infinity());
    CHECK(half_to_float(0xfc00) == -std::numeric_limits<float>::infinity());
    for (std::uint16_t bits = 0x7c01; bits < 0x8000; ++bits) {
        CHECK(std::isnan(half_to_float(bits)));
    }
    CHECK(float_to_half(65504.0F) == 0x7bff);
    CHECK(float_to_half(65519.996F) == 0x7bff);
    CHECK(float_to_half(65520.0F) == 0x7c00);
    CHECK(float_to_half(3e38F) == 0x7c00);
    CHECK((float_to_half(ckv::detail::float_of(0x7fc00000)) & 0x7fff) > 0x7c00);
}

}  // namespace

int main() {
    published_digests();
    published_crcs();
    crcs_of_every_length();
    halves();
}
