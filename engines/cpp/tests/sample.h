// A small bundle's manifest: a model with a window, an item id and an image.
#pragma once

#include <string>

inline std::string sample_manifest() {
    return R"({
 "schema_version": 3, "name": "toy",
 "fingerprint": "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
 "model": {"kind": "sim", "max_len": 20, "num_layers": 1, "window": 4,
  "features": [
   {"name": "item_id", "role": "item", "kind": "categorical", "vocab_size": 9},
   {"name": "image", "role": "item", "kind": "vector", "vocab_size": 0},
   {"name": "age", "role": "user", "kind": "categorical", "vocab_size": 5}],
  "attention": {"pool_rows_k": 10, "pool_rows_v": 70000}},
 "fingerprints": {"entries": "ff112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"},
 "form": {"pools": null}, "item_table": null,
 "profile": {"B": "1:1:8", "S": "0:10:16", "K": "0:3:3", "T": "0:1:4", "C": "1:5:9"},
 "graphs": {
  "prefill": {"file": "prefill.onnx", "inputs": [
    {"name": "event_item_id", "dtype": "int32", "axes": ["B", "S"]},
    {"name": "event_mask", "dtype": "bool", "axes": ["B", "S"]}], "outputs": []},
  "decode": {"file": "decode.onnx", "inputs": [
    {"name": "cache_k_index", "dtype": "int32", "axes": ["B", 1, "K"]},
    {"name": "cache_v_index", "dtype": "int32", "axes": ["B", 1, "K"]},
    {"name": "cache_k_user", "dtype": "float32", "axes": ["B", 1, "K", 2]},
    {"name": "cache_v_user", "dtype": "float32", "axes": ["B", 1, "K", 0]},
    {"name": "history_mask", "dtype": "bool", "axes": ["B", "S"]},
    {"name": "history_item_id", "dtype": "int32", "axes": ["B", "S"]},
    {"name": "history_image", "dtype": "float32", "axes": ["B", "S", 3]},
    {"name": "candidate_item_id", "dtype": "int32", "axes": ["B", "C"]}],
   "outputs": [{"name": "score", "dtype": "float32", "axes": ["B", "C"]}]}},
 "files": {"decode.onnx": {"sha256": "00", "bytes": 3}, "prefill.onnx": {"sha256": "00", "bytes": 3}},
 "engines": [
  {"graph": "decode", "file": "engines/d.rtx", "backend": "tensorrt_rtx",
   "backend_version": "1.7.1.116", "targets": ["sm86"], "profile": {"B": "1:1:8"}, "layers": 1,
   "seconds": 1.5, "plugin": null},
  {"graph": "decode", "file": "decode.onnx", "backend": "tensorrt",
   "backend_version": "11.1.0", "targets": ["sm90"], "profile": {"B": "1:1:8"}, "layers": 1,
   "seconds": 1.5}]
})";
}

// The first `from` in the manifest replaced.
inline std::string changed_manifest(std::string const& from, std::string const& to) {
    std::string text = sample_manifest();
    return text.replace(text.find(from), from.size(), to);
}
