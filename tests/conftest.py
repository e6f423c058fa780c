"""Before any test: openvino and onnxruntime are imported as aipc imports them, without their telemetry."""

from __future__ import annotations

import os

from aipc.errors import require

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
require("openvino", "openvino")
