"""`dynaconv train`: from a recipe to a trained model in a run folder."""

import json
import logging
import platform
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.tensorboard import SummaryWriter
from transformers import Seq2SeqTrainingArguments, set_seed
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import SchedulerType

from ... import __version__
from ...data.dataset import PreparedCorpus, prepare
from ...data.tokenizer import save_tokenizers
from ...models import LightConvConfig, LightConvForConditionalGeneration
from .checkpoints import WEIGHTS, checkpoints, save_averaged, step_of
from .evaluation import bleu_score
from .plots import plot_curves
from .recipe import Recipe, differences, load_recipe, save_recipe
from .trainer import TranslationTrainer
from .translator import Translator

logger = logging.getLogger("dynaconv")

_ORIGIN = "origin.json"


def train(recipe: Recipe, run: Path, *, resume: bool = False) -> Path:
    """Train a translation model.

    The run folder receives `recipe.yaml` (resolved), `versions.json`, the tokenizers, the held-out text (`valid.tsv`,
    `test.tsv`), TensorBoard logs, the last checkpoints, `curves.png`, `history.json`, and at the end the model itself,
    the average of the last checkpoints: `from_pretrained(run)` and `dynaconv translate RUN` read it.

    Args:
        recipe: what to train, on what, and how.
        run: folder of the run.
        resume: go on from the last checkpoint in `run`. The result is the same as without the interruption.

    Returns:
        The run folder.

    Raises:
        ValueError: the folder holds a run and `resume` is False, or the run was started with another recipe, with
            other data, or on another number of processes.
    """
    _check_run(recipe, run, resume)
    _preset(recipe, {})  # a mistake shows before the data is fetched
    corpus = prepare(recipe.data, recipe.tokenizer)
    set_seed(recipe.train.seed)
    model = LightConvForConditionalGeneration(_model_config(recipe, corpus))
    model.generation_config.update(num_beams=4, max_new_tokens=256)  # what a bare model.generate() does with the result
    trainer = _make_trainer(recipe, run, corpus, model)
    origin = {"data": corpus.digest(), "processes": trainer.args.world_size}
    _check_origin(run, origin)
    if trainer.is_world_process_zero():
        _write_preamble(recipe, run, corpus, model, origin)
        trainer.add_callback(TensorBoardCallback(SummaryWriter(run / "tensorboard")))
    trainer.accelerator.wait_for_everyone()

    found = checkpoints(run)
    history = []
    if not found or step_of(found[-1]) < recipe.train.max_steps:
        trainer.train(resume_from_checkpoint=str(found[-1]) if found else None)
        found = checkpoints(run)
        if not found or step_of(found[-1]) < recipe.train.max_steps:
            raise OSError(f"the last checkpoint of {run} is missing: free some disk space, then repeat with --resume")
        history = trainer.state.log_history
    elif not (run / "curves.png").exists():  # killed behind the last checkpoint
        history = json.loads((found[-1] / "trainer_state.json").read_text("utf-8"))["log_history"]
    if trainer.is_world_process_zero():
        if history:
            (run / "history.json").write_text(json.dumps(history, indent=1), encoding="utf-8")
            plot_curves({run.name: history}, run / "curves.png")
        save_averaged(found[-recipe.train.average_last :], run / WEIGHTS)
    trainer.accelerator.wait_for_everyone()
    return run


def _check_run(recipe: Recipe, run: Path, resume: bool) -> None:
    saved = run / "recipe.yaml"
    if not saved.exists():
        if run.exists() and any(run.iterdir()):
            raise ValueError(f"{run} is not empty and holds no run: choose another --output")
        return
    if not resume:
        raise ValueError(f"{run} already holds a run: add --resume to go on with it, or choose another --output")
    changed = differences(load_recipe(saved), recipe)
    if changed:
        raise ValueError(
            f"{run} was started with another recipe ({'; '.join(changed)}): undo that, or use another --output"
        )


def _check_origin(run: Path, origin: dict[str, Any]) -> None:
    """A run that goes on must see the batches it would have seen."""
    if not (run / _ORIGIN).exists():
        return
    started = json.loads((run / _ORIGIN).read_text("utf-8"))
    if started["data"] != origin["data"]:
        raise ValueError(f"{run} was started with other data: its files have changed since; use another --output")
    if started["processes"] != origin["processes"]:
        raise ValueError(
            f"{run} was started with {started['processes']} processes and cannot go on with {origin['processes']}"
        )


