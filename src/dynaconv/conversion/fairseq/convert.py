"""From a checkpoint of fairseq, with its dictionaries, to a folder of one of our models."""

import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig

from ...data.tokenizer import save_tokenizers
from ...models import LightConvForCausalLM, LightConvForConditionalGeneration, LightConvTokenizer
from .archive import is_archive, unpack
from .checkpoint import read_checkpoint
from .dictionary import read_dictionary
from .flags import Flags, language_model_config, translation_config
from .weights import count_layers, load_weights

_JOINED = "dict.joined.txt"
_CODES = ("bpecodes", "code")  # as fairseq's hub interface looks for them


class Converted(NamedTuple):
    """What a checkpoint became."""

    model: LightConvForConditionalGeneration | LightConvForCausalLM
    tokenizers: dict[str, LightConvTokenizer]
    """{"source", "target"}, the same object where they share a vocabulary; {"text"} of a language model."""


def convert(checkpoint: Path, out: Path, dicts: Path | None = None) -> Converted:
    """Write the model and the tokenizers of a translation or language model of fairseq 0.6.1 to main.

    Nothing in the checkpoint is run. The folder is complete or not there.

    Args:
        checkpoint: a file *.pt, or a published archive (.tar.gz, .tar.bz2) with one in it.
        out: the folder to write; must not exist, or be empty.
        dicts: the folder with dict.LANG.txt of both languages (dict.joined.txt can stand for both where all embeddings
            are shared), or dict.txt of a language model, and the BPE codes of subword-nmt (`bpecodes` or `code`) if
            there are any; None: where the checkpoint is, in the archive or beside it.

    Raises:
        FileExistsError: there is something in `out`.
        FileNotFoundError: the checkpoint or a dictionary is missing.
        OSError: `out` cannot be written.
        ValueError: a file that is damaged, hostile, of another kind of model, or does not fit the others.
    """
    if not checkpoint.is_file():
        raise FileNotFoundError(f"there is no file {checkpoint}: give a checkpoint of fairseq, or its archive")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists already: give a new folder as --out")
    # Beside it, or beside the first of its folders that is not there yet, so that the last step is a rename.
    near = next(folder for folder in out.absolute().parents if folder.is_dir())
    try:
        temporary = tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=near)
    except OSError as error:
        raise OSError(f"{out} cannot be written, {near} does not let it: {error.strerror}") from error
    with temporary as name:
        unpacked, staged = Path(name) / "archive", Path(name) / "model"
        unpacked.mkdir()
        staged.mkdir()
        if is_archive(checkpoint):
            checkpoint = unpack(checkpoint, unpacked)
        converted = _convert(checkpoint, dicts or checkpoint.parent, staged)
        out.parent.mkdir(parents=True, exist_ok=True)
        staged.rename(out)
    return converted


def _convert(path: Path, dicts: Path, staged: Path) -> Converted:
    checkpoint = read_checkpoint(path)
    flags = Flags(checkpoint.flags)
    alone, layers = flags.is_language_model(), count_layers(checkpoint.weights)
    names = {"text": "dict.txt"}
    if not alone:
        joined = flags.sharing() == "all" and (dicts / _JOINED).is_file()
        names = {side: _JOINED if joined else f"dict.{name}.txt" for side, name in flags.languages().items()}
    symbols = {side: _symbols(dicts / name) for side, name in names.items()}
    if flags.sharing() == "all" and symbols["source"] != symbols["target"]:
        raise ValueError(f"the dictionaries in {dicts} must be equal: the checkpoint has one matrix for all embeddings")
    sizes = {side: len(content) for side, content in symbols.items()}
    with torch.device("meta"):
        model = (
            LightConvForCausalLM(language_model_config(flags, sizes["text"], layers))
            if alone
            else LightConvForConditionalGeneration(translation_config(flags, sizes, layers))
        )
    load_weights(model, checkpoint.weights)
    model.tie_weights()
    if not alone:
        model.generation_config = _generation_config(model)
    model.save_pretrained(staged)
    shutil.copymode(staged / "config.json", staged / "model.safetensors")  # which safetensors makes private
    tokenizers = _tokenizers(symbols, dicts, staged, continued=alone)
    if not alone:
        for tokenizer in tokenizers.values():
            tokenizer.init_kwargs["languages"] = flags.languages()  # is saved with it, see `languages_of`
    save_tokenizers(tokenizers, staged)
    return Converted(model.eval(), tokenizers)


def _tokenizers(
    symbols: dict[str, list[str]], dicts: Path, staged: Path, *, continued: bool
) -> dict[str, LightConvTokenizer]:
    """A tokenizer for each list of symbols, the same one for equal lists."""
    codes = next((dicts / name for name in _CODES if (dicts / name).is_file()), None)
    made: dict[tuple[str, ...], LightConvTokenizer] = {}
    for side, content in symbols.items():
        if tuple(content) not in made:
            vocabulary = staged.with_name(f"{side}.txt")
            vocabulary.write_text("".join(f"{symbol}\n" for symbol in content), encoding="utf-8")
            made[tuple(content)] = LightConvTokenizer(vocabulary, codes, continued=continued)
    return {side: made[tuple(content)] for side, content in symbols.items()}


def _symbols(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no dictionary {path.name} in {path.parent}: give its folder as --dicts")
    return read_dictionary(path)


def _generation_config(model: Any) -> GenerationConfig:
    """Search as by fairseq-generate: its defaults, at least one token, and never padding."""
    config = model.config
    return GenerationConfig(
        num_beams=5,
        early_stopping=True,
        length_penalty=1.0,
        min_new_tokens=1,
        max_new_tokens=min(200, config.max_target_positions - 1),
        suppress_tokens=[config.pad_token_id],
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
    )
