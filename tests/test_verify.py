"""aipc verify: sound folders are good, damage is found and named, and later runs are warned."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aipc
from aipc import cache, verdicts
from aipc.cli import main
from aipc.conversion.checkpoint import Checkpoint
from aipc.conversion.quantize import dequantize, quantize
from aipc.conversion.recipe import make_recipe
from aipc.errors import AipcError, CheckpointError, UsageError
from aipc.phi3 import Phi3Config, Role
from aipc.runtimes.base import ONNXRUNTIME, OPENVINO, RUNTIMES, Device
from aipc.types import Progress
from aipc.verification import original
from aipc.verification.check import Verification
from aipc.verification.losses import Loss, Scored, loss_over
from aipc.verification.passages import Passage, make_passages, read_text
from aipc.verification.stored import FolderWeights, MatrixError, compare_matrices
from aipc.verification.verdict import judge
from checkpoints import GQA, TINY, write_checkpoint
from damage import change_scales

DEMO = Path(aipc.__file__).parent / "demo"
DATA = Path(__file__).parent / "data"
FORMATS = {"openvino": OPENVINO, "onnx": ONNXRUNTIME}
SHORT = [96]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIPC_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return aipc.convert("demo", tmp_path_factory.mktemp("demo") / "int4", to="openvino,onnx")


def copied(folder: Path, target: Path) -> Path:
    """A copy, as if others had made it: no aipc.json."""
    return shutil.copytree(folder, target, ignore=shutil.ignore_patterns("aipc.json"))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_sound_folder_is_good_and_a_doubled_layer_is_named(demo: Path, kind: str, tmp_path: Path) -> None:
    sound = aipc.verify(demo / kind, device="CPU", lengths=[64, 300])
    assert (sound.verdict, sound.reasons, sound.notes) == ("good", (), ())
    assert [loss.tokens for loss in sound.losses] == [64, 300]
    assert 0.001 < sound.losses[1].kl_mean < 0.1
    assert sound.losses[0].positions == 4 * 32
    assert {matrix.name for matrix in sound.matrices} >= {"model.layers.5.mlp.down_proj.weight"}

    damaged = copied(demo / kind, tmp_path / kind)
    assert len(change_scales(damaged, r"layers\.3\.", lambda scales: scales * 2)) == 4
    broken = aipc.verify(damaged, "demo", device="CPU", lengths=[300])
    assert broken.verdict == "broken"
    named = [matrix.name for matrix in broken.matrices if matrix.relative_error > 0.9]
    assert named == [matrix.name for matrix in broken.matrices if ".layers.3." in matrix.name]
    assert len(named) == 4
    assert "model.layers.3.self_attn.qkv_proj (1.0" in " ".join(broken.reasons)


def test_a_loss_of_the_weights_is_told_from_one_of_the_device(demo: Path, tmp_path: Path) -> None:
    """Scales off by a fifth everywhere: no matrix is another one, and the device computes what they say."""
    worse = copied(demo / "onnx", tmp_path / "worse")
    change_scales(worse, "layers", lambda scales: scales * 1.2)
    found = aipc.verify(worse, "demo", device="CPU", lengths=[300])
    assert found.verdict in {"suspicious", "broken"}
    assert found.device_losses[0].kl_mean < 0.02 < found.losses[0].kl_mean
    assert "the loss is in them" in found.reasons[-1]


def test_a_run_is_warned_on_this_device_and_no_other(demo: Path, tmp_path: Path) -> None:
    damaged = copied(demo / "openvino", tmp_path / "damaged")
    change_scales(damaged, r"layers\.3\.", lambda scales: scales * 2)
    found = aipc.verify(damaged, "demo", device="CPU", lengths=SHORT)
    with aipc.load(damaged, device="CPU") as model:
        (warning,) = [note for note in model.notes if "verify" in note]
    assert "broken on CPU" in warning
    assert found.reasons[0] in warning
    assert "model.layers.3.self_attn.qkv_proj" in warning
    with aipc.load(demo / "openvino", device="CPU") as model:
        assert not [note for note in model.notes if "verify" in note]
    here = Device("CPU", found.device_name, "CPU")
    assert verdicts.warning(damaged, here, found.runtime) == warning
    for device, runtime in (
        (Device("CPU", "another processor", "CPU"), found.runtime),
        (Device("CPU", found.device_name, "CPU", driver="7"), found.runtime),
        (here, "openvino-genai 1.0"),
    ):
        assert verdicts.warning(damaged, device, runtime) is None


def test_the_command_says_it_on_stdout_and_by_its_exit_code(
    demo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--device", "CPU", "--lengths", "96"]
    assert main(["verify", str(demo / "onnx"), *words]) == 0
    table = capfd.readouterr().out
    assert "verdict: good" in table
    assert [line.split()[:2] for line in table.splitlines() if line.strip().startswith("96")] == [
        ["96", "192"]
    ]

    damaged = copied(demo / "onnx", tmp_path / "damaged")
    change_scales(damaged, r"layers\.3\.", lambda scales: scales * np.float32("nan"))
    assert main(["verify", str(damaged), "--against", "demo", "--json", *words]) == 1
    record = json.loads(capfd.readouterr().out)
    assert record["verdict"] == "broken"
    assert record["losses"][0]["kl_mean"] is None
    assert "not numbers" in record["reasons"][0]


def test_every_step_of_the_device_is_reported(demo: Path) -> None:
    for kind in ("openvino", "onnx"):
        seen = list[Progress]()
        aipc.verify(demo / kind, device="CPU", lengths=SHORT, progress=seen.append)
        scored = [now for now in seen if now.unit == "tokens" and " scores " in now.tensor]
        assert [now.done_bytes for now in scored] == [*range(1, scored[0].total_bytes + 1)]


def test_the_original_is_computed_once(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aipc.verify(demo / "onnx", device="CPU", lengths=SHORT)
    monkeypatch.setattr(original, "computed_scores", lambda *_: pytest.fail("computed again"))
    again = aipc.verify(demo / "openvino", device="CPU", lengths=SHORT)
    assert again.verdict == "good"


def test_the_kept_scores_are_of_these_passages_and_this_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    passages = make_passages(list(range(3, 203)), 512, [40, 120])
    write_checkpoint(folder, GQA)
    first = original.original_scores(folder, passages, progress=lambda now: None)
    kept = original.original_scores(folder, passages, progress=lambda now: None)
    assert all(np.array_equal(a, b) for a, b in zip(first, kept, strict=True))
    for file in cache.originals_dir().iterdir():
        file.write_bytes(file.read_bytes()[:1000])
    mended = original.original_scores(folder, passages, progress=lambda now: None)
    assert np.array_equal(mended[-1], first[-1])
    # A passage that begins another one is computed with it, and scores what it scores alone.
    alone = original.original_scores(folder, passages[:1], progress=lambda now: None)
    np.testing.assert_allclose(alone[0], first[0], rtol=1e-4, atol=1e-5)
    write_checkpoint(folder, GQA, seed=1)
    other = original.original_scores(folder, passages, progress=lambda now: None)
    assert not np.allclose(other[0], first[0])


@pytest.mark.parametrize("name", ["optimum", "builder"])
def test_folders_by_others_are_good_and_read_to_the_last_matrix(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(DATA / f"{name}-int4.zip") as archive:
        archive.extractall(tmp_path / name)
    # What both were made from: see where the other tests of these folders name them.
    shape: dict[str, Any] = {"vocab_size": 704, "sliding_window": 128}
    write_checkpoint(tmp_path / "checkpoint", TINY, dtype="F16", tokenizer_from=tmp_path / name, **shape)
    found = aipc.verify(tmp_path / name, tmp_path / "checkpoint", device="CPU")
    assert (found.verdict, found.reasons, found.notes) == ("good", (), ())
    assert [loss.tokens for loss in found.losses] == [128, 512]
    assert len(found.matrices) == 10
    assert max(matrix.relative_error for matrix in found.matrices) < 0.1


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    "recipe",
    [
        {"sym": False, "group_size": 32, "quant_method": "rtn"},
        {"weight_format": "int8"},
        {"weight_format": "fp16"},
    ],
)
def test_stored_matrices_are_what_the_quantiser_made(
    kind: str, recipe: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint_folder = tmp_path / "checkpoint"
    write_checkpoint(checkpoint_folder, GQA, tokenizer_from=DEMO, vocab_size=1280)
    out = aipc.convert(checkpoint_folder, tmp_path / "out", to=kind, **recipe)
    config, checkpoint = Phi3Config.read(checkpoint_folder), Checkpoint.open(checkpoint_folder)
    weights = FolderWeights(out, FORMATS[kind], config, checkpoint)
    assert weights.missing == 0
    schemes = make_recipe(config, **recipe)
    for spec in config.weights():
        if spec.role is not Role.NORM:
            expected = dequantize(quantize(checkpoint.read(spec.name), schemes.scheme_for(spec)))
            rows = slice(3, spec.shape[0] - 5)
            # OpenVINO's graph multiplies in float16, as its readers here do not.
            np.testing.assert_allclose(weights.read(spec.name, rows), expected[rows], rtol=1e-3, atol=1e-7)
    errors = compare_matrices(weights, checkpoint, lambda now: None)
    assert max(error.relative_error for error in errors) < (0.2 if "group_size" in recipe else 0.02)


def test_losses_are_the_textbooks() -> None:
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.25, 0.5])
    scores = [np.log(row)[None].astype(np.float32) + 7 for row in (p, q)]
    loss = loss_over([Scored(9, [0], *scores)])
    assert loss.kl_mean == pytest.approx(float((p * np.log(p / q)).sum()), abs=1e-6)
    assert (loss.perplexity, loss.original_perplexity) == (pytest.approx(4, 1e-6), pytest.approx(2, 1e-6))
    assert loss.perplexity_ratio == pytest.approx(2, 1e-6)
    assert loss.top1_agreement == 0.0
    same = loss_over([Scored(9, [0], scores[0], scores[0] * 1.0 + 3)])
    assert (same.kl_mean, same.top1_agreement) == (pytest.approx(0, abs=1e-6), 1.0)


def a_loss(kl_mean: float, tokens: int = 128) -> Loss:
    return Loss(tokens, 64, kl_mean, kl_mean, kl_mean, 0.9, 10.0, 9.0, True)


@pytest.mark.parametrize(
    ("kl", "precision", "other_tokens", "errors", "device_kl", "verdict", "says"),
    [
        ([0.05], "int4", [], [0.12], [], "good", ""),
        ([0.05], "int8", [], [0.01], [0.04], "suspicious", "the loss is in them"),
        ([0.05], "fp16", [], [0.01], [0.6], "suspicious", "not to blame"),
        ([0.05, 0.9], "int4", [], [0.12], [0.9], "broken", "at 512 tokens"),
        ([0.05], "int4", [2048], [0.12], [], "broken", "at 2048 tokens the runtime answers otherwise"),
        ([0.05], "int4", [], [0.12, 1.0], [], "suspicious", "AWQ"),
        ([0.3], "int4", [], [0.12, 1.0], [], "broken", "1 of 2 matrices"),
        ([np.inf], "int4", [], [np.nan], [], "broken", "1 of 1 matrices"),
    ],
)
def test_the_verdict_follows_from_the_measures(  # noqa: PLR0917 - a row of the table
    kl: list[float],
    precision: str,
    other_tokens: list[int],
    errors: list[float],
    device_kl: list[float],
    verdict: str,
    says: str,
) -> None:
    matrices = [MatrixError(f"matrix {number}", error) for number, error in enumerate(errors)]
    losses = [a_loss(mean, tokens) for mean, tokens in zip(kl, (128, 512), strict=False)]
    got, reasons = judge(losses, precision, other_tokens, matrices, [a_loss(mean) for mean in device_kl])
    assert got == verdict
    assert says in " ".join(reasons)


def test_passages_cover_the_text_and_keep_within_the_context() -> None:
    ids = list(range(5000))
    passages = make_passages(ids, 4096)
    assert [passage.tokens for passage in passages] == [128, 128, 128, 128, 512, 2048, 4096]
    assert passages[0].prompt + passages[0].following == tuple(ids[:128])
    assert passages[3].following[-1] > 4900
    assert all(len(passage.following) == 64 for passage in passages)
    # Beyond LongRoPE's border the same tokens score otherwise.
    short, long = make_passages(ids, 8192, [4097])[0], make_passages(ids, 8192, [4098])[0]
    assert original._runs([short, long], None) == [long.computed]
    assert original._runs([short, long], 4096) == [long.computed, short.computed]
    assert make_passages(ids[:20], 4096) == [Passage(tuple(range(10)), tuple(range(10, 20)))]
    with pytest.raises(UsageError, match="15 tokens"):
        make_passages(ids[:15], 4096)
    for lengths in ([5000], [8]):
        with pytest.raises(UsageError, match="from 16 to 4096"):
            make_passages(ids, 4096, lengths)


def test_the_shipped_text_is_varied_and_long() -> None:
    text = read_text(None)
    for piece in ("def main() -> int:", "SELECT", "User: ", "»Gleich«", "今天", "озеро", '{"station"'):
        assert piece in text
    assert len(text) > 12_000


def test_bad_input_is_named(demo: Path, tmp_path: Path) -> None:
    def refused(kind: type[AipcError], words: str, *args: Any, **options: Any) -> None:
        with pytest.raises(kind, match=words) as caught:
            aipc.verify(*args, **{"device": "CPU", "runtime": "onnxruntime", "lengths": SHORT} | options)
        assert caught.value.hint

    folder = copied(demo / "onnx", tmp_path / "folder")
    refused(UsageError, "does not say what it was made from", folder)
    refused(UsageError, "is converted itself", folder, demo / "onnx")

    other = tmp_path / "other"
    write_checkpoint(other, GQA, tokenizer_from=DEMO, vocab_size=1280)
    refused(CheckpointError, "hidden_size is 256 in the folder and 64", folder, other)
    (folder / "config.json").unlink()
    refused(CheckpointError, "hidden_size is 256 in the folder and 64", folder, other)

    words = copied(demo / "onnx", tmp_path / "words")
    tokenizer = json.loads((words / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:100]
    (words / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    refused(CheckpointError, "tokenizers", words, "demo")

    short, binary = tmp_path / "short.txt", tmp_path / "binary.txt"
    short.write_text("Hello.", encoding="utf-8")
    binary.write_bytes(b"\xff\xfe\x00")
    refused(UsageError, "at least 16", folder, "demo", text=short, lengths=None)
    with pytest.raises(UsageError, match="UTF-8"):
        aipc.verify(folder, "demo", text=binary)
    with pytest.raises(UsageError, match="cannot be read"):
        aipc.verify(folder, "demo", text=tmp_path / "absent.txt")

    cut = copied(demo / "onnx", tmp_path / "cut")
    (cut / "model.onnx.data").write_bytes(b"")
    with pytest.raises(AipcError):
        aipc.verify(cut, "demo", device="CPU")


def test_the_record_is_kept_even_where_it_says_nothing_new(demo: Path) -> None:
    found: Verification = aipc.verify(demo / "onnx", device="CPU", lengths=SHORT)
    path = cache.verdict_path(
        demo / "onnx",
        device="CPU",
        driver=f"{found.device_name} {found.driver}",
        runtime_version=found.runtime,
    )
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record == json.loads(json.dumps(found.as_json()))
    assert record["runtime"].startswith(RUNTIMES["onnxruntime"].distribution)