def _model_config(recipe: Recipe, corpus: PreparedCorpus) -> LightConvConfig:
    joint = corpus.source_tokenizer is corpus.target_tokenizer
    overrides = recipe.model.overrides()
    if not joint and overrides.get("share_embeddings") == "all":
        raise ValueError("model.share_embeddings all needs one vocabulary: set tokenizer.joint true, or share less")
    separate = {"share_embeddings": "none", "source_vocab_size": len(corpus.source_tokenizer)}
    return _preset(recipe, ({} if joint else separate) | {"vocab_size": len(corpus.target_tokenizer)})


def _preset(recipe: Recipe, vocabulary: dict[str, Any]) -> LightConvConfig:
    return LightConvConfig.from_preset(recipe.model.preset, **vocabulary | recipe.model.overrides())


def _make_trainer(
    recipe: Recipe, run: Path, corpus: PreparedCorpus, model: LightConvForConditionalGeneration
) -> TranslationTrainer:
    options = recipe.train
    bf16 = (
        torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        if options.precision == "auto"
        else options.precision == "bf16"
    )
    cosine = options.schedule == "cosine"
    args = Seq2SeqTrainingArguments(
        output_dir=str(run),
        max_steps=options.max_steps,
        gradient_accumulation_steps=options.accumulation,
        learning_rate=options.learning_rate,
        lr_scheduler_type=SchedulerType.COSINE_WITH_MIN_LR if cosine else SchedulerType.INVERSE_SQRT,
        lr_scheduler_kwargs={"min_lr": options.min_learning_rate} if cosine else {},
        warmup_steps=options.warmup_steps,
        weight_decay=options.weight_decay,
        adam_beta2=0.98,
        max_grad_norm=options.clip_norm,
        bf16=bf16,
        use_cpu=not torch.accelerator.is_available(),  # without it, several CPU processes train beside each other
        seed=options.seed,
        logging_steps=options.log_steps,
        eval_strategy="steps",
        eval_steps=options.eval_steps,
        save_strategy="steps",
        save_steps=options.save_steps,
        report_to="none",  # TensorBoard is added below, to say where
        label_names=["labels"],
        remove_unused_columns=False,
        # Every process sees the same number of batches: TokenBatchSampler sees to it.
        accelerator_config={"even_batches": False},
    )
    if args.n_gpu > 1:
        logger.warning("training on one of %d GPUs: torchrun -m dynaconv train ... uses all of them", args.n_gpu)
        args._n_gpu = 1  # otherwise the Trainer takes the deprecated nn.DataParallel
    text = corpus.text["valid"]
    count = min(options.eval_sentences, len(text.source))

    def bleu() -> float:
        translator = Translator(model, corpus.source_tokenizer, corpus.target_tokenizer)
        return bleu_score(
            translator.translate_distributed(text.source[:count]), text.target[:count],
            language=recipe.data.target_lang, lowercase=recipe.tokenizer.lowercase,
        )  # fmt: skip

    return TranslationTrainer(
        model=model,
        args=args,
        train_dataset=corpus.train,
        eval_dataset=corpus.valid,
        max_tokens=options.max_tokens,
        label_smoothing=options.label_smoothing,
        bleu=bleu if count else None,
        keep=max(1, options.average_last),
        save_tokenizers=lambda folder: save_tokenizers(corpus.source_tokenizer, corpus.target_tokenizer, folder),
    )


def _write_preamble(
    recipe: Recipe, run: Path, corpus: PreparedCorpus, model: LightConvForConditionalGeneration, origin: dict[str, Any]
) -> None:
    run.mkdir(parents=True, exist_ok=True)
    save_recipe(recipe, run / "recipe.yaml")
    (run / _ORIGIN).write_text(json.dumps(origin, indent=1), encoding="utf-8")
    versions = {
        "dynaconv": __version__, "torch": torch.__version__, "transformers": transformers.__version__,
        "python": platform.python_version(), "platform": platform.platform(), "command": sys.argv,
    }  # fmt: skip
    (run / "versions.json").write_text(json.dumps(versions, indent=1), encoding="utf-8")
    model.config.save_pretrained(run)
    model.generation_config.save_pretrained(run)
    save_tokenizers(corpus.source_tokenizer, corpus.target_tokenizer, run)
    for split, text in corpus.text.items():
        lines = (f"{source}\t{target}\n" for source, target in zip(text.source, text.target, strict=True))
        (run / f"{split}.tsv").write_text("".join(lines), encoding="utf-8")
    options = recipe.train
    logger.info(
        "%s: %s parameters, %s training pairs, %d updates of up to %d x %d tokens on %s", run,
        f"{model.num_parameters():,}", f"{len(corpus.train):,}", options.max_steps, options.accumulation,
        options.max_tokens, model.device,
    )  # fmt: skip
