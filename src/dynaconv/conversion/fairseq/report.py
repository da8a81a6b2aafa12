"""What `dynaconv convert-fairseq` prints."""

from pathlib import Path

from .convert import convert


def convert_checkpoint(checkpoint: Path, out: Path, dicts: Path | None) -> None:
    """Convert, and say what came of it and what can be done with it; arguments and errors as of :func:`convert`."""
    model, tokenizers = convert(checkpoint, out, dicts)
    sizes = " and ".join(f"{tokenizer.vocab_size:,}" for tokenizer in dict.fromkeys(tokenizers.values()))
    text = "plain text" if tokenizers["source"].has_codes else "text in BPE pieces, as there are no codes"
    print(
        f"model       {out}: {model.num_parameters():,} parameters\n"
        f"vocabulary  {sizes}\n"
        f"next        dynaconv translate {out}  (takes tokenised {text})"
    )
