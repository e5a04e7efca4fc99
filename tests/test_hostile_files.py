"""Files of weights that are damaged, lie or attack: one paragraph says which and what to do."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor

import lib_latent_upscale
from lib_latent_upscale import WeightsError
from lib_latent_upscale.architectures.compact import Compact
from lib_latent_upscale.catalog import CATALOG
from lib_latent_upscale.weights import files, hand_placed, reading

from . import published

State = dict[str, Tensor]


def tiny(channels: int = 4) -> State:
    """A state dict of our own architecture, of a few channels."""
    torch.manual_seed(0)
    return Compact(channels=channels, dim=4, depth=1, scale=2).to_state_dict()


def write(path: Path, state: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def refusal(path: Path) -> str:
    """The message with which a file is refused."""
    with pytest.raises(WeightsError) as error:
        lib_latent_upscale.load(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 700
    return message


class Evil:
    """A pickle of this makes a folder when it is read carelessly."""

    def __init__(self, made: Path) -> None:
        self._made = made

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self._made),)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_the_file_that_the_others_are_made_from_is_loaded(tmp_path: Path, suffix: str) -> None:
    up = lib_latent_upscale.load(write(tmp_path / f"tiny-sdxl{suffix}", tiny()))
    assert up(torch.zeros(1, 4, 8, 8), (16, 16)).shape == (1, 4, 16, 16)


def without(key: str) -> Callable[[State], State]:
    return lambda state: {name: value for name, value in state.items() if name != key}


def changed(key: str, change: Callable[[Tensor], Tensor]) -> Callable[[State], State]:
    return lambda state: {**state, key: change(state[key])}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: {}, "empty"),
        (lambda state: {"a.weight": torch.ones(2)}, "no weights of a latent upscaler known here"),
        (without("conv_last.bias"), "lacks the key 'conv_last.bias'"),
        (without("conv_first.weight"), "lacks the key 'conv_first.weight'"),
        (lambda state: {**state, "head.weight": torch.ones(2)}, "unknown key 'head.weight'"),
        (changed("conv_last.bias", lambda bias: bias[:3]), "'conv_last.bias' has the shape (3,)"),
        (changed("conv_first.weight", torch.flatten), "'conv_first.weight' has the shape"),
        (changed("conv_last.bias", lambda bias: bias * torch.nan), "NaN or infinite"),
        (changed("conv_last.bias", lambda bias: bias / 0), "NaN or infinite"),
        (changed("conv_last.bias", lambda bias: bias.double() * 1e300), "NaN or infinite"),
        (changed("conv_last.bias", Tensor.long), "'conv_last.bias' has the type torch.int64"),
        (changed("conv_last.bias", Tensor.bool), "'conv_last.bias' has the type torch.bool"),
    ],
)
def test_weights_that_are_none_of_ours(
    tmp_path: Path, damage: Callable[[State], State], message: str, suffix: str
) -> None:
    assert message in refusal(write(tmp_path / f"odd-sdxl{suffix}", damage(tiny())))


def test_half_precision_is_no_damage(tmp_path: Path) -> None:
    state = {key: value.to(torch.bfloat16) for key, value in tiny().items()}
    path = write(tmp_path / "half-sdxl.safetensors", state)
    assert lib_latent_upscale.load(path).dtype == torch.float32


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("length", [0, 1, 7, 8, 100, 0.5, -1])
def test_a_download_that_broke_off(tmp_path: Path, suffix: str, length: float) -> None:
    path = write(tmp_path / f"cut-sdxl{suffix}", tiny())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(length * len(whole)) if 0 < length < 1 else int(length)])
    assert "download it again" in refusal(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
@pytest.mark.parametrize("page", [b"<!DOCTYPE html>\n<html>Not found</html>", b"\n <HTML>" * 999])
def test_a_web_page_in_place_of_a_download(tmp_path: Path, suffix: str, page: bytes) -> None:
    path = tmp_path / f"page-sdxl{suffix}"
    path.write_bytes(page)
    assert "it is a web page; download it again" in refusal(path)


@pytest.mark.parametrize("as_torch", [True, False])
def test_a_pickle_with_code(tmp_path: Path, as_torch: bool) -> None:
    path, made = tmp_path / "evil-sdxl.pth", tmp_path / "made"
    evil = {**tiny(), "conv_last.bias": Evil(made)}
    if as_torch:
        torch.save(evil, path)
    else:
        path.write_bytes(pickle.dumps(evil))
    refusal(path)
    assert hand_placed.scan([tmp_path]).entries == ()
    assert not made.exists()


def test_a_zip_bomb(tmp_path: Path) -> None:
    path = tmp_path / "bomb-sdxl.pth"
    torch.save({"a": torch.zeros(1 << 22)}, tmp_path / "plain.bin")
    with (
        zipfile.ZipFile(tmp_path / "plain.bin") as plain,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert path.stat().st_size < 1 << 20
    assert "compressed" in refusal(path)


@pytest.mark.parametrize(
    "value", [3, "text", [torch.ones(1)], None, {"a": [torch.ones(1)]}, {"state_dict": 1}]
)
def test_a_checkpoint_of_something_else(tmp_path: Path, value: Any) -> None:
    refusal(write(tmp_path / "other-sdxl.pth", value))


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "model-sdxl.ckpt"
    path.touch()
    assert ".safetensors, .pth or .pt" in refusal(path)


def test_a_folder_under_a_files_name(tmp_path: Path) -> None:
    path = tmp_path / "folder-sdxl.safetensors"
    path.mkdir()
    refusal(path)


# Links


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file of weights outside of the folder of models."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "models").mkdir()
    return write(tmp_path / "elsewhere" / "tiny-sdxl.safetensors", tiny())


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path, outside: Path) -> None:
    link = tmp_path / "models" / outside.name
    link.symlink_to(outside)
    found = hand_placed.scan([tmp_path / "models"])
    assert found.entries == ()
    assert [f"{link} is a link to {outside}" in problem for problem in found.problems] == [True]
    assert "Copy the file here" in found.problems[0]


def test_a_published_name_that_is_a_link_out_of_the_folder(tmp_path: Path, outside: Path) -> None:
    entry = CATALOG["sudo-swinfir-4x6-sd15"]
    (tmp_path / "models" / entry.file.name).symlink_to(outside)
    with pytest.raises(WeightsError, match=r"is a link to .* Copy the file here"):
        files.find(entry, [tmp_path / "models"])


def test_links_that_lead_nowhere_or_in_a_circle(tmp_path: Path) -> None:
    for name, target in (("gone-sdxl.pth", "nothing.pth"), ("round-sdxl.pth", "round-sdxl.pth")):
        (tmp_path / name).symlink_to(tmp_path / target)
    found = hand_placed.scan([tmp_path])
    assert found.entries == ()
    assert len(found.problems) == 2


def test_a_link_within_the_folder_and_a_linked_folder_are_fine(
    tmp_path: Path, outside: Path
) -> None:
    write(tmp_path / "models" / "one-sdxl.safetensors", tiny())
    (tmp_path / "models" / "two-sdxl.safetensors").symlink_to("one-sdxl.safetensors")
    (tmp_path / "link").symlink_to(tmp_path / "models")
    found = hand_placed.scan([tmp_path / "link"])
    assert [entry.id for entry in found.entries] == ["one-sdxl.safetensors", "two-sdxl.safetensors"]
    assert files.find(found.entries[1], [tmp_path / "link"]).is_file()


# Headers of safetensors that lie


def headed(path: Path, header: Any, numbers: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + numbers)
    return path


def one(shape: list[int], end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


@pytest.mark.parametrize(
    ("header", "length"),
    [
        (b"{}", 1 << 40),
        (b"{}", (1 << 64) - 1),
        (one([1 << 62, 4], 16), None),
        (one([10**12], 4 * 10**12), None),
        (one([-1], 4), None),
        (one([4], 12), None),
        (one([1], 4, "F1000"), None),
        (b"[" * 10_000, None),
        (b"\xff\xfe", None),
        ({"__metadata__": {"space": 1}}, None),
        ({"__metadata__": [], **one([4], 16)}, None),
        ({**one([4], 16), "b": one([4], 16)["a"]}, None),
    ],
)
def test_headers_that_claim_what_is_not_there(
    tmp_path: Path, header: Any, length: int | None
) -> None:
    path = headed(tmp_path / "lies-sdxl.safetensors", header, bytes(16), length)
    assert "download it again" in refusal(path)
    assert len(hand_placed.scan([tmp_path]).problems) == 1


def test_huge_sides_of_empty_tensors_are_no_huge_tensors(tmp_path: Path) -> None:
    for shape in ([0, 1 << 62], [0, 1 << 62, 1 << 62]):
        refusal(headed(tmp_path / "empty-sdxl.safetensors", one(shape, 0)))


@pytest.mark.parametrize("dtype", ["U16", "I64", "BOOL", "F8_E4M3", "F8_E8M0", "C64", "F4"])
def test_types_of_numbers_that_no_upscaler_has(tmp_path: Path, dtype: str) -> None:
    bits = {"U16": 16, "I64": 64, "C64": 64, "F4": 4}.get(dtype, 8)
    header = one([8], bits, dtype)
    refusal(headed(tmp_path / "odd-sdxl.safetensors", header, bytes(bits)))


def test_a_header_as_long_as_a_bracket_is_no_web_page(tmp_path: Path) -> None:
    path = headed(tmp_path / "a-sdxl.safetensors", b"?" * ord("<"))
    assert path.read_bytes().startswith(b"<")
    assert "web page" not in refusal(path)


def test_a_long_key_makes_no_long_message(tmp_path: Path) -> None:
    path = tmp_path / "long-sdxl.safetensors"
    save_file({"x" * 100_000: torch.ones(1)}, path)
    refusal(path)
    save_file({**tiny(), "conv_first.weight": torch.ones(2)}, path, {"space": "x" * 100_000})
    refusal(path)


WHOLE = save(tiny(), {"space": "sdxl"})


@settings(
    max_examples=150, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_altered_bytes_of_a_safetensors_file_are_noticed_or_harmless(
    tmp_path: Path, data: st.DataObject
) -> None:
    path, altered = tmp_path / "a.safetensors", bytearray(WHOLE)
    header = 8 + struct.unpack("<Q", WHOLE[:8])[0]
    for place in data.draw(st.lists(st.integers(0, header + 40), min_size=1, max_size=4)):
        altered[place] = data.draw(st.integers(0, 255))
    path.write_bytes(altered)
    try:
        read = reading.read(path)
    except WeightsError as error:
        assert str(path) in str(error)
    else:
        assert sum(value.nbytes for value in read.tensors.values()) <= len(WHOLE)
        assert reading.read_header(path).shapes.keys() == read.tensors.keys()


def test_shapes_that_torchs_own_layers_refuse(tmp_path: Path) -> None:
    state = dict(published.small_state_dict("DAT6x6"))
    key = "layers.0.blocks.0.ffn.fc1.weight"
    state[key] = state[key][:1]
    message = refusal(write(tmp_path / "odd-sd15.safetensors", state))
    assert "no dat network has weights of these shapes" in message
