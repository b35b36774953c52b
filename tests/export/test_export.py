"""`trainer export`: any checkpoint, of whatever strategy, as a folder that transformers loads, with a card that is filled in."""

from __future__ import annotations

import contextlib
import io
import re
import weakref

import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests.distributed import run_distributed
from tests.loops import lines, ready, single, train, training, write_texts
from trainer import compose, reference
from trainer.checkpoint.opening import open_one
from trainer.choices import ConfigError
from trainer.cli import main
from trainer.config import digest
from trainer.data.corpus import open_corpus
from trainer.export import empty_model
from trainer.export.command import words_of
from trainer.export.weights import Weights, write_weights
from trainer.run import RunDir, checkpoint_of, load_frozen

# Family → its run: two ranks that cut the state, or one; trained to its end, or stopped.
RUNS = {
    "gpt2": (2, ("strategy=zero2", "optim.ema.decay=0.5", "data.deduplicate=true")),
    "bert": (2, ("strategy=fsdp", "model=bert_tiny", "task=mlm_nsp")),
    "llama": (1, ("model=llama_tiny", "model.kv_heads=1")),
    "t5": (1, ("model=t5_tiny", "task=denoising", "model.head_size=8")),
}
STOPPED = "llama"


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, texts):
    """Family → its run, and its last weights as the ranks held them."""
    folder = tmp_path_factory.mktemp("runs")
    found = {}
    for family, (world, words) in RUNS.items():
        path = ready(folder, texts, *words, "steps=4", "save_every=3", "optim.lr=1e-2", name=family, world=world)
        last = 3 if family == STOPPED else None
        found[family] = path, run_distributed(train, 2, str(path))[0] if world == 2 else train(single(), path, last)
    return found


def exported(runs, family, *words):
    """The folder, and what was printed."""
    path = runs[family][0]
    output = path / "out"
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        assert main(["export", f"run={path}", f"output={output}", *words]) == 0
    return output, told.getvalue()


@pytest.mark.parametrize("family", RUNS)
def test_what_is_loaded_gives_the_runs_own_logits(runs, family):
    path, weights = runs[family]
    folder, _ = exported(runs, family, "averages=false") if family == "gpt2" else exported(runs, family)
    config = load_frozen(path / "config.yaml")
    vocabulary = open_corpus(RunDir(path).placement["corpus"], RunDir(path).placement["rows"]).vocabulary
    own = config.model.build(config.task.objective, vocabulary, config.sequence_length).eval()
    own.load_state_dict({name.removeprefix("model."): tensor for name, tensor in weights.items()})
    loaded = getattr(transformers, own.config.architectures[0] if own.config.architectures else type(own).__name__).from_pretrained(folder)
    ids = torch.arange(5, 21).view(2, 8)
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if family == "t5" else {})
    with torch.no_grad():
        mine, theirs = own(**inputs), loaded(**inputs)
    key = "prediction_logits" if family == "bert" else "logits"
    assert mine[key].shape[-1] > vocabulary.size == theirs[key].shape[-1], "padding rows are not exported"
    torch.testing.assert_close(theirs[key], mine[key][..., : vocabulary.size], rtol=1e-5, atol=1e-5)
    assert len(transformers.AutoTokenizer.from_pretrained(folder)) == vocabulary.size
    # As transformers itself would save it, file for file.
    loaded.save_pretrained(folder.parent / "again")
    again = {file.name: file for file in (folder.parent / "again").iterdir()}
    assert load_file(again["model.safetensors"]).keys() == load_file(folder / "model.safetensors").keys()
    assert all((folder / name).read_text() == file.read_text() for name, file in again.items() if name.endswith(".json"))


@pytest.mark.parametrize("family", RUNS)
def test_the_lines_of_the_card_load_and_use_it(runs, family, capsys, monkeypatch):
    monkeypatch.chdir(runs[family][0])
    folder, _ = exported(runs, family)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert "from_pretrained('out')" in code
    exec(code, {})
    assert capsys.readouterr().out.strip()


