"""Models for other programs and from them: ONNX, safetensors and PyTorch. `files` has this library's own format."""
