import os
from pathlib import Path

BUNDLED_MODEL_DIR = Path(__file__).resolve().parent / "weights"

# From its import on, onnxruntime reports its use to its maker over the network, on Linux too (1.31).
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
