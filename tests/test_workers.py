import json
import os
import signal
import time
from pathlib import Path

import pytest
from zygote import shared

from ddpm_vlb import files
from ddpm_vlb.cli import main
from ddpm_vlb.cli.common import journal_beside
from ddpm_vlb.evaluation import evaluate as evaluate_images
from ddpm_vlb.evaluation.run import Journal, Progress, Run, Workers, of_all_processes, run_batches
from ddpm_vlb.noise import NOISE_VERSION

SETTINGS = {"seed": 0, "model": "a"}
# The command line, with an exchange after every batch.
EVALUATE = (
    "import sys, ddpm_vlb.evaluation.run as w; w.SECONDS_BETWEEN_EXCHANGES = 0.0;"
    " from ddpm_vlb.cli import main; sys.exit(main(sys.argv[1:]))"
)


@pytest.fixture
def checkpoint(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def evaluate(checkpoint, folder, *options):
    return ["-c", EVALUATE, "evaluate", checkpoint, "--dataset", "digits", *options], {"cwd": folder}


def run(batches, journal, log):
    def evaluate_one(batch):
        log.append(batch)
        return batch

    return run_batches(batches, evaluate_one, lambda result: result**2, journal, Workers(), lambda results: None)


def test_what_is_in_the_journal_is_not_done_again(tmp_path):
    path, log = tmp_path / "journal", []
    with Journal(path, SETTINGS, Workers()) as journal:
        assert run([2, 3], journal, log) == [4, 9]
        assert run([5], journal, log) == [25] and log == [2, 3, 5]
    with Journal(path, SETTINGS, Workers()) as journal:
        assert run([2, 3], journal, log) == [4, 9] and run([5, 6], journal, log) == [25, 36] and log == [2, 3, 5, 6]
    # Cut within the last line, as by a kill in the middle of a write: that batch is done again.
    path.write_bytes(path.read_bytes()[:-3])
    with Journal(path, SETTINGS, Workers()) as journal:
        assert sorted(journal.done) == [0, 1, 2]
        assert run([2, 3], journal, log) == [4, 9] and run([5, 6], journal, log) == [25, 36] and log == [2, 3, 5, 6, 6]
    with Journal(path, SETTINGS, Workers()) as journal:
        assert sorted(journal.done) == [0, 1, 2, 3]


def test_a_cut_head_is_an_empty_journal(tmp_path):
    (tmp_path / "journal").write_text('{"settings": {"se')
    with Journal(tmp_path / "journal", SETTINGS, Workers()) as journal:
        assert journal.done == {}


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"settings": {"seed": 1, "model": "a"}}\n', "which differs in seed. Finish that one, remove its journal, or choose"),
        ('{"settings": {"seed": 0, "model": "a", "shard": 1}}\n', "which differs in shard"),
        ('{"settings": {"seed": 0, "model": "a"}}\nnot json\n', "a damaged journal beside it"),
        ('{"settings": {"seed": 0, "model": "a"}}\n{"batch": 1}\n', "a damaged journal beside it"),
        ("[]\n", "a damaged journal beside it"),
        ("\x00\xff\n", "a damaged journal beside it"),
    ],
)
def test_other_journals_are_refused_and_left_alone(tmp_path, content, message):
    path = tmp_path / "journal"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        Journal(path, SETTINGS, Workers())
    assert path.read_bytes() == content.encode("latin-1")


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [lines[0], lines[1].replace(b"1.25", b"9.25"), *lines[2:]],  # a digit that flipped, or a hand
        lambda lines: [lines[0], lines[1].replace(b"1.25", b'"1.25"'), *lines[2:]],
        lambda lines: [lines[0], lines[2], lines[1], lines[3]],  # swapped
        lambda lines: [lines[0], *lines[2:]],
        lambda lines: [lines[0], lines[1], lines[1], *lines[2:]],
        lambda lines: [lines[0], lines[1].replace(b'"batch": 0', b'"batch": 9'), *lines[2:]],
        lambda lines: [lines[0], json.dumps({"batch": 0, "result": 1.25}).encode() + b"\n", *lines[2:]],
    ],
    ids=["digit", "type", "swapped", "left out", "twice", "number", "without"],
)
def test_a_journal_that_was_changed_is_refused_by_its_name(tmp_path, change):
    path = tmp_path / "r.json.journal"
    with Journal(path, SETTINGS, Workers()) as journal:
        journal.add({0: 1.25})
        journal.add({1: [2.5, 0.1], 2: [float("inf"), 1e-17]})
    with Journal(path, SETTINGS, Workers()) as journal:
        assert journal.done == {0: 1.25, 1: [2.5, 0.1], 2: [float("inf"), 1e-17]}
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(ValueError, match=f"a damaged journal beside it, {str(path)!r}: line [23] is not what was written"):
        Journal(path, SETTINGS, Workers())


