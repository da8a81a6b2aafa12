"""The Hugging Face trainer with batches by token count, exact losses, and checkpoints whole or absent."""

import logging
import math
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from ..data.arrays import TokenArrays
from ..data.batching import NO_LABEL, TokenBatchSampler
from ..models.lightconv.adaptive import AdaptiveSoftmax
from ..nn import DynamicShortConv, ShortConv, ShortConvGroup
from ..nn.shortconv import FilterProjection
from .checkpoints import best_of, checkpoints, keep_last, losses_of, publish
from .estimate import peak_flops

logger = logging.getLogger("dynaconv")

CONVOLUTIONS = (ShortConv, DynamicShortConv, ShortConvGroup, FilterProjection)


class DivergenceError(RuntimeError):
    """The loss or a weight is infinite or NaN; `step` is the number of updates before that was seen."""

    def __init__(self, what: str, step: int):
        advice = "lower train.learning_rate, or set train.clip_norm; earlier checkpoints are kept"
        super().__init__(f"{what} at update {step}: {advice}")
        self.step = step


class TokenLoss:
    """Cross-entropy with label smoothing, (1 - e) nll + e / V sum_v -log p_v, averaged over tokens."""

    def __init__(self, label_smoothing: float):
        self.label_smoothing = label_smoothing

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Logits [B, T, V] and labels [B, T] aligned with them, -100 for none, to a scalar (nats per token)."""
        loss = F.cross_entropy(
            outputs.logits.float().flatten(0, 1),
            labels.flatten(),
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        return loss / ((labels != NO_LABEL).sum() if num_items_in_batch is None else num_items_in_batch)


def decaying(model: nn.Module) -> set[str]:
    """Names of the matrices of a model, but for filters of short convolutions and what makes them."""
    convolutions = [module for module in model.modules() if isinstance(module, CONVOLUTIONS)]
    kept = {id(parameter) for module in convolutions for parameter in module.parameters()}
    named = model.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if parameter.dim() > 1 and id(parameter) not in kept}


def summed_loss(model: Any, batch: dict[str, Any], labels: Tensor) -> Tensor:
    """Sum of the cross-entropy (nats) of labels [B, T] aligned with the logits, -100 for none.

    Adaptive softmax computes the clusters of these labels only: all logits of large vocabularies fit in no memory.
    """
    if isinstance(getattr(model, "lm_head", None), AdaptiveSoftmax):
        no_logits = torch.empty(0, dtype=torch.int64, device=labels.device)
        options = {"shift_labels": labels, "num_items_in_batch": 1, "logits_to_keep": no_logits, "use_cache": False}
        return model(**batch, **options).loss
    return TokenLoss(0.0)(model(**batch, use_cache=False), labels, 1)


class TokenTrainer(Trainer):
    """Trains on batches of about `max_tokens` tokens and evaluates by loss per token and the task's own metrics.

    Args:
        model: the network.
        args: everything that is not here.
        train_dataset: rows to train on.
        eval_dataset: rows for the validation loss.
        collate: rows to the keyword arguments of the model, `labels` among them.
        max_tokens: batch size of one device, longest sequence x rows.
        loss: outputs and labels that are aligned with them to the training loss; None: the model shifts the labels and
            gives its own, as causal language models do.
        metrics: {name: function of the validation loss that measures it at each evaluation}, logged as eval_name in
            lower case.
        keep: number of checkpoints to keep.
        keep_best: keep that with the lowest validation loss too.
        patience: end training behind so many evaluations without a lower validation loss; 0: do not.
        save_extra: writes into a checkpoint folder what the model needs beside its weights, such as tokenizers.
        flops: of the model for each label, forward and backward; logged per second, and as `mfu`, the share of the peak
            of the devices in half precision, where that is known.
    """

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        args: TrainingArguments,
        train_dataset: TokenArrays,
        eval_dataset: TokenArrays,
        collate: Callable[[list[dict[str, Any]]], dict[str, Tensor]],
        max_tokens: int,
        loss: TokenLoss | None,
        metrics: dict[str, Callable[[float], float]],
        keep: int,
        keep_best: bool,
        patience: int,
        save_extra: Callable[[Path], None],
        flops: float | None = None,
    ):
        self.flops = flops
        self.max_tokens, self.metrics, self.keep, self.save_extra = max_tokens, metrics, keep, save_extra
        self.keep_best = keep_best
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            compute_loss_func=loss,
            data_collator=collate,
        )
        for default in (ProgressCallback, PrinterCallback):
            self.remove_callback(default)
        self.add_callback(ConsoleCallback(metrics, "tokens" if loss is None else "target tokens"))
        if patience:
            self.add_callback(PatienceCallback(patience))
        # Both now: a sequence that is too long must end a run before it starts.
        self._train_loader = self._loader(train_dataset, shuffle=True)
        self.add_callback(EpochCallback(self._train_loader.batch_sampler))
        self._eval_loader = self._loader(eval_dataset, shuffle=False)
        self._network = model
        self._staging: Path | None = None
        self._tokens, self._since = 0, time.perf_counter()

    def get_train_dataloader(self) -> DataLoader:
        """Batches by token count, in an order that only the seed and the epoch decide."""
        return self.accelerator.prepare(self._train_loader)

    def _loader(self, dataset: TokenArrays, shuffle: bool) -> DataLoader:
        sampler = TokenBatchSampler.of(
            dataset,
            self.max_tokens,
            shuffle=shuffle,
            seed=self.args.seed,
            multiple_of=self.args.world_size * self.args.gradient_accumulation_steps if shuffle else 1,
        )
        # A generator of its own: the loader draws from it, and a resumed run must see the global one untouched.
        return DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            generator=torch.Generator(),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.device.type == "cuda",
        )

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, Tensor | int | None]:
        """Also count labels, for tokens per second."""
        samples, items = super().get_batch_samples(*args, **kwargs)
        self._tokens += 0 if items is None else int(items)
        return samples, items

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Also log labels per second since the last training log."""
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise DivergenceError(f"training diverged, the loss is {logs['loss']}", self.state.global_step)
            now = time.perf_counter()
            speed = self._tokens / (now - self._since)
            logs["tokens_per_second"] = round(speed, 1)
            if self.flops is not None:
                logs["flops_per_second"] = speed * self.flops
                if peak := peak_flops(self.args.device):
                    logs["mfu"] = speed * self.flops / (peak * self.args.world_size)
            self._tokens, self._since = 0, now
        super().log(logs, start_time)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Without a cache, which some models make in training too, and in which no sequences can be packed."""
        return super().compute_loss(model, {**inputs, "use_cache": False}, *args, **kwargs)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Those that transformers lets decay, of :func:`decaying`."""
        chosen = decaying(model)
        return [name for name in super().get_decay_parameter_names(model) if name in chosen]

    @torch.no_grad()
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validation loss in nats per token, without label smoothing, and the metrics."""
        started = time.perf_counter()
        self._network.eval()
        sums = [0.0, 0.0]
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        for i, batch in enumerate(self._eval_loader):
            if i % world == rank:
                batch = self._prepare_inputs(batch)
                labels = batch.pop("labels")
                if self.compute_loss_func is None:
                    labels = F.pad(labels[:, 1:], (0, 1), value=NO_LABEL)
                with self.compute_loss_context_manager():
                    sums[0] += summed_loss(self._network, batch, labels).item()
                sums[1] += (labels != NO_LABEL).sum().item()
        if world > 1:
            sums = self.accelerator.reduce(torch.tensor(sums, dtype=torch.float64, device=self.args.device)).tolist()
        mean = sums[0] / sums[1]
        metrics = {"eval_loss": mean}
        metrics |= {f"eval_{name.lower()}": round(measure(mean), 4) for name, measure in self.metrics.items()}
        self._network.train()
        self._since += time.perf_counter() - started
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or self.args.output_dir)

    def _check_weights(self) -> None:
        weights = (w.to_local() if isinstance(w, DTensor) else w for w in self._network.parameters())
        wrong = torch.stack([~w.detach().isfinite().all() for w in weights]).any().float()
        if self.accelerator.reduce(wrong):
            raise DivergenceError("training diverged, weights are not finite", self.state.global_step)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint under another name and rename it when it is complete; go on without it on a full disk."""
        self._check_weights()
        directory = Path(str(self.args.output_dir))
        self._staging = directory / "incomplete"
        name = f"checkpoint-{self.state.global_step}"
        try:
            if self.is_world_process_zero():
                shutil.rmtree(self._staging, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                self.save_extra(self._staging / name)
                publish(self._staging / name, directory / name)
                shutil.rmtree(self._staging)
                best = best_of(checkpoints(directory), self.state.log_history) if self.keep_best else None
                keep_last(directory, self.keep, best)
            self.accelerator.wait_for_everyone()
        except (OSError, RuntimeError, SafetensorError) as error:
            if self.accelerator.num_processes > 1:
                raise
            shutil.rmtree(self._staging, ignore_errors=True)
            logger.error(
                "%s could not be written (%s): free some disk space; training goes on, earlier checkpoints are intact",
                name,
                error,
            )
        finally:
            self._staging = None


class EpochCallback(TrainerCallback):
    """Tells the sampler its epoch: accelerate does not reach it behind the batches that a resumed run skips."""

    def __init__(self, sampler: Any):
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Every epoch has the same number of updates."""
        self.sampler.set_epoch(state.global_step * self.sampler.multiple_of // len(self.sampler))


def is_exhausted(log: list[dict[str, Any]], patience: int) -> bool:
    """Whether the last `patience` evaluations of a log of the Trainer have no lower validation loss than one before."""
    losses = list(losses_of(log).values())
    return len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])


class PatienceCallback(TrainerCallback):
    """Ends training, with a checkpoint, behind so many evaluations without a lower validation loss."""

    def __init__(self, patience: int):
        self.patience = patience

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What decides is in the log, which checkpoints keep."""
        if is_exhausted(state.log_history, self.patience):
            control.should_training_stop = control.should_save = True


class ConsoleCallback(ProgressCallback):
    """A progress bar, with one readable line per log above it."""

    def __init__(self, metrics: Iterable[str], unit: str):
        super().__init__()
        self.formats = {
            "loss": "loss {:.3f}",
            "learning_rate": "lr {:.2e}",
            "tokens_per_second": f"{{:,.0f}} {unit}/s",
            "mfu": "MFU {:.1%}",
            "eval_loss": "validation loss {:.3f}",
            **{f"eval_{name.lower()}": f"{name} {{:.2f}}" for name in metrics},
        }

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Print what changed."""
        logs = logs or {}
        parts = [form.format(logs[name]) for name, form in self.formats.items() if name in logs]
        if state.is_world_process_zero and self.training_bar is not None and parts:
            self.training_bar.write(f"step {state.global_step:>6}  " + "  ".join(parts))
