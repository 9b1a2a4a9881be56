r"""Whether two commits give the same numbers, to the last bit, and whether the newer reads what the older wrote.

    python tests/benchmarks/same_numbers.py OLD [NEW]      (make same-numbers OLD=...)

OLD and NEW are revisions of git; NEW is the working tree where it is left out, or ".". Both are checked out into a temporary
folder and run, side by side, the commands of the READMEs in short forms: the quickstart, the training script, the shipped
checkpoints, every method of `evaluate`, shards, `merge`, `compare`, `calibrate`, `sample`, `convert-openai`, `card`, `push` to
a Hub on this machine, and the READMEs' Python. Whatever a command wrote is compared, reports field by field, pictures pixel by
pixel, weights tensor by tensor, and so is what it printed. Then NEW goes on from OLD's files: checkpoints, calibrations, cards,
reports, a training, evaluations that were killed, a repository of the Hub.

One line a command: `same`, `DIFFERS` and by what, or `FAILS`. What differs between any two commits, and why, is in `ALLOWED`,
and is told at the end where it was met. The exit status is 1 where anything else differs or fails. `--keep FOLDER` leaves
everything there, `--only PATTERN` (as of a shell) takes the quickstart and the commands of these names.
"""

import argparse
import copy
import os
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from differences import Allowed, Difference, differences
from PIL import Image
from readme_commands import COMMANDS, KILLED, OURS, REPOSITORY, RESUME, TRUSTED, Command

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "tests" / "helpers"), str(ROOT / "tests")]

from hub_server import environment, local_hub  # noqa: E402
from test_convert_openai import Reference  # noqa: E402
from zygote import Zygote  # noqa: E402

# What differs between any two commits. What one commit changes is for its author to see and to judge, and has no place here: an
# exception that outlives its commit hides the next fault.
ALLOWED = [
    Allowed("*.json*", "*versions.*", "versions are what they are"),
    Allowed("*pipeline.py", "*", "the package in one file: its code is what has changed"),
    Allowed("*metrics.jsonl", "*.seconds", "the time that a scoring took"),
    Allowed("*random_states_0.pkl", "*", "accelerate's copy of generators that nothing draws from"),
]
MODULES = {"ddpm-vlb": "ddpm_vlb", "torchrun": "torch.distributed.run"}
PRINTED = "printed"
# So many differences of a command are shown, and so many letters of what it says of its failure.
SHOWN, LETTERS = 5, 300
# What of OLD's is put aside before NEW goes on: it ran the same shards and seeds, and merges its own with OLD's.
NEWS_OWN = ("half-1.json", "full-half-1.json", "seed.json")
# An evaluation is killed once so many lines of its journal are there: a group of batches is under way then.
LINES = 6


def check_out(revision: str, folder: Path) -> None:
    r"""The files of a revision, or, for ".", of the working tree less what git ignores."""
    git = ["git", "-C", str(ROOT)]
    if revision == ".":
        listed = subprocess.run(
            [*git, "ls-files", "-z", "-co", "--exclude-standard"], check=True, stdout=subprocess.PIPE
        ).stdout
        existing = b"\0".join(name for name in listed.split(b"\0") if name and (ROOT / name.decode()).is_file())
        packed = ["tar", "-c", "-C", str(ROOT), "--null", "--files-from", "-"]
        archive = subprocess.run(packed, check=True, input=existing, stdout=subprocess.PIPE).stdout
    else:
        archive = subprocess.run([*git, "archive", revision], check=True, stdout=subprocess.PIPE).stdout
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", str(folder)], check=True, input=archive)


class Side:
    r"""A checkout, a folder in which its commands run, a Hub of its own, and the processes that fork the commands."""

    def __init__(self, name: str, folder: Path, checkout: Path, stack: ExitStack):
        self.checkout, self.work, self._home, self._stack = checkout, folder / name, folder / f"{name}-home", stack
        self.hub = stack.enter_context(local_hub())
        common = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(checkout)}
        self._environment = os.environ | common | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(self._home)}

    @cached_property
    def _offline(self) -> Zygote:
        return self._stack.enter_context(closing(Zygote(self._environment)))

    @cached_property
    def _online(self) -> Zygote:
        return self._stack.enter_context(closing(Zygote(self._environment | environment(self.hub, self._home))))

    def start(self, line: str | Sequence[str], hub: bool = False):
        r"""Start a command line of a README, or `python` with a list of arguments."""
        if isinstance(line, str):
            program, *line = shlex.split(line.replace("HERE", str(HERE)))
            if program in MODULES:
                line = ["-m", MODULES[program], *line]
            elif line[0].startswith("training/"):
                line[0] = str(self.checkout / line[0])
        return (self._online if hub else self._offline).start(*line, cwd=self.work)

    def files(self) -> dict[str, tuple[int, int]]:
        r"""What is there, and when it was written."""
        found = ((path, path.stat()) for path in self.work.rglob("*") if path.is_file())
        return {path.relative_to(self.work).as_posix(): (stat.st_mtime_ns, stat.st_size) for path, stat in found}


