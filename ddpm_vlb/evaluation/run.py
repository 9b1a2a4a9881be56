r"""The processes of a run, what they tell each other, and what they keep of it on the disk.

Several processes evaluate different batches; a batch is the same whoever evaluates it. Every few seconds all tell each other
what they have, and the first writes it to a journal. The same command finds the journal, takes the batches in it as done, and
goes on. Between these moments nothing waits for the device.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..data.sources import Source
from ..files import locked, naming, write_atomically
from ..forward_process import ForwardProcess
from ..likelihoods.method import Method
from ..model.scorer import Scorer
from ..noise import NOISE_VERSION
from ..progress import SECONDS, progress_bar
from ..reports.schema import settings_that_are
from ..sampled_bound.draws import DRAWS_VERSION
from ..words import duration

SECONDS_BETWEEN_EXCHANGES = 5.0
CHECKSUM = "sha256"
RESTART = "; --restart removes it and begins anew."


@contextmanager
def of_all_processes() -> Iterator[None]:
    r"""What all processes do together: a port that is taken, or one that never comes or is gone, is a `ConnectionError`, where
    what carries it has no type of its own for that. A process by itself has none to miss: its errors stay what they are."""
    try:
        yield
    except RuntimeError as error:
        count, reason = os.environ.get("WORLD_SIZE", "1"), str(error).strip().split("\n")[0]
        if count == "1":
            raise
        raise ConnectionError(
            f"All {count} processes must take part from beginning to end, but one is gone: {reason}"
        ) from error


class Workers:
    r"""The processes of this run: one, or those that `accelerate launch` or `torchrun` started.

    `rank` is the place of this one among `count`, `device` its own, where it is one of several.
    """

    def __init__(self):
        self.rank, self.count, self.device = 0, 1, None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState
            from accelerate.utils import parse_flag_from_env

            # Without `cpu=True` processes on a CPU are each alone, and do not know of it.
            with of_all_processes():
                state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available())
            if state.num_processes != int(os.environ["WORLD_SIZE"]):
                raise ValueError(
                    f"`WORLD_SIZE` must be the number of processes that take part, {state.num_processes}, got"
                    f" {os.environ['WORLD_SIZE']}."
                )
            self.rank, self.count, self.device = state.process_index, state.num_processes, state.device

    def gather(self, part: Any) -> list[Any]:
        r"""What each process has, in their order, for all.

        Raises:
            ConnectionError: another process is gone.
        """
        if self.count == 1:
            return [part]
        from accelerate.utils import gather_object

        with of_all_processes():
            return gather_object([part])


class Seal:
    r"""Checksums for the lines of a journal, the first 16 hexadecimal digits of SHA-256 each."""

    def __init__(self):
        self._so_far = sha256()

    def checksum(self, entry: dict[str, Any]) -> str:
        r"""Of an entry and of all before it."""
        self._so_far.update(json.dumps(entry).encode())
        return self._so_far.hexdigest()[:16]

    def line(self, entry: dict[str, Any]) -> str:
        r"""An entry as a line of the file, the checksum in it."""
        return json.dumps(entry | {CHECKSUM: self.checksum(entry)}) + "\n"


class Journal:
    r"""Batches that are done, line after line in a file; lost with the file, and with nothing else.

    Each line carries a checksum of itself and of all lines before it: a digit that has changed on the disk, or lines that have
    changed places, would else go into a report without a word.

    Args:
        path: the file; `None` keeps nothing.
        settings: of the evaluation. A journal of other settings is refused.
        workers: the first of them writes.

    Raises:
        ValueError: a file that is no journal, that was changed, or of another evaluation. A journal of before there were
            checksums is refused too: nothing tells whether its numbers are those that were written.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any], workers: Workers):
        self.path, self.done, self._file, self._workers, self._next = path, {}, None, workers, 0
        self._settings, self._seal = json.loads(json.dumps(settings)), Seal()
        if path is not None and path.exists() and workers.rank == 0:
            self._read(path)
        # One reads for all: they must agree in what is left to do.
        self.done = workers.gather(self.done)[0]

    def _read(self, path: Path) -> None:
        # A line that was being written when the process was stopped has no end, and is left out.
        lines = path.read_bytes().split(b"\n")[:-1]
        try:
            entries = [json.loads(line) for line in lines]
            found = [entry.pop(CHECKSUM, None) for entry in entries]
            settings = entries[0]["settings"] if entries else self._settings
            done = {entry["batch"]: entry["result"] for entry in entries[1:]}
            different = {key for key in settings.keys() | self._settings.keys() if settings.get(key) != self._settings.get(key)}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            damaged = f"`output` has a damaged journal beside it, {str(path)!r}: {error!r}."
            raise ValueError(f"{damaged} Remove it{RESTART}") from error
        seal = Seal()
        wrong = [number for number, entry in enumerate(entries, 1) if seal.checksum(entry) != found[number - 1]]
        if wrong and any(found):
            raise ValueError(
                f"`output` has a damaged journal beside it, {str(path)!r}: line {wrong[0]} is not what was written."
                f" Remove it{RESTART}"
            )
        if different == {"noise_version"}:
            theirs, ours = (one.get("noise_version", 1) for one in (settings, self._settings))
            raise ValueError(
                f"`output` has a journal of another version beside it, {str(path)!r}, whose noise is of version {theirs}, this"
                f" one's of {ours}: its numbers are of other draws. Finish it with that version, or remove it{RESTART}"
            )
        if different:
            raise ValueError(
                f"`output` has the journal of another evaluation beside it, {str(path)!r}, which differs in"
                f" {', '.join(sorted(different))}. Finish that one, remove its journal, or choose another output{RESTART}"
            )
        if wrong:
            raise ValueError(
                f"`output` has a journal of an earlier version beside it, {str(path)!r}, without checksums: nothing tells"
                f" whether its numbers are those that were written. Finish it with that version, or remove it{RESTART}"
            )
        self.done = done

    def number(self, batches: int) -> int:
        r"""The number of the first of the next so many batches: the same whenever the same evaluation is run."""
        first = self._next
        self._next += batches
        return first

    def add(self, results: dict[int, Any]) -> None:
        r"""Keep the results of batches, safe on the disk when this returns."""
        if self.path is None or self._workers.rank:
            return
        if self._file is None:
            # Written anew with what is whole, then appended to.
            lines = [{"settings": self._settings}, *({"batch": b, "result": r} for b, r in self.done.items())]
            write_atomically(self.path, "".join(map(self._seal.line, lines)).encode())
            self._file = self.path.open("a", encoding="utf-8")
        with naming(self.path):
            self._file.writelines(self._seal.line({"batch": b, "result": r}) for b, r in sorted(results.items()))
            self._file.flush()
            os.fsync(self._file.fileno())

    def remove(self) -> None:
        r"""Keep nothing of this run: it cannot be finished, and is not to stand in the way of the next one."""
        if self.path is not None and not self._workers.rank:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_) -> None:
        if self._file is not None and self.path is not None:
            with naming(self.path):
                self._file.close()


