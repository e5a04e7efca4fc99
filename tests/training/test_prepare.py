"""prepare: from folders of pictures to shards, whatever the pictures and whenever it is killed."""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import random
import signal
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file

from lib_latent_upscale.spaces import SD15
from lib_latent_upscale.training import codecs, pair_making, pair_plan, prepare, shards
from lib_latent_upscale.training.errors import TrainingError
from lib_latent_upscale.training.pictures import to_range
from lib_latent_upscale.training.shards import ShardReader
from lib_latent_upscale.training.stream import PairStream
from lib_latent_upscale.training.vae import open_vae

pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.fixture(scope="module")
def single_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def shapes(seed: int, width: int = 192, height: int = 176) -> Image.Image:
    """A picture with something in it, of its own."""
    small = np.random.default_rng(seed).integers(0, 256, (9, 10, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(0)
    paths = folder / "encoder.safetensors", folder / "decoder.safetensors"
    save_file(codecs.Encoder(4, 4).state_dict(), paths[0])
    save_file(codecs.Decoder(4, 4).state_dict(), paths[1])
    return paths


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("set")
    for number in range(6):
        (root / f"label{number % 2}").mkdir(exist_ok=True)
        shapes(number).save(root / f"label{number % 2}" / f"{number}.png")
    return root


Run = Callable[..., ShardReader]


def options_of(vae: tuple[Path, Path], inputs: object, out: Path, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    prepare.add_arguments(parser)
    paths = inputs if isinstance(inputs, list) else [inputs]
    return parser.parse_args([
        *map(str, paths), "--out", str(out), "--vae", str(vae[0]), "--space", "sd15",
        "--crop", "6", "--crops", "2", "--margin", "1", "--device", "cpu", "--workers", "2",
        "--sheet", "0", "--shard-size", "4", "--batch", "2", *more,
    ])  # fmt: skip


@pytest.fixture
def run(vae: tuple[Path, Path], tmp_path: Path) -> Run:
    def run(inputs: object, *more: str, out: str = "out") -> ShardReader:
        assert prepare.run(options_of(vae, inputs, tmp_path / out, *more)) == 0
        return ShardReader(tmp_path / out)

    return run


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("pairs*"))}


def test_pairs_are_raw_latents_of_the_same_crop(
    run: Run, folder: Path, vae: tuple[Path, Path], tmp_path: Path
) -> None:
    reader = run(folder, "--crop", "0", "--dtype", "float32")
    assert len(reader) == 6
    assert reader.labels == ("label0", "label1")
    for index in range(6):
        source = reader.source(index)
        assert source.label == source.picture.split("/")[1]
        picture = Image.open(folder.parent / source.picture)
        small, large = reader.pair(index)
        # 192x176 pixels are 24x22 latent pixels; a margin of the small latent is 2 of them, of
        # which the large latent needs one.
        assert (large.shape, small.shape) == ((4, 18, 20), (4, 9, 10))
        for latent, size in ((large, picture.size), (small, (96, 88))):
            resized = np.array(picture.resize(size, Image.Resampling.LANCZOS))
            pixels = to_range(torch.from_numpy(resized).permute(2, 0, 1))
            if latent is large:
                pixels = pixels[:, 8:-8, 8:-8]
            inside = open_vae(vae[0], SD15).encode(pixels[None])[0, :, 1:-1, 1:-1]
            torch.testing.assert_close(latent, inside, atol=2e-4, rtol=1e-3)
    about = json.loads((tmp_path / "out/pairs.json").read_text())
    assert about["pairs"] == 6
    assert about["labels"] == {"label0": 3, "label1": 3}
    assert about["settings"]["margin"] == 1


def test_several_factors_and_flips(run: Run, folder: Path) -> None:
    reader = run(folder, "--factor", "1.25", "2", "--flip", "--limit", "2")
    factors = [str(reader.sizes(index).factor) for index in range(len(reader))]
    assert factors == ["5/4", "5/4", "2", "2"] * (len(reader) // 4)
    small = [reader.sizes(index).small for index in range(len(reader))]
    assert set(small) == {(6, 6), (8, 8)}
    assert not torch.equal(reader.pair(0)[0], reader.pair(1)[0])


def test_a_range_of_factors_is_made_and_streamed(run: Run, folder: Path) -> None:
    reader = run(folder, "--factor", "1..1.2", "--crop", "0")
    sizes = [reader.sizes(index) for index in range(len(reader))]
    assert {str(size.factor) for size in sizes} <= {"17/16", "9/8", "19/16"}
    for step in range(4):
        batch = PairStream(reader, crop=16, batch=2, seed=0).batch(step)
        assert batch.small.shape[-1] == 16
        assert batch.large.shape[-1] in (17, 18, 19)


def test_a_dry_run_says_what_would_be_and_writes_nothing(
    vae: tuple[Path, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more/text.png").write_text("no picture")
    options = options_of(vae, [folder, tmp_path / "more"], tmp_path / "out", "--dry-run")
    assert prepare.run(options) == 0
    said = capsys.readouterr().out
    assert "6 pictures, 12 pairs of SD1.5 latents at factor 2, 3 shards" in said
    assert "1 unreadable" in said
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_used_is_listed(run: Run, folder: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "text.png").write_text("no picture")
    whole = io.BytesIO()
    shapes(100).save(whole, "PNG")
    (odd / "short.png").write_bytes(whole.getvalue()[:2000])
    Image.new("RGB", (200, 200), "red").save(odd / "plain.png")
    shapes(101, 60, 60).save(odd / "small.png")
    shapes(0).resize((150, 135)).save(odd / "copy.jpg")
    reader = run([folder, odd])
    assert {reader.source(i).picture.split("/")[0] for i in range(len(reader))} == {folder.name}
    lines = (tmp_path / "out/skipped.tsv").read_text().splitlines()
    reasons = dict(line.split("\t") for line in lines)
    assert reasons.pop("odd/text.png").startswith("unreadable")
    assert reasons.pop("odd/short.png").startswith("unreadable")
    assert reasons.pop("odd/plain.png").startswith("plain")
    assert reasons.pop("odd/small.png").startswith("too small: 60x60")
    assert reasons.pop("odd/copy.jpg") == f"near copy: of {folder.name}/label0/0.png"
    assert not reasons


def test_no_copy_of_an_excluded_picture_gets_in(run: Run, folder: Path, tmp_path: Path) -> None:
    for name, picture in (
        ("mirrored.png", ImageOps.mirror(shapes(1))),
        ("smaller.jpg", shapes(2).resize((90, 81))),
        ("other.png", shapes(50)),
    ):
        (tmp_path / "measured").mkdir(exist_ok=True)
        picture.save(tmp_path / "measured" / name)
    reader = run(folder, "--exclude", str(tmp_path / "measured"))
    used = {reader.source(i).picture for i in range(len(reader))}
    assert {Path(name).stem for name in used} == {"0", "3", "4", "5"}
    assert (
        "near excluded: a copy of measured/mirrored.png"
        in (tmp_path / "out/skipped.tsv").read_text()
    )


def test_limits_choose_by_the_seed(run: Run, folder: Path) -> None:
    chosen = {}
    for name, more in {
        "a": ["--limit", "3"], "b": ["--limit", "3", "--seed", "1"],
        "c": ["--limit", "3", "--seed", "2"], "d": ["--per-label", "1"],
    }.items():  # fmt: skip
        reader = run(folder, *more, out=name)
        chosen[name] = frozenset(reader.source(i).picture for i in range(len(reader)))
    assert [len(chosen[name]) for name in "abcd"] == [3, 3, 3, 2]
    assert len({chosen["a"], chosen["b"], chosen["c"]}) > 1
    assert {Path(name).parent.name for name in chosen["d"]} == {"label0", "label1"}


def test_a_tar_gives_what_its_folder_gives(run: Run, folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for path in sorted(folder.rglob("*.png")):
            tar.add(path, path.relative_to(folder).as_posix())
    # Places are drawn by the pictures' names, in which the tar stands: whole pictures have none.
    one = run(folder, "--crop", "0", out="a")
    other = run(tmp_path / "set.tar", "--crop", "0", out="b")
    assert one.labels == other.labels

    def latents(reader: ShardReader) -> list[tuple[str, bytes]]:
        return sorted(
            (Path(reader.source(i).picture).name, reader.pair(i)[1].numpy().tobytes())
            for i in range(len(reader))
        )

    assert latents(one) == latents(other)


def test_a_picture_that_is_gone_by_then_is_passed_over(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {"name": ""}
    load = pair_making.Maker._load

    def gone(self: Any, looked: pair_plan.Looked) -> Any:
        if looked.name.endswith("/3.png"):
            broken["name"] = looked.name
            looked = pair_plan.replace(looked, path="nowhere.png")
        return load(self, looked)

    monkeypatch.setattr(pair_making.Maker, "_load", gone)
    reader = run(folder)
    assert len(reader) == 10
    assert f"{broken['name']}\tunreadable by now" in (tmp_path / "out/skipped.tsv").read_text()


MOMENTS = {
    "the third look": (pair_plan, "_look", 3),
    "the plan's last rename": (pair_plan.os, "replace", 2),
    "the first encoding": (pair_making.Maker, "_encode", 1),
    "the first shard's rename": (pair_plan.os, "replace", 3),
    "the fifth encoding": (pair_making.Maker, "_encode", 5),
    "the last shard's writing": (shards, "save_file", 3),
    "the index's rename": (pair_plan.os, "replace", 6),
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no such signal")
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_any_moment_it_ends_with_the_same_files(
    run: Run, vae: tuple[Path, Path], folder: Path, tmp_path: Path, moment: str
) -> None:
    run(folder, out="whole")
    # Not forked off this process: its threads, and what they hold, would not go along.
    child = multiprocessing.get_context("forkserver").Process(
        target=prepare_until, args=(moment, options_of(vae, folder, tmp_path / "out"))
    )
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    before = files(tmp_path / "out")
    run(folder)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert len(files(tmp_path / "whole")) == 4
    for kept in before:
        assert before[kept] == files(tmp_path / "whole").get(kept, before[kept])
    assert not list((tmp_path / "out").glob("*.part"))


def prepare_until(moment: str, options: argparse.Namespace) -> None:
    """Prepares, in a process that is killed at that moment."""
    torch.set_num_threads(1)
    where, name, count = MOMENTS[moment]
    setattr(where, name, killing(getattr(where, name), count))
    prepare.run(options)


def killing(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """The function, but its call number `count` ends the process before it is made."""
    calls = iter(range(1, 10_000))

    def call(*given: Any, **named: Any) -> Any:
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*given, **named)

    return call


def test_finished_shards_are_not_made_again(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(folder)
    before = files(tmp_path / "out")
    monkeypatch.setattr(pair_making.Maker, "make", None)
    run(folder)
    assert files(tmp_path / "out") == before


def test_a_torn_line_of_the_scan_is_taken_off(
    run: Run, vae: tuple[Path, Path], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pair_plan, "choose", stopped)
        assert prepare.run(options_of(vae, folder, tmp_path / "out")) == 130
    scan = tmp_path / "out" / pair_plan.SCAN
    scan.write_bytes(scan.read_bytes()[:-30])
    looked = []
    look = pair_plan.fingerprint
    monkeypatch.setattr(pair_plan, "fingerprint", lambda one: looked.append(one) or look(one))
    run(folder)
    assert len(looked) == 1
    monkeypatch.undo()
    run(folder, out="whole")
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert not scan.exists()


def test_other_settings_do_not_mix_with_what_is_there(run: Run, folder: Path) -> None:
    run(folder)
    with pytest.raises(TrainingError, match=r"other settings \(margin: 1 before, 2 now\)"):
        run(folder, "--margin", "2")
    run(folder, "--workers", "1")  # of which the shards do not depend


def test_the_sheet_and_the_check(
    run: Run, vae: tuple[Path, Path], folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run(folder, "--decoder", str(vae[1]), "--sheet", "3")
    with Image.open(tmp_path / "out/pairs.png") as sheet:
        assert min(sheet.size) > 96
    # A VAE of random weights: its latents are nothing like those of SD1.5.
    assert "not those of raw SD1.5 latents" in capsys.readouterr().out
    (tmp_path / "out/pairs.png").unlink()
    options = options_of(vae, [], tmp_path / "out", "--check", "--decoder", str(vae[1]))
    options.sheet = 2
    assert prepare.run(options) == 1
    assert (tmp_path / "out/pairs.png").is_file()


@pytest.mark.parametrize(
    ("more", "message"),
    [(["--factor", "1.33"], "take 4/3"), (["--scales", "2"], "not enlarged"),
     (["--batch", "0"], "--batch is 1 or more"), (["--backing", "odd"], "backing odd"),
     (["--near", "63"], "less than 63"), (["--space", "flux"], "4 channels, but FLUX's have 16"),
     (["--device", "cuda:77"], "--device cuda:77"), (["--crop", "90"], "12? too small|6 too small"),
     (["--vae", "nothing.pt"], "no such file")],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_is_written(
    run: Run, folder: Path, tmp_path: Path, more: list[str], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        run(folder, *more)
    assert not list(tmp_path.glob("out/*.safetensors"))
    assert not list(tmp_path.glob("out/plan*"))


def test_empty_and_missing_inputs(run: Run, vae: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingError, match="no pictures"):
        run(tmp_path / "empty")
    with pytest.raises(TrainingError, match="no such folder"):
        run(tmp_path / "nothing")
    with pytest.raises(TrainingError, match="PICTURES is missing"):
        run([])
    with pytest.raises(TrainingError, match="is a decoder"):
        run(tmp_path, "--vae", str(vae[1]))


def test_two_do_not_work_in_one_folder(run: Run, folder: Path, tmp_path: Path) -> None:
    run(folder)
    with (
        prepare.FileLock(str(tmp_path / "out/prepare.lock")),
        pytest.raises(TrainingError, match="another prepare"),
    ):
        run(folder)


def test_random_places_do_not_hang_on_the_global_generators(run: Run, folder: Path) -> None:
    one = run(folder, out="a")
    random.seed(5)
    torch.manual_seed(99)
    other = run(folder, out="b")
    assert torch.equal(one.pair(0)[1], other.pair(0)[1])
