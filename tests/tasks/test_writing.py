"""Answers that are texts: seq2seq and instruct through the real loop, written in evaluation under every strategy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import loops
from tests.distributed import run_distributed
from trainer.choices import ConfigError
from trainer.data.corpus import open_corpus
from trainer.distributed import World
from trainer.run import RunDir, load_frozen

GPT = ("model=gpt2_tiny", "model.layers=1", "model.hidden=64", "model.heads=2")
T5 = ("model=t5_tiny", "model.layers=1", "model.hidden=64", "model.heads=2", "model.head_size=16")
SHORT = ("task.max_target_length=16", "sequence_length=64", "tokenizer.vocab_size=300", "global_batch=16", "optim.lr=1e-2")
COLOURS = ("red", "blue", "green", "black")
THINGS = ("cat", "dog", "tree", "house")


def pairs(count: int) -> list[dict[str, Any]]:
    """What is said of a thing, of quite different lengths."""
    draw = np.random.default_rng(0)
    found = []
    for number in range(count):
        colour, thing = str(draw.choice(COLOURS)), str(draw.choice(THINGS))
        more = " ".join(f"n{digit}" for digit in str(number) * int(draw.integers(1, 6)))
        found.append({"source": f"thing[{thing}] colour[{colour}] {more}", "target": f"the {thing} is {colour}"})
    return found


def dialogues(count: int) -> list[dict[str, Any]]:
    """Two questions each, with their answers."""
    found = []
    for one, other in zip(pairs(2 * count)[::2], pairs(2 * count)[1::2], strict=True):
        said = [{"role": "system", "content": "short"}]
        for each in (one, other):
            said += [{"role": "user", "content": each["source"]}, {"role": "assistant", "content": each["target"]}]
        found.append({"messages": said})
    return found


def ready(folder: Path, task: str, train: list[Any], held_out: list[Any], *words: str, name: str = "run", world: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    for split, examples in (("train", train), ("eval", held_out)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))
    data = ("data=jsonl", f"data.train={folder}/train.jsonl", f"data.eval={folder}/eval.jsonl", f"task={task}")
    short = [word for word in SHORT if "tokenizer=pretrained" not in words or not word.startswith("tokenizer.")]
    return loops.ready(folder, folder, *data, *short, *words, name=name, world=world, sizes=())


def evaluated(world: World, path: str) -> dict[str, Any]:
    """Train to the end and evaluate."""
    here = loops.training(world, path)
    here.loop()
    (held_out,) = here.held_outs
    figures = held_out.figures(world.device)
    assert here.placement.module.training, "C19: the mode is restored"
    return {"figures": figures, "tables": held_out.tables}


@pytest.mark.parametrize("sizes", [GPT, T5], ids=["decoder", "pairs"])
def test_a_model_that_learns_writes_what_transformers_writes_and_answers_files(tmp_path, sizes, capsys):
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    from trainer.cli import main

    examples = pairs(220)
    path = ready(tmp_path, "seq2seq", examples[:200], examples[200:], *sizes, "steps=120", "micro_batch=16")
    here = loops.training(loops.single(), path)
    here.loop()
    here.finish()
    summary = RunDir(path).summary
    assert summary["rouge1"] > 60 and summary["bleu"] > 20
    tables = json.loads((path / "evaluation" / "held_out.json").read_text())
    assert summary["baseline_rouge1"] < summary["rouge1"] and len(tables["examples"]) == 20
    tokenizer = AutoTokenizer.from_pretrained(path / "model")
    alone = sizes is GPT
    model = (AutoModelForCausalLM if alone else AutoModelForSeq2SeqLM).from_pretrained(path / "model").eval()
    assert [name for name in (path / "model").iterdir() if name.name == "learned.json"]
    for shown in tables["examples"][:4]:
        end = [tokenizer.eos_token_id]
        ids = tokenizer(shown["source"] + ("\n" if alone else ""), add_special_tokens=False)["input_ids"]
        ids = torch.tensor([end + ids if alone else ids + end])
        found = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False, eos_token_id=end[0], pad_token_id=end[0]
        )[0]
        text = tokenizer.decode(found[ids.shape[1] :] if alone else found, skip_special_tokens=True)
        assert text.strip() == shown["written"], "padded to the left beside others or alone: the same"
    (tmp_path / "new.jsonl").write_text("".join(json.dumps({"source": one["source"]}) + "\n" for one in examples[200:]))
    assert main(["predict", f"run={path}", f"input={tmp_path / 'new.jsonl'}", f"output={tmp_path / 'out.jsonl'}"]) == 0
    written = {line["source"]: line["predicted_target"] for line in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())}
    assert all(written[shown["source"]] == shown["written"] for shown in tables["examples"])
    assert main(["generate", f"run={path}", f"prompt={examples[200]['source']}", "temperature=0"]) == 0
    assert written[examples[200]["source"]] in capsys.readouterr().out


def test_the_loss_is_that_of_transformers_on_the_targets_alone(tmp_path):
    """C06: each target is predicted from what stands before it; prompts are no targets."""
    from trainer.export import load_exported
    from trainer.tasks import Pick

    for name, sizes in (("gpt", GPT), ("t5", T5)):
        path = ready(tmp_path / name, "seq2seq", pairs(20), pairs(6), *sizes, "steps=1", "task.generate=false")
        here = loops.training(loops.single(), path)
        here.loop()
        here.finish()
        task, split = load_frozen(path / "config.yaml").task, here.corpus.split("train")
        module, model = task.around(load_exported(path / "model"), here.corpus.learned).eval(), load_exported(path / "model").eval()
        with torch.no_grad():
            found = module(task.collate(split, [Pick(number, 0) for number in range(5)]))["seq2seq"]
            total = 0.0
            for row in (task.row(split, number) for number in range(5)):
                ids, places = torch.from_numpy(row["input_ids"])[None], torch.from_numpy(row["places"])
                labels = torch.from_numpy(row["decoder_ids"])[None] if name == "t5" else torch.full_like(ids, -100)
                if name == "gpt":
                    assert places[0] == row["prompt"][0] and places[-1] == ids.shape[1] - 1
                    labels[0, places] = ids[0, places]
                total += float(model(input_ids=ids, labels=labels).loss) * int((labels != -100).sum())
        assert float(found) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("sizes", [GPT, T5], ids=["decoder", "pairs"])
def test_c20_texts_and_losses_are_those_of_one_process_where_the_model_is_cut(tmp_path, sizes):
    """Also where ranks have other lengths and other numbers of texts."""
    examples = pairs(45)
    words = (*sizes, "steps=4", "micro_batch=4", "optim.lr=3e-3", "task.max_target_length=8")
    one = ready(tmp_path, "seq2seq", examples[:40], examples[40:], *words, name="one")
    alone = evaluated(loops.single(), str(one))
    strategy = "fsdp" if sizes is GPT else "zero3"
    path = ready(tmp_path, "seq2seq", examples[:40], examples[40:], *words, f"strategy={strategy}", name=strategy, world=2)
    for rank in run_distributed(evaluated, 2, str(path)):
        assert rank["figures"] == pytest.approx(alone["figures"], rel=1e-3, abs=1e-4)
        if rank["tables"]:
            assert rank["tables"][""]["examples"] == alone["tables"][""]["examples"]
    assert loops.losses(path) == pytest.approx(loops.losses(one), rel=1e-4)


def test_dialogues_teach_the_replies_alone_and_a_template_goes_with_the_model(tmp_path):
    from transformers import AutoTokenizer

    from trainer.cli import main

    examples = dialogues(66)
    words = (*GPT, "sequence_length=160", "steps=80", "micro_batch=16", "task.generate=true")
    path = ready(tmp_path, "instruct", examples[:60], examples[60:], *words)
    here = loops.training(loops.single(), path)
    here.loop()
    here.finish()
    assert RunDir(path).summary["rouge1"] > 40
    tokenizer = AutoTokenizer.from_pretrained(path / "model")
    corpus = open_corpus(*(RunDir(path).placement[key] for key in ("corpus", "rows")))
    split, said = corpus.split("train"), next(iter(corpus.records("train")))["messages"]
    row = load_frozen(path / "config.yaml").task.row(split, 0)
    assert tokenizer.decode(row["input_ids"]) == tokenizer.apply_chat_template(said, tokenize=False)
    replies = [turn["content"] for turn in said if turn["role"] == "assistant"]
    assert tokenizer.decode(row["input_ids"][row["places"]]) == "".join(reply + tokenizer.eos_token for reply in replies)
    begin = tokenizer.apply_chat_template(said[:-1], tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(row["input_ids"][: row["prompt"][0]]) == begin
    asked = [{"messages": one["messages"][:-1]} for one in examples[60:]] + [{"messages": [{"role": "user", "content": "thing[cat]"}]}]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))
    assert main(["predict", f"run={path}", f"input={tmp_path / 'new.jsonl'}", f"output={tmp_path / 'out.jsonl'}"]) == 0
    written = [json.loads(line)["predicted_reply"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    tables = json.loads((path / "evaluation" / "held_out.json").read_text())
    assert sorted(written[:-1]) == sorted(shown["written"] for shown in tables["examples"]) and len(written) == 7


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_reply_ends_where_the_template_says_so_and_room_is_its_own(tmp_path):
    """A base model whose configuration knows the end of a text alone, and a template that ends turns by another token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = ready(tmp_path, "seq2seq", pairs(40), pairs(4), *GPT, "steps=1", "task.generate=false", name="base")
    here = loops.training(loops.single(), path)
    here.loop()
    here.finish()
    base = tmp_path / "chat"
    tokenizer = AutoTokenizer.from_pretrained(path / "model")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(path / "model")
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(base)
    talk = [{"messages": [{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": "yes sun"}]} for word in "abcdefgh"]
    words = ("model=pretrained", f"model.path={base}", "tokenizer=pretrained", f"tokenizer.path={base}", "steps=40", "task.generate=true")
    chat = ready(tmp_path / "talk", "instruct", talk, talk[:2], *words, "task.max_target_length=24")
    here = loops.training(loops.single(), chat)
    here.loop()
    here.finish()
    tables = json.loads((chat / "evaluation" / "held_out.json").read_text())
    assert [shown["written"] for shown in tables["examples"]] == ["yes sun"] * 2, "and nothing behind it"
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end in json.loads((chat / "model" / "generation_config.json").read_text())["eos_token_id"]

    # What is written of a dialogue is the same whatever is beside it, also where positions are few.
    from dataclasses import replace

    from trainer.export import load_exported

    task = load_frozen(chat / "config.yaml").task
    module = replace(task, max_target_length=100, generate=True).around(load_exported(chat / "model"), here.corpus.learned).eval()
    module.model.config.max_position_embeddings = 48
    short, long = (
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": ""}]} for text in ("say a", "so " * 40)
    )
    rows = [dict(zip(task.sections, map(np.array, row.sections), strict=True)) for row in task.encode([short, long], 0, tokenizer, {}, 64)]
    with torch.no_grad():
        for beside in ([rows[0]], rows):
            written = module(task.batch(beside, np.ones(len(beside), bool), here.corpus.learned))["written"]
            assert tokenizer.decode(written[0], skip_special_tokens=True) == "yes sun" and written.shape[1] <= 24
    assert len(rows[1]["input_ids"]) == 64 and rows[1]["prompt"][0] == 62, "what is too long is cut at its beginning"


def test_a_source_is_cut_and_never_the_prompt_around_it(tmp_path):
    from trainer.data.tokenizer_files import load_tokenizer

    for sizes in (GPT, T5):
        many = [{"source": "word " * 200 + example["source"], "target": example["target"]} for example in pairs(12)]
        path = ready(tmp_path / sizes[0][6:], "seq2seq", many, many[:3], *sizes, "task.prompt='Tell {source} => in short:'")
        corpus = open_corpus(*(RunDir(path).placement[key] for key in ("corpus", "rows")))
        row, tokenizer = load_frozen(path / "config.yaml").task.row(corpus.split("train"), 0), load_tokenizer(corpus.tokenizer_path)
        read = row["input_ids"][: row["prompt"][0]] if sizes is GPT else row["input_ids"]
        text = tokenizer.decode(read, skip_special_tokens=True).strip()
        assert text.startswith("Tell word") and text.endswith("=> in short:") and 40 < len(read) <= 64


def test_dialogues_of_which_nothing_fits_are_told(tmp_path, capsys):
    talk = dialogues(4)
    talk[1]["messages"][1]["content"] = "very long " * 100
    ready(tmp_path, "instruct", talk, talk[:1], *GPT, "sequence_length=64")
    assert "1 of 4 examples (train) are left out: nothing of them within sequence_length=64 is learned" in " ".join(
        capsys.readouterr().out.split()
    )


def test_b14_what_cannot_be_learned_from_is_refused_with_its_example(tmp_path):
    good, talk = pairs(4), dialogues(4)
    for task, examples, words, said in (
        ("seq2seq", good, ["task.max_target_length=60"], r"sequence_length: 64 leaves no room.*set sequence_length=92"),
        ("seq2seq", good, ["task.prompt=Say"], r"task\.prompt: 'Say'; allowed.*\{source\}"),
        ("seq2seq", good, ["+task.generation={num_beam: 4}"], r"task\.generation\.num_beam: allowed.*num_beams"),
        ("seq2seq", good, ["+task.generation={do_sample: true}"], r"task\.generation\.do_sample: allowed"),
        ("seq2seq", good, [f"task.prompt='{'so ' * 40}{{source}}'"], r"task\.prompt.*tokens beside the source"),
        ("seq2seq", [*good, {"source": "a", "target": {"a": 3}}], [], r"data\.columns\.target: \{'a': 3\} of example 5"),
        ("seq2seq", good, ["model=bert_tiny"], r"task=seq2seq needs a model with a causal head"),
        ("instruct", [*talk, {"messages": [{"role": "user", "content": "hi"}]}], [], r"example 5 .*:5\) has no turn of the assistant"),
        ("instruct", [*talk, {"messages": [{"role": "user"}]}], [], r"turn 1 of example 5 .*:5\) has 'role'; allowed"),
        ("instruct", talk, ["task.template='{{ messages | length }}'"], r"task\.template: of example 1"),
    ):
        given = words if any(word.startswith("model=") for word in words) else [*GPT, *words]
        with pytest.raises(ConfigError, match=said):
            ready(tmp_path, task, examples, good if task == "seq2seq" else talk, *given)


def test_texts_are_scored_by_their_libraries_with_several_references_and_in_chinese():
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    from trainer.tasks.scores import texts

    references = [["the cat is red", "a red cat"], ["the dog sleeps"], ["nothing at all here"]]
    written = ["a red cat", "the dogs sleep", ""]
    found = texts(references, written)
    streams = [["the cat is red", "the dog sleeps", "nothing at all here"], ["a red cat", None, None]]
    assert found["bleu"] == sacrebleu.corpus_bleu(written, streams).score and found["chrf"] == sacrebleu.corpus_chrf(written, streams).score
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    best = [max(scorer.score(one, text)["rougeL"].fmeasure for one in several) for several, text in zip(references, written, strict=True)]
    assert found["rougeL"] == pytest.approx(100 * sum(best) / 3) and found["exact_match"] == pytest.approx(1 / 3)
    chinese = texts([["床前明月光"]], ["床前看月光"])
    assert chinese["rouge1"] == pytest.approx(80) and chinese["bleu"] > 0
