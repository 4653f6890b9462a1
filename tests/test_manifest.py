"""The manifest: written whole, read back equal, and no damaged one is taken for a bundle."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckv_export.contract import (
    AttentionSpec,
    DnnSpec,
    EventForm,
    FeatureSpec,
    ModelSpec,
    Profile,
    Range,
)
from ckv_export.engine.profiles import input_shapes
from ckv_export.errors import BundleError, EngineError
from ckv_export.manifest import (
    FILE_NAME,
    SCHEMA_VERSION,
    EngineEntry,
    FileEntry,
    ItemTable,
    Manifest,
    open_bundle,
    read_manifest,
    verify,
)

SPEC = ModelSpec(
    kind="sim",
    features=(
        FeatureSpec("item_id", "item", "categorical", 4, vocab_size=9),
        FeatureSpec("tags", "item", "sequence", 4, vocab_size=5, length=3),
        FeatureSpec("age", "user", "numeric", 2),
    ),
    attention=AttentionSpec(8, 2, 2, 8, 10, 0),
    dnn=DnnSpec((6,), ("relu",), True),
    max_len=20,
    window=5,
    options={"topk": 3},
)
FILES = {
    "prefill.onnx": b"prefill",
    "decode.onnx": b"decode" * 1000,
    "decode_items.onnx": b"decode items",
    "item_table.safetensors": b"table",
    "empty": b"",
    "engines/decode.tensorrt_rtx.sm86.engine": bytes(range(256)),
}
ENGINE = EngineEntry(
    "decode", "engines/decode.tensorrt_rtx.sm86.engine", "tensorrt_rtx", "1", ("sm86",),
    {"B": "1:2:3"}, 3, 0.5, profiles=({"B": "1:2:3"},),
)  # fmt: skip
MANIFEST = Manifest(
    name="toy",
    fingerprint="ab" * 32,
    model=SPEC,
    form=EventForm(),
    item_table=ItemTable(SPEC.features[0].vocab_size, 7, "int32"),
    profile=Profile.default(SPEC).replaced(SPEC, {"B": Range(1, 2, 3)}),
    source={"kind": "native", "files": [{"name": "model.pt", "sha256": "cd" * 32, "bytes": 5}]},
    versions={"torch": "2"},
    operators={"ckv": 1, "opset": 20},
    notes=("a note",),
    timings={"load": 0.25},
    parity={"passed": True, "seed": 3, "cases": 2, "worst_score_error": {"pytorch": 1e-7}},
    engines=(ENGINE,),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle of files that hold anything: only the manifest is looked at."""
    for name, data in FILES.items():
        path = tmp_path / "toy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    MANIFEST.with_files(tmp_path / "toy").write(tmp_path / "toy")
    return tmp_path / "toy"


def data_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / FILE_NAME).read_text())


def test_reads_back_equal(folder: Path):
    manifest = open_bundle(folder)
    assert manifest == MANIFEST.with_files(folder)
    assert manifest.model == SPEC
    assert manifest.profile.axes["B"] == Range(1, 2, 3)
    assert manifest.engines == (ENGINE,)
    assert manifest.graph_names == ("prefill", "decode", "decode_items")


def test_a_bundle_without_an_item_table(folder: Path):
    plain = dataclasses.replace(MANIFEST.with_files(folder), item_table=None)
    plain.write(folder)
    assert open_bundle(folder) == plain
    assert set(data_of(folder)["graphs"]) == {"prefill", "decode"}


@pytest.mark.parametrize("form", [EventForm("external"), EventForm(item_key="item_id")])
def test_graphs_follow_the_form(folder: Path, form: EventForm):
    dataclasses.replace(MANIFEST.with_files(folder), form=form).write(folder)
    manifest = open_bundle(folder)
    assert manifest.form == form
    what = form.item_key or "embedding"
    for graph in manifest.graph_names:
        prefix = "event" if graph == "prefill" else "candidate"
        given = [t.name for t in manifest.graph(graph).inputs if t.name.startswith(prefix)]
        assert [name for name in given if name != "event_mask"] == [f"{prefix}_{what}"]


