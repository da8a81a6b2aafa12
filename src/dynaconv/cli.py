"""The command line: parses arguments, nothing else."""

import importlib
import logging
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

try:
    import tyro
    from tyro.conf import Positional, arg
except ModuleNotFoundError as missing:
    sys.exit(f'dynaconv: error: {missing}: pip install "dynaconv[train]"')

from .tasks import TASKS


@dataclass(kw_only=True)
class _Decoding:
    beams: int = 4
    """Width of the beam; 1: greedy."""
    length_penalty: float = 1.0
    """Score = log-probability / length ** length_penalty."""
    no_repeat_ngram_size: int = 0
    """No translation has so many tokens in a row twice; 0: all may repeat."""
    min_length: int = 0
    """Tokens of a translation at least, without its end; 0: as the model's generation configuration says."""
    max_length: int = 0
    """Tokens of a translation at most, with its end; 0: twice those of the source and 20."""
    max_tokens: int = 4000
    """Batch size: source tokens x beams."""
    device: str | None = None
    """Such as cpu or cuda; default: a GPU if there is one."""


@dataclass(kw_only=True)
class Translate(_Decoding):
    """Translate lines of text, from files or standard input to standard output.

    Every line of input gives one line of output, in order; with --nbest N it gives N lines of line number, score and
    translation, separated by tabs. Lines are written as soon as they are complete, and those that are being typed are
    answered after a pause; what has been written when it is interrupted stays. Progress and speed go to standard error.

    Example: echo "Dieses Paket enthält die Dokumentation." | dynaconv translate runs/demo
    """

    model: Positional[Path]
    """Folder of a run, or of a checkpoint in it."""
    files: Positional[tuple[Path, ...]] = ()
    """Text in UTF-8; none: standard input."""
    nbest: int = 1
    """Translations per line."""
    prefix: str = ""
    """Whole words with which every translation begins."""


@dataclass
class Score:
    """Print the log-probability of given translations, and the number of their tokens, for reranking.

    Every line of input is a source, a tab and a translation; every line of output the natural logarithm of the
    probability of the translation and its end, a tab and how many tokens these are.

    Example: dynaconv score runs/demo runs/demo/test.tsv
    """

    model: Positional[Path]
    """Folder of a run, or of a checkpoint in it."""
    files: Positional[tuple[Path, ...]] = ()
    """Text in UTF-8; none: standard input."""
    max_tokens: int = 4000
    """Batch size: tokens of the longer side."""
    device: str | None = None
    """Such as cpu or cuda; default: a GPU if there is one."""


@dataclass(kw_only=True)
class Evaluate(_Decoding):
    """Score a model on a test set: sacreBLEU, chrF, and tokenized BLEU as in Wu et al. 2019.

    Example: dynaconv evaluate runs/demo runs/demo/test.tsv --json scores.json
    Example: dynaconv evaluate runs/wmt wmt14/full --format sacrebleu --baseline other_system.txt
    """

    model: Positional[Path]
    """Folder of a run, or of a checkpoint in it."""
    data: Positional[str]
    """The test set, as in a recipe's data section: a TSV file, or what --format says."""
    format: Literal["tsv", "text", "huggingface", "sacrebleu"] = "tsv"
    """sacrebleu: a published test set by its name, such as wmt14/full, with all its references."""
    source_lang: str | None = None
    """Default: the language of the model's recipe."""
    target_lang: str | None = None
    """The same; decides how BLEU cuts words."""
    source_column: int = 0
    target_column: int = 1
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
    json_path: Annotated[Path | None, arg(name="json")] = None
    """Write scores, signatures and speed here."""
    hypotheses_path: Annotated[Path | None, arg(name="hypotheses")] = None
    """Write the translations here, one per line."""
    samples: int = 0
    """Show this many sentences with reference and translation."""


@dataclass
class Perplexity:
    """Print how well a causal language model predicts text: perplexity, and bits for each byte.

    The model is a folder of Hugging Face's format, grafted or not, or what convert-fairseq made of a language model.
    The end of a line counts as a word.

    Example: dynaconv perplexity models/lm valid.txt --sequences line
    Example: dynaconv perplexity runs/tiny book.txt --window 1024 --overlap 512
    """

    model: Positional[Path]
    """Folder of the model and its tokenizer."""
    files: Positional[tuple[Path, ...]] = ()
    """Text in UTF-8; none: standard input."""
    sequences: Literal["file", "line", "joined"] = "file"
    """file: all of it is one text; line: each line is a sequence by itself, whose end is predicted (One Billion Word);
    joined: the same, one behind the other (fairseq's --sample-break-mode none)."""
    window: int | None = None
    """Tokens at a time; default: as many as the model is meant for, but at most 4,096."""
    overlap: int = 0
    """Tokens of a window that are context alone, and were predicted before."""
    max_tokens: int = 4096
    """Batch size."""
    json_path: Annotated[Path | None, arg(name="json")] = None
    """Write the result here."""
    device: str | None = None
    """Such as cpu or cuda; default: a GPU if there is one."""


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
    default: the checkpoint's."""


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
    rounds: int = 9
    """Measurements of every contestant."""
    threads: int | None = None
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


_TRAIN = """Train a model from a recipe, which says for which task.

Any value of the recipe can be overridden: --section.key VALUE. The run folder gets the resolved recipe, checkpoints,
TensorBoard logs, curves.png and the model.

Example: dynaconv train recipes/translation/demo.yaml --output runs/demo --train.max_steps 2000"""

_DATA = """Fetch, clean, split and tokenize the data of a recipe, and show what came of it.

Example: dynaconv data recipes/translation/demo.yaml --data.valid_size 500"""