class Progress:
    r"""A progress bar with the number so far, its error, and how long it will take; of one process."""

    def __init__(self, workers: Workers, quiet: bool):
        self._quiet = quiet or workers.rank > 0
        self._bar = progress_bar(disable=self._quiet, unit="evaluation", unit_scale=True)
        self._told: set[str] = set()
        self._mark: float | None = None
        self._since = 0

    def extend(self, evaluations: int) -> None:
        r"""So many more are to come."""
        self._mark = None
        self._bar.total = (self._bar.total or 0) + evaluations
        self._bar.refresh()

    def update(self, evaluations: int, value: float | None = None, error: float | None = None) -> None:
        r"""So many more are done, and the number so far."""
        if value is not None:
            self._bar.set_postfix_str(f"{value:.4f} bits/dim" + ("" if error is None else f" +- {error:.4f}"), refresh=False)
        self._bar.update(evaluations)
        # The first ones are not counted: a journal has them, or they take longer than those that follow.
        self._since = 0 if self._mark is None else self._since + evaluations
        self._mark = time.monotonic() if self._mark is None and evaluations else self._mark

    def tell(self, left: float, aim: str) -> None:
        r"""Say once, as soon as it is known, how long so many evaluations take: "about 40 minutes" and the aim."""
        if self._quiet or self._mark is None or not self._since or aim in self._told:
            return
        self._told.add(aim)
        rate = self._since / max(time.monotonic() - self._mark, 1e-9)
        if left / rate >= SECONDS:
            line = f"{rate:.3g} evaluations a second: about {duration(left / rate)} {aim}"
            tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        r"""Leave the bar as it is."""
        self._bar.close()


