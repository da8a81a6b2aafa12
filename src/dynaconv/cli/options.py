"""The options of each command: their help and defaults."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from tyro.conf import Positional, UseAppendAction, arg

from ..training.bounds import Above0, Count, NotNegative, Positive, Seed, UpTo1

Convolutions = Literal["none", "static", "headwise", "lowrank"]


@dataclass(kw_only=True)
class _Decoding:
    ensemble: Annotated[tuple[Path, ...], UseAppendAction] = ()
    """One more model of the same vocabulary, such as another run; may be given several times: the mean of the
    probabilities decides."""
    beams: Positive | None = None
    """Width of the beam; 1: greedy. Default of this and what follows: as the model's recipe says."""
    length_penalty: float | None = None
    """Score = log-probability / length ** length_penalty."""
    no_repeat_ngram_size: Count | None = None
    """No output has so many tokens in a row twice; 0: all may repeat."""
    min_length: Count | None = None
    """Tokens of an output at least, without its end."""
    max_length: Count | None = None
    """Tokens of an output at most, with its end."""
    max_tokens: Positive = 4000
    """Batch size: source tokens x beams."""
    device: str | None = None
    """Such as cpu or cuda; default: a GPU if there is one."""


@dataclass(kw_only=True)
class _Generate(_Decoding):
    model: Positional[Path]
    """Folder of a run, or of a checkpoint in it."""
    files: Positional[tuple[Path, ...]] = ()
    """Text in UTF-8; none, or -: standard input."""
    nbest: Positive = 1
    """Outputs per line."""
    prefix: str = ""
    """Whole words with which every output begins."""


@dataclass(kw_only=True)
class SweepOptions:
    """Train a recipe with some of its values changed, run by run, and compare what comes of it.

    The sweep is a YAML file: its recipe, values that all runs have, a grid of which all combinations are run, rows of
    values that vary together, and seeds. The same command goes on where it was interrupted, and repeats nothing. A run
    that diverges is reported as such.

    Example: dynaconv sweep recipes/sweeps/learning_rates.yaml --output runs/rates --workers 2
    """

    sweep: Positional[Path]
    """A YAML file, such as recipes/sweeps/learning_rates.yaml."""
    output: Path
    """Folder of the runs, and of results.json, sweep.png and curves.png."""
    workers: Positive = 1
    """Runs side by side: they share the threads of the CPU, or take turns in the GPUs."""
    set: tuple[str, ...] = ()
    """section.key=value for all runs, such as data.train=my.tsv."""


@dataclass(kw_only=True)
class Translate(_Generate):
    """Translate lines of text, from files or standard input to standard output.

    Every line of input gives one line of output, in order; with --nbest N it gives N lines of line number, score and
    translation, separated by tabs. Lines are written batch by batch as their turn comes, and those that are being typed
    are answered after a pause; what has been written when it is interrupted stays. Progress and speed go to standard
    error.

    Example: echo "Dieses Paket enthält die Dokumentation." | dynaconv translate runs/demo
    """

    overlong: Literal["split", "truncate", "skip"] = "split"
    """What becomes of a line of more tokens than the model was trained on: it is translated in pieces, or only its
    beginning is, or its line of output is empty."""


@dataclass(kw_only=True)
class Summarize(_Generate):
    """Summarize documents, one in each line, from files or standard input to standard output.

    As translate does it: a line of output for every line of input, in order, as its turn comes. Of a long document the
    beginning is read, as much as the model was trained on. What a model that convert-fairseq made was trained for is
    not known: it is taken at your word.

    Example: dynaconv summarize runs/summaries documents.txt
    """

    overlong: Literal["truncate", "skip"] = "truncate"
    """What becomes of a document of more tokens than the model was trained on: its beginning is summarized, or its line
    of output is empty."""


@dataclass
class Score:
    """Print the log-probability of given translations, and the number of their tokens, for reranking.

    Every line of input is a source, a tab and a translation, or other columns; every line of output the natural
    logarithm of the probability of the translation and its end, a tab and how many tokens these are. They are the
    tokens that the text is cut into: a search may find a text in others, and then its score is another.

    Example: dynaconv score runs/demo runs/demo/test.tsv
    """

    model: Positional[Path]
    """Folder of a run, or of a checkpoint in it."""
    files: Positional[tuple[Path, ...]] = ()
    """Text in UTF-8; none, or -: standard input."""
    source_column: Count = 0
    """Column of the source, counted from 0."""
    target_column: Count = 1
    """Column of the translation."""
    max_tokens: Positive = 4000
    """Batch size: tokens of the longer side."""
    device: str | None = None
    """Such as cpu or cuda; default: a GPU if there is one."""


@dataclass(kw_only=True)
class _Evaluate(_Decoding):
    model: Positional[Path]
    """Folder of a run, or of a checkpoint in it."""
    data: Positional[str]
    """The test set, as in a recipe's data section: a TSV file, - for one on standard input, or what --format says."""
    source_column: Count = 0
    """Column of the source in a TSV file, counted from 0."""
    target_column: Count = 1
    """Column of what it is compared with."""
    json_path: Annotated[Path | None, arg(name="json")] = None
    """Write scores, how they were computed, and speed here."""
    hypotheses_path: Annotated[Path | None, arg(name="hypotheses")] = None
    """Write the outputs here, one per line."""
    samples: Count = 0
    """Show this many sources with reference and output."""


