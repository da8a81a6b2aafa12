"""Scaling laws: planted ones are found again, and what cannot be fitted is one line."""

import json
import math

import numpy as np
import pytest

from dynaconv.cli import main
from dynaconv.tasks.language_modelling.scaling import Law, Run, check_runs, compute_advantage, fit

CHINCHILLA = Law(1.69, 406.4, 0.34, 410.7, 0.28, 6.0)


def planted(advantage: float, seed: int, noise: float = 0.002) -> dict[str, list[Run]]:
    """Two families of 16 runs; the second needs `advantage` times less compute for every loss.

    With N and D both divided by sqrt(advantage), so that N D is divided by it, the second reaches the same loss.
    """
    rng = np.random.default_rng(seed)
    runs = []
    for family, saved in (("base", 1.0), ("conv", math.sqrt(advantage))):
        for parameters in np.geomspace(3e7, 1e9, 4):
            for ratio in np.geomspace(5, 80, 4):
                tokens = parameters * ratio
                loss = CHINCHILLA.loss(parameters * saved, tokens * saved) * math.exp(rng.normal() * noise)
                runs.append(Run(family, parameters, tokens, 6 * parameters * tokens, float(loss)))
    return check_runs(runs)


def test_without_noise_the_law_itself_is_found():
    found = fit(planted(1.0, 0, noise=0.0)["base"])
    for name in ("E", "A", "a", "B", "b", "cost"):
        assert getattr(found, name) == pytest.approx(getattr(CHINCHILLA, name), rel=0.01)


def test_the_optimal_loss_is_the_least_at_its_compute():
    flops = 1e20
    parameters = np.geomspace(1e7, 1e11, 4000)
    losses = CHINCHILLA.loss(parameters, flops / CHINCHILLA.cost / parameters)
    assert CHINCHILLA.optimal_loss(flops) == pytest.approx(losses.min(), rel=1e-6)


@pytest.mark.parametrize("advantage", [1.0, 1.33, 1.6])
def test_planted_advantages_are_found(advantage):
    families = planted(advantage, 1)
    found = compute_advantage(families["conv"], families["base"], resamples=60)
    assert found.value == pytest.approx(advantage, rel=0.12)
    assert found.low <= advantage <= found.high


@pytest.mark.slow
def test_the_interval_covers_the_truth_nine_times_of_ten():
    covered = 0
    for seed in range(100):
        families = planted(1.33, 100 + seed)
        found = compute_advantage(families["conv"], families["base"], resamples=30, seed=seed)
        covered += found.low <= 1.33 <= found.high
        assert found.value == pytest.approx(1.33, rel=0.2)
    assert 80 <= covered <= 99


def test_a_loss_that_the_baseline_never_reaches_takes_infinite_compute():
    low = [
        Run("low", *(getattr(run, name) for name in ("parameters", "tokens", "flops")), run.loss - 1.2)
        for run in planted(1, 1)["base"]
    ]
    assert compute_advantage(low, planted(1.0, 2)["base"], resamples=2).value == math.inf


def write(path, runs):
    path.write_text("".join(json.dumps(vars(run)) + "\n" for run in runs), encoding="utf-8")
    return str(path)


def test_on_the_command_line(tmp_path, capsys):
    families = planted(1.33, 1)
    files = [write(tmp_path / f"{name}.jsonl", runs) for name, runs in families.items()]
    main(["scaling", *files, "--baseline", "base", "--output", str(tmp_path / "out")])
    record = json.loads((tmp_path / "out" / "scaling.json").read_text())
    assert record["fits"].keys() == {"base", "conv"}
    assert {"E", "A", "a", "B", "b"} <= record["fits"]["base"].keys()
    assert record["advantage"].keys() == {"conv"}
    assert record["advantage"]["conv"]["value"] == pytest.approx(1.33, rel=0.12)
    assert (tmp_path / "out" / "scaling.png").stat().st_size > 5000
    assert "1." in capsys.readouterr().out


BASE = planted(1.0, 1)["base"]
MISTAKES = {
    "one family": (BASE, "all runs are of base: give those of another family too"),
    "too few": (BASE[:4], "base has too few runs, 4"),
    "NaN": ([*BASE, Run("base", 1e8, 1e9, 6e17, math.nan)], "a run of base has loss nan"),
    "one size": (
        [Run("base", 1e8, 10.0**i, 1e9, 3.0) for i in range(6, 13)],
        "all runs of base have the same parameters",
    ),
    "no baseline": (
        [Run("conv", *list(vars(run).values())[1:]) for run in BASE],
        "--baseline base: no runs of it; there are conv",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_line(case, tmp_path, capsys):
    runs, message = MISTAKES[case]
    with pytest.raises(SystemExit) as ended:
        main(["scaling", write(tmp_path / "r.jsonl", runs), "--baseline", "base", "--output", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("content", "message"), [("{", "line 1: expected family"), ('{"family": "x"}', "KeyError")])
def test_files_that_hold_no_runs(content, message, tmp_path, capsys):
    (tmp_path / "r.jsonl").write_text(content)
    with pytest.raises(SystemExit):
        main(["scaling", str(tmp_path / "r.jsonl"), "--baseline", "base", "--output", str(tmp_path / "out")])
    assert message in capsys.readouterr().err
