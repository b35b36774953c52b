"""Composition, identity, the run directory: what a user types, and what is told before anything is launched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from trainer import compose
from trainer.choices import ConfigError, find, groups, load_choices
from trainer.cli import main
from trainer.composition import compose_tree, sweep
from trainer.config import Config, digest, dump, flatten, from_dict, identity_of, load, redacted, to_dict
from trainer.run import RunDir
from trainer.words import composed, multirun

CONF = Path(__file__).parents[1] / "conf"
EXPERIMENTS = sorted(path.stem for path in CONF.glob("experiment/*.yaml"))


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(*overrides)
    return str(caught.value)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_to_its_own_classes(experiment):
    """A schema that came last would return base classes, and the checks of the choices would vanish silently."""
    config = compose(f"experiment={experiment}")
    for group in groups():
        assert type(getattr(config, group)) is groups()[group][getattr(config, group).name]


@pytest.mark.parametrize("path", sorted(CONF.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_choice_composes_and_repeats_no_default(path):
    """YAML owns only differences: a value that equals the default it overrides would hide the next change of the default."""
    load_choices()
    group, name = path.parent.name, path.stem
    tree = yaml.safe_load(path.read_text())
    defaults = tree.pop("defaults")
    parents = [entry for entry in defaults if isinstance(entry, str) and entry != "_self_"]
    if group == "experiment":
        chosen = [
            f"{key.removeprefix('override /')}={value}" for entry in defaults if isinstance(entry, dict) for key, value in entry.items()
        ]
        before: Any = compose_tree([*(f"experiment={parent}" for parent in parents), *chosen])
    else:
        (base,) = parents
        heads = getattr(groups()[group][base], "objectives", ())
        fitting = [task for task, cls in groups()["task"].items() if cls.objective in heads]
        config = compose(f"{group}={name}", "steps=1", *(f"task={task}" for task in fitting[:1]))
        assert getattr(config, group).name == base
        before = compose_tree([f"{group}={base}"])[group]
    plain = flatten(OmegaConf.to_container(before, enum_to_str=True))
    assert not {key: value for key, value in flatten(tree).items() if plain.get(key, "absent") == value}


def test_b01_a_typo_shows_the_nearest_key():
    assert "optim.lr" in refused("optm.lr=1") and "optm.lr" in refused("optm.lr=1")
    assert "'task.whole_word'" in refused("steps=1", "task=mlm_nsp", "model=bert_tiny", "task.whole_wrd=true")
    assert "'gpt2_tiny'" in refused("model=gpt2_tny", "steps=1")
    assert "'quickstart'" in refused("experiment=quikstart")
    assert "foo" in refused("+foo=1", "steps=1")
    assert "not an override" in refused("foo")


def test_b01_a_wrong_type_names_key_value_and_what_is_allowed():
    text = refused("optim.lr=fast", "steps=1")
    assert "optim.lr" in text and "'fast'" in text and "Float" in text
    text = refused("tracking.wandb=onlin", "steps=1")
    assert "tracking.wandb" in text and "offline" in text


def test_b03_a_sequence_longer_than_the_positions():
    text = refused("steps=1", "sequence_length=4096")
    assert "4096" in text and "1024" in text and "model.positions=4096" in text


def test_b16_the_support_matrix_names_both_sides_and_the_mend():
    text = refused("steps=1", "strategy=zero2", "optim=muon")
    assert "strategy=zero2" in text and "optim=muon" in text and "strategy=ddp" in text


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["steps=0"], "must be positive"),
        (["steps=1", "micro_batch=abc"], "micro_batch: 'abc'"),
        (["steps=1", "micro_batch=0"], "micro_batch"),
        ([], "exactly one budget"),
        (["steps=1", "model.hidden=100", "model.heads=3"], "model.heads"),
        (["steps=1", "task=mlm_nsp"], "pretraining head"),
        (["steps=1", "model.name=bert"], "model=bert"),
        (["steps=1", "model=pretrained"], "model.path"),
        (["steps=1", "name=../x"], "name"),
        (["steps=1", "schedule.warmup=2"], "schedule.warmup"),
        (["steps=1", "name=.."], "name: '..'"),
        (["steps=1", "name=."], "name: '.'"),
        (["steps=1", "output_dir=''"], "output_dir: ''"),
        (["steps=1.5"], "steps"),
        (["steps=1", "launcher=null"], "launcher: null; a choice is needed, allowed: local"),
        (["steps=1", "optim=null"], "optim: null; a choice is needed, allowed: ada"),
    ],
)
def test_contradictions_are_refused(overrides, told):
    assert told in refused(*overrides)


@pytest.mark.parametrize(
    ("group", "name", "field", "value"),
    [
        *(("model", model, field, 0) for model in ("gpt2", "bert") for field in ("layers", "hidden", "heads", "positions")),
        ("model", "gpt2", "hidden", -768),
        ("model", "gpt2", "dropout", 1.0),
        ("model", "bert", "dropout", -0.1),
        ("model", "bert", "intermediate", 0),
        ("survival", "default", "restarts", -1),
        ("survival", "default", "timeout_seconds", 0.0),
        ("device", "cpu", "threads", 0),
        ("device", "cuda", "peak_tflops", 0.0),
        ("schedule", "linear", "min_factor", -0.1),
        ("schedule", "cosine", "min_factor", 1.1),
        ("data", "stdlib", "workers", -1),
        ("data", "stdlib", "processes", 0),
        ("data", "stdlib", "held_out", 1.0),
        ("tokenizer", "train", "vocab_size", 256),
        ("optim", "adamw", "weight_decay", -1.0),
        ("optim", "muon", "momentum", float("nan")),
    ],
)
def test_values_out_of_range_are_refused(group, name, field, value):
    """Each choice refuses by itself, so it is refused however it is made: composed, read back, or by hand."""
    load_choices()
    with pytest.raises(ConfigError) as caught:
        find(group, name)(**{field: value})
    assert f"{group}.{field}: {value}" in str(caught.value)


def test_ends_of_ranges_are_allowed():
    load_choices()
    for group, name, fields in (
        ("schedule", "cosine", {"min_factor": 1.0, "warmup": 0.0}),
        ("survival", "default", {"restarts": 0}),
        ("model", "gpt2", {"dropout": 0.0, "layers": 1}),
        ("data", "stdlib", {"workers": 0}),
        ("device", "auto", {"threads": 1}),
    ):
        find(group, name)(**fields)


def test_counts_may_be_written_as_floats(tmp_path):
    """On the command line and in YAML, where 1e9 is a float, and a string in quotes."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ntokens: 1e9\nglobal_batch: '1e2'\neval_every: 1e3\n")
    mine = compose(f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine")
    assert (mine.tokens, mine.global_batch, mine.eval_every) == (10**9, 100, 1000)
    assert all(type(count) is int for count in (mine.tokens, mine.global_batch, mine.eval_every))
    assert "global_batch: 'many'; allowed: a whole number" in refused("steps=1", "global_batch=many")
    assert "steps: 1.5; allowed: a whole number" in refused("steps=1.5")
    config = compose("tokens=1e9", "global_batch=1e2", "sequence_length=5.12e2")
    assert (config.tokens, config.global_batch, config.sequence_length) == (10**9, 100, 512)
    assert type(config.tokens) is int and compose("++steps=1e3").steps == 1000
    assert [job.steps for job in multirun(["steps=1e1,1e2"])] == [10, 100]


def test_s03_code_of_a_repository_needs_a_pinned_revision():
    assert not compose("steps=1", "model=pretrained", "model.path=x").model.trust_remote_code
    assert "model.revision" in refused("steps=1", "model=pretrained", "model.path=x", "model.trust_remote_code=true")


def test_s04_a_target_in_a_configuration_is_never_called(tmp_path):
    """Neither a composition nor a frozen file can name a callable."""
    marker = tmp_path / "called"
    refused("steps=1", "+model._target_=os.system", f"+model.command=touch {marker}")
    tree = to_dict(compose("steps=1"))
    tree["model"] |= {"_target_": "subprocess.check_call", "_args_": [["touch", str(marker)]]}
    with pytest.raises(Exception, match="_target_"):
        from_dict(tree)
    assert not marker.exists()


def test_s05_a_frozen_file_with_python_tags_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("name: !!python/object/apply:os.system ['touch x']\n")
    with pytest.raises(yaml.YAMLError):
        load(path)


def test_s06_secrets_are_redacted():
    tree = {
        "tracking": {"api_key": "abc", "hub_token": "abc", "project": "p"},
        "password": 1234,
        "accessToken": "abc",
        "keys": ["a"],
        "keep": 2,
        "tokens": 5,
    }
    assert redacted(tree) == {
        "tracking": {"api_key": "<redacted>", "hub_token": "<redacted>", "project": "p"},
        "password": "<redacted>",
        "accessToken": "<redacted>",
        "keys": ["<redacted>"],
        "keep": 2,
        "tokens": 5,
    }


def test_frozen_file_gives_the_same_configuration_back(tmp_path):
    config = compose("experiment=quickstart_bert", "optim=muon", "precision=bf16", "tracking.tags=[a,b]")
    path = tmp_path / "config.yaml"
    path.write_text(dump(config))
    assert load(path) == config and digest(load(path)) == digest(config)


def test_identity_covers_what_is_computed_and_nothing_of_where():
    config = compose("steps=10")
    for override in (
        "strategy=fsdp",
        "micro_batch=3",
        "launcher.processes=5",
        "tracking.wandb=off",
        "data.workers=0",
        "name=other",
        "log_every=3",
    ):
        assert digest(compose("steps=10", override)) == digest(config), override
    for override in (
        "optim.lr=1",
        "seed=1",
        "global_batch=7",
        "sequence_length=8",
        "precision=bf16",
        "task=mlm_nsp",
        "data=text",
        "model.layers=2",
    ):
        extra = ["model=bert_tiny"] if override.startswith("task") else ["data.path=x"] if override.startswith("data") else []
        assert digest(compose("steps=10", override, *extra)) != digest(config), override


def test_a_budget_on_the_command_line_replaces_the_other():
    config = compose("experiment=quickstart", "tokens=1000")
    assert config.tokens == 1000 and config.steps is None and config.epochs is None


def test_multirun_is_a_grid_with_a_directory_each():
    jobs = multirun(["experiment=quickstart", "optim.lr=1e-4,3e-4", "seed=1,2"])
    assert len(jobs) == 4 and len({job.output_dir for job in jobs}) == 4
    assert jobs[0].output_dir == "runs/quickstart/optim.lr=0.0001,seed=1"
    # W&B shows names alone.
    assert jobs[0].name == "quickstart,optim.lr=0.0001,seed=1" and len({job.name for job in jobs}) == 4
    paths = multirun(["steps=1", "data=text", "name=x", "data.path=/a/b*.txt,/c.txt"])
    assert [job.name for job in paths] == ["x,data.path=_a_b_.txt", "x,data.path=_c.txt"]
    assert [job.name for job in multirun(["steps=1", "name=a,b"])] == ["a", "b"]
    assert sweep(["seed=1"]) == [["seed=1"]]


def started(path: Path, config: Config) -> RunDir:
    run = RunDir(path)
    path.mkdir(parents=True)
    run.freeze(config)
    run.event("start")
    return run


def test_b15_another_configuration_is_refused_with_the_keys_that_differ(tmp_path):
    run = started(tmp_path / "run", compose("experiment=quickstart"))
    with pytest.raises(ConfigError) as caught:
        run.freeze(compose("experiment=quickstart", "model.layers=8"))
    text = str(caught.value)
    assert "model.layers: 4 there, 8 now" in text and "name=" in text and "resume.overwrite=true" in text
    assert load(run.config_path).model.layers == 4
    with pytest.raises(ConfigError, match=r"resume\.extend=true"):
        run.freeze(compose("experiment=quickstart", "steps=7"))
    run.freeze(compose("experiment=quickstart", "steps=7", "resume.extend=true"))
    assert load(run.config_path).steps == 7


def test_a_changed_placement_is_an_event_and_no_refusal(tmp_path):
    run = started(tmp_path / "run", compose("experiment=quickstart"))
    assert run.freeze(compose("experiment=quickstart", "strategy=fsdp"))
    assert run.events("placement")[0]["changed"]["strategy.name"] == ["ddp", "fsdp"]
    assert load(run.config_path).strategy.name == "fsdp"


def test_a_running_one_is_held(tmp_path):
    """The lock is the process's: another one is told who holds it, and gets it when the holder is gone."""
    code = f"from trainer.run import RunDir\nwith RunDir({str(tmp_path)!r}).locked():\n  print('held', flush=True)\n  input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=str(holder.pid)), RunDir(tmp_path).locked():
            pass
        holder.kill()
    with RunDir(tmp_path).locked():
        pass


def test_import_rules():
    """Tasks, models and launchers name no engine; launchers never import torch; only strategies and checkpoints import engines."""
    root = CONF.parent
    for path in [*root.glob("trainer/tasks/*.py"), *root.glob("trainer/models/*.py")]:
        assert "accelerate" not in path.read_text() and "deepspeed" not in path.read_text(), path
    for path in root.glob("trainer/**/*.py"):
        if path.parent.name not in ("strategies", "checkpoint", "bench"):
            text = path.read_text()
            assert "import deepspeed" not in text and "import accelerate" not in text and "from accelerate" not in text, path
    for path in root.glob("launch/*.py"):
        assert "import torch" not in path.read_text(), path
    assert not [path for path in root.glob("**/*.py") if path.name in ("utils.py", "helpers.py", "common.py") and ".venv" not in path.parts]


def test_composing_imports_nothing_heavy():
    code = (
        "import sys; from trainer import compose; compose('experiment=quickstart');"
        "print([m for m in ('torch','transformers','deepspeed','accelerate','wandb','datasets') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_cfg_job_prints_the_composition():
    from omegaconf import OmegaConf

    load_choices()
    tree = OmegaConf.to_container(compose_tree(["experiment=quickstart", "optim.lr=1"]))
    assert tree["optim"]["lr"] == 1 and tree["name"] == "quickstart"
    assert set(identity_of(compose("experiment=quickstart"))) >= {"optim.lr", "seed", "steps", "data.name"}


def test_cfg_is_followed_by_job(capsys):
    assert composed(["--cfg", "job", "experiment=quickstart"], "train") is None
    assert yaml.safe_load(capsys.readouterr().out)["name"] == "quickstart"
    for words in (["--cfg"], ["--cfg", "all"], ["--cfg", "steps=1"]):
        with pytest.raises(ConfigError, match="allowed: --cfg job"):
            composed(words, "train")


def test_b01_several_values_without_m_say_what_is_missing():
    with pytest.raises(ConfigError, match=r"optim\.lr: 1e-3,3e-3 is several values; add -m"):
        composed(["steps=1", "optim.lr=1e-3,3e-3"], "train")


def test_cfg_of_a_multirun_prints_each_job(capsys):
    assert composed(["-m", "--cfg", "job", "steps=1", "seed=1,2", "name=x"], "train") is None
    first, second = yaml.safe_load_all(capsys.readouterr().out)
    assert (first["seed"], second["seed"]) == (1, 2)
    assert second["name"] == "x,seed=2" and second["output_dir"] == "runs/x/seed=2"


@pytest.mark.parametrize("words", [["--help", "steps"], ["-m", "seed=1,2", "--help", "--cfg", "job"]])
def test_help_needs_no_budget(words, capsys):
    assert composed(words, "train") is None
    assert "steps=null" in capsys.readouterr().out, "no budget is given, and none is told"


def test_prepare_needs_no_budget():
    for words in (["data=text", "data.path=x.txt"], ["-m", "data=text", "data.path=x.txt", "seed=1,2"]):
        assert composed(words, "prepare")
        with pytest.raises(ConfigError, match="exactly one budget"):
            composed(words, "train")
    (config,) = composed(["experiment=quickstart"], "prepare")
    assert config.steps == compose("experiment=quickstart").steps


@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        (PermissionError(13, "Permission denied", "runs/x"), 1, "error: PermissionError: [Errno 13] Permission denied: 'runs/x'\n"),
        (ConnectionError("no store at a:1"), 1, "error: ConnectionError: no store at a:1\n"),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_what_the_machine_refuses_is_one_sentence(raised, code, told, monkeypatch, capsys):
    def fails(words):
        raise raised

    monkeypatch.setattr("trainer.verbs.report.run", fails)
    assert main(["report"]) == code and capsys.readouterr().err == told
    monkeypatch.setattr("trainer.verbs.report.run", lambda words: {}["a mistake of ours"])
    with pytest.raises(KeyError):
        main(["report"])


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "3", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"},
        {"RANK": "one", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"},
        {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_TASKS_PER_NODE": "many"},
    ],
)
def test_variables_of_a_launcher_that_cannot_be(variables, monkeypatch, capsys):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "steps=1"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ") and set(variables.values()) & set(told.replace("'", " ").replace(",", " ").split())


def test_a_run_directory_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["train", "experiment=quickstart", f"output_dir={tmp_path}/file/run"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ") and str(tmp_path) in told and told.count("\n") == 1


def test_evaluate_takes_no_device_that_it_does_not_know(capsys):
    assert main(["evaluate", "run=runs/none", "device=gpu"]) == 1
    assert "device: 'gpu'; allowed: cpu, cuda" in capsys.readouterr().err


def test_what_others_call_it_is_answered_by_what_it_is_here():
    with pytest.raises(ConfigError, match=r"no such choice.*did you mean 'token_classification'"):
        compose("task=ner", "steps=1")
    with pytest.raises(ConfigError, match=r"no such choice.*teacher=pretrained"):
        compose("task=distillation", "steps=1")
