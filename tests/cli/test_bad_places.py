"""Output folders, names, options and bundles that must be refused and stay as they are."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ckv_export.deploy import bundle as deploy_bundle
from ckv_export.engine import available
from ckv_export.manifest import SCHEMA_VERSION, Manifest, open_bundle

Refuse = Callable[..., str]


@pytest.fixture
def export_refused(refused: Refuse, run_folder: Path) -> Refuse:
    """Export the good model; the rest of the command line is at fault."""

    def run(*words: str | Path, watched: Path, says: tuple[str, ...]) -> str:
        return refused(run_folder, *words, watched=watched, says=says)

    return run


def test_an_existing_bundle_without_force(export_refused, bundle_copy: Path):
    out = bundle_copy.parent
    words = ("--out", out, "--name", bundle_copy.name)
    export_refused(*words, watched=out, says=("exists", str(bundle_copy), "--force", "--name"))


def test_an_existing_bundle_under_the_checkpoints_own_name(
    refused, run_folder: Path, bundle_copy: Path
):
    """The name is only known once the checkpoint is read."""
    name = next(run_folder.glob("*.model")).stem
    bundle_copy.rename(bundle_copy.with_name(name))
    out = bundle_copy.parent
    refused(run_folder, "--out", out, watched=out, says=("exists", name, "--force"))


def test_what_comes_there_meanwhile_is_not_replaced(
    refused, run_folder: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    mine = tmp_path / "out" / "name" / "mine.txt"

    def fill(folder: Path, *given: object) -> tuple[Manifest, None]:
        mine.parent.mkdir()
        mine.write_text("mine")
        return open_bundle(bundle), None

    monkeypatch.setattr(deploy_bundle, "_fill", fill)
    words = (run_folder, "--out", tmp_path / "out", "--name", "name", "--force")
    refused(*words, watched=bundle, says=("is no bundle, so it is never replaced",))
    assert mine.read_text() == "mine"
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["name"]


def test_shapes_that_no_request_could_have(export_refused, out: Path):
    words = ("--out", out, "--candidates", "0")
    export_refused(*words, watched=out, says=("'candidate_item_id'", "would never hold candidates"))


def identity(path: Path) -> tuple[int, ...]:
    """Of the very file or folder, as it is; looking into it is no change."""
    status = path.lstat()
    return status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@pytest.mark.parametrize("kind", ["empty folder", "folder", "file", "pipe", "link to a file"])
def test_what_is_no_bundle_is_never_replaced(export_refused, tmp_path: Path, kind: str):
    out = tmp_path / "out"
    out.mkdir()
    target = out / "name"
    if kind.endswith("folder"):
        target.mkdir()
    if kind == "folder":
        (target / "thesis.tex").write_text("years of work")
    if kind == "file":
        target.write_text("precious")
    if kind == "pipe":
        os.mkfifo(target)
    if kind == "link to a file":
        target.symlink_to(shutil.copyfile(__file__, tmp_path / "file"))
    before = identity(target)
    words = ("--out", out, "--name", "name", "--force")
    if kind == "pipe":
        export_refused(*words, watched=tmp_path / "nothing", says=("no bundle", "never replaced"))
    else:
        export_refused(*words, watched=tmp_path, says=("no bundle", "never replaced", "--name"))
    assert identity(target) == before


def test_a_model_is_never_replaced_by_its_own_bundle(export_refused, run_folder: Path):
    words = ("--out", run_folder.parent, "--name", run_folder.name, "--force")
    export_refused(*words, watched=run_folder.parent, says=("no bundle", "never replaced"))


@pytest.mark.parametrize("given", ["model", "--item-features", "--engine-cache", "--profiles"])
def test_what_is_given_is_never_replaced_with_the_bundle_it_lies_in(
    refused, run_folder: Path, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch, given: str
):
    """From within it too, where a path says nothing of the bundle."""
    if given in ("--engine-cache", "--profiles") and not available():
        pytest.skip("no TensorRT is installed: no engines are built")
    inside = Path(shutil.copytree(run_folder, bundle_copy / "mine"))
    (inside / "profiles.yaml").write_text("short: {history: 0:8:8}")
    monkeypatch.chdir(inside)
    model = inside if given == "model" else run_folder
    words = {
        "model": (),
        "--engine-cache": ("--build", "--engine-cache=cache"),
        "--profiles": ("--build", "--profiles=profiles.yaml"),
    }
    more = words.get(given, (f"{given}=features.npz",))
    out = ("--out=../..", f"--name={bundle_copy.name}", "--force", "--no-parity")
    says = ("lies in ../../bundle, which is replaced with everything in it", "move it")
    refused(model, *out, *more, watched=bundle_copy.parent, says=says)
    if given == "--engine-cache":
        refused("build", "..", more[1], watched=bundle_copy.parent, says=("cache lies in ..,",))


def test_a_working_folder_that_is_gone(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As that of a shell is whose bundle was replaced; PyTorch would end the process."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert "is no longer there: leave it, or" in cli("inspect", "/").sentence()


@pytest.mark.parametrize(("folder", "name"), [("out", "\udcff"), ("\udcff", "name")])
def test_a_path_of_bytes_that_are_no_text(export_refused, tmp_path: Path, folder: str, name: str):
    """Linux allows it; ONNX's checker would fail on it at the end, with a traceback."""
    words = ("--out", tmp_path / folder, "--name", name)
    export_refused(*words, watched=tmp_path, says=("UTF-8", "--name"))


