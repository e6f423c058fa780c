"""Folders that are wrong in a known way, as a broken writer or disk would leave them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

_CONST = re.compile(
    r'<layer [^>]*name="(?P<name>[^"]+)" type="Const"[^>]*>\s*'
    r'<data [^>]*offset="(?P<offset>\d+)" size="(?P<size>\d+)"'
)


def change_scales(folder: Path, matrices: str, change: Callable[[np.ndarray], np.ndarray]) -> list[str]:
    """Change the scales of all matrices whose name matches, in place; the names.

    folder   that aipc wrote, for OpenVINO or ONNX Runtime
    """
    places = _openvino_scales(folder) if (folder / "openvino_model.xml").is_file() else _onnx_scales(folder)
    changed = [name for name in places if re.search(matrices, name)]
    for name in changed:
        path, kind, offset, size = places[name]
        with path.open("r+b") as file:
            file.seek(offset)
            scales = np.frombuffer(file.read(size), kind)
            file.seek(offset)
            file.write(change(scales).astype(kind).tobytes())
    return changed


def _openvino_scales(folder: Path) -> dict[str, tuple[Path, str, int, int]]:
    text = (folder / "openvino_model.xml").read_text(encoding="utf-8")
    return {
        found["name"].removesuffix("/scale"): (
            folder / "openvino_model.bin",
            "<f2",
            int(found["offset"]),
            int(found["size"]),
        )
        for found in _CONST.finditer(text)
        if found["name"].endswith("/scale")
    }


def _onnx_scales(folder: Path) -> dict[str, tuple[Path, str, int, int]]:
    import onnx

    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    places = {}
    for tensor in graph.initializer:
        where = {entry.key: entry.value for entry in tensor.external_data}
        if tensor.name.endswith("/scale") and where:
            kind = "<f4" if tensor.data_type == onnx.TensorProto.FLOAT else "<f2"
            offset, size = int(where["offset"]), int(where["length"])
            places[tensor.name.removesuffix("/scale")] = folder / where["location"], kind, offset, size
    return places
