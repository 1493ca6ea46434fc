import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.contracts.errors import ReleaseError
from stages.contracts.files import write_json
from stages.contracts.manifest import verify_release

PARTS = (
    "config.json",
    "items.parquet",
    "item_vectors.npy",
    "state/counts.npy",
    "light_ranker.txt",
    "heavy_ranker.onnx",
)


@pytest.fixture(scope="module")
def whole(make_release, tmp_path_factory):
    return make_release(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def release(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "release")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=st.sampled_from(PARTS), position=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_any_changed_byte_is_found(whole, tmp_path_factory, part, position, flip):
    copy = shutil.copytree(whole, tmp_path_factory.mktemp("copy") / "release")
    content = bytearray((copy / part).read_bytes())
    content[position % len(content)] ^= flip
    (copy / part).write_bytes(bytes(content))
    with pytest.raises(ReleaseError, match=f"{part}: sha256 .* the manifest says"):
        verify_release(copy)


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_found(release, part):
    (release / part).unlink()
    with pytest.raises(ReleaseError, match=f"{part}: missing"):
        verify_release(release)


def test_a_part_that_nobody_listed_is_found(release):
    (release / "state" / "extra.npy").write_bytes(b"more")
    with pytest.raises(ReleaseError, match=r"state/extra\.npy: not in the manifest"):
        verify_release(release)


def test_every_fault_is_named_at_once(release):
    (release / "config.json").unlink()
    (release / "light_ranker.txt").write_text("other")
    with pytest.raises(ReleaseError, match=r"config\.json: missing; light_ranker\.txt: sha256"):
        verify_release(release)


def test_no_manifest_means_no_release(release):
    (release / "manifest.json").unlink()
    with pytest.raises(ReleaseError, match=r"manifest\.json: missing"):
        verify_release(release)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"release_id": "x"}'])
def test_a_malformed_manifest_is_refused(release, text):
    (release / "manifest.json").write_text(text)
    with pytest.raises(ReleaseError, match="not a valid manifest"):
        verify_release(release)


@pytest.mark.parametrize(
    ("values", "message"),
    [({"surprise": 1}, "surprise"), ({"format_version": 2}, "format_version = 2, this version reads 1")],
)
def test_an_unknown_key_and_another_format_are_refused(release, values, message):
    path = release / "manifest.json"
    write_json(path, json.loads(path.read_text()) | values)
    with pytest.raises(ReleaseError, match=message):
        verify_release(release)
