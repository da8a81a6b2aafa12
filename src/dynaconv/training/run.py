"""A run folder: training in it, resuming, and the model that comes of it."""

import json
import logging
import os
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from filelock import FileLock, Timeout
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from transformers import PreTrainedModel, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import SchedulerType

from .. import __version__
from ..data.arrays import TokenArrays
from ..data.store import write_whole, writing
from .checkpoints import WEIGHTS, best_of, checkpoints, history_of, last_whole, save_averaged, step_of
from .curves import plot_curves
from .recipe import TrainConfig, differences, load_recipe, save_recipe
from .trainer import DivergenceError, TokenLoss, TokenTrainer, is_exhausted

logger = logging.getLogger("dynaconv")

_RECIPE, _ORIGIN = "recipe.yaml", "origin.json"
_EARLIER = "earlier.safetensors"
"""The model of fewer updates, until that of more is there."""
_BUSY = 25  # percent of the machine
_MAY_CHANGE = ("data.train", "data.valid", "data.test", "train.patience")
DIVERGED = "diverged.json"
"""In the folder of a run whose loss became infinite or NaN: {"step": update}."""


def check_run(run: Path, recipe: Any, *, resume: bool, same: bool = False) -> None:
    """Refuse what would damage a run. A folder in which nothing was trained, as the start failed, holds none.

    Args:
        run: its folder.
        recipe: of the task.
        resume: the run is to go on, perhaps for more updates, or from data that has moved (:func:`fit` compares it).
        same: neither of these.

    Raises:
        ValueError: the folder holds a run and `resume` is False, or one of another recipe, or something else; `best`
            without an evaluation for each checkpoint.
    """
    options, saved = recipe.train, run / _RECIPE
    if options.best and options.save_steps % options.eval_steps:
        steps = f"{options.save_steps}, {options.eval_steps}"
        raise ValueError(f"train.best needs save_steps to be a multiple of eval_steps; got {steps}")
    if not saved.exists():
        if run.exists() and any(run.iterdir()):
            raise ValueError(f"{run} is not empty and holds no run: choose another --output")
        return
    if not _has_trained(run):
        return
    if not resume:
        raise ValueError(f"{run} already holds a run: add --resume to go on with it, or choose another --output")
    before = load_recipe(saved, type(recipe))
    may = () if same else _MAY_CHANGE
    if not same and options.max_steps > before.train.max_steps:
        may += ("train.max_steps",)
        if options.schedule != "inverse_sqrt":
            logger.warning("the learning rate is now that of %s over %d updates", options.schedule, options.max_steps)
    changed = [change for change in differences(before, recipe) if not change.startswith(tuple(f"{n}:" for n in may))]
    if changed:
        raise ValueError(
            f"{run} was started with another recipe ({'; '.join(changed)}): undo that, or use another --output"
        )


