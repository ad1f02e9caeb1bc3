"""A model for programs without this package: its encoder as ONNX, its label vectors as matrices."""