_COMMANDS = {
    "train": "train a model from a recipe",
    "translate": "translate lines of text with a trained model",
    "evaluate": "score a trained model on a test set",
    "score": "print log-probabilities of given translations",
    "perplexity": "say how well a language model predicts text",
    "data": "prepare the data of a recipe and describe it",
    "convert-fairseq": "turn a model of fairseq into one of ours",
    "bench": "time the operators beside their alternatives and a plain copy",
}


def main(arguments: list[str] | None = None) -> None:
    """Run a command; errors that a person can mend become one line on standard error and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("dynaconv").setLevel(logging.INFO)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # bars of a fraction of a second for every checkpoint
    command = arguments[0] if arguments else "--help"
    try:
        if command in ("-h", "--help"):
            print(_usage())
        elif command == "--version":
            from .versions import describe_versions

            print(describe_versions())
        elif command in _COMMANDS:
            runners = {
                "train": _train,
                "translate": _translate,
                "evaluate": _evaluate,
                "score": _score,
                "perplexity": _perplexity,
                "data": _data,
                "convert-fairseq": _convert_fairseq,
                "bench": _bench,
            }
            runners[command](arguments[1:])
        else:
            raise ValueError(f"no command {command!r}: there are {', '.join(_COMMANDS)}")
    except KeyboardInterrupt:
        hint = "; the same command with --resume goes on from the last checkpoint" if command == "train" else ""
        print(f"interrupted{hint}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except ModuleNotFoundError as error:
        print(f'dynaconv: error: {error}: pip install "dynaconv[train]"', file=sys.stderr)
        sys.exit(2)
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("DYNACONV_TRACEBACK"):
            raise
        print(f"dynaconv: error: {error}", file=sys.stderr)
        sys.exit(2)


def _usage() -> str:
    width = max(map(len, _COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {text}" for name, text in _COMMANDS.items())
    return (
        f"usage: dynaconv COMMAND ...\n\n{commands}\n\n"
        "dynaconv COMMAND --help explains a command and shows an example.\n"
        "dynaconv --version shows the versions of dynaconv and of what it works with.\n"
        "DYNACONV_TRACEBACK=1 shows where an error came from."
    )


def _parse_recipe(command: str, description: str, arguments: list[str], run_options: bool) -> tuple[str, Any]:
    """The task and the options, of which `recipe` is one."""
    from .training.recipe import check_recipe, read_recipe

    path = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if path is None and not {"-h", "--help"} & set(arguments):
        raise ValueError(f"give the recipe first: dynaconv {command} RECIPE.yaml [options]")
    content = read_recipe(path) if path else {}
    task = content.get("task", TASKS[0])  # recipes from before there were others do not say it
    if task not in TASKS:
        raise ValueError(f"{path}: no task {task!r}: there are {', '.join(TASKS)}")
    kind = _task(task, "recipe").Recipe
    recipe = check_recipe(content, kind, str(path))

    @dataclass
    class Prepare:
        recipe_file: Positional[Path]
        """A YAML file, such as recipes/translation/demo.yaml."""
        recipe: Annotated[kind, arg(name="")] = field(default_factory=lambda: recipe)

    @dataclass
    class Run(Prepare):
        output: Path = Path("runs") / Path(path or "RECIPE").stem
        """Folder of the run."""
        resume: bool = False
        """Go on from the last checkpoint in the run folder."""

    options = Run if run_options else Prepare
    parsed = tyro.cli(options, prog=f"dynaconv {command}", description=description, args=arguments)
    parsed.recipe = check_recipe(asdict(parsed.recipe), kind, "options")
    return task, parsed


def _task(task: str, module: str) -> Any:
    return importlib.import_module(f".tasks.{task}.{module}", __package__)


def _train(arguments: list[str]) -> None:
    task, run = _parse_recipe("train", _TRAIN, arguments, run_options=True)
    training = _task(task, "training")
    training.train(run.recipe, run.output, resume=run.resume)
    print(f"model   {run.output}\ncurves  {run.output / 'curves.png'}\nnext    {training.NEXT.format(run=run.output)}")


def _data(arguments: list[str]) -> None:
    task, options = _parse_recipe("data", _DATA, arguments, run_options=False)
    _task(task, "report").describe_corpus(options.recipe)


def _translate(arguments: list[str]) -> None:
    options = tyro.cli(Translate, prog="dynaconv translate", args=arguments)
    from .tasks.translation.report import translate_files

    translate_files(**vars(options))


def _score(arguments: list[str]) -> None:
    options = tyro.cli(Score, prog="dynaconv score", args=arguments)
    from .tasks.translation.report import score_files

    score_files(**vars(options))


def _evaluate(arguments: list[str]) -> None:
    options = vars(tyro.cli(Evaluate, prog="dynaconv evaluate", args=arguments))
    from .tasks.translation.report import evaluate_model

    names = ("format", "source_lang", "target_lang", "source_column", "target_column")
    data = {name: options.pop(name) for name in names}
    evaluate_model(options.pop("model"), options.pop("data"), data=data, **options)


def _perplexity(arguments: list[str]) -> None:
    options = vars(tyro.cli(Perplexity, prog="dynaconv perplexity", args=arguments))
    from .tasks.language_modelling.report import print_perplexity

    print_perplexity(options.pop("model"), **options)


def _convert_fairseq(arguments: list[str]) -> None:
    options = tyro.cli(ConvertFairseq, prog="dynaconv convert-fairseq", args=arguments)
    from .conversion.fairseq.report import convert_checkpoint

    convert_checkpoint(**vars(options))


def _bench(arguments: list[str]) -> None:
    options = tyro.cli(Bench, prog="dynaconv bench", args=arguments)
    from .bench.suite import bench

    bench(**vars(options))