def test_an_engine_of_an_earlier_version(folder: Path):
    """It has none of what later versions record."""
    data = data_of(folder)
    for name in ("pool_step", "plugin", "settings", "report", "profiles", "onnx"):
        del data["engines"][0][name]
    (folder / FILE_NAME).write_text(json.dumps(data))
    assert open_bundle(folder).engines == (dataclasses.replace(ENGINE, profiles=()),)


def test_caches_go_by_a_fingerprint_of_their_own():
    assert MANIFEST.entries_fingerprint == MANIFEST.fingerprint
    own = dataclasses.replace(MANIFEST, fingerprints={"entries": "ef" * 32})
    assert own.entries_fingerprint == "ef" * 32


def test_lists_every_file_but_itself_with_its_hash(folder: Path):
    listed = data_of(folder)["files"]
    assert list(listed) == sorted(FILES)
    assert listed == {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        for name, data in FILES.items()
    }


def test_hashes_files_larger_than_one_chunk(tmp_path: Path):
    data = b"0123456789abcdef" * (2**18) + b"end"
    (tmp_path / "large").write_bytes(data)
    entry = FileEntry.of(tmp_path / "large")
    assert entry == FileEntry(hashlib.sha256(data).hexdigest(), len(data))


def test_says_which_tensors_the_graphs_take(folder: Path):
    """The file alone tells a server names, dtypes and axes."""
    graphs = data_of(folder)["graphs"]
    prefill = {t["name"]: (t["dtype"], t["axes"]) for t in graphs["prefill"]["inputs"]}
    assert prefill == {
        "event_item_id": ("int32", ["B", "S"]),
        "event_tags": ("int32", ["B", "S", 3]),
        "event_mask": ("bool", ["B", "S"]),
    }
    outputs = {t["name"]: (t["dtype"], t["axes"]) for t in graphs["decode"]["outputs"]}
    assert outputs == {
        "score": ("float32", ["B", "C"]),
        "append_k_index": ("int32", ["B", 1, "T"]),
        "append_k_user": ("float32", ["B", 1, "T", SPEC.attention.user_k]),
        "append_v_user": ("float32", ["B", 1, "T", SPEC.attention.d]),
    }
    table = {t["name"]: (t["dtype"], t["axes"]) for t in graphs["decode_items"]["inputs"]}
    assert table["item_long_key"] == ("int32", ["I", 7])
    assert [graph["file"] for graph in graphs.values()] == [f"{name}.onnx" for name in graphs]


def test_is_written_whole_or_not_at_all(folder: Path):
    before = (folder / FILE_NAME).read_bytes()
    unwritable = dataclasses.replace(MANIFEST, timings={"load": object()})
    with pytest.raises(TypeError):
        unwritable.write(folder)
    assert (folder / FILE_NAME).read_bytes() == before
    assert {p.name for p in folder.iterdir()} == {FILE_NAME, *(n.split("/")[0] for n in FILES)}


def test_a_manifest_written_again_is_another_file(folder: Path, tmp_path: Path):
    """A copy of a bundle shares its files with it."""
    os.link(folder / FILE_NAME, tmp_path / "kept")
    before = (tmp_path / "kept").read_bytes()
    MANIFEST.write(folder)
    assert (tmp_path / "kept").read_bytes() == before != (folder / FILE_NAME).read_bytes()


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_changed_file_is_named(folder: Path, name: str):
    (folder / name).write_bytes(FILES[name] + b"!")
    with pytest.raises(BundleError, match=f"{name} is not the file that was exported"):
        open_bundle(folder)


@pytest.mark.parametrize("name", sorted(n for n in FILES if FILES[n]))
def test_a_flipped_bit_is_found_where_the_size_is_right(folder: Path, name: str):
    data = bytearray(FILES[name])
    data[-1] ^= 0x80
    (folder / name).write_bytes(data)
    with pytest.raises(BundleError, match="hash differs"):
        verify(folder, read_manifest(folder))


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_lost_file_is_named(folder: Path, name: str):
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"lacks its file {name}"):
        open_bundle(folder)