@dataclass(kw_only=True)
class Evaluate(_Evaluate):
    """Score a translation model on a test set: sacreBLEU, chrF, and tokenized BLEU as in Wu et al. 2019.

    For a summarization model: ROUGE, with other options; dynaconv evaluate MODEL --help shows them.

    Example: dynaconv evaluate runs/demo runs/demo/test.tsv --json scores.json

    Example: dynaconv evaluate runs/wmt wmt14/full --format sacrebleu --baseline other_system.txt
    """

    format: Literal["tsv", "text", "huggingface", "iwslt", "sacrebleu"] = "tsv"
    """sacrebleu: a published test set by its name, such as wmt14/full, with all its references."""
    source_lang: str | None = None
    """Default: the language of the model's recipe."""
    target_lang: str | None = None
    """The same; decides how BLEU cuts words. Models that convert-fairseq made say both."""
    references: tuple[Path, ...] = ()
    """Files with more references, one in each line."""
    baseline: Path | None = None
    """Translations of another system, one in each line: how sure a difference is, by a paired bootstrap."""
    tuned: Annotated[bool, arg(name="tune")] = False
    """Try length penalties from 0 to 2 and take the best: for a validation set; give what it found for the test set."""
    lowercase: bool | None = None
    """Compare lower-cased text; default: where the model's recipe lower-cases."""
    compound_split: bool = False
    """Split words at hyphens for tokenized BLEU, as the paper did for WMT."""


@dataclass(kw_only=True)
class EvaluateSummaries(_Evaluate):
    """Score a summarization model on a test set: ROUGE-1, ROUGE-2 and ROUGE-L with 95% intervals.

    Beside them stand the first sentences of each document, and as many of its first words as summaries have.

    Example: dynaconv evaluate runs/summaries runs/summaries/test.tsv --json scores.json
    """

    format: Literal["tsv", "text", "huggingface"] = "tsv"
    source_name: str | None = None
    """Of the documents, where --format is not tsv; default: as in the model's recipe."""
    target_name: str | None = None
    """Of the summaries."""
    lead: Positive = 1
    """First sentences of a document that stand beside the model (CNN/DailyMail: 3)."""


@dataclass
class Perplexity:
    """Print how well a causal language model predicts text: perplexity, and bits for each byte.

    The model is a folder of Hugging Face's format, grafted or not, or what convert-fairseq made of a language model.
    The end of a line counts as a word where it is predicted: of a --sequences file only if the tokenizer keeps it.

    Example: dynaconv perplexity models/lm valid.txt --sequences line

    Example: dynaconv perplexity runs/tiny book.txt --window 1024 --overlap 512
    """

    model: Positional[Path]
    """Folder of the model and its tokenizer."""
    files: Positional[tuple[Path, ...]] = ()
    """Text in UTF-8; none, or -: standard input."""
    sequences: Literal["file", "line", "joined"] = "file"
    """file: all of it is one text; line: each line is a sequence by itself, whose end is predicted (One Billion Word);
    joined: the same, one behind the other (fairseq's --sample-break-mode none)."""
    window: Positive | None = None
    """Tokens at a time; default: as many as the model is meant for, but at most 4,096."""
    overlap: Count = 0
    """Tokens of a window that are context alone, and were predicted before."""
    max_tokens: Positive = 4096
    """Batch size."""
    json_path: Annotated[Path | None, arg(name="json")] = None
    """Write the result here."""
    device: str | None = None
    """Such as cpu or cuda; default: a GPU if there is one."""


@dataclass
class Recall:
    """Does a filter that depends on the token help a network to look things up? Train it with several, side by side.

    A Transformer of one or two layers learns associative recall: with keys of variable length (small, variable-key,
    variable-key-hard), Zoology's mqar and compositional, or MAD's fuzzy recall. Shows the accuracy on sequences that it
    has not seen, over seeds, in a table, a plot and JSON. The same command goes on where it was interrupted.

    Example: dynaconv recall --preset small --output runs/recall
    """

    output: Path
    """Folder of the results."""
    preset: Literal["small", "variable-key", "variable-key-hard", "mqar", "compositional", "fuzzy"] = "small"
    """Task and network; small: minutes on two CPU cores."""
    convolutions: tuple[Convolutions, ...] = get_args(Convolutions)
    """After the projections to queries, keys and values."""
    seeds: Positive = 3
    """Runs of each: seeds 1, 2, ..."""
    steps: Positive | None = None
    """Updates; default: as the preset says."""
    workers: Positive | None = None
    """Processes that train beside each other; default: one on a GPU, or else one for each thread."""
    device: str | None = None
    """Such as cpu or cuda; default: a GPU if there is one."""


