"""What `dynaconv convert-fairseq` prints."""

from pathlib import Path

from .convert import convert


def convert_checkpoint(checkpoint: Path, out: Path, dicts: Path | None) -> None:
    """Convert, and say what came of it and what can be done with it; arguments and errors as of :func:`convert`."""
    model, tokenizers = convert(checkpoint, out, dicts)
    own = dict.fromkeys(tokenizers.values())
    sizes = " and ".join(f"{tokenizer.vocab_size:,}" for tokenizer in own)
    text = (
        "tokenised text" if all(tokenizer.has_codes for tokenizer in own) else "text in BPE pieces: there are no codes"
    )
    python = f"{type(model).__name__}.from_pretrained({str(out)!r})"
    print(
        f"model       {out}: {model.num_parameters():,} parameters\n"
        f"vocabulary  {sizes}, for {text}\n"
        f"next        {python if 'text' in tokenizers else f'dynaconv translate {out}'}"
    )