@pytest.mark.parametrize("name", sorted(n for n in FILES if n != "empty"))
def test_graphs_and_engines_must_be_listed(folder: Path, name: str):
    data = data_of(folder)
    del data["files"][name]
    (folder / FILE_NAME).write_text(json.dumps(data))
    with pytest.raises(BundleError, match=f"no hash of {name}"):
        open_bundle(folder)


def test_pools_that_graphs_take_must_be_listed(folder: Path):
    form = EventForm(pools="float32")
    dataclasses.replace(MANIFEST.with_files(folder), form=form).write(folder)
    with pytest.raises(BundleError, match=r"no hash of pools\.safetensors"):
        open_bundle(folder)


def test_other_files_in_the_folder_do_no_harm(folder: Path):
    (folder / "notes.txt").write_text("mine")
    assert "notes.txt" not in open_bundle(folder).files


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "null", "[]", "3", '"manifest"', "{}", '{"schema_version": 3}', "\ufeff{}"),
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_what_is_no_manifest(folder: Path, text: str):
    (folder / FILE_NAME).write_text(text)
    with pytest.raises(BundleError, match=str(folder / FILE_NAME)):
        read_manifest(folder)


def test_bytes_that_are_no_text(folder: Path):
    (folder / FILE_NAME).write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(BundleError, match="no bundle manifest"):
        read_manifest(folder)


@pytest.mark.parametrize("instead", ["nothing", "a folder"])
def test_a_folder_without_a_manifest(folder: Path, instead: str):
    (folder / FILE_NAME).unlink()
    if instead == "a folder":
        (folder / FILE_NAME).mkdir()
    with pytest.raises(BundleError, match=r"is no bundle: it has no manifest\.json"):
        read_manifest(folder)
    with pytest.raises(BundleError, match="is no bundle: there is no such folder"):
        read_manifest(folder / "typo")


@pytest.mark.parametrize(
    "version", [SCHEMA_VERSION + 1, SCHEMA_VERSION - 1, 0, -1, "1", None, 1.5, [1]]
)
def test_another_schema_version_names_both(folder: Path, version: object):
    data = data_of(folder) | {"schema_version": version}
    (folder / FILE_NAME).write_text(json.dumps(data))
    message = rf"schema version {version}, this ckv-export reads {SCHEMA_VERSION}: export"
    with pytest.raises(BundleError, match=message.replace("[", r"\[").replace("]", r"\]")):
        read_manifest(folder)


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything in JSON data."""
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield (*path, key)
            yield from places(value, (*path, key))


def changed(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with one value replaced, or taken out where it is `...`."""
    copied = copy.deepcopy(data)
    inner = copied
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return copied


NEEDED = [field.name for field in dataclasses.fields(Manifest) if field.name != "padding"]


def test_a_bundle_of_an_earlier_version_has_zeros_for_padding(folder: Path):
    data = data_of(folder)
    del data["padding"]
    (folder / FILE_NAME).write_text(json.dumps(data))
    assert open_bundle(folder).padding == {}


@pytest.mark.parametrize(
    ("padding", "says"),
    [
        ({"cache_v_index": [1]}, "caches no 'cache_v_index'"),  # V has no pool
        ({"cache_k_index": [10]}, "cache_k_index must be 1 numbers"),
        ({"cache_k_index": [-1]}, "cache_k_index must be 1 numbers"),
        ({"cache_k_user": [1.0]}, "cache_k_user must be 2 numbers"),
        ({"cache_k_user": [1.0, float("nan")]}, "cache_k_user must be 2 numbers"),
        ({"cache_k_user": [1.0, "x"]}, "not supported between"),
    ],
)
def test_padding_is_an_entry_of_the_model(folder: Path, padding: dict, says: str):
    (folder / FILE_NAME).write_text(json.dumps(data_of(folder) | {"padding": padding}))
    with pytest.raises(BundleError, match=f"is damaged: .*{says}"):
        read_manifest(folder)


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_field_is_named(folder: Path, name: str):
    data = data_of(folder)
    del data[name]
    (folder / FILE_NAME).write_text(json.dumps(data))
    with pytest.raises(BundleError, match=name):
        read_manifest(folder)