def run_batches(
    batches: Sequence[Any],
    evaluate: Callable[[Any], Any],
    to_plain: Callable[[Any], Any],
    journal: Journal,
    workers: Workers,
    after: Callable[[dict[int, Any]], None],
) -> list[Any]:
    r"""The results of batches, each evaluated by one process, told to all and kept in the journal.

    Args:
        batches: what `evaluate` takes.
        evaluate: gives a result that may still be on the device.
        to_plain: brings it to the host, as what JSON knows.
        journal, workers: where the results go.
        after: told all results so far whenever the processes have exchanged them.
    """
    first = journal.number(len(batches))
    results = {number: journal.done[first + number] for number in range(len(batches)) if first + number in journal.done}
    if results:
        after(results)
    todo = [number for number in range(len(batches)) if number not in results]
    rounds, position = 1, 0
    while position < len(todo):
        # As many rounds of batches as take a few seconds, by what the slowest process needed for the last ones.
        group = todo[position : position + rounds * workers.count]
        start = time.perf_counter()
        own = [(number, evaluate(batches[number])) for number in group[workers.rank :: workers.count]]
        plain = {number: to_plain(result) for number, result in own}
        gathered = workers.gather((plain, time.perf_counter() - start))
        new = {number: result for part, _ in gathered for number, result in part.items()}
        journal.add({first + number: result for number, result in new.items()})
        results |= new
        position += len(group)
        slowest = max(seconds for _, seconds in gathered) / rounds
        rounds = max(1, min(4 * rounds, int(SECONDS_BETWEEN_EXCHANGES / max(slowest, 1e-6))))
        after(results)
    return [results[number] for number in range(len(batches))]


@dataclass(frozen=True)
class Run:
    r"""How the work is done.

    Args:
        batch_size: pairs of image and timestep in a batch, or images.
        seed: of all that is drawn.
        settings: what is evaluated; a journal is of these, or it is refused.
        path: of the journal, or `None`.
        workers, progress: of this run.
    """

    batch_size: int
    seed: int
    settings: dict[str, Any]
    path: Path | None
    workers: Workers
    progress: Progress

    @contextmanager
    def journal(self, **more: Any) -> Iterator[Journal]:
        r"""Refused unless it is of the same model, settings and data; who does the work may change. Nobody else may write it
        meanwhile."""
        who = settings_that_are("who")
        settings = {key: value for key, value in self.settings.items() if key not in who}
        mine = None if self.workers.rank else self.path
        settings |= {"draws_version": DRAWS_VERSION, "noise_version": NOISE_VERSION} | more
        with locked(mine, name="journal"), Journal(self.path, settings, self.workers) as journal:
            yield journal


@dataclass(frozen=True)
class Evaluation:
    r"""What is evaluated.

    Args:
        scorer: the model.
        trained: its forward process on all T steps.
        source: the images.
        method, options: the likelihood.
        config: of the report, as far as it is known beforehand.
        buffer_bytes: memory for images.
        float32_unet: of a half-precision network, the one that it was made from, or `None`.
        run: how.
    """

    scorer: Scorer
    trained: ForwardProcess
    source: Source
    method: Method
    options: dict[str, Any]
    config: dict[str, Any]
    buffer_bytes: int
    float32_unet: torch.nn.Module | None
    run: Run
