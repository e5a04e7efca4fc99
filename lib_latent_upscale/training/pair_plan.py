"""The plan of a folder of shards: which pictures are used, and in which shard each of them comes.

It is written once, whole or not at all, before anything is encoded: `FILE`, a line of JSON for the
settings and then one for each picture. What a picture told when it was looked at is kept in `SCAN`
until then, so that a run that is killed while it looks at a million of them goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from . import pictures, whole
from .errors import TrainingError
from .fingerprints import NearCopies, fingerprint
from .pair_jobs import FLAT, Cutting, jobs
from .parallel import ordered_map
from .pictures import PictureFile

FILE, SCAN, SKIPPED = "plan.jsonl", "scan.jsonl", "skipped.tsv"
_FORMAT = "latent-pairs-plan-1"
_GREY = (128, 128, 128)
_ENOUGH = 256
"""Pixels of the short side that a fingerprint is taken from."""


@dataclass(frozen=True)
class Looked:
    """What a look at a picture gave. problem: why it cannot be used, "" if it can."""

    name: str
    label: str
    path: str
    offset: int
    length: int
    changed: int
    """When the file was, in nanoseconds."""
    width: int = 0
    height: int = 0
    hash: int = 0
    mirrored: int = 0
    contrast: float = 0.0
    problem: str = ""

    @property
    def file(self) -> PictureFile:
        """The picture itself."""
        return PictureFile(self.name, self.label, Path(self.path), self.offset, self.length)


@dataclass(frozen=True)
class Choice:
    """Which of the pictures are used.

    near: bits that two pictures' hashes differ in at most if one is a near copy of the other.
    near_excluded: the same for the pictures to be kept out.
    limit, per_label: pictures at the most, in all and of each label; 0 for all.
    shard: pairs of a shard, or a few more.
    """

    near: int
    near_excluded: int
    limit: int
    per_label: int
    shard: int
    seed: int


@dataclass(frozen=True)
class Plan:
    """shards: the pictures of each. skipped: the name of a picture that is not used, and why."""

    shards: Sequence[Sequence[Looked]]
    skipped: Sequence[tuple[str, str]]
    pairs: int


def look_at_all(
    files: Iterable[PictureFile], kept: Path | None, workers: int, title: str
) -> list[Looked]:
    """Looks at every picture, several at once, with a progress bar.

    kept: the file that what was seen is kept in; None keeps nothing.
    """
    files = list(files)
    if not files:
        return []
    known = _known(kept) if kept else {}
    seen: list[Looked] = []
    sink = kept.open("a", encoding="utf-8") if kept else None
    try:
        with ThreadPoolExecutor(workers) as pool:
            looking = ordered_map(pool, lambda file: _look(file, known), files, 8 * workers)
            for looked in tqdm(looking, title, len(files), unit="picture", smoothing=0.05):
                seen.append(looked)
                if sink and _key(looked) not in known:
                    sink.write(json.dumps(asdict(looked)) + "\n")
                    sink.flush()
    finally:
        if sink:
            sink.close()
    return seen


def _look(file: PictureFile, known: Mapping[tuple[Any, ...], Looked]) -> Looked:
    try:
        changed = file.path.stat().st_mtime_ns
    except OSError:
        changed = 0
    looked = Looked(file.name, file.label, str(file.path), file.offset, file.length, changed)
    before = known.get(_key(looked))
    if before is not None:
        return replace(before, label=file.label)
    try:
        width, height = pictures.size(file)
        seen = fingerprint(pictures.read(file, _GREY, _ENOUGH))
    except pictures.UNREADABLE as error:
        return replace(looked, problem=f"unreadable: {_one_line(error)}")
    return replace(
        looked, width=width, height=height,
        hash=seen.hash, mirrored=seen.mirrored, contrast=round(seen.contrast, 2),
    )  # fmt: skip


def _key(looked: Looked) -> tuple[Any, ...]:
    return looked.name, looked.path, looked.offset, looked.length, looked.changed


def _known(path: Path) -> dict[tuple[Any, ...], Looked]:
    """What was seen before; a last line that was cut short by a kill is taken off the file."""
    if not path.is_file():
        return {}
    whole = path.read_bytes()
    lines = whole[: whole.rfind(b"\n") + 1]
    if len(lines) != len(whole):
        os.truncate(path, len(lines))
    try:
        seen = [Looked(**json.loads(line)) for line in lines.splitlines()]
    except (ValueError, TypeError) as error:
        raise TrainingError(f"{path} is damaged ({error}); delete it") from error
    return {_key(looked): looked for looked in seen}


def choose(
    looked: Sequence[Looked], excluded: Sequence[Looked], choice: Choice, cutting: Cutting
) -> Plan:
    """Which pictures are used, in an order that the seed gives, and in which shards."""
    skipped: list[tuple[str, str]] = []
    usable = []
    for one in looked:
        if one.problem:
            skipped.append((one.name, one.problem))
        elif not jobs(one.name, (one.width, one.height), cutting):
            skipped.append((one.name, f"too small: {one.width}x{one.height} pixels"))
        elif one.contrast < FLAT:
            skipped.append((one.name, "plain: it shows next to nothing"))
        else:
            usable.append(one)
    usable = _without_copies(usable, excluded, choice, skipped)
    usable.sort(key=lambda one: hashlib.sha256(f"{choice.seed}/{one.name}".encode()).digest())
    used: list[Looked] = []
    of_label: Counter[str] = Counter()
    for one in usable:
        if choice.per_label and of_label[one.label] >= choice.per_label:
            skipped.append((one.name, f"beyond the {choice.per_label} of its label"))
        elif choice.limit and len(used) >= choice.limit:
            skipped.append((one.name, f"beyond the limit of {choice.limit}"))
        else:
            of_label[one.label] += 1
            used.append(one)
    shards, pairs = _in_shards(used, choice, cutting)
    return Plan(shards, skipped, pairs)


def _without_copies(
    usable: list[Looked],
    excluded: Sequence[Looked],
    choice: Choice,
    skipped: list[tuple[str, str]],
) -> list[Looked]:
    """Of pictures that are near copies of each other, the largest; of excluded ones, none."""
    kept_out, kept = NearCopies(choice.near_excluded), NearCopies(choice.near)
    for one in excluded:
        if not one.problem:
            kept_out.add(one.hash, one.name)
            kept_out.add(one.mirrored, one.name)
    chosen = []
    for one in sorted(usable, key=lambda one: (-one.width * one.height, one.name)):
        if other := kept_out.find(one.hash):
            skipped.append((one.name, f"near excluded: a copy of {other}"))
        elif other := kept.find(one.hash):
            skipped.append((one.name, f"near copy: of {other}"))
        else:
            kept.add(one.hash, one.name)
            chosen.append(one)
    return chosen


def _in_shards(
    used: Sequence[Looked], choice: Choice, cutting: Cutting
) -> tuple[list[list[Looked]], int]:
    shards: list[list[Looked]] = []
    room = total = 0
    for one in used:
        if room <= 0:
            shards.append([])
            room = choice.shard
        shards[-1].append(one)
        count = len(jobs(one.name, (one.width, one.height), cutting))
        room -= count
        total += count
    return shards, total


def write(folder: Path, settings: Mapping[str, Any], plan: Plan) -> None:
    """Writes a plan and, before it, the list of the pictures that it leaves out."""
    lines = "".join(f"{name}\t{why}\n" for name, why in plan.skipped)
    _write(folder / SKIPPED, [lines])
    _write(folder / FILE, _plan_lines(settings, plan))
    (folder / SCAN).unlink(missing_ok=True)


def _plan_lines(settings: Mapping[str, Any], plan: Plan) -> Iterator[str]:
    head = {"format": _FORMAT, "pairs": plan.pairs, "settings": settings}
    yield json.dumps(head) + "\n"
    for number, shard in enumerate(plan.shards):
        for one in shard:
            yield json.dumps({"shard": number, **asdict(one)}) + "\n"


def read(folder: Path, settings: Mapping[str, Any]) -> Plan | None:
    """The plan of a folder, or None if it has none.

    Raises `TrainingError` if it was made with other settings.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        head, *pictures_of = [json.loads(line) for line in lines]
        if head["format"] != _FORMAT:
            raise ValueError(f"it is {head['format']}, not {_FORMAT}")
        shards: list[list[Looked]] = []
        for one in pictures_of:
            number = one.pop("shard")
            if number == len(shards):
                shards.append([])
            shards[number].append(Looked(**one))
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise TrainingError(f"{path} is damaged ({error}); choose another folder") from error
    before, now = head["settings"], json.loads(json.dumps(dict(settings)))
    other = [
        f"{key}: {before.get(key)} before, {now.get(key)} now"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]
    if other:
        raise TrainingError(
            f"{folder} was begun with other settings ({'; '.join(other)}). Give the same again to "
            "go on, or choose another folder"
        )
    return Plan(shards, (), head["pairs"])


def _write(path: Path, parts: Iterable[str]) -> None:
    with whole.replacing(path) as part, part.open("w", encoding="utf-8") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
