"""Shared fixtures: NaN-poisoned allocations, a toy language pair, and a tiny trained model."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock

from dynaconv.cli import main
from dynaconv.tasks import TASKS

# Before transformers is imported anywhere: tests run offline.
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false")
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS == 1:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
else:  # more threads than cores take many times as long; the variable is for processes that tests start
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"

DYNACONV = (sys.executable, "-m", "dynaconv")
NUMBERS = {"zwei": "two", "drei": "three", "vier": "four", "fünf": "five"}
COLOURS = {"rote": "red", "blaue": "blue", "grüne": "green", "weiße": "white"}
ANIMALS = {"Hunde": "dogs", "Katzen": "cats", "Vögel": "birds", "Pferde": "horses", "Mäuse": "mice"}
VERBS = {"sehen": "see", "jagen": "chase", "hören": "hear", "suchen": "seek"}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Each test's random numbers are its own: the same in every order, in every process, and alone."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (the global generator, which scipy and transformers draw from)
    torch.manual_seed(0)


def toy_pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Sentences such as "drei rote Hunde sehen zwei blaue Katzen" with their translations, all different."""
    rng = random.Random(seed)
    pairs: dict[str, str] = {}
    while len(pairs) < count:
        words = [
            rng.choice(list(kind.items())) for kind in (NUMBERS, COLOURS, ANIMALS, VERBS, NUMBERS, COLOURS, ANIMALS)
        ]
        pairs[" ".join(word for word, _ in words)] = " ".join(word for _, word in words)
    return list(pairs.items())


def write_tsv(path: Path, rows) -> Path:
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_recipe(folder: Path, task: str = "translation", **sections: dict) -> Path:
    """A recipe that trains a tiny model on toy pairs in seconds; sections override its values."""
    recipe = {
        "task": task,
        "data": {"train": str(write_tsv(folder / "train.tsv", toy_pairs(600))), "valid_size": 40, "test_size": 40},
        "tokenizer": {"vocab_size": 120},
        "model": {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_kernel_sizes": [3, 5],
            "decoder_kernel_sizes": [3, 5],
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "share_embeddings": "all",
            "glu": True,
            "normalize_before": True,
        },
        "train": {
            "max_steps": 300,
            "max_tokens": 500,
            "learning_rate": 0.01,
            "schedule": "cosine",
            "warmup_steps": 30,
            "save_steps": 100,
            "eval_steps": 150,
            "eval_sentences": 20,
            "log_steps": 50,
            "average_last": 2,
        },
    }
    for name, values in sections.items():
        recipe[name] = recipe.get(name, {}) | values
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


# Importing what the commands need takes seconds: a server does it once, and every command is a fork of it.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [f"dynaconv.tasks.{task}.{part}" for task in TASKS for part in ("training", "report")] + ["dynaconv.cli"]
)


def run_cli(*arguments: object, cache: Path, **options) -> subprocess.CompletedProcess:
    """`dynaconv ARGUMENTS` in a process of its own; options as of `subprocess.run`."""
    environment = {**os.environ, "DYNACONV_CACHE": str(cache)}
    command = [*DYNACONV, *map(str, arguments)]
    if options.keys() - {"stdin", "input"}:
        options |= {"capture_output": True, "text": True, "timeout": 900}
        return subprocess.run(command, env=environment, check=False, **options)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("in", "out", "err")]
        files[0].write_bytes(options.get("input", b""))
        process = FORKS.Process(target=_run_main, args=(command[len(DYNACONV) :], environment, os.getcwd(), files))
        process.start()
        process.join(timeout=900)
        assert process.exitcode is not None, f"{command} has not ended"
        return subprocess.CompletedProcess(command, process.exitcode, *(path.read_text("utf-8") for path in files[1:]))


