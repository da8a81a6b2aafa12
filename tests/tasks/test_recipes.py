"""Every recipe, end to end on miniature data in the format that it reads, with a tiny network and few updates."""

import json
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, DatasetDict

from dynaconv.training.checkpoints import checkpoints

from ..conftest import toy_pairs, write_tsv

RECIPES = Path(__file__).parents[2] / "recipes"
ALL = sorted(str(path.relative_to(RECIPES)) for path in RECIPES.glob("*/*.yaml") if path.parent.name != "sweeps")
LANGUAGE_MODELS = [name for name in ALL if name.startswith("language_modelling")]
NAMES = [name for name in ALL if name not in LANGUAGE_MODELS]
PAIRS = toy_pairs(160, seed=5)
HEADER = [
    "<url>http://example.org</url>",
    "<keywords>k</keywords>",
    "<title>Titel & Text</title>",
    "<talkid>1</talkid>",
]
SHORT = {
    "train.max_steps": 4, "train.max_tokens": 400, "train.accumulation": 1, "train.warmup_steps": 2, "train.save_steps": 2,
    "train.eval_steps": 4, "train.average_last": 2, "train.log_steps": 2,
}  # fmt: skip
PAIRED = {
    **SHORT, "tokenizer.vocab_size": 120, "model.d_model": 16, "model.encoder_layers": 1, "model.decoder_layers": 1,
    "model.encoder_heads": 2, "model.decoder_heads": 2, "model.encoder_kernel_sizes": 3, "model.decoder_kernel_sizes": 3,
    "model.encoder_ffn_dim": 32, "model.decoder_ffn_dim": 32, "train.eval_sentences": 4,
}  # fmt: skip
# What makes the networks of language models small, by their host.
CONFIGS = {
    "dynaconv": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2},
    "llama": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2},
    "dynaconv_lightconv_lm": {
        "d_model": 32, "decoder_layers": 1, "decoder_kernel_sizes": 3, "decoder_heads": 2, "decoder_ffn_dim": 32,
        "adaptive_input_cutoffs": [8, 14], "adaptive_softmax_cutoffs": [8, 14],
    },
}  # fmt: skip


