"""The command line: parses arguments, nothing else."""

import importlib
import logging
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

try:
    import tyro
    from tyro.conf import Positional, arg
except ModuleNotFoundError as missing:
    sys.exit(f'dynaconv: error: {missing}: pip install "dynaconv[train]"')

from ..tasks import TASKS
from ..training.bounds import Positive, check_options
from .options import (
    Bench,
    ConvertFairseq,
    Evaluate,
    EvaluateSummaries,
    Generate,
    Perplexity,
    Recall,
    Scaling,
    Score,
    ShowFilters,
    Summarize,
    SweepOptions,
    Translate,
)

T = TypeVar("T")

_TRAIN = """Train a model from a recipe, which says for which task.

Any value of the recipe can be overridden: --section.key VALUE. The run folder gets the resolved recipe, checkpoints,
TensorBoard logs, curves.png and the model.

Example: dynaconv train recipes/translation/demo.yaml --output runs/demo --train.max_steps 2000"""

_DATA = """Fetch, clean, split and tokenize the data of a recipe, and show what came of it.

Example: dynaconv data recipes/translation/demo.yaml --data.valid_size 500"""

_COMMANDS = {
    "train": "train a model from a recipe",
    "sweep": "train a recipe with some of its values changed, run by run",
    "translate": "translate lines of text with a trained model",
    "summarize": "summarize documents with a trained model",
    "evaluate": "score a trained model on a test set",
    "score": "print log-probabilities of given translations",
    "perplexity": "say how well a language model predicts text",
    "generate": "print text that a language model goes on with",
    "show-filters": "draw the filters that each token of a text gets",
    "recall": "compare convolutions in tasks of associative recall",
    "scaling": "fit scaling laws to runs, and compare their compute",
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
            from ..versions import describe_versions

            print(describe_versions())
        elif command in _COMMANDS:
            runners = {
                "train": _train,
                "sweep": _sweep,
                "translate": _translate,
                "summarize": _summarize,
                "evaluate": _evaluate,
                "score": _score,
                "perplexity": _perplexity,
                "generate": _generate,
                "show-filters": _show_filters,
                "recall": _recall,
                "scaling": _scaling,
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


def _options(kind: type[T], command: str, arguments: list[str], **settings: Any) -> T:
    return check_options(tyro.cli(kind, prog=f"dynaconv {command}", args=arguments, **settings), command)


def _parse_recipe(command: str, description: str, arguments: list[str], run_options: bool) -> tuple[str, Any]:
    """The task and the options, of which `recipe` is one."""
    from ..training.recipe import check_recipe, read_recipe, task_in

    path = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if path is None and not {"-h", "--help"} & set(arguments):
        raise ValueError(f"give the recipe first: dynaconv {command} RECIPE.yaml [options]")
    content = read_recipe(path) if path else {}
    task = _known(task_in(content), str(path))
    if "recipe" in content:
        raise ValueError(f"{path} is a sweep over a recipe: dynaconv sweep {path} --output FOLDER")
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
        """Go on from the last whole checkpoint in the run folder; train.max_steps may grow, data may have moved."""
        dry_run: bool = False
        """Prepare and check the data, print what the run needs in memory, disk and compute, and stop."""
        processes: Positive = int(os.environ.get("WORLD_SIZE", "1"))
        """For --dry-run: on how many devices it would train."""

    options = Run if run_options else Prepare
    parsed = _options(options, command, arguments, description=description)
    parsed.recipe = check_recipe(asdict(parsed.recipe), kind, "options")
    return task, parsed


def _task(task: str, module: str) -> Any:
    return importlib.import_module(f"dynaconv.tasks.{task}.{module}")


def _train(arguments: list[str]) -> None:
    task, run = _parse_recipe("train", _TRAIN, arguments, run_options=True)
    training = _task(task, "training")
    if run.dry_run:
        training.plan(run.recipe, run.output, resume=run.resume, processes=run.processes)
        return
    training.train(run.recipe, run.output, resume=run.resume)
    print(f"model   {run.output}\ncurves  {run.output / 'curves.png'}\nnext    {training.NEXT.format(run=run.output)}")


def _sweep(arguments: list[str]) -> None:
    options = _options(SweepOptions, "sweep", arguments)
    from ..training.sweep_report import sweep_recipe

    sweep_recipe(options.sweep, options.output, check=_check_content, workers=options.workers, overrides=options.set)


def _check_content(content: dict[str, Any], name: str) -> Any:
    """The recipe of its task, with a model that can be."""
    from ..training.recipe import check_recipe, task_in

    recipe = check_recipe(content, _task(_known(task_in(content), name), "recipe").Recipe, name)
    try:
        recipe.model.configuration()
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return recipe


def _known(task: str, where: str) -> str:
    if task not in TASKS:
        raise ValueError(f"{where}: no task {task!r}: there are {', '.join(TASKS)}")
    return task


def _data(arguments: list[str]) -> None:
    task, options = _parse_recipe("data", _DATA, arguments, run_options=False)
    _task(task, "report").describe_corpus(options.recipe)


def _translate(arguments: list[str]) -> None:
    options = _options(Translate, "translate", arguments)
    from ..seq2seq.report import generate_files
    from ..tasks.translation.translator import Translator

    generate_files(Translator, **vars(options))


def _summarize(arguments: list[str]) -> None:
    options = _options(Summarize, "summarize", arguments)
    from ..seq2seq.report import generate_files
    from ..tasks.summarization.summarizer import Summarizer

    generate_files(Summarizer, **vars(options))


def _score(arguments: list[str]) -> None:
    options = _options(Score, "score", arguments)
    from ..tasks.translation.report import score_files

    score_files(**vars(options))


def _evaluate(arguments: list[str]) -> None:
    from ..training.recipe import task_of

    if arguments and arguments[0].startswith("-") and not {"-h", "--help"} & set(arguments):
        raise ValueError("give the model first: dynaconv evaluate MODEL DATA [options]")
    kinds = {"translation": Evaluate, "summarization": EvaluateSummaries}
    task = task_of(Path(arguments[0]) if arguments else None) or "translation"
    if task not in kinds:
        raise ValueError(f"{arguments[0]} is a model of {task}: dynaconv evaluate scores {' and '.join(kinds)}")
    options = vars(_options(kinds[task], "evaluate", arguments))
    names = ("format", "source_lang", "target_lang", "source_name", "target_name", "source_column", "target_column")
    data = {name: options.pop(name) for name in names if name in options}
    _task(task, "report").evaluate_model(options.pop("model"), options.pop("data"), data=data, **options)


def _perplexity(arguments: list[str]) -> None:
    options = vars(_options(Perplexity, "perplexity", arguments))
    from ..tasks.language_modelling.report import print_perplexity

    print_perplexity(options.pop("model"), **options)


def _generate(arguments: list[str]) -> None:
    options = vars(_options(Generate, "generate", arguments))
    from ..tasks.language_modelling.generation import generate_text

    generate_text(options.pop("model"), options.pop("prompts"), **options)


def _show_filters(arguments: list[str]) -> None:
    options = vars(_options(ShowFilters, "show-filters", arguments))
    from ..tasks.inspection.report import show_filters

    show_filters(options.pop("model"), options.pop("texts"), **options)


def _recall(arguments: list[str]) -> None:
    options = vars(_options(Recall, "recall", arguments))
    from ..tasks.recall.recall import recall

    recall(options.pop("preset"), options.pop("output"), **options)


def _scaling(arguments: list[str]) -> None:
    options = vars(_options(Scaling, "scaling", arguments))
    from ..tasks.language_modelling.scaling_report import print_scaling

    print_scaling(options.pop("runs"), **options)


def _convert_fairseq(arguments: list[str]) -> None:
    options = _options(ConvertFairseq, "convert-fairseq", arguments)
    from ..conversion.fairseq.report import convert_checkpoint

    convert_checkpoint(**vars(options))


def _bench(arguments: list[str]) -> None:
    options = _options(Bench, "bench", arguments)
    from ..bench.suite import bench

    bench(**vars(options))