def fit(
    model: PreTrainedModel,
    recipe: Any,
    run: Path,
    *,
    train: TokenArrays,
    valid: TokenArrays,
    collate: Callable[[list[dict[str, Any]]], dict[str, Tensor]],
    data: str,
    loss: TokenLoss | None,
    metrics: dict[str, Callable[[float], float]],
    save_extra: Callable[[Path], None],
    save_text: Callable[[Path], None],
    flops: float | None = None,
) -> None:
    """Train a model in a run folder, from its last whole checkpoint where it has one.

    The folder receives `recipe.yaml` (resolved), `versions.json`, TensorBoard logs, the last checkpoints, `curves.png`,
    `history.json`, and at the end the model, the average of the last checkpoints or the best of them.

    Args:
        model: the network, on any device.
        recipe: of the task, with a :class:`TrainConfig` as `train`; see :func:`check_run`.
        run: the folder.
        train: rows to train on.
        valid: rows for the validation loss.
        collate: as in :class:`TokenTrainer`.
        data: digest of the data. A run that goes on must see the batches it would have seen.
        loss: as in :class:`TokenTrainer`.
        metrics: the same.
        save_extra: the same.
        save_text: writes the held-out text into the run folder.
        flops: as in :class:`TokenTrainer`.

    Raises:
        ValueError: the run was started with other data, or on another number of processes, or another one trains it;
            no checkpoint of it is whole.
        OSError: the last checkpoint could not be written.
        DivergenceError: the loss or a weight became infinite or NaN; checkpoints from before are kept.
    """
    options: TrainConfig = recipe.train
    trainer = TokenTrainer(
        model=model,
        args=_arguments(options, run),
        train_dataset=train,
        eval_dataset=valid,
        collate=collate,
        max_tokens=options.max_tokens,
        loss=loss,
        metrics=metrics,
        keep=options.kept,
        keep_best=options.best,
        patience=options.patience,
        save_extra=save_extra,
        flops=flops,
    )
    origin = {"data": data, "processes": trainer.args.world_size}
    _check_origin(run, origin)
    lock = FileLock(run / "lock", timeout=0)
    if trainer.is_world_process_zero():
        run.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()  # released when it is collected, or the process ends
        except Timeout:
            raise ValueError(f"{run} is being trained by another process: wait for it, or end it") from None
        _write_preamble(model, recipe, run, origin)
        save_extra(run)
        save_text(run)
        logger.info(
            f"{run}: {model.num_parameters():,} parameters, {len(train):,} training rows, {options.max_steps} updates "
            f"of up to {options.accumulation} x {options.max_tokens} tokens on {model.device}"
        )
        trainer.add_callback(TensorBoardCallback(SummaryWriter(run / "tensorboard")))
        _warn_of_load(model.device)
    trainer.accelerator.wait_for_everyone()
    (run / DIVERGED).unlink(missing_ok=True)
    try:
        history = _train(trainer, run, options)
    except DivergenceError as error:
        if trainer.is_world_process_zero():
            (run / DIVERGED).write_text(json.dumps({"step": error.step}), encoding="utf-8")
        raise
    if trainer.is_world_process_zero():
        found = checkpoints(run)
        final = found[-options.average_last :]
        if options.best:
            final = [best_of(found, history_of(found[-1])) or found[-1]]
            logger.info("the lowest validation loss has %s", final[0].name)
        with writing(run):
            if history:
                history[-1]["parameters"] = model.num_parameters()
                (run / "history.json").write_text(json.dumps(history, indent=1), encoding="utf-8")
                plot_curves({run.name: history}, run / "curves.png", metrics)
            save_averaged(final, run / WEIGHTS)
        (run / _EARLIER).unlink(missing_ok=True)
    trainer.accelerator.wait_for_everyone()
    lock.release()


def _warn_of_load(device: torch.device) -> None:
    """Threads that wait for each other take the processor from those that they wait for, where others use it too."""
    settings = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
    if device.type == "cpu" and torch.get_num_threads() > 1 and not settings & os.environ.keys():
        busy = psutil.cpu_percent(interval=0.3)  # by others: this process sleeps
        if busy > _BUSY:
            logger.warning(
                "other processes take %.0f%% of this machine: with %d threads set OMP_WAIT_POLICY=PASSIVE, or "
                "OMP_NUM_THREADS=1, or training may be several times slower",
                busy,
                torch.get_num_threads(),
            )


def _train(trainer: TokenTrainer, run: Path, options: TrainConfig) -> list[dict[str, Any]]:
    """The logs of the whole run; nothing where they are already in its folder."""
    last = last_whole(run, trainer.args.world_size)
    if last is None and (run / WEIGHTS).exists():
        raise ValueError(f"{run} has its model, but no checkpoint to go on from: choose another --output")
    if last is None or not _is_done(last, options):
        if trainer.is_world_process_zero():
            _put_aside(run, last)
        trainer.accelerator.wait_for_everyone()
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
        found = checkpoints(run)
        if not found or not _is_done(found[-1], options):
            raise OSError(f"the last checkpoint of {run} is missing: free some disk space, then repeat with --resume")
        return trainer.state.log_history
    if step_of(last) < options.max_steps:
        logger.info("training ended early, at update %d: with train.patience 0 it goes on", step_of(last))
    if (run / "curves.png").exists():
        return []
    return history_of(last)  # killed behind it


