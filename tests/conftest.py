"""Before any test: openvino is imported as aipc imports it, without its telemetry."""

from __future__ import annotations

from aipc.errors import require

require("openvino", "openvino")