def test_an_output_folder_that_is_a_file(export_refused, tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("precious")
    export_refused("--out", file, watched=tmp_path, says=("is a file", str(file)))
    export_refused("--out", file / "below", watched=tmp_path, says=("ot a directory",))
    export_refused("--out", "/dev/null", watched=tmp_path, says=("is a file", "/dev/null"))


@pytest.mark.parametrize("name", ["a/b", "/abs", "..", ".", "", ".hidden", "a/", "../../x", "a/.."])
def test_a_name_that_is_no_folder_name(export_refused, tmp_path: Path, name: str):
    words = ("--out", tmp_path / "out", f"--name={name}")
    sentence = export_refused(*words, watched=tmp_path, says=("plain folder name", "got"))
    assert sentence.endswith(repr(name))


def test_a_name_that_is_too_long(export_refused, tmp_path: Path):
    words = ("--out", tmp_path / "out", "--name", "x" * 300)
    export_refused(*words, watched=tmp_path, says=("too long",))


@pytest.mark.parametrize("flag", ["--batch", "--history", "--appended", "--candidates"])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("garbage", ("whole numbers", "MIN:OPT:MAX", "'garbage'")),
        ("1.5", ("whole numbers", "'1.5'")),
        ("", ("whole numbers", "''")),
        ("1:2:3:4", ("MIN:OPT:MAX", "'1:2:3:4'")),
        ("8:1", ("min <= opt <= max", "8:1:1")),
        ("1:9:8", ("min <= opt <= max", "1:9:8")),
        ("-1:2:3", ("0 <= min", "-1:2:3")),
    ],
)
def test_a_range_that_is_none(export_refused, tmp_path: Path, flag: str, text: str, says):
    export_refused("--out", tmp_path / "out", f"{flag}={text}", watched=tmp_path, says=says)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), ("--out", "required")),
        (("--out",), ("--out", "expected one argument")),
        (("--out", "x", "--bild=1"), ("unrecognized", "export --help", "mean '--build'?")),
        (("--out", "x", "--seed", "-1"), ("--seed", "at least 0", "'-1'")),
        (("--out", "x", "--seed", "many"), ("--seed", "at least 0", "'many'")),
        (("--out", "x", "--build", "--workspace", "0"), ("--workspace", "at least 1", "'0'")),
        (("--out", "x", "--build", "--optimization-level", "6"), ("--optimization-level", "6")),
        (("--out", "x", "--backend", "tensorflow"), ("--backend", "tensorflow", "tensorrt_rtx")),
        (("--out", "x", "--target", "sm86"), ("--target", "--build")),
        (("--out", "x", "--backend", "tensorrt_rtx"), ("--backend", "--build")),
        (("--out", "x", "--optimization-level", "0"), ("--optimization-level", "--build")),
        (("--out", "x", "--candidates", "0"), ("would never hold candidates", "0:0:0")),
        (("--out", "x", "--item-key", "item_id"), ("--item-key", "--item-table")),
    ],
)
def test_options_that_do_not_fit(export_refused, tmp_path: Path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    export_refused(*words, watched=tmp_path, says=says)


def test_a_misspelt_verb(refused, bundle: Path, tmp_path: Path, monkeypatch):
    """It is not taken for a model, unless there is one of that name."""
    monkeypatch.chdir(tmp_path)
    refused("biuld", bundle, watched=tmp_path, says=("no verb", "'biuld'", "mean 'build'?"))
    (tmp_path / "biuld").touch()
    refused("biuld", "--out", "x", watched=tmp_path, says=("biuld: the file is empty",))


@pytest.mark.skipif(not available(), reason="no TensorRT is installed: targets aren't looked at")
def test_an_unknown_target(export_refused, refused, bundle_copy: Path, tmp_path: Path):
    """Named before anything is exported, with what there is."""
    words = ("--out", tmp_path / "out", "--build", "--target", "sm86", "--target", "ampera")
    says = ("'ampera'",) if "tensorrt" in available() else ("'ampera'", "sm86", "mean 'ampere'?")
    export_refused(*words, watched=tmp_path, says=says)
    refused("build", bundle_copy, "--target", "ampera", watched=tmp_path, says=says)


def test_build_without_a_tensorrt(export_refused, tmp_path: Path, monkeypatch):
    """Said before the work, with how to install it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    says = ("not installed", "pip install 'ckv-export[rtx]'")
    export_refused("--out", tmp_path / "out", "--build", watched=tmp_path, says=says)


def verbs_refuse(refused: Refuse, bundle: Path, says: tuple[str, ...]) -> None:
    """Parity, inspect and build refuse the bundle alike and leave it as it is."""
    sentences = {
        refused(verb, bundle, watched=bundle.parent, says=says)
        for verb in ("parity", "inspect", "build")
    }
    assert len(sentences) == 1, sentences


@pytest.mark.parametrize("file", ["prefill.onnx", "decode.onnx", "parity_cases.npz", "parity.html"])
def test_a_bundle_with_a_flipped_bit(refused, bundle_copy: Path, file: str):
    path = bundle_copy / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    verbs_refuse(refused, bundle_copy, (str(path), "hash differs", "export it again"))


def test_a_bundle_with_a_longer_file(refused, bundle_copy: Path):
    with (bundle_copy / "decode.onnx").open("ab") as file:
        file.write(b"\0")
    verbs_refuse(refused, bundle_copy, ("decode.onnx", "hash differs"))


def test_a_bundle_that_lacks_a_file(refused, bundle_copy: Path):
    (bundle_copy / "decode.onnx").unlink()
    verbs_refuse(refused, bundle_copy, ("lacks", "decode.onnx"))


def test_a_bundle_whose_manifest_does_not_list_a_graph(refused, bundle_copy: Path):
    """An unlisted graph has no hash: anything may be in it."""
    path = bundle_copy / "manifest.json"
    data = json.loads(path.read_text())
    del data["files"]["decode.onnx"]
    path.write_text(json.dumps(data))
    verbs_refuse(refused, bundle_copy, ("manifest.json", "decode.onnx"))


def test_a_bundle_of_a_future_version(refused, bundle_copy: Path):
    path = bundle_copy / "manifest.json"
    data = json.loads(path.read_text())
    data["schema_version"] += 1
    path.write_text(json.dumps(data))
    says = (f"schema version {SCHEMA_VERSION + 1}", f"reads {SCHEMA_VERSION}")
    verbs_refuse(refused, bundle_copy, (*says, "export the model again"))


@pytest.mark.parametrize("part", [0, 1, 100, -2])
def test_a_truncated_manifest(refused, bundle_copy: Path, part: int):
    path = bundle_copy / "manifest.json"
    path.write_text(path.read_text()[:part])
    verbs_refuse(refused, bundle_copy, ("manifest.json", "no bundle manifest"))


def test_what_is_no_bundle(refused, tmp_path: Path, run_folder: Path):
    for verb in ("parity", "build"):
        for path, why in ((tmp_path / "nothing", "no such folder"), (run_folder, "manifest.json")):
            refused(verb, path, watched=tmp_path, says=(str(path), "no bundle", why))


def test_a_folder_of_bundles(cli, refused, bundle_copy: Path, run_copy: Path):
    """A checkpoint stays one, whatever lies in its folder."""
    shutil.copytree(bundle_copy, bundle_copy.with_name(".hidden"))
    shutil.copytree(bundle_copy, bundle_copy.with_name("second"))
    verbs_refuse(refused, bundle_copy.parent, ("no bundle", f"such as {bundle_copy}"))
    shutil.copytree(bundle_copy, run_copy / "bundle")
    assert cli("inspect", run_copy).code == 0


def test_a_manifest_that_is_a_folder(refused, bundle_copy: Path):
    (bundle_copy / "manifest.json").unlink()
    (bundle_copy / "manifest.json").mkdir()
    for verb in ("parity", "build"):
        refused(verb, bundle_copy, watched=bundle_copy, says=("no bundle", "manifest.json"))


def test_a_bundle_takes_no_options_of_run_folders(refused, bundle_copy: Path):
    for option in ("--weights", "--params"):
        words = ("inspect", bundle_copy, option, "x")
        refused(*words, watched=bundle_copy, says=("is a bundle", "--weights"))


@pytest.mark.parametrize(("verb", "option"), [("parity", "--json"), ("inspect", "--plot")])
def test_a_report_that_can_not_be_written_is_told_before_the_work(
    refused, bundle_copy: Path, tmp_path: Path, monkeypatch, verb: str, option: str
):
    for work in ("parity.check_fidelity", "inspect.open_subject"):
        monkeypatch.setattr(f"ckv_export.cli.{work}", None)
    lost = tmp_path / "not there" / "report.png"
    refused(verb, bundle_copy, option, lost, watched=tmp_path, says=(str(lost.parent),))
    refused(verb, bundle_copy, option, tmp_path, watched=tmp_path, says=("is a folder",))
    inside = bundle_copy / "report.png"
    refused(verb, bundle_copy, option, inside, watched=tmp_path, says=("lies in the bundle",))


@pytest.mark.parametrize(
    ("verb", "given", "option"),
    [
        ("parity", ("--checkpoint",), "--json"),
        ("parity", ("--events",), "--html"),
        ("parity", ("--events", "real.npz", "--labels"), "--junit"),
        ("inspect", ("--events",), "--plot"),
        ("bench", ("--checkpoint",), "--markdown"),
    ],
)
def test_a_report_does_not_take_the_place_of_what_it_is_of(
    refused, bundle: Path, tmp_path: Path, verb: str, given: tuple[str, ...], option: str
):
    (tmp_path / "model.pt").touch()
    file = tmp_path / "model.pt"
    words = (verb, bundle, *given, file, option, file)
    refused(*words, watched=tmp_path, says=(f"{file} is read by this command",))


@pytest.mark.parametrize(("verb", "given"), [("parity", "--against"), ("bench", "--beside")])
def test_a_report_does_not_lie_in_another_bundle(
    refused, bundle: Path, bundle_copy: Path, verb: str, given: str
):
    words = (verb, bundle, given, bundle_copy, "--html", bundle_copy / "parity.html")
    refused(*words, watched=bundle_copy, says=("lies in the bundle",))


@pytest.mark.parametrize("words", [("--users", "-1"), ("--users", "1e6"), ("--seed", "-1")])
def test_numbers_of_inspect(refused, bundle_copy: Path, words):
    refused("inspect", bundle_copy, *words, watched=bundle_copy, says=(words[0], "at least 0"))
