"""`dynaconv generate`: text that a language model goes on with."""

import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TextStreamer

from ...data.lines import read_lines
from ...training.loading import first_token, load_model, read_config

logger = logging.getLogger("dynaconv")


def generate_text(
    path: Path, prompts: Sequence[str], *, max_new_tokens: int, temperature: float, top_k: int, top_p: float,
    repetition_penalty: float, samples: int, seed: int | None, device: str | None,
) -> None:  # fmt: skip
    """Print what a model goes on with, as it comes; the speed goes to standard error.

    Args:
        path: folder of a causal language model, grafted or not, and its tokenizer.
        prompts: beginnings; none: the lines of standard input are.
        max_new_tokens: behind each prompt at most.
        temperature: of the probabilities; 0: always the most likely token.
        top_k: draw from so many of the most likely tokens; 0: from all.
        top_p: draw from the most likely tokens that have this probability together.
        repetition_penalty: above 1: tokens that are there already become less likely.
        samples: texts for each prompt.
        seed: of what is drawn; None: another one each time.
        device: of the model; None: a GPU if there is one.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: an encoder-decoder.
    """
    if read_config(path).is_encoder_decoder:
        raise ValueError(f"the model in {path} is an encoder-decoder: use dynaconv translate or summarize")
    model, tokenizer = load_model(path, device)
    if seed is not None:
        torch.manual_seed(seed)
    drawn: dict[str, Any] = {"do_sample": temperature > 0}
    if temperature > 0:
        drawn |= {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    begin, tokens, seconds = first_token(model.config), 0, 0.0
    lines: Iterable[str | None] = prompts or read_lines(())
    for prompt in lines:
        if prompt is None:
            continue
        ids = [begin, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        for _ in range(samples):
            started = time.perf_counter()
            streamer: Any = TextStreamer(tokenizer, skip_special_tokens=True)
            found = model.generate(
                torch.tensor([ids], device=model.device),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=model.device),
                max_new_tokens=max_new_tokens,
                repetition_penalty=repetition_penalty,
                streamer=streamer,
                **drawn,
            )
            seconds += time.perf_counter() - started
            tokens += found.shape[1] - len(ids)
    if tokens:
        logger.info("%s tokens, %.1f tokens/s on %s", f"{tokens:,}", tokens / seconds, model.device)
