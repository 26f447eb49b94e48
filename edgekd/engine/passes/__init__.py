"""Rewrites of an OnnxModel's graph towards our kernels; onnx is imported when one is asked for."""
