"""The command line: parses arguments, nothing else."""

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


@dataclass
class Translate:
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
    beams: int = 4
    """Width of the beam; 1: greedy."""
    length_penalty: float = 1.0
    """Score = log-probability / length ** length_penalty."""
    nbest: int = 1
    """Translations per line."""
    max_tokens: int = 4000
    """Batch size: source tokens x beams."""
    device: str | None = None
    """Such as cpu or cuda; default: a GPU if there is one."""


@dataclass
class Evaluate:
    """Score a model on a test set: sacreBLEU, chrF, and tokenized BLEU as in Wu et al. 2019.

    Example: dynaconv evaluate runs/demo runs/demo/test.tsv --json scores.json
    """

    model: Positional[Path]
    """Folder of a run, or of a checkpoint in it."""
    data: Positional[str]
    """The test set, as in a recipe's data section: a TSV file, or what --format says."""
    format: Literal["tsv", "text", "huggingface"] = "tsv"
    source_lang: str | None = None
    """Default: the language of the model's recipe."""
    target_lang: str | None = None
    """The same; decides how BLEU cuts words."""
    source_column: int = 0
    target_column: int = 1
    beams: int = 4
    length_penalty: float = 1.0
    max_tokens: int = 4000
    """Batch size: source tokens x beams."""
    lowercase: bool | None = None
    """Compare lower-cased text; default: where the model's recipe lower-cases."""
    compound_split: bool = False
    """Split words at hyphens for tokenized BLEU, as the paper did for WMT."""
    json: Path | None = None
    """Write scores, signatures and speed here."""
    hypotheses: Path | None = None
    """Write the translations here, one per line."""
    samples: int = 0
    """Show this many sentences with reference and translation."""
    device: str | None = None


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
    compile: bool = False
    """Also the reference under torch.compile; takes minutes, and a C++ compiler on a CPU."""
    skip_slow: bool = False
    """Leave out "unfold + einsum", which takes most of the time and of the memory."""
    startup: bool = True
    """Also the first call in new processes, without and with compiled kernels on disk."""
    output: Path | None = None
    """Write the results here, and a plot with the suffix .png beside them."""


_TRAIN = """Train a translation model from a recipe.

Any value of the recipe can be overridden: --section.key VALUE. The run folder gets the resolved recipe, checkpoints,
TensorBoard logs, curves.png and the model.

Example: dynaconv train recipes/demo.yaml --output runs/demo --train.max_steps 2000"""

_DATA = """Fetch, clean, split and tokenize the data of a recipe, and show what came of it.

Example: dynaconv data recipes/demo.yaml --data.valid_size 500"""

_COMMANDS = {
    "train": "train a translation model from a recipe",
    "translate": "translate lines of text with a trained model",
    "evaluate": "score a trained model on a test set",
    "data": "prepare the data of a recipe and describe it",
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
            from .tasks.versions import describe_versions

            print(describe_versions())
        elif command in _COMMANDS:
            runners = {"train": _train, "translate": _translate, "evaluate": _evaluate, "data": _data, "bench": _bench}
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


def _parse_recipe(command: str, description: str, arguments: list[str], run_options: bool) -> Any:
    from .tasks.translation.recipe import Recipe, check_recipe, load_recipe

    path = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if path is None and not {"-h", "--help"} & set(arguments):
        raise ValueError(f"give the recipe first: dynaconv {command} RECIPE.yaml [options]")
    recipe = load_recipe(path) if path else Recipe()

    @dataclass
    class Run:
        recipe_file: Positional[Path]
        """A YAML file, such as recipes/demo.yaml."""
        recipe: Annotated[Recipe, arg(name="")] = field(default_factory=lambda: recipe)
        output: Path = Path("runs") / Path(path or "RECIPE").stem
        """Folder of the run."""
        resume: bool = False
        """Go on from the last checkpoint in the run folder."""

    @dataclass
    class Prepare:
        recipe_file: Positional[Path]
        """A YAML file, such as recipes/demo.yaml."""
        recipe: Annotated[Recipe, arg(name="")] = field(default_factory=lambda: recipe)

    parsed = tyro.cli(
        Run if run_options else Prepare, prog=f"dynaconv {command}", description=description, args=arguments
    )
    parsed.recipe = check_recipe(asdict(parsed.recipe), "options")
    return parsed


def _train(arguments: list[str]) -> None:
    run = _parse_recipe("train", _TRAIN, arguments, run_options=True)
    from .tasks.translation.training import train

    train(run.recipe, run.output, resume=run.resume)
    print(
        f"model   {run.output}\ncurves  {run.output / 'curves.png'}\n"
        f"next    dynaconv evaluate {run.output} {run.output / 'test.tsv'}"
    )


def _data(arguments: list[str]) -> None:
    recipe = _parse_recipe("data", _DATA, arguments, run_options=False).recipe
    from .tasks.translation.report import describe_corpus

    describe_corpus(recipe)


def _translate(arguments: list[str]) -> None:
    options = tyro.cli(Translate, prog="dynaconv translate", args=arguments)
    from .tasks.translation.report import translate_files

    translate_files(
        options.model, options.files, device=options.device, beams=options.beams, nbest=options.nbest,
        length_penalty=options.length_penalty, max_tokens=options.max_tokens,
    )  # fmt: skip


def _evaluate(arguments: list[str]) -> None:
    options = tyro.cli(Evaluate, prog="dynaconv evaluate", args=arguments)
    from .data.config import DataConfig
    from .tasks.translation.report import evaluate_model, recipe_of

    recipe = recipe_of(options.model)
    trained = recipe.data if recipe else None
    source = options.source_lang or (trained.source_lang if trained else None)
    target = options.target_lang or (trained.target_lang if trained else None)
    if source is None or target is None:
        raise ValueError(f"{options.model} has no recipe.yaml: give --source-lang and --target-lang")
    data = DataConfig(
        format=options.format, source_lang=source, target_lang=target, source_column=options.source_column,
        target_column=options.target_column,
    )  # fmt: skip
    lowercase = recipe is not None and recipe.tokenizer.lowercase if options.lowercase is None else options.lowercase
    evaluate_model(
        options.model, options.data, data, json_path=options.json, hypotheses_path=options.hypotheses,
        samples=options.samples, device=options.device, beams=options.beams, length_penalty=options.length_penalty,
        max_tokens=options.max_tokens, lowercase=lowercase, compound_split=options.compound_split,
    )  # fmt: skip


def _bench(arguments: list[str]) -> None:
    options = tyro.cli(Bench, prog="dynaconv bench", args=arguments)
    from .tasks.bench.suite import bench

    bench(
        options.device, shape=options.shape, dtype=options.dtype, operators=options.operators, rounds=options.rounds,
        threads=options.threads, compiled=options.compile, skip_slow=options.skip_slow, startup=options.startup,
        output=options.output,
    )  # fmt: skip