class Run:
    r"""A command that runs on a side, from when this is made to `end`."""

    def __init__(self, side: Side, line: str | Sequence[str], name: str, hub: bool = False):
        self._side, self._before, self._printed = side, side.files(), side.work / PRINTED / f"{name}.txt"
        self._process = side.start(line, hub)

    def end(self) -> tuple[set[str], list[str]]:
        r"""The files that it wrote, what it printed among them; and what it says where it failed."""
        printed, errors = self._process.communicate()
        self._printed.parent.mkdir(exist_ok=True)
        self._printed.write_text(printed.replace(self._side.hub.url, "HUB"))
        after = self._side.files()
        status = self._process.returncode
        failed = [f"status {status}: ...{' '.join(errors.split())[-LETTERS:]}"] if status else []
        return {name for name in after if after[name] != self._before.get(name)}, failed


class Table:
    r"""A line a command; `met` counts what was allowed, `wrong` what was not."""

    def __init__(self):
        self.met: Counter[str] = Counter()
        self.wrong = 0

    def row(self, name: str, files: Sequence[str], found: Sequence[Difference], failed: Sequence[str] = ()) -> None:
        r"""Print how a command did: the files compared, what they differ by, and what it said where it failed."""
        different = []
        for difference in found:
            reason = next((allowed.reason for allowed in ALLOWED if allowed.holds(difference)), None)
            if reason is None:
                different.append(difference)
            else:
                self.met[reason] += 1
        verdict = "FAILS" if failed else "DIFFERS" if different else "same"
        self.wrong += verdict != "same"
        shown = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if files[3:] else "")
        print(f"{name:44} {verdict:8} {shown}", flush=True)
        more = [f"and {len(different) - SHOWN} more differences"] if different[SHOWN:] else []
        for line in (*failed, *map(str, different[:SHOWN]), *more):
            print(f"    {line}", flush=True)

    def runs(self, name: str, runs: Sequence[Run], old: Path, new: Path) -> None:
        r"""The row of commands that are running: what they write in `old` and in `new`, whichever of them does."""
        ended = [run.end() for run in runs]
        files = sorted(set().union(*(files for files, _ in ended)))
        # A command that is run once has nothing to hold its words against.
        files = [file for file in files if not file.startswith(PRINTED) or (old / file).exists()]
        found = [difference for file in files for difference in differences(file, old / file, new / file)]
        self.row(
            name,
            [file for file in files if not file.startswith(PRINTED)],
            found,
            [line for _, failed in ended for line in failed],
        )


