"""The MobileNetV1 family: elastic depth, width and kernel size."""