def _put_aside(run: Path, last: Path | None) -> None:
    """Take from a run that goes on what is damaged, and what was made of fewer updates."""
    for path in checkpoints(run):
        if last is not None and step_of(path) > step_of(last):
            shutil.rmtree(aside := path.with_name(f"damaged-{path.name}"), ignore_errors=True)
            path.rename(aside)
    (run / "curves.png").unlink(missing_ok=True)
    if (run / WEIGHTS).exists():
        (run / WEIGHTS).rename(run / _EARLIER)


def _is_done(last: Path, options: TrainConfig) -> bool:
    exhausted = options.patience > 0 and is_exhausted(history_of(last), options.patience)
    return exhausted or step_of(last) >= options.max_steps


def _has_trained(run: Path) -> bool:
    return bool(checkpoints(run)) or any((run / name).exists() for name in (WEIGHTS, DIVERGED))


def _check_origin(run: Path, origin: dict[str, Any]) -> None:
    if not _has_trained(run) or not (run / _ORIGIN).exists():
        return
    started = json.loads((run / _ORIGIN).read_text("utf-8"))
    if started["data"] != origin["data"]:
        raise ValueError(f"{run} was started with other data: its files have changed since; use another --output")
    if started["processes"] != origin["processes"]:
        raise ValueError(
            f"{run} was started with {started['processes']} processes and cannot go on with {origin['processes']}"
        )


def _write_preamble(model: Any, recipe: Any, run: Path, origin: dict[str, Any]) -> None:
    save_recipe(recipe, run / _RECIPE)
    versions = {
        "dynaconv": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "command": sys.argv,
    }
    for name, content in ((_ORIGIN, origin), ("versions.json", versions)):
        write_whole(run / name, json.dumps(content, indent=1))  # other processes read it
    model.config.architectures = [type(model).__name__]  # as its `save_pretrained` does
    model.config.save_pretrained(run)
    model.generation_config.save_pretrained(run)


def _arguments(options: TrainConfig, run: Path) -> TrainingArguments:
    bf16 = (
        torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        if options.precision == "auto"
        else options.precision == "bf16"
    )
    scheduler, details = _schedule(options)
    args = TrainingArguments(
        output_dir=str(run),
        max_steps=options.max_steps,
        gradient_accumulation_steps=options.accumulation,
        learning_rate=options.learning_rate,
        lr_scheduler_type=scheduler,
        lr_scheduler_kwargs=details,
        warmup_steps=options.warmup_steps,
        weight_decay=options.weight_decay,
        adam_beta2=options.adam_beta2,
        max_grad_norm=options.clip_norm,
        bf16=bf16,
        use_cpu=not torch.accelerator.is_available(),  # without it, several CPU processes train beside each other
        seed=options.seed,
        logging_steps=options.log_steps,
        logging_nan_inf_filter=False,  # with it, a loss that is NaN is logged as 0
        eval_strategy="steps",
        eval_steps=options.eval_steps,
        save_strategy="steps",
        save_steps=options.save_steps,
        report_to="none",  # `fit` adds TensorBoard, to say where
        label_names=["labels"],
        include_num_input_tokens_seen="all",  # logged, and kept by checkpoints
        remove_unused_columns=False,
        # Every process sees the same number of batches: TokenBatchSampler sees to it.
        accelerator_config={"even_batches": False},
    )
    if args.n_gpu > 1:
        logger.warning("training on one of %d GPUs: torchrun -m dynaconv train ... uses all of them", args.n_gpu)
        args._n_gpu = 1  # otherwise the Trainer takes the deprecated nn.DataParallel
    return args


def _schedule(options: TrainConfig) -> tuple[SchedulerType, dict[str, Any]]:
    """Of the learning rate, in the Trainer's words."""
    if options.schedule == "inverse_sqrt":
        return SchedulerType.INVERSE_SQRT, {}
    if options.schedule == "cosine":
        return SchedulerType.COSINE_WITH_MIN_LR, {"min_lr": options.min_learning_rate}
    ratio = options.min_learning_rate / options.learning_rate
    return SchedulerType.WARMUP_STABLE_DECAY, {"num_decay_steps": options.decay_steps, "min_lr_ratio": ratio}
