import os

# From its import on, onnxruntime reports its use to its maker over the network, on Linux too (1.31).
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