def prepare(side: Side, checkout: Path) -> None:
    r"""What the commands read: shipped checkpoints and examples, configurations of training, images, an OpenAI checkpoint."""
    for name in ("spaces_demo/checkpoints", "spaces_demo/examples", "training/configs"):
        shutil.copytree(checkout / name, side.work / name)
    images = np.random.default_rng(0).integers(256, size=(6, 8, 8), dtype=np.uint8)
    (side.work / "pictures").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(side.work / "pictures" / f"{number}.png")
    (side.work / "images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, *images.shape) + images.tobytes())
    reference = Reference(32, (1, 2), blocks=1, attention_levels=(1,), heads=4, scale_shift=True, out_channels=6)
    torch.save(reference.weights, side.work / "openai.pt")
    np.savez(side.work / "openai.npz", images=np.random.default_rng(0).integers(256, size=(3, 16, 16, 3), dtype=np.uint8))


def same_commands(table: Table, commands: Sequence[Command], old: Side, new: Side) -> None:
    r"""Each command in both commits."""
    for command in commands:
        table.runs(
            command.name, [Run(side, command.line, command.name, command.hub) for side in (old, new)], old.work, new.work
        )
    pushed = [side.hub.repositories[REPOSITORY].files if REPOSITORY in side.hub.repositories else {} for side in (old, new)]
    for side, files in zip((old, new), pushed):
        for name, content in files.items():
            path = side.work / "pushed" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    names = [f"pushed/{name}" for name in sorted(set().union(*pushed))]
    if names:
        found = [difference for name in names for difference in differences(name, old.work / name, new.work / name)]
        table.row("what was pushed", names, found)


def go_on_from_old(table: Table, commands: Sequence[Command], old: Side, new: Side, again: Side) -> None:
    r"""NEW on a copy of what OLD wrote: the same numbers as OLD's own."""
    shutil.copytree(old.work, again.work)
    for name in NEWS_OWN:
        if (new.work / name).exists():
            shutil.copy2(new.work / name, again.work)
    for command in commands:
        if command.again:
            table.runs(f"OLD's: {command.name}", [Run(again, command.line, command.name)], old.work, again.work)


def go_on_with_training(table: Table, old: Side, again: Side) -> None:
    r"""NEW goes on from a checkpoint in the middle of OLD's training, to the weights that OLD ended with."""
    for folder in ("checkpoint-4", "pipeline"):
        shutil.rmtree(again.work / "runs" / "digits" / folder)
    table.runs("OLD's: train, resumed", [Run(again, RESUME, "train, resumed")], old.work, again.work)


def go_on_after_kill(table: Table, method: str, line: str, old: Side, again: Side) -> None:
    r"""OLD's evaluation is killed, NEW goes on from its journal: the number of one that was not. A journal without checksums is
    refused."""
    name, output = f"OLD's: {method}, killed", f"killed-{method}.json"
    journal = old.work / f"{output}.journal"
    process = old.start(line.replace("OUTPUT", output))
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= LINES):
        time.sleep(0.005)
    process.kill()
    if process.wait() != -9:
        table.row(name, [output], [], [f"it could not be killed in the middle: {process.communicate()[1][-LETTERS:]}"])
        return
    shutil.move(journal, again.work / journal.name)
    if b'"sha256": "' not in (again.work / journal.name).read_bytes().split(b"\n")[1]:
        process = again.start(line.replace("OUTPUT", output))
        told = process.communicate()[1].strip().split("\n")[-1]
        table.row(f"{name}: refused", [journal.name], [], [] if "journal" in told and process.wait() == 2 else [told])
        return
    runs = [Run(side, line.replace("OUTPUT", output), name) for side in (old, again)]
    table.runs(name, runs, old.work, again.work)


def load_from_hub(table: Table, old: Side, new: Side, again: Side) -> None:
    r"""OLD's repository, loaded by OLD, by NEW, and where neither is installed."""
    table.runs("pushed, loaded", [Run(side, ["-c", OURS], "loaded", hub=True) for side in (old, new)], old.work, new.work)
    new.hub.repositories[REPOSITORY] = old.hub.repositories[REPOSITORY]
    table.runs("OLD's: pushed, loaded", [Run(again, ["-c", OURS], "loaded", hub=True)], old.work, again.work)
    table.runs("OLD's: pushed, without the package", [Run(again, ["-c", TRUSTED], "loaded", hub=True)], old.work, again.work)


def main() -> int:
    r"""Check out, run, compare; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("old", metavar="OLD")
    parser.add_argument("new", metavar="NEW", nargs="?", default=".")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where everything goes, and stays")
    parser.add_argument("--only", metavar="PATTERN", default="*", help="names of commands")
    arguments = parser.parse_args()
    start, table = time.monotonic(), Table()
    commands = [command for command in COMMANDS if command.name == "quickstart" or fnmatch(command.name, arguments.only)]
    names = [command.name for command in commands]
    with ExitStack() as stack:
        folder = (arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        sides = []
        for name, revision in (("old", arguments.old), ("new", arguments.new)):
            check_out(revision, folder / f"{name}-checkout")
            sides.append(Side(name, folder, folder / f"{name}-checkout", stack))
            prepare(sides[-1], folder / "old-checkout")
        old, new = sides
        again = copy.copy(new)
        again.work = folder / "again"
        same_commands(table, commands, old, new)
        go_on_from_old(table, commands, old, new, again)
        if "train" in names:
            go_on_with_training(table, old, again)
        if "push" in names:
            load_from_hub(table, old, new, again)
        for method, line in KILLED.items():
            if fnmatch(f"{method}, killed", arguments.only):
                go_on_after_kill(table, method, line, old, again)
    for reason, count in table.met.items():
        print(f"allowed, {count} times: {reason}")
    print(f"{table.wrong} of the above differ or fail; {time.monotonic() - start:.0f} seconds")
    return int(table.wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