def _run_main(arguments: list[str], environment: dict[str, str], folder: str, files: list[Path]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, (path, flags) in enumerate(zip(files, (os.O_RDONLY, *[os.O_WRONLY | os.O_CREAT] * 2), strict=True)):
        os.dup2(os.open(path, flags), number)
    sys.stdin = os.fdopen(0, encoding="utf-8")
    sys.argv = ["dynaconv", *arguments]
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", "2")))
    main(arguments)


def start_cli(*arguments: object, **options) -> subprocess.Popen:
    """The same, to be interrupted: also where the tests run in the background, which ignores interrupts."""
    restore = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    return subprocess.Popen([*DYNACONV, *map(str, arguments)], preexec_fn=restore, **options)


def run_on_two_processes(*arguments: object, environment: dict[str, str] | None = None, **options):
    """`python ARGUMENTS` on two processes of one thread each, by torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += map(str, arguments)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    result = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=600, check=False, **options
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def enable_checkpointing(model, *arguments) -> None:
    """Activation checkpointing, by its older name in transformers before 5.22."""
    name = "activation_checkpointing_enable"
    getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")(*arguments)


@pytest.fixture(autouse=True)
def no_deprecated_names(caplog):
    """transformers logs some deprecations instead of warning of them."""
    yield
    logged = [record.getMessage() for record in caplog.get_records("call") if record.name.startswith("transformers")]
    own = "Passing `generation_config` together"  # its assisted decoding calls its own generate() so
    assert not [message for message in logged if "deprecated" in message and not message.startswith(own)]


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory) -> Path:
    """A folder of this test session, the same for all of its workers."""
    base = tmp_path_factory.getbasetemp()
    return base if WORKERS == 1 else base.parent


@pytest.fixture(scope="session")
def cache(session_folder) -> Path:
    return session_folder / "cache"


@pytest.fixture(scope="session")
def toy_run(session_folder, cache) -> Path:
    """The run folder of a model that has learned the toy language pair; one worker trains it, the others wait."""
    folder = session_folder / "toy"
    with FileLock(session_folder / "toy.lock"):
        if not folder.is_dir():
            folder.mkdir()
            recipe = write_recipe(folder)
            result = run_cli("train", recipe, "--output", folder / "run", cache=cache)
            assert result.returncode == 0, result.stderr[-2000:]
    return folder / "run"


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """`dynaconv` in this process: what it printed."""
    monkeypatch.setenv("DYNACONV_CACHE", str(tmp_path / "cache"))

    def run(*arguments: object) -> str:
        main(list(map(str, arguments)))
        return capsys.readouterr().out

    return run


@pytest.fixture
def poisoned(monkeypatch) -> list[torch.Tensor]:
    """Fresh memory holds NaN, inside guard zones of a sentinel; returns the whole buffers for `check_guards`."""
    buffers: list[torch.Tensor] = []
    original, empty = torch.Tensor.new_empty, torch.empty

    def guarded(fill):
        def allocate(self, *size, **options):
            if not options.get("dtype", self.dtype).is_floating_point:
                return original(self, *size, **options)
            size = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
            count = int(torch.Size(size).numel())
            buffer = original(self, count + 2 * GUARD, **options).fill_(SENTINEL)
            buffers.append(buffer)
            return buffer[GUARD : GUARD + count].fill_(fill).view(*size)

        return allocate

    allocate = guarded(float("nan"))
    monkeypatch.setattr(torch.Tensor, "new_empty", allocate)
    monkeypatch.setattr(torch, "empty", lambda *size, **options: allocate(empty(0), *size, **options))
    monkeypatch.setattr(torch.Tensor, "new_zeros", guarded(0))
    return buffers


GUARD, SENTINEL = 64, 12345.0


def check_guards(buffers: list[torch.Tensor]) -> None:
    """No kernel wrote outside the buffers it was given, and at least one buffer was."""
    assert buffers
    for buffer in buffers:
        assert (buffer[:GUARD] == SENTINEL).all()
        assert (buffer[-GUARD:] == SENTINEL).all()
