"""`dynaconv show-filters`: what filters the tokens of a text get."""

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from ...data.lines import check_folders
from ...training.loading import first_token, load_model
from .filters import find_filters
from .pictures import Texts, draw, tap_energy, write_page


def show_filters(path: Path, texts: Sequence[str], *, output: Path, device: str | None) -> None:
    """Draw the filters of every convolution of a model for some texts.

    Writes `output` with the suffixes .png and .html, and prints the energy of the taps by layer.

    Args:
        path: folder of the model and its tokenizer.
        texts: one or several.
        output: path of the pictures, without a suffix.
        device: of the model; None: a GPU if there is one.

    Raises:
        FileNotFoundError: there is no model, or no folder to write to.
        ValueError: the model has no convolutions, or there is no text.
    """
    if not any(text.split() for text in texts):
        raise ValueError("there is no text: give one or several, each in quotation marks")
    files = [output.with_name(f"{output.name}.{suffix}") for suffix in ("png", "html")]
    check_folders(*files)
    model, tokenizer = load_model(path, device)
    found: Texts = {}
    for text in texts:
        ids = tokenizer(text, add_special_tokens=model.config.is_encoder_decoder)["input_ids"]
        if not model.config.is_encoder_decoder:
            ids = [first_token(model.config), *ids]
        words = [tokenizer.decode([i]) or "?" for i in ids]
        found[text] = words, find_filters(model, torch.tensor([ids], device=model.device))
    title = f"{path.name}: filters by token"
    draw(title, found, files[0])
    write_page(title, found, files[1])
    table = Table("place", "layer", "energy by tokens back", title="energy of the taps")
    for place, layers in tap_energy(found).items():
        for layer, (lags, energy) in layers.items():
            shares = sorted(zip(energy.tolist(), lags, strict=True), reverse=True)[:6]
            table.add_row(place, str(layer), ", ".join(f"{lag}: {share:.0%}" for share, lag in shares))
    Console().print(table)
    print(f"picture  {files[0]}\npage     {files[1]}")
