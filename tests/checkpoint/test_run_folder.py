"""Which weights, YAML and experiment are taken."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ckv_export.checkpoint.load import load_checkpoint
from ckv_export.errors import CheckpointError


def test_several_weights(make_run):
    run = make_run()
    folder = run.write()
    shutil.copy(folder / "toy_run.model", folder / "other.model")
    with pytest.raises(CheckpointError, match=r"2 \*.model files \(other.model, toy_run.model\)"):
        load_checkpoint(folder)
    for weights in ("toy_run.model", str(folder / "toy_run.model")):
        assert load_checkpoint(folder, weights=weights).files[0].name == "toy_run.model"
    # the YAML has no experiment "other", and only one at all
    assert load_checkpoint(folder, weights="other.model").name == "toy_run"
    with pytest.raises(CheckpointError, match=r"no weights file 'oter.model'.*mean 'other.model'"):
        load_checkpoint(folder, weights="oter.model")


def test_a_file_of_the_folder_or_a_path_from_here(make_run, tmp_path, monkeypatch):
    folder = make_run().write()
    shutil.copy(folder / "toy_run.model", tmp_path / "toy_run.model")
    shutil.copy(folder / "toy_run.model", tmp_path / "beside.model")
    monkeypatch.chdir(tmp_path)
    for weights, found in (("toy_run.model", folder / "toy_run.model"), ("beside.model",) * 2):
        assert load_checkpoint(folder, weights=weights).files[0] == Path(found)


def test_no_weights(make_run):
    folder = make_run().write()
    (folder / "toy_run.model").unlink()
    with pytest.raises(CheckpointError, match=r"the folder has 0 \*.model files$"):
        load_checkpoint(folder)


def test_base_supplies_defaults(make_run):
    run = make_run()
    folder = run.write()
    base = {"num_heads": 4, "topk": 2, "model": "SIM"}
    del run.params["num_heads"], run.params["model"]
    run.write_yaml({"Base": base, "toy_run": run.params})
    spec = load_checkpoint(folder).spec
    assert (spec.attention.num_heads, spec.options["topk"]) == (4, 3)


def test_the_experiment_called_as_the_weights(make_run):
    run = make_run()
    folder = run.write()
    other = {name: value for name, value in run.params.items() if name != "model"}
    run.write_yaml({"other": other | {"topk": 9}, "toy_run": run.params})
    assert load_checkpoint(folder).spec.options["topk"] == 3
    other = load_checkpoint(folder, params="other")
    assert (other.name, other.spec.options["topk"]) == ("other", 9)


def test_the_only_experiment_of_another_name(make_run):
    run = make_run()
    folder = run.write()
    run.write_yaml(
        {"Base": {"model": "SIM"}, "toy": {"data_root": "x"}, "named_otherwise": run.params}
    )
    assert load_checkpoint(folder).name == "named_otherwise"


def test_an_experiment_that_is_not_clear(make_run):
    run = make_run()
    folder = run.write()
    run.write_yaml({"a": run.params, "b": run.params})
    with pytest.raises(CheckpointError, match="2 others: a, b; choose one with --params"):
        load_checkpoint(folder)
    with pytest.raises(CheckpointError, match="no experiment 'run_1', only a, b"):
        load_checkpoint(folder, params="run_1")


def test_an_experiment_called_by_a_number(make_run):
    run = make_run()
    folder = run.write()
    run.write_yaml({2024: run.params, 7: run.params})
    assert load_checkpoint(folder, params="2024").name == "2024"
    with pytest.raises(CheckpointError, match="2 others: 7, 2024; choose one"):
        load_checkpoint(folder)


def test_another_yaml_file(make_run, tmp_path):
    run = make_run()
    folder = run.write()
    changed = {"toy_run": run.params | {"topk": 7}}
    run.write_yaml(changed, "later.yaml")
    run.write_yaml(changed, "../outside.yml")
    for params in ("later.yaml", str(tmp_path / "outside.yml")):
        assert load_checkpoint(folder, params=params).spec.options["topk"] == 7
    with pytest.raises(CheckpointError, match=r"no YAML file 'latr.yaml'.*mean 'later.yaml'"):
        load_checkpoint(folder, params="latr.yaml")


def test_missing_files_are_told_with_what_they_are_for(make_run):
    folder = make_run().write()
    (folder / "model_config.yaml").rename(folder / "params.yaml")
    with pytest.raises(CheckpointError, match=r"no model_config.yaml \(here are params.yaml\)"):
        load_checkpoint(folder)
    (folder / "params.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"num_heads, short_seq_len.*--params FILE"):
        load_checkpoint(folder)


def test_a_weights_file_without_its_feature_map(make_run):
    folder = make_run().write()
    (folder / "feature_map.json").unlink()
    with pytest.raises(CheckpointError, match=r"no feature_map.json, which lists the features"):
        load_checkpoint(folder / "toy_run.model")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1,", "not plain YAML"),
        pytest.param("[" * 500, "not plain YAML", id="deep"),
        ("!!python/object/apply:os.system ['true']", "not plain YAML"),
        ("a: 2024-13-45", "not plain YAML"),
        ("- 1", "must map experiment ids to parameters, got list"),
        ("", "must map experiment ids to parameters, got NoneType"),
        ("a: 1", "0 others: none"),
    ],
)
def test_a_yaml_that_can_not_be_used(make_run, text, words):
    folder = make_run().write()
    (folder / "model_config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(folder)