def test_the_card_is_filled_in_and_its_metadata_is_what_a_hub_reads(runs):
    from huggingface_hub import ModelCard

    path, _ = runs["bert"]
    folder, told = exported(runs, "bert", "license=mit")
    card = ModelCard.load(folder / "README.md")
    data, text = card.data, card.text
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "transformers", "fill-mask")
    assert data.tags == ["shardloom", "bert", "mlm_nsp"] and data.model_name == "bert-mlm_nsp"
    figures = {result.metric_name: result.metric_value for result in data.eval_results or []}
    assert not figures, "this run was stopped before its evaluation"
    count = sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())
    corpus = open_corpus(RunDir(path).placement["corpus"], RunDir(path).placement["rows"])
    seen = corpus.meta["splits"]["train"]
    for fact in (f"{count:,} parameters", f"`{corpus.fingerprint}`", f"{seen['documents']:,} documents, {seen['tokens']:,} tokens",
                 "`fsdp` on 2 × CPU", "| torch |", f"`{digest(load_frozen(path / 'config.yaml'))}`",
                 f"wordpiece, {corpus.vocabulary.size} tokens"):  # fmt: skip
        assert fact in text, fact
    assert f"{count:,} parameters of step 4" in told
    assert "{{" not in text and "None" not in text


def test_figures_stand_beside_what_needs_no_training(tmp_path, texts):
    """`model/` at the end of a run has the same card."""
    from huggingface_hub import ModelCard

    path = ready(tmp_path, texts, "steps=2")
    here = training(single(), path)
    here.loop()
    here.finish()
    card = ModelCard.load(path / "model" / "README.md")
    evaluated = lines(path, "eval_loss")[-1]
    figures = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert figures["loss"] == pytest.approx(evaluated["eval_loss"], abs=1e-5)
    assert figures["bits per byte"] == pytest.approx(evaluated["eval_bits_per_byte"], abs=1e-5)
    assert re.search(r"\| bits per byte \| [\d.]+ \| gzip [\d.]+, xz [\d.]+ \|", card.text) and "had not reached" not in card.text
    assert (path / "model" / "config.json").is_file()


def test_an_unfinished_run_and_an_older_step(runs):
    folder, told = exported(runs, STOPPED)
    text = (folder / "README.md").read_text()
    assert "of step 3" in told and "had not reached its budget" in text and "This step was not evaluated" not in text
    assert "training loss" in text, "the figure of the step that is there"
    older, told = exported(runs, "gpt2", "step=3", "averages=false")
    newer = load_file(older / "model.safetensors")
    assert "of step 3" in told
    exported(runs, "gpt2", "averages=false")
    now = load_file(older / "model.safetensors")
    assert not all(torch.equal(now[name], newer[name]) for name in now)


def test_averages_are_exported_where_the_run_evaluates_them(runs):
    path, weights = runs["gpt2"]
    read = open_one(checkpoint_of(str(path)), single()).read
    name = "transformer.h.0.attn.c_attn.weight"
    averages = load_file(exported(runs, "gpt2")[0] / "model.safetensors")[name]
    plain = load_file(exported(runs, "gpt2", "averages=false")[0] / "model.safetensors")[name]
    assert torch.equal(plain, weights[f"model.{name}"]) and not torch.equal(plain, averages)
    from trainer.checkpoint.boxes import whole

    assert torch.equal(averages, read(f"model.{name}", "ema", tuple(plain.shape), whole(tuple(plain.shape))))
    with pytest.raises(ConfigError, match=r"averages: true, .* optim.ema.decay"):
        run_verb(runs["bert"][0], "averages=true")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_types(runs, dtype):
    folder, _ = exported(runs, "bert", f"dtype={dtype}")
    half, whole = load_file(folder / "model.safetensors"), load_file(exported(runs, "bert")[0] / "model.safetensors")
    assert all(torch.equal(half[name], whole[name].to(getattr(torch, dtype))) for name in whole)
    exported(runs, "bert", f"dtype={dtype}")
    assert transformers.AutoModelForPreTraining.from_pretrained(folder).dtype is getattr(torch, dtype)


class OneAtATime:
    """A checkpoint whose reader fails where a tensor that it gave out before is still held."""

    def __init__(self, read):
        self.read, self.shapes, self.last = read, read.shapes, lambda: None

    def __call__(self, *asked):
        assert self.last() is None, "one tensor at a time"
        found = self.read(*asked)
        self.last = weakref.ref(found)
        return found