PLUGIN = {
    **dict.fromkeys(("kind", "sha256", "operator_version", "tensorrt"), "x"),
    "targets": ["sm90"],
    "carried": True,
}
ENGINE_TEXTS = ("graph", "file", "backend", "backend_version", "pool_step", "report", "onnx")
PLAIN = [
    *((name,) for name in NEEDED if name not in ("form", "item_table")),
    *(("engines", 0, name) for name in (*ENGINE_TEXTS, "plugin", "settings", "profiles")),
    *(("engines", 0, name) for name in ("targets", "profile")),
    *(("engines", 0, "plugin", name) for name in PLUGIN),
    ("parity", "seed"),
]


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: ".".join(map(str, path)))
def test_a_value_of_another_kind_is_named(folder: Path, path: tuple[Any, ...]):
    data = changed(data_of(folder), ("engines", 0, "plugin"), PLUGIN)
    (folder / FILE_NAME).write_text(json.dumps(changed(data, path, 0.5)))
    with pytest.raises(BundleError, match=f"is damaged: .*{path[-1]} must be a .*, got float"):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["/etc/passwd", "../decode.onnx", "engines/../../x"])
@pytest.mark.parametrize("where", ["files", "file", "report", "plugin"])
def test_a_path_that_leaves_the_bundle(folder: Path, where: str, name: str):
    data = data_of(folder)
    engine = data["engines"][0]
    match where:
        case "files":
            data["files"][name] = data["files"]["empty"]
        case "plugin":
            engine["plugin"] = PLUGIN | {"file": name}
        case _:
            engine[where] = name
    (folder / FILE_NAME).write_text(json.dumps(data))
    with pytest.raises(BundleError, match=f"'{name}' is no path in the bundle"):
        read_manifest(folder)


def test_graphs_of_another_model(folder: Path):
    """What a server reads of the graphs can't differ from what follows from the model."""
    data = data_of(folder)
    data["graphs"]["decode"]["inputs"][0]["dtype"] = "int64"
    (folder / FILE_NAME).write_text(json.dumps(data))
    with pytest.raises(BundleError, match="graphs are not those of its model"):
        read_manifest(folder)


def test_no_damage_ends_in_another_error(folder: Path):
    """Every value replaced by every other kind: refused in a sentence, or harmless to all users."""
    data = data_of(folder)
    refused = 0
    # Within the graphs any change is the same one: they are no longer those of the model.
    tried = [path for path in places(data) if path[0] != "graphs" or len(path) <= 3]
    for path in tried:
        for value in (..., None, -1, "x", {"x": 1}):
            (folder / FILE_NAME).write_text(json.dumps(changed(data, path, value)))
            try:
                manifest = open_bundle(folder)
            except BundleError as error:
                assert "\n" not in str(error)  # noqa: PT017
                refused += 1
                continue
            again = json.loads(json.dumps(manifest.to_dict()))
            assert Manifest.from_dict(again).to_dict() == manifest.to_dict()
            _use(manifest)
    assert refused > len(tried)


def _use(manifest: Manifest) -> None:
    """What other rooms take from a manifest."""
    for graph in manifest.graph_names:
        with contextlib.suppress(EngineError):
            input_shapes(manifest.graph(graph), manifest.profile)
    assert all(isinstance(note, str) for note in manifest.notes)
    assert all(isinstance(engine.file, str) for engine in manifest.engines)
    assert manifest.parity is None or isinstance(manifest.parity["seed"], int)
    assert isinstance(manifest.name, str)
    assert isinstance(manifest.entries_fingerprint, str)
    assert {"B", "S", "K", "T", "C"} <= manifest.profile.axes.keys()
    assert manifest.item_table is None or f"{manifest.item_table.items:,}"
    assert all(isinstance(feature.name, str) for feature in manifest.model.features)
    assert all(isinstance(name, str) for name in manifest.model.dnn.activations)
    for engine in manifest.engines:
        assert all(isinstance(target, str) for target in engine.targets)
        for profile in (engine.profile, *engine.profiles):
            Profile.from_dict(profile)
    assert isinstance(manifest.fingerprint, str)
