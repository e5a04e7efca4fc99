"""Files that the user put into a folder of models: what they are, and what cannot be used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import lib_latent_upscale
from lib_latent_upscale.architectures.city96 import City96
from lib_latent_upscale.architectures.compact import Compact
from lib_latent_upscale.catalog import CATALOG, Entry
from lib_latent_upscale.spaces import FLUX, RAW, SD3, SD15, SDXL, LatentScale
from lib_latent_upscale.weights import converting, files, hand_placed
from lib_latent_upscale.weights.reading import space_of_name

from . import published

SWINFIR = CATALOG["sudo-swinfir-4x6-sd15"]


def compact(channels: int = 4, scale: int = 2) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return Compact(channels, dim=4, depth=1, scale=scale).to_state_dict()


def city96() -> dict[str, Tensor]:
    """A network whose weights do not show its factor."""
    torch.manual_seed(0)
    return City96(channels=4, dim=4, depth=1, scale=2).to_state_dict()


def place(
    path: Path,
    weights: Mapping[str, Tensor] | None = None,
    metadata: dict[str, str] | None = None,
    beside: Any = None,
) -> Path:
    """Writes a file of weights, and a sidecar file with what is `beside` it."""
    weights = dict(compact() if weights is None else weights)
    if path.suffix == ".safetensors":
        save_file(weights, path, metadata)
    else:
        torch.save(weights, path)
    if beside is not None:
        path.with_suffix(".json").write_text(
            beside if isinstance(beside, str) else json.dumps(beside), encoding="utf-8"
        )
    return path


def the_entry(folder: Path) -> Entry:
    found = hand_placed.scan([folder])
    assert found.problems == ()
    assert len(found.entries) == 1
    return found.entries[0]


def the_problem(folder: Path) -> str:
    found = hand_placed.scan([folder])
    assert found.entries == ()
    assert len(found.problems) == 1
    return found.problems[0]


# What a file is


@pytest.mark.parametrize(
    ("model", "architecture", "factor"),
    [
        ("SwinFIR4x6", "swinfir", 2),
        ("CRAFT7x6", "craft", 2),
        ("DAT6x6", "dat", 2),
        ("DRCT12x6", "drct", 2),
        ("DRCTFIR12x6", "drct", 2),
        ("ttl", "ttl", None),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_the_architecture_is_found(
    tmp_path: Path, model: str, architecture: str, factor: float | None, suffix: str
) -> None:
    path = place(tmp_path / f"my {model} sdxl{suffix}", published.small_state_dict(model))
    entry = the_entry(tmp_path)
    assert (entry.architecture, entry.factor, entry.space) == (architecture, factor, SDXL)
    assert entry.id == path.name
    assert entry.label == f"Latent (my {model} sdxl)"
    assert entry.file.size == path.stat().st_size
    assert entry.file.url is None
    assert (entry.licence, entry.input_scale) == ("unknown", RAW)
    assert files.find(entry, [tmp_path]) == path


@pytest.mark.parametrize(
    ("name", "space"),
    [
        ("my-upscaler_sdxl", "sdxl"),
        ("SwinFIR4x6_mse_64k_sdxl", "sdxl"),
        ("latent-upscaler-v2.1_SDxl-x1.5", "sdxl"),
        ("latent_xl_v2", "sdxl"),
        ("sd_xl_base_1.0_up", "sdxl"),
        ("SDXL1.0-up", "sdxl"),
        ("sdxl_1.5", "sdxl"),
        ("my_sdxl.100k", "sdxl"),
        ("foo-sd15", "sd15"),
        ("SD1.5 upscaler", "sd15"),
        ("bar-1.5", "sd15"),
        ("SwinFIR4x6_mse_200k_1.5", "sd15"),
        ("latent-upscaler-v2.1_SDv1-x2.0", "sd15"),
        ("sd-v1-5-up", "sd15"),
        ("sd15_x1.5", "sd15"),
        ("1.5-x2", "sd15"),
        ("flux-dev-up", "flux"),
        ("flux1-dev", "flux"),
        ("FLUX.1-schnell_up", "flux"),
        ("flux-2x", "flux"),
        ("sd3.5-thing", "sd3"),
        ("sd35_large", "sd3"),
        ("SD_3_medium", "sd3"),
        # Names that tell nothing: a factor, a number of steps, the upscaler's own version, ...
        ("upscaler", None),
        ("fluxion", None),
        ("flux2-dev", None),
        ("FLUX.2-dev", None),
        ("latent-x1.5", None),
        ("latent-x-1.5", None),
        ("latent_1.5x", None),
        ("latent-1.5-x", None),
        ("latent_scale_1.5", None),
        ("latent-x1.50", None),
        ("15k", None),
        ("upscaler_15", None),
        ("upscaler-v1", None),
        ("upscaler-v1.5", None),
        ("upscaler-1.5.2", None),
        ("upscaler-2.1.5", None),
        ("loss-0.15", None),
        ("excel", None),
        ("pixels", None),
        ("sd150", None),
        ("sd30k", None),
        ("wisd3", None),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_the_space_that_a_name_tells(name: str, space: str | None, suffix: str) -> None:
    assert space_of_name(name + suffix) == space


@pytest.mark.parametrize(
    ("name", "metadata", "beside", "space"),
    [
        ("a-sd15", None, None, SD15),
        ("a-sd15", {"space": "sdxl"}, None, SDXL),
        ("a", {"space": "sdxl"}, None, SDXL),
        ("a", None, {"space": "sdxl"}, SDXL),
        ("a-sd15", {"space": "sd15"}, {"space": "sdxl"}, SDXL),
        ("a-sd15", None, {"space": "sdxl", "note": ["anything", 1]}, SDXL),
    ],
)
def test_the_sidecar_goes_over_the_metadata_over_the_name(
    tmp_path: Path,
    name: str,
    metadata: dict[str, str] | None,
    beside: Mapping[str, str] | None,
    space: Any,
) -> None:
    path = place(tmp_path / f"{name}.safetensors", metadata=metadata, beside=beside)
    assert the_entry(tmp_path).space is space
    assert lib_latent_upscale.load(path).space is space


@pytest.mark.parametrize(("name", "space"), [("a-sd3", SD3), ("a-flux", FLUX)])
def test_latents_of_sixteen_channels(tmp_path: Path, name: str, space: Any) -> None:
    path = place(tmp_path / f"{name}.safetensors", compact(channels=16))
    assert the_entry(tmp_path).space is space
    result = lib_latent_upscale.load(path)(torch.zeros(1, 16, 8, 8), (16, 16))
    assert result.shape == (1, 16, 16, 16)


def test_the_factor_that_the_weights_do_not_show_is_told(tmp_path: Path) -> None:
    path = place(tmp_path / "a-sd15.pth", city96(), beside={"scale": 1.5, "input": "unet"})
    entry = the_entry(tmp_path)
    assert (entry.factor, entry.input_scale) == (1.5, SD15.unet)
    up = lib_latent_upscale.load(path)
    assert (up.network.scale, up.input_scale) == (1.5, SD15.unet)


def test_what_the_weights_show_cannot_be_told_otherwise(tmp_path: Path) -> None:
    beside = {"scale": 3, "dim": 10**9, "depth": 10**9, "channels": 16}
    path = place(tmp_path / "a-sd15.safetensors", beside=beside)
    assert the_entry(tmp_path).factor == 2
    assert lib_latent_upscale.load(path).network.scale == 2


def test_windows_that_the_weights_do_not_show_are_told(tmp_path: Path) -> None:
    weights = published.small_state_dict("DAT6x6")
    path = place(tmp_path / "a-sd15.safetensors", weights, {"split_size": "[8, 8]"})
    assert the_entry(tmp_path).hyperparameters == {"split_size": (8, 8)}
    told = lib_latent_upscale.load(path)
    default = lib_latent_upscale.load(place(tmp_path / "b-sd15.safetensors", weights))
    latent = torch.randn(1, 4, 16, 32, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(told(latent, (32, 64)), default(latent, (32, 64)))


def test_what_is_said_of_licence_and_source_is_kept(tmp_path: Path) -> None:
    metadata = {"licence": "MIT,\n" + "x" * 1000, "source": "https://example.org"}
    place(tmp_path / "a-sd15.safetensors", metadata=metadata)
    entry = the_entry(tmp_path)
    assert entry.licence.startswith("MIT  x")
    assert len(entry.licence) == 40
    assert entry.source == "https://example.org"


def test_a_converted_published_file_under_another_name_is_known(tmp_path: Path) -> None:
    entry = CATALOG["ttl-sd15"]
    source, path = tmp_path / "source.pt", tmp_path / "models" / "renamed.safetensors"
    path.parent.mkdir()
    torch.save(published.state_dict("ttl"), source)
    converting.convert(entry, source, path, "0" * 64)
    found = the_entry(path.parent)
    assert (found.space, found.input_scale) == (entry.space, entry.input_scale)
    assert (found.licence, found.id) == (entry.licence, "renamed.safetensors")
    assert lib_latent_upscale.load(path).entry is entry


def test_the_file_upscales_as_its_network_does(tmp_path: Path) -> None:
    path = place(tmp_path / "a-sdxl.pth", beside={"input": "unet"})
    latent = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    network = Compact(4, dim=4, depth=1, scale=2)
    network.load_state_dict(compact())
    with torch.no_grad():
        expected = network(latent)
    assert torch.allclose(lib_latent_upscale.load(path)(latent, (16, 24)), expected, atol=1e-6)
    path.with_suffix(".json").unlink()  # raw latents, then
    assert not torch.allclose(lib_latent_upscale.load(path)(latent, (16, 24)), expected, atol=1e-3)


def test_a_trained_file_says_all_of_itself(tmp_path: Path) -> None:
    told = {"space": "sdxl", "input": "0.13025", "label": "Sharp, 2x: mine", "factor": "2"}
    path = place(tmp_path / "anything.safetensors", metadata={**told, "architecture": "compact"})
    entry = the_entry(tmp_path)
    assert entry.label == "Latent (Sharp  2x  mine)"
    assert (entry.space, entry.input_scale) == (SDXL, LatentScale(0.13025))
    assert lib_latent_upscale.load(path).input_scale == LatentScale(0.13025)


def test_another_authors_architecture_is_no_lie(tmp_path: Path) -> None:
    place(tmp_path / "a-sd15.safetensors", metadata={"architecture": "stable-diffusion-xl-v1"})
    assert the_entry(tmp_path).architecture == "compact"


@pytest.mark.parametrize(
    ("label", "shown"), [("", "a-sd15"), (",:\n", "a-sd15"), ("x" * 99, "x" * 60)]
)
def test_a_label_that_cannot_be_shown(tmp_path: Path, label: str, shown: str) -> None:
    place(tmp_path / "a-sd15.safetensors", metadata={"label": label})
    assert the_entry(tmp_path).label == f"Latent ({shown})"


# What cannot be used


@pytest.mark.parametrize(
    ("name", "beside", "message"),
    [
        ("a", None, 'Write {"space": "sdxl"} into a file a.json beside it, or name it a-sdxl.'),
        ("a-x1.5", None, "nothing tells which latent space"),
        ("a", {"space": "sdxll"}, "'sdxll' is no latent space known here"),
        ("a", {"space": ["sdxl"]}, "is no latent space known here"),
        ("a-sd15", {"space": "sdxll"}, "'sdxll' is no latent space known here"),
        ("a-flux", None, "takes latents of 4 channels; those of FLUX have 16"),
        ("a-sd15", {"input": "UNet"}, '"raw", "unet" or a scaling factor such as 0.13025, not '),
        ("a-sd15", {"input": "nan"}, "not 'nan'"),
        ("a-sd15", {"input": -0.13}, "not '-0.13'"),
        ("a-sd15", {"input": 1e9}, "not '1000000000.0'"),
        ("a-sd15", {"architecture": "dat"}, "say dat, but its weights are of compact"),
        ("a-sd15", {"factor": 3}, "its factor is '3', but its weights are of a network for 2"),
        ("a-sd15", {"factor": "any"}, "its factor is 'any'"),
        ("a-sd15", {"factor": [2]}, "its factor is '[2]'"),
        ("a-sd15", "space: sdxl", "a-sd15.json is to be a JSON object"),
        ("a-sd15", ["sdxl"], "a-sd15.json is to be a JSON object"),
        ("a-sd15", "", "a-sd15.json is to be a JSON object"),
        ("a-sd15", "[" * 100_000, "a-sd15.json is to be a JSON object"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_problems_say_what_to_do(
    tmp_path: Path, name: str, beside: Any, message: str, suffix: str
) -> None:
    place(tmp_path / f"{name}{suffix}", beside=beside)
    problem = the_problem(tmp_path)
    assert str(tmp_path / name) in problem
    assert message in problem
    assert "\n" not in problem


@pytest.mark.parametrize(
    "scale", [None, "two", -2, 0, 1, 1e9, [2], True, "[" * 10_000, float("nan"), float("inf")]
)
def test_a_factor_that_cannot_be_is_refused(tmp_path: Path, scale: Any) -> None:
    place(tmp_path / "a-sd15.safetensors", city96(), beside={"scale": scale})
    assert "'scale'" in the_problem(tmp_path)


@pytest.mark.parametrize("sides", [8, [8], [8, 0], [8, -8], [8, 8.0], [8, 8, 8], [8, 10**6], "8,8"])
def test_windows_that_cannot_be_are_refused(tmp_path: Path, sides: Any) -> None:
    weights = published.small_state_dict("DAT6x6")
    place(tmp_path / "a-sd15.safetensors", weights, beside={"split_size": sides})
    assert "'split_size'" in the_problem(tmp_path)


def test_a_factor_that_nothing_tells_is_asked_for(tmp_path: Path) -> None:
    place(tmp_path / "a-sd15.safetensors", city96())
    assert "do not show 'scale'" in the_problem(tmp_path)


def test_weights_of_no_upscaler_are_refused(tmp_path: Path) -> None:
    place(tmp_path / "lora-sdxl.safetensors", {"lora_up.weight": torch.ones(2)})
    assert "no weights of a latent upscaler known here" in the_problem(tmp_path)


def test_one_bad_file_does_not_hide_the_others(tmp_path: Path) -> None:
    (tmp_path / "a-sd15.safetensors").write_bytes(b"<html>")
    place(tmp_path / "b-sd15.safetensors")
    (tmp_path / "c-sd15.pth").write_bytes(b"")
    found = hand_placed.scan([tmp_path])
    assert [entry.id for entry in found.entries] == ["b-sd15.safetensors"]
    assert len(found.problems) == 2


# Names


@pytest.mark.parametrize(
    ("stem", "label"),
    [
        ("a,b: c sd15", "Latent (a b  c sd15)"),
        ('say "sd15"', "Latent (say  sd15)"),
        ("back\\slash sd15", "Latent (back slash sd15)"),
        ("two\nlines\r sd15\u2028", "Latent (two lines  sd15)"),
        ("Ümläut 超分 sd15", "Latent (Ümläut 超分 sd15)"),
    ],
)
def test_labels_can_be_written_into_pictures(tmp_path: Path, stem: str, label: str) -> None:
    path = place(tmp_path / f"{stem}.safetensors")
    entry = the_entry(tmp_path)
    assert entry.label == label
    assert entry.id == path.name


def test_of_two_files_with_one_stem_the_safer_one_is_taken(tmp_path: Path) -> None:
    for suffix in (".pt", ".pth", ".safetensors"):
        place(tmp_path / f"a-sd15{suffix}")
    assert the_entry(tmp_path).id == "a-sd15.safetensors"


def test_of_two_folders_the_first_one_counts(tmp_path: Path) -> None:
    for folder, scale in (("first", 2), ("second", 3)):
        (tmp_path / folder).mkdir()
        place(tmp_path / folder / "a-sd15.safetensors", compact(scale=scale))
    folders = [tmp_path / "first", tmp_path / "second"]
    (entry,) = hand_placed.scan(folders).entries
    assert entry.factor == 2
    assert files.find(entry, folders).parent.name == "first"


def test_two_files_with_one_label_are_told(tmp_path: Path) -> None:
    place(tmp_path / "a b sd15.safetensors")
    place(tmp_path / "a,b sd15.safetensors")
    found = hand_placed.scan([tmp_path])
    assert [entry.id for entry in found.entries] == ["a b sd15.safetensors"]
    assert "there is another Latent (a b sd15); rename the file" in found.problems[0]


def test_a_label_of_the_catalogue_is_not_taken_over(tmp_path: Path) -> None:
    place(tmp_path / "SwinFIR 4x6.safetensors", beside={"space": "sd15"})
    assert "there is another Latent (SwinFIR 4x6); rename the file" in the_problem(tmp_path)


def test_two_files_that_call_themselves_the_same_are_told(tmp_path: Path) -> None:
    for name in ("a-sd15", "b-sd15"):
        place(tmp_path / f"{name}.safetensors", metadata={"label": "mine"})
    problem = hand_placed.scan([tmp_path]).problems[0]
    assert "b-sd15.safetensors: there is another Latent (mine)" in problem
    assert '"label" in a file b-sd15.json beside it' in problem
    place(tmp_path / "b-sd15.safetensors", metadata={"label": "mine"}, beside={"label": "yours"})
    assert [one.label for one in hand_placed.scan([tmp_path]).entries] == [
        "Latent (mine)",
        "Latent (yours)",
    ]


def test_published_files_are_no_hand_placed_ones(tmp_path: Path) -> None:
    for entry in CATALOG.values():
        for name in entry.file.local_names:
            (tmp_path / name).touch()
    assert hand_placed.scan([tmp_path]) == hand_placed.HandPlaced((), ())


def test_other_files_and_what_is_under_way_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".fetching").mkdir()
    place(tmp_path / ".fetching" / "a-sd15.safetensors")
    for name in ("README.md", "hashes.json", "a-sd15.ckpt", "a-sd15.safetensors.part", "a.onnx"):
        (tmp_path / name).touch()
    assert hand_placed.scan([tmp_path]) == hand_placed.HandPlaced((), ())


def test_endings_in_capitals_count(tmp_path: Path) -> None:
    shutil.move(place(tmp_path / "a-sd15.safetensors"), tmp_path / "A-SD15.SAFETENSORS")
    entry = the_entry(tmp_path)
    assert lib_latent_upscale.load(files.find(entry, [tmp_path])).space is SD15


def test_a_missing_folder_has_no_files(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    place(tmp_path / "a-sd15.safetensors")
    found = hand_placed.scan([tmp_path / "nowhere", tmp_path / "file", tmp_path])
    assert [entry.id for entry in found.entries] == ["a-sd15.safetensors"]


def test_a_folder_that_may_not_be_read_has_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbid(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", forbid)
    assert hand_placed.scan([tmp_path]) == hand_placed.HandPlaced((), ())


def test_no_numbers_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in (".safetensors", ".pth"):
        place(tmp_path / f"{suffix[1:]}-sd15{suffix}")

    def refuse(*_: Any) -> None:
        raise AssertionError("the numbers were read")

    monkeypatch.setattr("lib_latent_upscale.weights.pickles.PickleFile.tensor", refuse)
    monkeypatch.setattr("lib_latent_upscale.weights.reading.read", refuse)
    assert len(hand_placed.scan([tmp_path]).entries) == 2
