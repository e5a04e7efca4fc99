"""The command evaluate: pictures at two sizes, ways between them, figures, table and sheet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from lib_latent_upscale.architectures.compact import Compact
from lib_latent_upscale.spaces import RAW, SD15
from lib_latent_upscale.training import __main__, evaluate, evaluation, evaluation_pictures, sheets
from lib_latent_upscale.training.errors import TrainingError
from lib_latent_upscale.training.evaluation import Way
from lib_latent_upscale.training.vae import Vae
from lib_latent_upscale.weights import writing


class Blocks(Vae):
    """A VAE of 8x8 means: three channels are the colours', the fourth their mean."""

    def __init__(self) -> None:
        super().__init__(SD15, "blocks")

    def _modules(self) -> Sequence[nn.Module]:
        return []

    def _encode(
        self, pictures: Tensor, generator: Generator | Sequence[Generator] | None
    ) -> Tensor:
        colours = F.avg_pool2d(pictures, 8)
        return torch.cat([colours, colours.mean(1, keepdim=True)], 1)

    def _decode(self, latents: Tensor) -> Tensor:
        return F.interpolate(latents[:, :3], scale_factor=8)


def picture(path: Path, width: int, height: int, mode: str = "RGB") -> Path:
    generator = torch.Generator().manual_seed(width)
    coarse = torch.rand(3, 12, 12, generator=generator)
    image = sheets.as_image(F.interpolate(coarse[None], size=(height, width), mode="bicubic"))
    image.convert(mode).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures = tmp_path / "pictures"
    (pictures / "deeper").mkdir(parents=True)
    picture(pictures / "a.png", 200, 140)
    picture(pictures / "deeper" / "b.webp", 130, 300, "RGBA")
    return pictures


def pairs(folder: Path, size: int = 96, factor: float = 2) -> list[evaluation_pictures.Pair]:
    said: list[str] = []
    paths = evaluation_pictures.find_pictures(folder)
    return list(evaluation_pictures.read_pairs(paths, size, factor, said.append))


# Pictures


@pytest.mark.parametrize(
    ("size", "factor", "expected"),
    [
        (384, 2, (384, 192)),
        (384, 1.5, (384, 256)),
        (384, 1.25, (400, 320)),
        (384, 1.75, (392, 224)),
        (384, 3, (384, 128)),
        (390, 2, (384, 192)),
        (16, 2, (16, 8)),
    ],
)
def test_sides_are_multiples_of_eight(size: int, factor: float, expected: tuple[int, int]) -> None:
    assert evaluation_pictures.sides(size, factor) == expected


@pytest.mark.parametrize("factor", [1, 0.5, 1.37123])
def test_factors_that_no_sides_have(factor: float) -> None:
    with pytest.raises(TrainingError, match="factor"):
        evaluation_pictures.sides(384, factor)


def test_the_middle_is_taken_at_two_sizes(folder: Path) -> None:
    first, second = pairs(folder)
    assert (first.name, second.name) == ("a.png", "b.webp")
    assert first.large.shape == (1, 3, 96, 96)
    assert first.small.shape == (1, 3, 48, 48)
    # Brought to 7/6 of the size on its short side, then cut: the plain middle, and no more.
    whole = Image.open(folder / "a.png").resize((160, 112), Image.Resampling.LANCZOS)
    middle = sheets.as_image(first.large)
    assert middle.tobytes() == whole.crop((32, 8, 128, 104)).tobytes()


def test_cut_out_pictures_get_a_grey_ground(tmp_path: Path) -> None:
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(tmp_path / "a.png")
    (pair,) = pairs(tmp_path, 64)
    assert torch.allclose(pair.large, torch.full((1, 3, 64, 64), 160 / 255))


def test_pictures_that_cannot_be_used_are_told(folder: Path) -> None:
    picture(folder / "c.png", 90, 200)
    (folder / "d.jpg").write_bytes(b"no picture")
    said: list[str] = []
    paths = evaluation_pictures.find_pictures(folder)
    found = list(evaluation_pictures.read_pairs(paths, 96, 2, said.append))
    assert [pair.name for pair in found] == ["a.png", "b.webp"]
    assert len(said) == 2
    assert "c.png: 90x200 px is too small for 96x96" in said[0]
    assert "d.jpg: it cannot be read" in said[1]


# Figures


def test_a_perfect_way_and_bicubic(folder: Path) -> None:
    vae, found = Blocks(), pairs(folder)
    answers = iter(
        [RAW.to(SD15.unet, vae.encode(2 * pair.large - 1)) for pair in found for _ in range(2)][1:]
    )  # the first picture's twice: a way is run once before its time is taken
    first = RAW.to(SD15.unet, vae.encode(2 * found[0].large - 1))
    calls = iter([first, *answers])
    right = Way("right", lambda latent, size: next(calls))
    result = evaluation.evaluate(found, [evaluation.bicubic()], vae, 2, show=1)
    means = evaluation.evaluate(found, [right], vae, 2).means()["right"]
    assert means["psnr"] == pytest.approx(120)
    assert means["ssim"] == pytest.approx(1)
    assert means["sharpness"] == pytest.approx(1)
    assert (means["hfen"], means["l1"], means["mse"]) == (0, 0, 0)
    assert means["strength"] == means["detail_strength"] == 0
    bicubic = result.means()[evaluation.BICUBIC]
    assert 15 < bicubic["psnr"] < 60
    assert 0 < bicubic["sharpness"] < 1
    assert bicubic["l1"] > 0
    assert 1 > bicubic["strength"] >= bicubic["detail_strength"] > 0
    assert [shown.name for shown in result.shown] == ["a.png"]
    assert (result.side, result.small_side) == (96, 48)