def test_a_journal_that_cannot_be_written_is_named(tmp_path):
    path = tmp_path / "nowhere" / "r.json.journal"
    with pytest.raises(OSError, match="r.json.journal"), Journal(path, SETTINGS, Workers()) as journal:
        journal.add({0: 1.25})
    (tmp_path / "full.journal").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device: .*full.journal"):
        with Journal(None, SETTINGS, Workers()) as journal:
            journal.path, journal._file = tmp_path / "full.journal", open("/dev/full", "w")
            journal.add({0: 1.25})


def test_restart_removes_what_stands_in_the_way(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for names, output in ((["evaluate", "pipeline"], "report.json"), (["compare", "pipeline", "pipeline"], "comparison.json")):
        command = [*names, "--dataset", "digits", "--max-images", "20", "--max-evaluations", "400"]
        # One that was stopped, with other flags.
        journal = Path(f"{output}.journal")
        with Journal(journal, SETTINGS, Workers()) as stopped:
            stopped.add({0: 1.25})
        assert main(command) == 2 and journal.exists()
        line = capsys.readouterr().err.splitlines()[-1]
        assert f"the journal of another evaluation beside it, '{journal}'" in line
        assert line.endswith("or choose another output; --restart removes it and begins anew.")
        assert main([*command, "--restart"]) == 0 and Path(output).exists() and not journal.exists()


def test_the_journal_of_other_draws_is_refused(tmp_path):
    # A version before drew other images and timesteps, for which its values would be taken.
    path, workers = tmp_path / "r.json.journal", Workers()
    with Journal(path, SETTINGS, workers) as old:
        old.add({0: 1.25})
    run = Run(32, 0, SETTINGS, path, workers, Progress(workers, quiet=True))
    match = "the journal of another evaluation beside it, .* which differs in draws_version, noise_version"
    with pytest.raises(ValueError, match=match), run.journal():
        pass


def test_the_journal_of_other_noise_is_refused_with_the_reason(tmp_path):
    path, workers = tmp_path / "r.json.journal", Workers()
    run = Run(32, 0, SETTINGS, path, workers, Progress(workers, quiet=True))
    with run.journal() as journal:
        settings = dict(journal._settings)
    assert settings.pop("noise_version") == NOISE_VERSION
    # As versions wrote it that seeded torch's generators: they say nothing of their noise.
    with Journal(path, settings, workers) as old:
        old.add({0: 1.25})
    with (
        pytest.raises(ValueError, match="whose noise is of version 1, this one's of 2: .* of other draws") as error,
        run.journal(),
    ):
        pass
    assert str(path) in str(error.value) and "--restart removes it" in str(error.value)


def test_there_is_no_journal_beside_a_device(checkpoint, tmp_path):
    command = ["evaluate", str(checkpoint), "--dataset", "digits", "--max-images", "20", "--max-evaluations", "400"]
    (tmp_path / "out").symlink_to("/dev/null")
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "pipeline"]
    assert journal_beside(tmp_path / "out", restart=False) is None