@dataclass
class Generate:
    """Print what a language model goes on with, word by word.

    The model is a folder of Hugging Face's format, grafted or not. Prompts are arguments, or the lines of standard
    input. The speed goes to standard error.

    Example: dynaconv generate runs/lm "The old can opener" --max-new-tokens 50 --temperature 0.8
    """

    model: Positional[Path]
    """Folder of the model and its tokenizer."""
    prompts: Positional[tuple[str, ...]] = ()
    """Beginnings, each in quotation marks; none: the lines of standard input."""
    max_new_tokens: Positive = 100
    """Behind each prompt at most."""
    temperature: NotNegative = 1.0
    """Of the probabilities: below 1 what is likely becomes more so; 0: always the most likely token."""
    top_k: Count = 50
    """Draw from so many of the most likely tokens; 0: from all."""
    top_p: UpTo1 = 1.0
    """Draw from the most likely tokens that have this probability together."""
    repetition_penalty: Above0 = 1.0
    """Above 1: tokens that are there already become less likely."""
    samples: Positive = 1
    """Texts for each prompt."""
    seed: Seed | None = None
    """Of what is drawn; default: another one each time."""
    device: str | None = None
    """Such as cpu or cuda; default: a GPU if there is one."""


@dataclass
class ShowFilters:
    """Draw the filters that each token of a text gets, in every layer and place, and the energy of each tap by layer.

    Of translation models the encoder is shown. Writes a PNG and a self-contained page of HTML.

    Example: dynaconv show-filters runs/lm "the old can opener" "the old can swim" --output filters
    """

    model: Positional[Path]
    """Folder of a model with convolutions, and its tokenizer."""
    texts: Positional[tuple[str, ...]]
    """One or several, each in quotation marks."""
    output: Path = Path("filters")
    """Path of the pictures, to which .png and .html are added."""
    device: str | None = None
    """Such as cpu or cuda; default: a GPU if there is one."""


@dataclass
class Scaling:
    """How much compute does a kind of language model save? Fit scaling laws to runs of several sizes.

    The law is L = E + A / N^a + B / D^b of N parameters and D tokens, for each family; the compute advantage is what
    the baseline needs for the same loss, divided by what the family needs, at the largest compute measured and at the
    best numbers of parameters, with a 90% interval.

    Example: dynaconv scaling runs/lm-* --baseline none --output runs/scaling
    """

    runs: Positional[tuple[Path, ...]]
    """Folders of runs of language models, or files of JSON lines with family, parameters, tokens, flops and loss."""
    baseline: str
    """A family."""
    output: Path
    """Folder of scaling.json and scaling.png."""


@dataclass
class ConvertFairseq:
    """Turn a LightConv or DynamicConv translation or language model of fairseq into a folder of ours.

    Checkpoints of fairseq 0.6.1 to main, as files or in the published archives (.tar.gz, .tar.bz2). fairseq is not
    needed, and nothing in a checkpoint is run: a file that names anything else than tensors and options is refused. The
    folder works with from_pretrained, and that of a translation model with dynaconv translate and evaluate. Text has to
    be tokenised as the model's training text was, by Moses for the published models; BPE is applied where the codes of
    subword-nmt are there.

    Example: dynaconv convert-fairseq wmt16.en-de.joined-dict.dynamicconv-glu.tar.gz --out models/wmt16
    """

    checkpoint: Positional[Path]
    """A file *.pt, or an archive with one in it."""
    out: Path
    """The folder to write; must not exist, or be empty."""
    dicts: Path | None = None
    """Folder with dict.LANG.txt of both languages (or dict.joined.txt for both), or dict.txt, and bpecodes or code;
    default: the checkpoint's. That it is another model's shows only in its size: try a sentence."""


@dataclass
class Bench:
    """Time the operators beside their alternatives and beside a copy of their input, which no operator can beat.

    Before anything is timed, every contestant has to agree with the reference. All of them run in one process, in
    interleaved rounds; tables show medians.

    Example: dynaconv bench cpu --operators static lowrank --shape 1 512 256 --rounds 3 --output bench.json
    """

    device: Positional[Literal["cpu", "gpu"] | None] = None
    """Default: a GPU if there is one."""
    shape: Annotated[tuple[int, int, int] | None, arg(metavar="B T D")] = None
    """Of the input: batch, tokens, channels. Default: 2 2048 1024 on a CPU, 4 4096 2048 on a GPU."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] | None = None
    """Default: float32 on a CPU, bfloat16 on a GPU."""
    operators: tuple[Literal["static", "lightconv", "headwise", "dynamicconv", "lowrank"], ...] = ()
    """What to compute; none: everything."""
    rounds: Positive = 9
    """Measurements of every contestant."""
    threads: Positive | None = None
    """On a CPU; default: as many as PyTorch takes."""
    compiled: Annotated[bool, arg(name="compile")] = True
    """Also the reference under torch.compile, which takes minutes; left out where there is no C++ compiler."""
    skip_slow: bool = False
    """Leave out "unfold + einsum", which takes most of the time and of the memory."""
    startup: bool = True
    """Also the first call in new processes, without and with compiled kernels on disk."""
    decoding: bool = True
    """On a CPU, also 1, 16 and 128 tokens, and generate() of a Llama with short convolutions beside the plain one."""
    output: Path | None = None
    """Write the results here, and a plot with the suffix .png beside them."""
