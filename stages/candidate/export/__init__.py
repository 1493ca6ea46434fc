"""From trained weights to ONNX towers and item vectors."""