def test_the_second_of_two_is_refused_and_told_who_has_the_output(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(files, "SECONDS_BETWEEN_TRIES", 0.001)
    options = ("--max-images", 90, "--scores", "scores.csv", "--per-image", 20)
    command, how = evaluate(checkpoint, tmp_path, *options)
    process = shared().start(*command, **how)
    lock = tmp_path / ".ddpm-vlb-report.json.lock"
    while not lock.exists():
        assert process.poll() is None
        time.sleep(0.005)
    second = ["evaluate", str(checkpoint), "--dataset", "digits", "--seed", "1", "--restart", "--per-image", "2", "--output"]
    for output in ([tmp_path / "report.json"], [tmp_path / "b", "--scores", tmp_path / "scores.csv"]):
        assert main([*second, *map(str, output)]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert f"`output` must be written by one process at a time, got '{output[-1]}', which process {process.pid} has" in line
    assert process.wait(100) == 0 and json.loads((tmp_path / "report.json").read_text())["config"]["seed"] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pipeline", "report.json", "scores.csv"]


def test_a_journal_is_one_evaluations_at_a_time(pipe, images, tmp_path):
    journal = tmp_path / "journal"
    with files.locked(journal), pytest.raises(ValueError, match="`journal` must be written by one process at a time"):
        evaluate_images(pipe, images, max_evaluations=100, quiet=True, journal=journal)
    assert not list(tmp_path.iterdir())


def numbers(path):
    report = json.loads(Path(path).read_text())
    report["config"].pop("num_processes")
    return report


@pytest.mark.parametrize(
    "options",
    [("--max-evaluations", 4000), ("--method", "full", "--max-images", 180), ("--method", "iw", "--k", 3, "--max-images", 80)],
    ids=["sampled", "full", "iw"],
)
def test_killed_at_any_moment_it_goes_on_to_the_same_numbers(checkpoint, tmp_path, options):
    options = (*options, "--batch-size", 12, "--seed", 4)
    command, how = evaluate(checkpoint, tmp_path, *options, "--output", "whole.json")
    assert shared().run(*command, **how).returncode == 0
    command, how = evaluate(checkpoint, tmp_path, *options, "--output", "cut.json")
    journal, done = tmp_path / "cut.json.journal", []
    for wanted in (3, 9):
        process = shared().start(*command, **how)
        lines = 0
        while process.poll() is None and lines < wanted:
            lines = journal.read_bytes().count(b"\n") if journal.exists() else 0
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "cut.json").exists()
        done.append(journal.read_bytes().count(b"\n"))
    assert shared().run(*command, **how).returncode == 0
    assert not journal.exists()
    # The second time it went on: at its kill there were more batches than a run of its own would have had.
    assert done[0] >= 3 and done[1] > done[0] - 1
    assert numbers(tmp_path / "cut.json") == numbers(tmp_path / "whole.json")


@pytest.mark.parametrize(
    "options, nodes",
    [
        (("--max-evaluations", 2000), 1),
        (("--method", "full", "--max-images", 23), 2),
        (("--method", "ode", "--max-images", 2), 1),
    ],
    ids=["sampled", "full, two nodes", "ode"],
)
def test_two_processes_give_the_numbers_of_one(checkpoint, tmp_path, options, nodes):
    # 23 images in batches of 5: the last batch is not full, and the last round has a batch for one process alone.
    common = ["-m", "ddpm_vlb", "evaluate", str(checkpoint), "--dataset", "digits", *map(str, options)]
    one = [*common, "--output", "one.json", "--batch-size", "64"]
    two = [*common, "--output", "two.json", "--batch-size", "5", "--expected-processes", "2"]
    how = {"cwd": tmp_path, "env": os.environ | {"ACCELERATE_USE_CPU": "true"}}
    results = [shared().run(*one, **how), *shared().run_ranks(2, *two, nodes=nodes, **how)]
    for result in results:
        assert result.returncode == 0, result.stderr[-2000:]
    said = "".join(result.stdout for result in results[1:])
    assert "2 processes" in said and said.count("report: two.json") == 1
    first, second = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert (first["config"]["num_processes"], second["config"]["num_processes"]) == (1, 2)
    assert first["num_images"] == second["num_images"] and first["config"]["data_sha256"] == second["config"]["data_sha256"]
    for key in {"bits_per_dim", "monte_carlo_error", "decoder", "standard_error", "num_network_evaluations"} & first.keys():
        # Sums of float32 in batches of another size; a term of an untrained network is of the order of 1000 bits.
        assert first[key] == pytest.approx(second[key], rel=1e-5)


def test_fewer_processes_than_expected_are_refused(checkpoint, tmp_path):
    command, how = evaluate(checkpoint, tmp_path, "--expected-processes", 2)
    result = shared().run(*command, **how)
    assert result.returncode == 2 and "`expected_processes` must be the 1 that take part, got 2" in result.stderr


def test_a_process_that_is_left_alone_says_so(tmp_path):
    # The other may be gone before this one has met it.
    code = (
        "import os; from ddpm_vlb.evaluation.run import Workers\ntry:\n    workers = Workers(); workers.rank and os._exit(3)\n"
    )
    code += "    workers.gather(None)\nexcept ConnectionError as error:\n    print(error)"
    left, gone = shared().run_ranks(2, "-c", code, cwd=tmp_path, env=os.environ | {"ACCELERATE_USE_CPU": "true"})
    assert (left.returncode, gone.returncode) == (0, 3), left.stderr
    assert left.stdout.startswith("All 2 processes must take part from beginning to end, but one is gone: ")


def test_a_process_by_itself_misses_none(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(RuntimeError, match="no such device"), of_all_processes():
        raise RuntimeError("no such device")