def options_of(values: dict) -> list[str]:
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def miniature(folder: Path, data: dict) -> dict[str, str]:
    """Data in the format that a section asks for: {split: value of the section}."""
    kind, (source, target) = data["format"], (data.get("source_lang", "de"), data.get("target_lang", "en"))
    if kind in ("tsv", "debian"):
        columns = (data.get("source_column", 0), data.get("target_column", 1))
        rows = [["x"] * 3 for _ in PAIRS]
        for row, pair in zip(rows, PAIRS):
            for column, text in zip(columns, pair):
                row[column] = text
        return {"train": str(write_tsv(folder / "train.tsv", rows))}
    if kind == "huggingface":
        if "source_lang" in data:
            rows = [{"translation": {source: a, target: b}} for a, b in PAIRS]
        else:
            rows = [{"article": a, "highlights": b, "id": "x"} for a, b in PAIRS]
        parts = {"train": rows[:120], "validation": rows[120:140], "test": rows[140:]}
        DatasetDict({name: Dataset.from_list(part) for name, part in parts.items()}).save_to_disk(folder / "dataset")
        return {
            split: f"{folder / 'dataset'}@{data[split].rpartition('@')[2]}"
            for split in ("train", "valid", "test")
            if split in data
        }
    assert kind == "iwslt"
    for side, language in enumerate((source, target)):
        lines = [*HEADER, *(f" {pair[side]} " for pair in PAIRS[:120])]
        (folder / f"train.tags.de-en.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for name, part in (("dev2010", PAIRS[120:140]), ("tst2010", PAIRS[140:])):
            segments = (f'<seg id="{i}"> {pair[side]} &amp; co </seg>\n' for i, pair in enumerate(part, 1))
            text = f'<?xml version="1.0"?>\n<doc>\n<title>no segment</title>\n{"".join(segments)}</doc>\n'
            (folder / f"IWSLT14.TED.{name}.de-en.{language}.xml").write_text(text, encoding="utf-8")
    tests = ",".join(str(folder / f"IWSLT14.TED.{name}.de-en") for name in ("dev2010", "tst2010"))
    return {"train": str(folder / "train.tags.de-en"), "test": tests}


@pytest.mark.parametrize("name", NAMES)
def test_from_the_data_to_the_score(name, command, tmp_path):
    content = yaml.safe_load((RECIPES / name).read_text(encoding="utf-8"))
    said = miniature(tmp_path, content["data"])
    options = [part for split, value in said.items() for part in (f"--data.{split}", value)]
    if content["data"]["format"] == "debian":
        options += ["--data.format", "tsv"]
    if not {"valid", "valid_every"} & content["data"].keys():
        options += ["--data.valid_size", "10"]
    if "valid_every" in content["data"]:
        options += ["--data.valid_every", "10"]
    if "test" not in said:
        options += ["--data.test_size", "10"]
    output = ["--output", tmp_path / "run"]
    plan = command("train", RECIPES / name, *options, *options_of(PAIRED), *output, "--dry-run", "--processes", "8")
    assert "8 devices x 1 x up to 400" in " ".join(plan.split())
    assert not (tmp_path / "run").exists()
    command("train", RECIPES / name, *options, *options_of(PAIRED), *output)
    assert len(checkpoints(tmp_path / "run")) == 2
    scores = tmp_path / "scores.json"
    command(
        "evaluate",
        tmp_path / "run",
        tmp_path / "run" / "test.tsv",
        "--json",
        scores,
        "--max-length",
        "9",
        "--min-length",
        "1",
    )
    record = json.loads(scores.read_text())
    assert record["search"]["beams"] == content.get("decoding", {}).get("beams", 4)
    assert record["sentences"] == {"iwslt": 40, "huggingface": 20}.get(content["data"]["format"], 10)
    assert record["scores"]


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_from_text_to_perplexity(name, command, tmp_path):
    content = yaml.safe_load((RECIPES / name).read_text(encoding="utf-8"))
    text = "".join(f"{english}\n" for _, english in PAIRS)
    for part in ("1", "2"):
        (tmp_path / f"text-{part}").write_text(text, encoding="utf-8")
    content["data"] |= {"train": str(tmp_path / "text-*"), "valid_size": 10, "test_size": 10, "near_duplicates": True}
    content["tokenizer"]["vocab_size"] = 300
    model = content["model"]
    model["config"] = model.get("config", {}) | CONFIGS[model["host"]]
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    plan = command("train", recipe, "--output", run, *options_of(SHORT), "--dry-run", "--processes", "8")
    assert "8 devices x 1 x up to 400" in " ".join(plan.split())
    command("train", recipe, "--output", run, *options_of(SHORT))
    assert len(checkpoints(run)) == 2
    command("perplexity", run, run / "test.txt", "--sequences", "line", "--json", tmp_path / "scores.json")
    assert 1 < json.loads((tmp_path / "scores.json").read_text())["perplexity per token"] < 2000
    assert "documents" in command("data", recipe)


@pytest.mark.parametrize("name", [name for name in ALL if "cpu" not in name and "demo" not in name])
def test_the_head_says_all_that_a_person_needs(name):
    head = (RECIPES / name).read_text(encoding="utf-8").split("task:")[0]
    for label in ("files", "train", "score", "expected", "cost"):
        assert f"#   {label} " in head
    assert "torchrun --nnodes 2" in head or "iwslt14" in name
    assert "mixer lightweight" in head


def test_without_the_data_a_dry_run_says_what_is_missing(command, capsys):
    with pytest.raises(SystemExit) as ended:
        command("train", RECIPES / "translation/iwslt14_de_en.yaml", "--dry-run")
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert "42,723,840" in printed.out
    assert "data.train must be given for data.format iwslt" in printed.err


def test_the_cost_of_a_summarizer_without_its_data_is_of_documents(command, capsys):
    """Where the hub cannot be reached; the head of the recipe has 1.3e9 target tokens, of its data."""
    with pytest.raises(SystemExit):
        command("train", RECIPES / "summarization/cnn_dailymail.yaml", "--dry-run", "--processes", "8")
    plan = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    assert "sources of 400 and targets of 64 tokens" in plan
    assert "1.31e+09 target tokens" in plan


def test_a_sweep_is_no_recipe(command, capsys):
    for arguments, message in (
        (("train", RECIPES / "sweeps/mixers.yaml"), "mixers.yaml is a sweep over a recipe: dynaconv sweep "),
        (("sweep", RECIPES / "translation/demo.yaml", "--output", "x"), "demo.yaml names no recipe to sweep over"),
    ):
        with pytest.raises(SystemExit) as ended:
            command(*arguments)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--processes", "0"), "--processes: input should be greater than or equal to 1; got 0"),
        (("--decoding.no_repeat_ngram_size", "1"), "no_repeat_ngram_size must be 0 or 2 and more"),
        (("--decoding.min_length", "600"), "max_length must be above min_length = 600; got 512"),
        (("--decoding.max_length", "0"), "max_length"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_the_data_is_read(command, capsys, options, message):
    with pytest.raises(SystemExit):
        command("train", RECIPES / "translation/wmt14_en_de.yaml", "--dry-run", *options)
    assert message in capsys.readouterr().err
