"""Pictures of filters: heat maps of tokens and taps, the energy of taps by layer, as PNG and as a page of HTML."""

import html
from pathlib import Path

import matplotlib as mpl
import torch
from torch import Tensor

mpl.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .filters import Filters

Texts = dict[str, tuple[list[str], list[Filters]]]
"""{text: its tokens, its filters}."""

_COLOUR = (31, 119, 180)  # of a share of 1; 0 is white
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 14px system-ui, sans-serif; margin: 2em; color: #222 }}
table {{ border-collapse: collapse; margin: .5em 0 }}
td, th {{ padding: 1px 6px; font-weight: normal; white-space: pre }}
th {{ text-align: right; font-family: monospace }} td {{ min-width: 2.2em; text-align: center; font-size: 11px }}
.layer {{ display: flex; flex-wrap: wrap; gap: 2em }} caption {{ text-align: left; font-weight: bold }}
</style>
<h1>{title}</h1>
<p>{note}</p>
{body}
</html>
"""
NOTE = (
    "Share of each tap in the energy of a token's filter: mean square over the channels, the residual included. "
    "Columns are how many tokens back the tap looks; 0 is the token itself."
)


def tap_energy(texts: Texts) -> dict[str, dict[int, tuple[list[int], Tensor]]]:
    """{place: {layer: (lags, [W] shares of energy, the mean over all tokens)}}."""
    found: dict[str, dict[int, list[Filters]]] = {}
    for _, filters in texts.values():
        for one in filters:
            found.setdefault(one.place, {}).setdefault(one.layer, []).append(one)
    return {
        place: {
            layer: (group[0].lags, torch.cat([one.shares for one in group]).mean(0))
            for layer, group in sorted(layers.items())
        }
        for place, layers in found.items()
    }


def draw(title: str, texts: Texts, path: Path) -> None:
    """A PNG: for each text heat maps of all layers and places, below them the energy of the taps by layer."""
    layers = sorted({one.layer for _, filters in texts.values() for one in filters})
    places = list(dict.fromkeys(one.place for _, filters in texts.values() for one in filters))
    tokens = max(len(words) for words, _ in texts.values())
    columns, rows = len(places) * len(texts), len(layers)
    heights = [0.5 + 0.2 * tokens] * rows + [2.6]
    figure = Figure(figsize=(max(5.0, 1.2 + 1.7 * columns), sum(heights) + 1), layout="constrained")
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=heights)
    for t, (words, filters) in enumerate(texts.values()):
        by_place = {(one.layer, one.place): one for one in filters}
        for i, layer in enumerate(layers):
            for j, place in enumerate(places):
                if (layer, place) in by_place:
                    axes = figure.add_subplot(grid[i, t * len(places) + j])
                    _draw_shares(axes, by_place[layer, place], words if j == 0 else [""] * len(words))
                    axes.set_title(f"layer {layer}, {place}", fontsize=8)
    width = max(1, columns // len(places))
    for j, (place, by_layer) in enumerate(tap_energy(texts).items()):
        axes = figure.add_subplot(grid[rows, j * width : (j + 1) * width])
        for layer, (lags, energy) in by_layer.items():
            axes.plot(lags, energy, marker=".", label=f"layer {layer}", alpha=0.8)
        axes.set(title=f"taps of {place}", xlabel="tokens back", ylim=(0, 1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6)
        axes.invert_xaxis()  # as in the heat maps
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def write_page(title: str, texts: Texts, path: Path) -> None:
    """The same as a page of HTML that needs nothing else; numbers appear where the mouse is."""
    parts = []
    for text, (words, filters) in texts.items():
        parts.append(f"<h2>{html.escape(text)}</h2>")
        for layer in sorted({one.layer for one in filters}):
            tables = [
                _table(f"layer {layer}, {one.place}", words, one.lags, one.shares)
                for one in filters
                if one.layer == layer
            ]
            parts.append(f'<div class="layer">{"".join(tables)}</div>')
    parts.append("<h2>Energy of the taps by layer</h2>")
    for place, by_layer in tap_energy(texts).items():
        for layer, (lags, energy) in by_layer.items():
            parts.append(_table(f"layer {layer}, {place}", [""], lags, energy[None]))
    page = _PAGE.format(title=html.escape(title), note=NOTE, body="\n".join(parts))
    path.write_text(page, encoding="utf-8")


def _draw_shares(axes: Axes, filters: Filters, words: list[str]) -> None:
    axes.imshow(filters.shares.expand(len(words), -1), aspect="auto", cmap="Blues", vmin=0, vmax=1)
    axes.set_yticks(range(len(words)), words, fontsize=7)
    taps = len(filters.lags)
    shown = range(taps) if taps <= 8 else (0, taps // 2, taps - 1)
    axes.set_xticks(list(shown), [str(filters.lags[tap]) for tap in shown], fontsize=7)


def _table(caption: str, words: list[str], lags: list[int], shares: Tensor) -> str:
    head = "".join(f"<td>{lag}</td>" for lag in lags)
    rows = "".join(
        f"<tr><th>{html.escape(word)}</th>{''.join(map(_cell, row))}</tr>"
        for word, row in zip(words, shares.expand(len(words), -1).tolist(), strict=True)
    )
    return f"<table><caption>{html.escape(caption)}</caption><tr><th></th>{head}</tr>{rows}</table>"


def _cell(share: float) -> str:
    colour = ",".join(str(round(255 - share * (255 - part))) for part in _COLOUR)
    ink = "#fff" if share > 0.6 else "#222"
    return f'<td style="background:rgb({colour});color:{ink}" title="{share:.3f}">{100 * share:.0f}</td>'
