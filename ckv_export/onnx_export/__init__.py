"""Split modules to ONNX files."""
