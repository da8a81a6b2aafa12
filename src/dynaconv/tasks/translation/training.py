"""`dynaconv train` for translation: from a recipe to a trained encoder-decoder in a run folder."""

from pathlib import Path

from transformers import set_seed

from ...data.batching import Seq2SeqCollator
from ...data.store import digest
from ...data.tokenizer import save_tokenizers
from ...models import LightConvConfig, LightConvForConditionalGeneration
from ...training.run import check_run, fit
from .corpus import Corpus, prepare
from .evaluation import bleu_score
from .recipe import Recipe
from .translator import Translator

NEXT = "dynaconv evaluate {run} {run}/test.tsv"  # what a person does with a run


def train(recipe: Recipe, run: Path, *, resume: bool = False) -> Path:
    """Train a translation model.

    The run folder receives what :func:`dynaconv.training.run.fit` says, the tokenizers, and the held-out text
    (`valid.tsv`, `test.tsv`): `from_pretrained(run)` and `dynaconv translate RUN` read it.

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
    check_run(run, recipe, resume=resume)
    recipe.model.configuration()  # a mistake shows before the data is fetched
    corpus = prepare(recipe.data, recipe.tokenizer)
    set_seed(recipe.train.seed)
    model = LightConvForConditionalGeneration(_configuration(recipe, corpus))
    model.generation_config.update(num_beams=4, max_new_tokens=256)  # what a bare model.generate() does with the result
    sources, references = (lines[: recipe.train.eval_sentences] for lines in corpus.text["valid"].values())
    scoring = {"language": recipe.data.target_lang, "lowercase": recipe.tokenizer.lowercase}

    def bleu() -> float:
        hypotheses = Translator(model, **corpus.tokenizers).translate_distributed(sources)
        return bleu_score(hypotheses, references, **scoring)

    fit(
        model,
        recipe,
        run,
        train=corpus.train,
        valid=corpus.valid,
        collate=Seq2SeqCollator(),
        data=digest(corpus.directory),
        metrics={"BLEU": bleu} if sources else {},
        save_extra=lambda folder: save_tokenizers(corpus.tokenizers, folder),
        save_text=corpus.save_text,
    )
    return run


def _configuration(recipe: Recipe, corpus: Corpus) -> LightConvConfig:
    sizes = {side: len(tokenizer) for side, tokenizer in corpus.tokenizers.items()}
    if corpus.joint:
        return recipe.model.configuration(vocab_size=sizes["target"])
    if recipe.model.share_embeddings == "all":
        raise ValueError("model.share_embeddings all needs one vocabulary: set tokenizer.joint true, or share less")
    return recipe.model.configuration(
        vocab_size=sizes["target"], source_vocab_size=sizes["source"], share_embeddings="none"
    )
