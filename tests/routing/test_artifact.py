from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

from coe_server.errors import ArtifactError
from coe_server.routing import artifact as artifacts
from coe_server.routing import artifact_checks
from coe_server.routing.classifier import Temperature
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import RouteOptions
from coe_server.routing.router import Router
from tests.examples import examples
from tests.routing.small_artifact import TEXTS, everywhere, held_out, small_artifact

WEIGHTS = "weights.safetensors"
SEEING = small_artifact().manifest.experts[0].model_copy(update={"vision": True}).model_dump()


def refusal(folder: Path) -> str:
    """The one sentence with which the folder is refused."""
    with pytest.raises(ArtifactError) as caught:
        artifacts.load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def replace_weights(folder: Path, data: bytes) -> None:
    """Other weights, with a checksum that fits: as someone would who wants them loaded."""
    (folder / WEIGHTS).write_bytes(data)
    sums = json.loads((folder / "manifest.json").read_text())["checksums"]
    edit(folder / "manifest.json", checksums={**sums, WEIGHTS: hashlib.sha256(data).hexdigest()})


def with_tensor(folder: Path, name: str, tensor: Any) -> None:
    replace_weights(folder, save({**load_file(folder / WEIGHTS), name: tensor}))


@examples(20)
@given(st.text(max_size=200) | st.sampled_from(list(TEXTS.values())))
def test_a_router_read_back_decides_as_the_one_that_was_saved(tmp_path_factory: Any, text: str) -> None:
    folder = tmp_path_factory.mktemp("round") / "router"
    artifact = small_artifact()
    artifacts.save(artifact, held_out(), None, folder)
    loaded = artifacts.load(folder)
    conversation = Conversation.of_prompt(text)
    before, after = artifact.features.vector(conversation.turns), loaded.features.vector(conversation.turns)
    assert np.array_equal(before.columns, after.columns)
    assert np.array_equal(artifact.classifier.probabilities(before), loaded.classifier.probabilities(after))
    assert artifact.gate.similarity(before) == loaded.gate.similarity(after)
    assert loaded.mapping == artifact.mapping
    assert loaded.manifest.model_copy(update={"checksums": {}}) == artifact.manifest


def test_the_held_out_predictions_come_back_as_saved(folder: Path) -> None:
    back = artifacts.read_held_out(folder)
    assert np.array_equal(back.probabilities, held_out().probabilities)
    assert np.array_equal(back.trust, held_out().trust)
    assert np.array_equal(back.weights, held_out().weights)


def test_equal_artifacts_have_equal_versions_and_others_do_not(tmp_path: Path) -> None:
    for name, changes in (("a", {}), ("b", {"versions": {"numpy": "9"}}), ("c", {"temperature": 2.0})):
        artifacts.save(small_artifact(**changes), held_out(), None, tmp_path / name)
    versions = [artifacts.load(tmp_path / name).version for name in "abc"]
    assert versions[0] == versions[1] != versions[2]


def test_modalities_are_kept_and_where_none_are_said_nothing_is_written(tmp_path: Path) -> None:
    experts = small_artifact().manifest.experts
    hearing = [one.model_copy(update={"modalities": ["audio"]}) for one in experts]
    for name, entries in (("plain", experts), ("hearing", hearing)):
        artifacts.save(small_artifact(experts=entries), held_out(), None, tmp_path / name)
    assert "modalities" not in (tmp_path / "plain" / "manifest.json").read_text()
    plain, heard = (artifacts.load(tmp_path / name) for name in ("plain", "hearing"))
    assert [one.modalities for one in plain.manifest.experts] == [None, None, None]
    assert heard.manifest.experts == hearing
    assert plain.version != heard.version


def test_saving_replaces_an_artifact_and_leaves_nothing_beside_it(folder: Path) -> None:
    artifacts.save(small_artifact(temperature=2.0), held_out(), None, folder)
    assert artifacts.load(folder).classifier.calibration == Temperature(2.0)
    assert [path.name for path in folder.parent.iterdir()] == ["router"]


def test_saving_never_replaces_a_folder_that_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="is not a router artifact; choose another path"):
        artifacts.save(small_artifact(), held_out(), None, tmp_path / "precious")
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years of work"


def test_a_save_that_fails_leaves_the_old_artifact(folder: Path) -> None:
    version = artifacts.load(folder).version
    with pytest.raises(ValueError, match="not JSON compliant"):
        artifacts.save(small_artifact(), held_out(), {"score": float("nan")}, folder)
    assert artifacts.load(folder).version == version
    assert [path.name for path in folder.parent.iterdir()] == ["router"]


def test_a_full_disk_is_told_with_the_place_and_leaves_the_old_artifact(folder: Path) -> None:
    before = artifacts.load(folder).version

    def full(fresh: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ArtifactError, match=f"^{folder} cannot be written: No space left on device$"):
        artifacts.save(small_artifact(temperature=2.0), held_out(), None, folder, full)
    assert artifacts.load(folder).version == before
    assert list(folder.parent.iterdir()) == [folder]


