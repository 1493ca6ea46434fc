"""Configuration refuses what it does not know and says what is allowed."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from stages.contracts.config import Config, merged, parse_config, read_yaml
from stages.contracts.errors import ConfigError, ReleaseError
from stages.contracts.files import write_json
from stages.contracts.manifest import MANIFEST_FILE, ReleaseManifest, read_manifest, verify_release
from tests.trees import sha256_tree


class _Inner(Config):
    epochs: int = 1


class _Outer(Config):
    inner: _Inner = _Inner()


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(_Outer, {"inner": {"epochs": "many"}, "tyop": 1}, "demo.yaml")
    message = str(caught.value)
    assert "demo.yaml" in message
    assert "inner.epochs = 'many'" in message
    assert "tyop: unknown key" in message


class _Red(Config):
    kind: Literal["red"] = "red"
    shade: int = 0


class _Blue(Config):
    kind: Literal["blue"] = "blue"
    depth: int = 0


class _Many(Config):
    parts: tuple[Annotated[_Red | _Blue, Field(discriminator="kind")], ...] = Field(min_length=1)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([{"kind": "red", "shadow": 1}], "page: parts.0.red.shadow: unknown key, allowed are kind, shade"),
        ([{"kind": "green"}], "page: parts.0.kind = 'green': allowed are red, blue"),
        ([{"depth": 1}], "page: parts.0.kind: missing, allowed are red, blue"),
        ([], "page: parts = []: Tuple should have at least 1 item after validation, not 0"),
    ],
)
def test_a_fault_in_one_of_several_forms_is_told_alone_with_what_is_allowed(parts: list[object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(_Many, {"parts": parts}, "page")
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("content", "words"), [("- 1\n", "must hold a mapping, found list"), ("a: [", "not valid YAML")]
)
def test_bad_yaml_is_named(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=words):
        read_yaml(path)


def test_missing_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: No such file"):
        read_yaml(tmp_path / "nowhere.yaml")


def _release(directory: Path) -> ReleaseManifest:
    (directory / "state").mkdir(parents=True)
    (directory / "a.txt").write_text("a")
    (directory / "state" / "b.txt").write_text("b")
    manifest = ReleaseManifest(
        release_id="r",
        as_of_ms=1,
        parts=sha256_tree(directory),
        feature_schema_hash="f",
        tower_version="t",
        data_fingerprint="d",
        funnel={},
        metrics={},
    )
    write_json(directory / MANIFEST_FILE, manifest.model_dump(mode="json"))
    return manifest


TREES = st.recursive(
    st.integers(0, 3) | st.none() | st.lists(st.integers(0, 3), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
MAPPINGS = st.dictionaries(st.sampled_from("abc"), TREES, max_size=3)


def leaf_at(tree: object, keys: tuple[str, ...]) -> object:
    """Return what stands at a path: a value, the word mapping, or the word nothing."""
    for key in keys:
        if not isinstance(tree, dict) or key not in tree:
            return "nothing"
        tree = tree[key]
    return "mapping" if isinstance(tree, dict) else tree


@given(MAPPINGS, MAPPINGS)
def test_merged_takes_each_value_from_the_last_that_has_it(base: dict, over: dict) -> None:
    before = copy.deepcopy((base, over))
    found = merged(base, over)
    assert (base, over) == before
    for keys in (path for n in (1, 2, 3, 4) for path in product("abc", repeat=n)):
        own = leaf_at(over, keys)
        # A value in place of a mapping, or a mapping in place of a value, hides all that was below it.
        hidden = any(leaf_at(over, keys[:n]) not in ("mapping", "nothing") for n in range(1, len(keys)))
        hidden |= any(
            leaf_at(over, keys[:n]) == "mapping" and leaf_at(base, keys[:n]) != "mapping" for n in range(1, len(keys))
        )
        assert leaf_at(found, keys) == (leaf_at(base, keys) if own == "nothing" and not hidden else own)


def test_merged_replaces_lists_and_keeps_nulls() -> None:
    base = {"model": {"size": 8, "heads": [1, 2]}, "seed": 1, "name": {"a": 1}}
    over = {"model": {"heads": [3], "rate": None}, "name": "b"}
    assert merged(base, over) == {"model": {"size": 8, "heads": [3], "rate": None}, "seed": 1, "name": "b"}


def test_whole_release_is_accepted(tmp_path: Path) -> None:
    wanted = _release(tmp_path / "r")
    assert verify_release(tmp_path / "r") == wanted


def test_every_damaged_part_is_named(tmp_path: Path) -> None:
    directory = tmp_path / "r"
    _release(directory)
    (directory / "a.txt").write_text("changed")
    (directory / "state" / "b.txt").unlink()
    (directory / "extra.txt").write_text("?")
    with pytest.raises(ReleaseError) as caught:
        verify_release(directory)
    message = str(caught.value)
    assert "a.txt: sha256" in message
    assert "state/b.txt: missing" in message
    assert "extra.txt: not in the manifest" in message


def test_missing_broken_and_foreign_manifests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="missing"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST_FILE).write_text("{")
    with pytest.raises(ReleaseError, match="not a valid manifest"):
        read_manifest(tmp_path)
    directory = tmp_path / "r"
    newer = _release(directory).model_copy(update={"format_version": 2})
    write_json(directory / MANIFEST_FILE, newer.model_dump(mode="json"))
    with pytest.raises(ReleaseError, match="format_version = 2"):
        read_manifest(directory)
