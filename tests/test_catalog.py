"""The catalogue: complete, consistent, and true to the networks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lib_latent_upscale import architectures
from lib_latent_upscale.catalog import CATALOG, DEFAULTS, Entry, by_file_name, by_label, entries
from lib_latent_upscale.spaces import SD15, SDXL, SPACES

from . import published

IDS = {
    "bundled-sd15",
    "bundled-sdxl",
    "compact-sd15",
    "sharp-sd15",
    "bundled-sd3",
    "bundled-flux",
    "sudo-dat-6x6-sd15",
    "sudo-dat-12x6-sd15",
    "sudo-craft-7x6-sd15",
    "sudo-swinfir-4x6-sd15",
    "sudo-swinfir-4x6-mse-sdxl",
    "sudo-swinfir-4x6-fft-sdxl",
    "sudo-drct-l-sdxl",
    "sudo-drctfir-l-sdxl",
    "sudo-drct-l-hfen-sdxl",
    "sudo-drct-l-fft-sdxl",
    "city96-x1.25-sd15",
    "city96-x1.5-sd15",
    "city96-x2-sd15",
    "city96-x1.25-sdxl",
    "city96-x1.5-sdxl",
    "city96-x2-sdxl",
    "ttl-sd15",
    "ttl-sdxl",
}
OURS = {"compact-sd15", "sharp-sd15", *(f"bundled-{space}" for space in SPACES)}
STAND_INS = {
    "sudo-dat-6x6-sd15": "DAT6x6",
    "sudo-dat-12x6-sd15": "DAT12x6",
    "sudo-craft-7x6-sd15": "CRAFT7x6",
    "sudo-swinfir-4x6-sd15": "SwinFIR4x6",
    "sudo-swinfir-4x6-mse-sdxl": "SwinFIR4x6",
    "sudo-swinfir-4x6-fft-sdxl": "SwinFIR4x6",
    "sudo-drct-l-sdxl": "DRCT12x6",
    "sudo-drctfir-l-sdxl": "DRCTFIR12x6",
    "sudo-drct-l-hfen-sdxl": "DRCT12x6",
    "sudo-drct-l-fft-sdxl": "DRCT12x6",
    "city96-x1.25-sd15": "city96_x1.25",
    "city96-x1.5-sd15": "city96_x1.5",
    "city96-x2-sd15": "city96_x2.0",
    "city96-x1.25-sdxl": "city96_x1.25",
    "city96-x1.5-sdxl": "city96_x1.5",
    "city96-x2-sdxl": "city96_x2.0",
    "ttl-sd15": "ttl",
    "ttl-sdxl": "ttl",
}
ALL = list(CATALOG.values())


def test_every_published_model_is_there() -> None:
    assert CATALOG.keys() == IDS
    assert IDS - STAND_INS.keys() == OURS


def test_labels_and_files_are_unique_and_safe_in_infotext() -> None:
    assert len({entry.label for entry in ALL}) == len(ALL)
    assert len({entry.file.name for entry in ALL}) == len(ALL)
    for entry in ALL:
        assert not set(entry.label) & set(',:"'), entry.label
        assert by_label(entry.label) is entry
        for name in entry.file.local_names:
            assert by_file_name(name) is entry


@pytest.mark.parametrize(
    ("id", "label"),
    [
        ("sudo-dat-12x6-sd15", "Latent (DAT 12x6 contextual)"),
        ("sudo-drctfir-l-sdxl", "Latent (DRCT-FIR-L SDXL)"),
        ("city96-x1.25-sd15", "Latent (city96 x1.25)"),
        ("city96-x2-sdxl", "Latent (city96 x2 SDXL)"),
        ("ttl-sd15", "Latent (NNLatentUpscale)"),
        ("ttl-sdxl", "Latent (NNLatentUpscale SDXL)"),
        ("bundled-sd15", "Latent (neural SD1.5)"),
    ],
)
def test_labels_are_those_written_into_pictures(id: str, label: str) -> None:
    assert CATALOG[id].label == label


@pytest.mark.parametrize("entry", ALL, ids=lambda entry: entry.id)
def test_entry_fields(entry: Entry) -> None:
    assert entry.space in SPACES.values()
    assert entry.architecture in {network.architecture for network in architectures.NETWORKS}
    if entry.file.url is not None:
        assert re.fullmatch(r"https://\S+", entry.file.url)
        assert entry.file.url.endswith("/" + entry.file.name)
    if entry.id.startswith(("city96", "ttl")):
        assert entry.file.sha256 is not None
        assert re.fullmatch(r"[0-9a-f]{64}", entry.file.sha256)
    assert entry.file.size > 1_000_000
    assert entry.licence
    assert entry.source
    assert re.fullmatch(r"[0-9a-f]{40}", entry.file.git_blob or "0" * 40)


@pytest.mark.parametrize("id", sorted(STAND_INS))
def test_entry_is_true_to_its_network(id: str) -> None:
    entry = CATALOG[id]
    weights = published.state_dict(STAND_INS[id])
    network = architectures.from_state_dict(weights, **entry.hyperparameters)
    assert network.architecture == entry.architecture
    assert network.channels == entry.space.channels
    assert network.scale == entry.factor


def test_renamed_files_are_found_under_both_names() -> None:
    file = CATALOG["sudo-dat-6x6-sd15"].file
    assert file.fallback_url is not None
    assert file.fallback_url.endswith("/DAT6x6_l1_eV2-b0_265k.pth")
    assert file.local_names == (
        "DAT6x6_l1_eV2-b0_265k_1.5.safetensors",
        "DAT6x6_l1_eV2-b0_265k.safetensors",
        "DAT6x6_l1_eV2-b0_265k_1.5.pth",
        "DAT6x6_l1_eV2-b0_265k.pth",
    )
    assert CATALOG["sudo-swinfir-4x6-mse-sdxl"].file.fallback_url is None


def test_ttl_takes_its_one_scale_in_both_spaces() -> None:
    assert CATALOG["ttl-sd15"].input_scale == CATALOG["ttl-sdxl"].input_scale
    assert CATALOG["ttl-sd15"].input_scale.factor == 0.13025


def test_defaults_fit_their_spaces() -> None:
    assert DEFAULTS.keys() == SPACES.keys()
    for space, id in DEFAULTS.items():
        assert CATALOG[id].space is SPACES[space]
        assert CATALOG[id].file.url is None  # it works without a download
    assert DEFAULTS["sd15"] == "bundled-sd15"


def test_entries_of_a_space() -> None:
    assert len(list(entries())) == len(ALL)
    assert len(list(entries(SD15))) == 11
    assert len(list(entries(SDXL))) == 11


def test_bundled_sizes_are_the_files() -> None:
    models = Path(__file__).resolve().parents[1] / "models"
    for entry in ALL:
        if entry.file.url is None:
            assert (models / entry.file.name).stat().st_size == entry.file.size
