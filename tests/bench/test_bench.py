"""The benchmark of the operators, at a tiny size."""

import json

import pytest
import torch
from tqdm import tqdm

from dynaconv.bench import startup
from dynaconv.bench.contestants import COPY, OURS, REFERENCE, UNFOLD, contestants, problems
from dynaconv.bench.measure import PASSES, checked
from dynaconv.bench.memory import peak_bytes
from dynaconv.cli import main

SHAPE = (1, 64, 64)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    output = tmp_path_factory.mktemp("bench") / "operators.json"
    threads = torch.get_num_threads()
    options = ["--rounds", "1", "--threads", "2", "--no-startup", "--no-compile", "--output", str(output)]
    try:
        main(["bench", "cpu", "--shape", *map(str, SHAPE), *options])
    finally:
        torch.set_num_threads(threads)
    return output


def test_every_contestant_has_a_row_for_every_pass(files):
    record = json.loads(files.read_text())
    expected = {
        (problem.title, name, kind)
        for problem in problems(SHAPE, "cpu").values()
        for name in (*contestants(problem), COPY)
        for kind in PASSES
        if name != COPY or kind == "forward"
    }
    assert len(record["rows"]) == len(expected) == 39
    assert {(row["problem"], row["contestant"], row["pass"]) for row in record["rows"]} == expected
    for row in record["rows"]:
        assert min(row["ms"], row["gb_per_s"], row["times_ours"], row["times_copy"]) > 0
        assert row["peak_over_results"] >= 0.99
        if row["contestant"] == OURS:
            assert row["times_ours"] == 1
        if row["contestant"] == COPY:
            assert row["bytes"] == 2 * 4 * 64 * 64
            assert row["times_copy"] == row["peak_over_results"] == 1
    assert len(record["thread_scaling"]) == 5 * len(PASSES)
    assert [(row["problem"], row["pass"]) for row in record["bf16"]] == [
        (row["problem"], row["pass"]) for row in record["thread_scaling"]
    ]
    few = {(row["problem"], row["tokens"], row["pass"], row["contestant"]) for row in record["few_tokens"]}
    assert len(few) == len(record["few_tokens"]) == 5 * (2 + 2 * 2 * 2) + 2 * 2 * 2  # and F.conv1d for static filters
    assert {tokens for _, tokens, kind, _ in few if kind == "forward"} == {1, 16, 128}
    assert {tokens for _, tokens, kind, _ in few if kind != "forward"} == {16, 128}
    assert [row["batch"] for row in record["generation"]] == [1, 8]
    assert record["machine"]["torch"] == torch.__version__
    assert record["settings"]["shape"] == list(SHAPE)


def test_plot(files):
    assert files.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_wrong_contestants_raise_and_those_that_fail_are_left_out(caplog):
    (problem,) = problems(SHAPE, "cpu", ["static"]).values()
    inputs = problem.inputs(SHAPE, torch.float32, "cpu")
    field = contestants(problem, slow=False)
    assert UNFOLD not in field

    def wrong(x, filters):
        y = field[REFERENCE](x, filters)
        return torch.cat([y[:, :-1], 1.001 * y[:, -1:]], dim=1)

    def failing(x, filters):
        raise NotImplementedError("no such dtype")

    assert list(checked(problem, field | {"failing": failing}, inputs, torch.randn(SHAPE))) == list(field)
    assert "failing is left out: no such dtype" in caplog.text
    with pytest.raises(RuntimeError, match="static, W 4, wrong, forward: the output differs"):
        checked(problem, field | {"wrong": wrong}, inputs, torch.randn(SHAPE))


def test_peak_memory_counts_what_lives_at_a_time():
    x = torch.ones(1000)
    assert peak_bytes(lambda: x * x, "cpu") == 4000
    assert peak_bytes(lambda: [x * x + x for _ in range(3)], "cpu") == 4 * 4000  # the third sum beside its product
    assert peak_bytes(x.sum, "cpu") == 4


@pytest.mark.slow
def test_first_calls():
    with tqdm(disable=True) as bar:
        cold, warm = startup.first_calls("static_conv", "cpu", "float32", bar)
    assert (cold["cache"], warm["cache"]) == startup.CACHES
    assert min(row[name] for row in (cold, warm) for name in ("forward_ms", "backward_ms")) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gpu"], "bench gpu needs a GPU"),
        (["cpu", "--shape", "1", "8", "96"], "D a multiple of 64"),
        (["cpu", "--rounds", "0"], "--rounds: input should be greater than or equal to 1"),
        (["cpu", "--output", "nowhere/bench.json"], "no folder nowhere"),
    ],
)
def test_bad_options(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as exit_:
        main(["bench", *arguments])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
