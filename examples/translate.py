"""Train a translation model from Python, and use it: the same as `dynaconv train` and `dynaconv translate`.

python examples/translate.py pairs.tsv "Ein Satz." --output runs/mine      # source, tab, target in each line
"""

import argparse
from pathlib import Path

from dynaconv.data.tokenizer import TokenizerConfig
from dynaconv.seq2seq.recipe import ModelConfig, TrainConfig
from dynaconv.tasks.translation.recipe import DataConfig, Recipe
from dynaconv.tasks.translation.training import train
from dynaconv.tasks.translation.translator import Translator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs")
    parser.add_argument("sentences", nargs="+")
    parser.add_argument("--output", type=Path, default=Path("runs/mine"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--held-out", type=int, default=500, help="pairs for validation, and as many for the test")
    options = parser.parse_args()
    layers = {
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_kernel_sizes": [7, 15],
        "decoder_kernel_sizes": [7, 15],
    }
    recipe = Recipe(
        data=DataConfig(train=options.pairs, valid_size=options.held_out, test_size=options.held_out),
        tokenizer=TokenizerConfig(vocab_size=4000),
        model=ModelConfig(mixer="dynamic", d_model=128, encoder_ffn_dim=512, decoder_ffn_dim=512, **layers),
        train=TrainConfig(
            max_steps=options.steps, max_tokens=2500, learning_rate=6e-3, schedule="cosine",
            warmup_steps=options.steps // 3, save_steps=options.steps, eval_steps=options.steps, average_last=1,
        ),
    )  # fmt: skip
    run = train(recipe, options.output)
    for [best] in Translator.from_pretrained(run).generate(options.sentences, beams=4):
        print(f"{best.score:.3f}\t{best.text}")


if __name__ == "__main__":
    main()