def test_large_models_are_parted_over_files_with_one_tensor_in_memory(runs, tmp_path):
    path, _ = runs["t5"]
    run = RunDir(path)
    config = load_frozen(run.config_path)
    model = empty_model(config, open_corpus(run.placement["corpus"], run.placement["rows"]))
    read = OneAtATime(open_one(checkpoint_of(str(path)), single()).read)
    weights = Weights(model, read, torch.float32, averages=False)  # type: ignore[arg-type]
    count = write_weights(tmp_path, weights, file_bytes=20_000)
    model.config.save_pretrained(tmp_path)
    files = sorted(tmp_path.glob("model-*-of-*.safetensors"))
    assert len(files) > 3 and count == sum(tensor.numel() for file in files for tensor in load_file(file).values())
    loaded = type(model).from_pretrained(tmp_path).state_dict()
    whole = type(model).from_pretrained(exported(runs, "t5")[0]).state_dict()
    assert loaded.keys() == whole.keys() and all(torch.equal(loaded[name], whole[name]) for name in whole)


@pytest.mark.parametrize("family", ["mixtral", "bart"])
def test_experts_and_buffers_are_saved_as_transformers_saves_them(tmp_path, texts, family):
    """Mixtral trains its experts as one tensor and saves each; BART saves a buffer that is never trained."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 448, "max_position_embeddings": 64, "bos_token_id": 0, "pad_token_id": 0, "eos_token_id": 0}
    if family == "mixtral":
        first = transformers.MixtralForCausalLM(transformers.MixtralConfig(
            **sizes, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, intermediate_size=32,
            num_local_experts=4))  # fmt: skip
    else:
        first = transformers.BartForConditionalGeneration(transformers.BartConfig(
            **sizes, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=32, decoder_ffn_dim=32, decoder_start_token_id=0, forced_eos_token_id=0))  # fmt: skip
        first.final_logits_bias.fill_(0.5)
    first.save_pretrained(tmp_path / "first")
    task = [] if family == "mixtral" else ["task=denoising"]
    path = ready(tmp_path, texts, "model=pretrained", f"model.path={tmp_path / 'first'}", *task, "steps=1", sizes=())
    own = train(single(), path)
    with contextlib.redirect_stdout(io.StringIO()):
        run_verb(path, f"output={tmp_path / 'out'}")
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path / "first", tmp_path / "out"))
    assert before.keys() == after.keys()
    if family == "bart":
        assert torch.equal(after["final_logits_bias"], before["final_logits_bias"][:, :400]), "without padding, as the embedding"
        resumed = train(single(), path)
        assert own["model.final_logits_bias"].eq(0.5).all() and resumed["model.final_logits_bias"].eq(0.5).all()
    loaded = type(first).from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(tensor, own[f"model.{name}"][tuple(map(slice, tensor.shape))]) for name, tensor in loaded.items())


def run_verb(path, *words):
    from trainer.verbs.export import run

    return run([f"run={path}", *words])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["dtype=bf16"], r"dtype: 'bf16'; allowed: float32, bfloat16, float16; did you mean 'bfloat16'"),
        (["step=77"], r"step: .*: no such checkpoint; steps in .*: 3, 4"),
        (["private=true"], "private: true without push_to_hub"),
        (["output=/"], "output: / is there, and no export"),
        (["setp=3"], "setp: no such option of export; .*; did you mean 'step'"),
    ],
)
def test_mistakes_are_told_before_any_work(runs, words, told):
    path = runs["gpt2"][0]
    with pytest.raises(ConfigError, match=told):
        run_verb(path, *words)


def test_a_folder_with_something_else_in_it_is_left_alone(runs, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("my notes, which name\n- shardloom\n---\n")
    with pytest.raises(ConfigError, match="no export"):
        run_verb(runs["gpt2"][0], f"output={tmp_path / 'mine'}")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["README.md"]


def test_a_damaged_checkpoint_is_not_exported(runs, tmp_path):
    import shutil

    path = shutil.copytree(runs["t5"][0], tmp_path / "run")
    (shard, *_) = sorted(checkpoint_of(str(path)).glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(ConfigError, match="does not have the checksum"):
        run_verb(path, f"output={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("words", [
    *([f"experiment={name}"] for name in ("quickstart_bert", "bert_base_phase1", "llama_web_and_code_offline")),
    ["steps=3", "data=text", "data.path=\"a b/x,'y'(1)*.txt\"", "task.z_loss=0.1", "optim.decay=[\"*.mlp.*\"]", "name=two words"],
    ["tokens=1e9", "optim=muon", "optim.max_norm=null", "schedule=wsd", "batch_ramp.start=8", "init.run=runs/x@5"],
], ids=lambda words: words[0])  # fmt: skip
def test_the_command_of_a_card_computes_the_same(words):
    config = compose(*words)
    again = compose(*words_of(config))
    assert digest(again) == digest(config) and again.name == config.name
    assert not any("experiment" in word for word in words_of(config)) and reference.presets("experiment")
