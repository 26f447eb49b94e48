"""ONNX-to-ONNX rewrites of the export stage, one a file, each with `requires` and `ensures`."""