def test_a_save_interrupted_between_its_renames_leaves_the_old_artifact(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, rename = artifacts.load(folder).version, Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        artifacts.save(small_artifact(temperature=2.0), held_out(), None, folder)
    assert artifacts.load(folder).version == version
    assert [path.name for path in folder.parent.iterdir()] == ["router"]


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert "there is no folder" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["manifest.json", "mapping.json", "held_out.safetensors", "evaluation.json", WEIGHTS])
def test_a_missing_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert refusal(folder).endswith(f"{name} is missing")


def test_another_format_is_refused_before_anything_else_is_read(folder: Path) -> None:
    edit(folder / "manifest.json", format_version=99, a_key_of_the_future=True)
    assert "format version 99; this server reads 1" in refusal(folder)


@pytest.mark.parametrize("name", [WEIGHTS, "held_out.safetensors", "evaluation.json"])
def test_a_changed_file_is_refused_by_its_checksum(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    assert refusal(folder).endswith(f"{name} is damaged: its checksum differs from the manifest's")


class Trap:
    """Leaves a mark if it is ever unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._mark,))


def test_a_pickle_named_as_weights_is_refused_and_runs_no_code(folder: Path) -> None:
    mark = folder.parent / "mark"
    replace_weights(folder, pickle.dumps(Trap(mark)))
    assert "is not a safetensors file" in refusal(folder)
    assert not mark.exists()


@examples(30)
@given(st.data())
def test_truncated_weights_are_refused(tmp_path_factory: Any, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("cut") / "router"
    artifacts.save(small_artifact(), held_out(), None, folder)
    whole = (folder / WEIGHTS).read_bytes()
    replace_weights(folder, whole[: data.draw(st.integers(0, len(whole) - 1))])
    assert "is not a safetensors file" in refusal(folder)


@pytest.mark.parametrize("shape", [[2**40, 2**40], [2**31, 4], [-1], [1.5]])
def test_huge_or_impossible_shapes_are_refused(folder: Path, shape: list[Any]) -> None:
    header = json.dumps({"kept": {"dtype": "I32", "shape": shape, "data_offsets": [0, 4]}}).encode()
    replace_weights(folder, len(header).to_bytes(8, "little") + header + b"\0\0\0\0")
    assert "is not a safetensors file" in refusal(folder)


def test_a_header_that_claims_terabytes_is_refused_without_reserving_them(folder: Path) -> None:
    sizes = [2**20, 2**20]  # 4 TiB of single precision, and offsets that agree
    header = json.dumps({"idf": {"dtype": "F32", "shape": sizes, "data_offsets": [0, 4 * 2**40]}}).encode()
    replace_weights(folder, len(header).to_bytes(8, "little") + header + b"\0\0\0\0")
    assert "is not a safetensors file" in refusal(folder)
    replace_weights(folder, (2**62).to_bytes(8, "little") + b"{}")  # or a header of that size
    assert "is not a safetensors file" in refusal(folder)


@pytest.mark.parametrize("name", [WEIGHTS, "held_out.safetensors", "evaluation.json", "manifest.json", "mapping.json"])
def test_a_file_larger_than_memory_is_refused_unread(folder: Path, name: str) -> None:
    os.truncate(folder / name, 2**42)  # sparse: it takes no room on the disk
    assert f"{name} has 4,398,046,511,104 bytes; the limit is" in refusal(folder)


@pytest.mark.parametrize("name", [WEIGHTS, "manifest.json", "mapping.json", "evaluation.json"])
@pytest.mark.parametrize("target", ["/dev/zero", "/", "nowhere", "/etc/passwd"])
def test_a_link_to_something_else_is_refused_and_shows_none_of_it(folder: Path, name: str, target: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to(target)
    sentence = refusal(folder)
    assert name in sentence
    assert "root" not in sentence.replace(str(folder), "")  # what /etc/passwd begins with


def test_a_pipe_instead_of_a_file_is_not_waited_for(folder: Path) -> None:
    (folder / "mapping.json").unlink()
    os.mkfifo(folder / "mapping.json")
    assert refusal(folder).endswith("mapping.json is missing")


def test_deep_json_with_a_fitting_checksum_is_refused(folder: Path) -> None:
    data = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    (folder / "evaluation.json").write_bytes(data)
    sums = json.loads((folder / "manifest.json").read_text())["checksums"]
    edit(folder / "manifest.json", checksums={**sums, "evaluation.json": hashlib.sha256(data).hexdigest()})
    with pytest.raises(ArtifactError, match=r"evaluation.json is not valid") as caught:
        artifact_checks.read_evaluation(folder, artifact_checks.read_manifest(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "tensor", "sentence"),
    [
        ("idf", np.ones(3, dtype=np.float32), "'idf'"),
        ("idf", np.ones(3, dtype=np.float64), "'idf'"),
        ("intercepts", np.zeros((3, 1), dtype=np.float32), "'intercepts'"),
        ("intercepts", np.array([0, np.nan, 0], dtype=np.float32), "not numbers"),
        ("intercepts", np.array([0, np.inf, 0], dtype=np.float32), "not numbers"),
        ("posting_weights", np.zeros(0, dtype=np.float32), "'posting_weights'"),
        ("surprise", np.zeros(3, dtype=np.float32), "surprise"),
    ],
)
def test_a_tensor_of_the_wrong_kind_is_named(folder: Path, name: str, tensor: Any, sentence: str) -> None:
    with_tensor(folder, name, tensor)
    assert sentence in refusal(folder)


@pytest.mark.parametrize("disorder", [lambda kept: kept[::-1].copy(), lambda kept: kept + 2**14, lambda kept: -kept])
def test_buckets_that_are_no_buckets_are_refused(folder: Path, disorder: Any) -> None:
    with_tensor(folder, "kept", disorder(load_file(folder / WEIGHTS)["kept"]))
    assert "not a list of buckets" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "disorder"),
    [
        ("posting_starts", lambda starts: starts[::-1].copy()),
        ("posting_starts", lambda starts: starts + 1),
        ("posting_rows", lambda rows: rows + 3),
        ("posting_rows", lambda rows: rows - 3),
    ],
)
def test_postings_that_point_outside_are_refused(folder: Path, name: str, disorder: Any) -> None:
    with_tensor(folder, name, disorder(load_file(folder / WEIGHTS)[name]))
    assert "point out of range" in refusal(folder)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "sub/weights.safetensors", "weights.pkl"])
def test_a_manifest_that_names_other_files_is_refused(folder: Path, name: str) -> None:
    sums = json.loads((folder / "manifest.json").read_text())["checksums"]
    edit(folder / "manifest.json", checksums={**sums, name: "0"})
    assert repr(name) in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"temperature": "warm"}, "temperature"),
        ({"temperature": 0.0}, "temperature"),
        ({"extra": 1}, "extra"),
        ({"experts": []}, "experts"),
        ({"categories": ["code", "french"]}, "maths"),
        ({"categories": ["code", "french", "maths", "maths"]}, "twice"),
        ({"overall": {}}, "'coder' is missing"),
        ({"experts": [{**SEEING, "modalities": ["audio"]}]}, "image is not among the modalities (audio)"),
        ({"experts": [{**SEEING, "modalities": ["smell"]}]}, "experts.0.modalities"),
        ({"bans": {"cooking": ["coder"]}}, "unknown category 'cooking'"),
        ({"pins": {"french": "nobody"}}, "unknown expert 'nobody'"),
        ({"checksums": {}}, "nothing"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(folder: Path, changes: dict[str, Any], sentence: str) -> None:
    edit(folder / "manifest.json", **changes)
    assert sentence in refusal(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"format_version": NaN}', "[" * 100_000, "\x00\xff"])
@pytest.mark.parametrize("name", ["manifest.json", "mapping.json"])
def test_json_of_the_wrong_shape_is_refused(folder: Path, name: str, text: str) -> None:
    (folder / name).write_bytes(text.encode("latin-1"))
    assert name in refusal(folder)


def test_a_category_without_an_expert_is_refused(folder: Path) -> None:
    mapping = json.loads((folder / "mapping.json").read_text())
    del mapping["cheap"]["maths"]
    (folder / "mapping.json").write_text(json.dumps(mapping))
    assert "category 'maths' has no expert under objective 'cheap'" in refusal(folder)


def test_a_mapping_to_an_unknown_expert_is_refused(folder: Path) -> None:
    mapping = json.loads((folder / "mapping.json").read_text())
    mapping["cheap"]["maths"] = "nobody"
    (folder / "mapping.json").write_text(json.dumps(mapping))
    assert "unknown expert 'nobody'" in refusal(folder)


def test_experts_that_the_server_lacks_are_named_and_one_must_be_there(folder: Path) -> None:
    artifact = artifacts.load(folder)
    assert artifact.unserved(["coder", "linguist", "big", "more"]) == []
    assert artifact.unserved(["coder", "linguist"]) == ["big"]
    with pytest.raises(ArtifactError, match=r"serves none of the router artifact's experts .* it serves more"):
        artifact.unserved(["more"])


def test_every_file_of_an_artifact_can_be_read_by_everyone(folder: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o044 for path in folder.iterdir()}
    assert set(modes.values()) == {(folder / "mapping.json").stat().st_mode & 0o044}


def test_a_router_from_disk_gives_the_same_decision_twice(folder: Path) -> None:
    def plain(router: Router) -> dict[str, Any]:
        decision = router.route(Conversation.of_prompt(TEXTS["code"]), RouteOptions(), everywhere()).as_json()
        return {key: value for key, value in decision.items() if key not in ("decision_id", "routing_ms")}

    assert plain(Router.load(folder)) == plain(Router.load(folder))
