"""Each runtime scores a given answer as the numpy reference does, at every length it treats differently."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aipc.errors import AipcError, CheckpointError, DeviceError
from aipc.runtimes.base import RUNTIMES, Scorer
from checkpoints import GQA, LONGROPE
from sessions import RandomModel, ids

NPU_ON_CPU = {"NPUW_DEVICES": "CPU", "NPUW_ONLINE_PIPELINE": "NONE", "INFERENCE_PRECISION_HINT": "f32"}

CELLS = {
    "openvino-CPU": ("openvino", "CPU", {"exact": True}),
    "openvino-NPU": ("openvino", "NPU", {"properties": NPU_ON_CPU}),
    "onnxruntime-CPU": ("onnxruntime", "CPU", {}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RandomModel]:
    shape = GQA | {"num_key_value_heads": 2, "sliding_window": 700}
    return {
        name: RandomModel(name, tmp_path_factory.mktemp(name), shape, weight_format="fp16")
        for name in RUNTIMES
    }


def open_scorer(model: RandomModel, device: str, folder: Path | None = None, **options: Any) -> Scorer:
    module = importlib.import_module(RUNTIMES[model.runtime].module)
    scorer: Scorer = module.open_scorer(folder or model.folder, device, **options)
    return scorer


@pytest.mark.parametrize("cell", CELLS)
def test_scores_are_the_references(models: dict[str, RandomModel], cell: str) -> None:
    runtime, device, options = CELLS[cell]
    model = models[runtime]
    scorer = open_scorer(model, device, **options)
    # 1100 tokens outgrow a chunk of each runtime and the NPU's first bucket; 30 after them start anew.
    for length in (30, 1100, 30):
        tokens = ids(length + 6, seed=length)
        heard = list[int]()
        got = scorer.scores(tokens[:length], tokens[length:], lambda heard=heard: heard.append(1))
        assert len(heard) == 6
        expected = model.reference.logits(tokens)[length - 1 : -1]
        assert got.shape == (6, model.config.vocab_size)
        assert got.dtype == np.float32
        # The folder holds the weights as float16, which checkpoints of tests are too.
        np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())
    scorer.close()


@pytest.mark.parametrize("cell", CELLS)
def test_a_text_has_the_factors_of_longrope_that_all_of_it_asks_for(cell: str, tmp_path: Path) -> None:
    runtime, device, options = CELLS[cell]
    model = RandomModel(runtime, tmp_path, LONGROPE, weight_format="fp16")
    border = model.config.rope_border
    assert border is not None
    scorer = open_scorer(model, device, rope_border=border, **options)
    # The last of the six is not computed: the first text ends at the border, the second goes beyond.
    for length in (border - 5, border - 4, border + 300):
        tokens = ids(length + 6, seed=length)
        got = scorer.scores(tokens[:length], tokens[length:])
        expected = model.reference.logits(tokens[:-1])[length - 1 :]
        np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())
    scorer.close()


def test_a_folder_that_holds_no_language_model_is_refused(
    models: dict[str, RandomModel], tmp_path: Path
) -> None:
    model = models["openvino"]
    for name in ("openvino_model.xml", "openvino_model.bin"):
        data = (model.folder / name).read_bytes()
        (tmp_path / name).write_bytes(
            data.replace(b'"input_ids"', b'"input_xyz"').replace(b"input_ids", b"input_xyz")
        )
    with pytest.raises(CheckpointError, match="input_xyz"):
        open_scorer(model, "CPU", tmp_path)


def test_a_device_that_is_not_there_is_refused(models: dict[str, RandomModel]) -> None:
    for model in models.values():
        with pytest.raises(AipcError) as caught:
            open_scorer(model, "GPU.7" if model.runtime == "openvino" else "CUDA:7")
        assert isinstance(caught.value, DeviceError)