def test_figures_are_means_over_the_pictures(folder: Path) -> None:
    result = evaluation.evaluate(pairs(folder), [evaluation.bicubic()], Blocks(), 2)
    rows = result.figures[evaluation.BICUBIC]
    assert len(rows) == 2
    assert rows[0]["psnr"] != rows[1]["psnr"]
    mean = (rows[0]["psnr"] + rows[1]["psnr"]) / 2
    assert result.means()[evaluation.BICUBIC]["psnr"] == pytest.approx(mean)


def test_through_the_picture_is_decode_resize_encode() -> None:
    vae = Blocks()
    small = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(0)) * 0.05
    result = evaluation.through_the_picture(vae).upscale(small, (8, 12))
    decoded = vae.decode(SD15.unet.to(RAW, small))
    large = F.interpolate(decoded, size=(64, 96), mode="bicubic", antialias=True)
    expected = RAW.to(SD15.unet, vae.encode(large.clamp(-1, 1)))
    assert torch.allclose(result, expected)
    assert result.shape == (1, 4, 8, 12)


def test_nothing_to_measure_on_is_an_error() -> None:
    with pytest.raises(TrainingError, match="no picture"):
        evaluation.evaluate([], [evaluation.bicubic()], Blocks(), 2)


# Sheets


def test_a_sheet_holds_its_pictures_unchanged() -> None:
    one, two = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (50, 20), "blue")
    sheet = sheets.contact_sheet(
        ["first", "a name that is much too long for its column"],
        [sheets.Row("row", [one, two], ["20.00 dB", ""]), sheets.Row("next", [two, one])],
    )
    colours = dict((colour, count) for count, colour in sheet.getcolors(1 << 20) or [])
    # 60 columns of the widest are wider than both: nothing is covered.
    assert colours[(255, 0, 0)] == 2 * 40 * 30
    assert colours[(0, 0, 255)] == 2 * 50 * 20


def test_a_row_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="row: 0 pictures, 1 columns"):
        sheets.contact_sheet(["only"], [sheets.Row("row", [])])


def test_a_sheet_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    sheets.save(Image.new("RGB", (8, 8)), path)
    before = path.read_bytes()
    with pytest.raises((OSError, ValueError, SystemError)):
        sheets.save(Image.new("F", (8, 8)), path)  # no PNG has such pixels
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# The command


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "mine.safetensors"
    weights = Compact(4, dim=4, depth=1, scale=2).to_state_dict()
    writing.write(path, weights, {"space": "sd15", "input": "raw"})
    return path


@pytest.fixture
def command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(evaluate, "open_vae", lambda *_: Blocks())
    return ["evaluate", "--pictures", str(folder), "--space", "sd15", "--vae", "a", "--size", "96"]


def test_the_command(
    command: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, sheet = tmp_path / "out" / "figures.json", tmp_path / "out" / "sheet.png"
    more = ["--models", "bundled-sd15", f"my own={model}", "--factor", "2", "1.5"]
    more += ["--json", str(out), "--sheet", str(sheet)]
    assert __main__.main([*command, *more]) == 0
    said = capsys.readouterr().out
    for text in ("x2, 48 to 96 px, 2 pictures", "x1.5, 64 to 96 px", "my own", "PSNR dB"):
        assert text in said
    content = json.loads(out.read_text())
    assert (content["space"], len(content["results"])) == ("sd15", 2)
    ways = content["results"][0]["ways"]
    assert list(ways) == [
        evaluation.BICUBIC, "bundled-sd15", "my own", evaluation.THROUGH_THE_PICTURE
    ]  # fmt: skip
    assert set(ways["my own"]["mean"]) == set(evaluation.FIGURES)
    assert len(ways["my own"]["pictures"]) == 2
    for factor in ("2", "1.5"):
        with Image.open(tmp_path / "out" / f"sheet-x{factor}.png") as image:
            assert image.width > 6 * 96
            assert image.height > 2 * 96
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "figures.json", "sheet-x1.5.png", "sheet-x2.png"
    ]  # fmt: skip


def test_without_models_those_of_the_space_that_are_here(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    models = tmp_path / "models"
    models.mkdir()
    weights = Compact(4, dim=4, depth=1, scale=2).to_state_dict()
    for space in ("sd15", "sdxl"):
        writing.write(models / f"own-{space}.safetensors", weights, {"space": space})
    monkeypatch.setenv("LATENT_UPSCALE_MODELS", str(models))
    assert __main__.main([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "model bundled-sd15" in said
    assert "model own-sd15.safetensors" in said
    assert "sdxl" not in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--models", "no-such-model"], "no such file"),
        (["--models", "sudo-dat-6x6-sd15"], "its weights are not in"),
        (["--models", "a/same", "b/same"], "two models are called same"),
        (["--factor", "1"], "a factor of 1"),
        (["--pictures", "nowhere"], "no pictures"),
        (["--size", "4096", "--models"], "no picture to evaluate on is left"),
    ],
)
def test_errors_are_one_line(
    command: list[str], more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert __main__.main([*command, *more]) == 2
    error = capsys.readouterr().err.strip().split("\n")[-1]
    assert error.startswith("evaluate: ")
    assert message in error


def test_a_model_of_another_space_is_refused(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.safetensors"
    writing.write(path, Compact(4, 4, 1, 2).to_state_dict(), {"space": "sdxl"})
    assert __main__.main([*command, "--models", str(path)]) == 2
    assert "is for SDXL latents; --space sd15 was given" in capsys.readouterr().err
