"""Every published latent upscaler, and our own. Adding a model is one entry in `_ENTRIES`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from .spaces import FLUX, RAW, SD3, SD15, SDXL, LatentScale, LatentSpace


@dataclass(frozen=True)
class WeightFile:
    """A file of weights, as its author published it."""

    name: str
    url: str | None
    """None for a file that ships with the extension."""
    size: int
    """Bytes: of a .safetensors file exactly, of a pickle what its tensors take."""
    sha256: str | None = None
    """None where its author published none: then the first good download's is kept."""
    git_blob: str | None = None
    manifest: str | None = None
    """`weights.checking.manifest` of its tensors, for a file that has no `sha256`."""
    fallback_url: str | None = None

    @property
    def sizes(self) -> range:
        """The numbers of bytes that the file may have.

        A pickle has a few hundred for each tensor besides the numbers (0.8 % at most here).
        """
        if self.name.endswith(".safetensors"):
            return range(self.size, self.size + 1)
        return range(self.size, self.size + self.size // 20 + 1_000_000)

    @property
    def kept_name(self) -> str:
        """The name that the file has in a folder of models once it was fetched and checked."""
        return self.local_names[0]

    @property
    def local_names(self) -> tuple[str, ...]:
        """The names under which the file may lie in a folder of models, the best first."""
        names = [self.name]
        if self.fallback_url:
            names.append(self.fallback_url.rsplit("/", 1)[-1])
        converted = [PurePath(name).stem + ".safetensors" for name in names]
        return tuple(dict.fromkeys([*converted, *names]))


@dataclass(frozen=True)
class Entry:
    """A model of the catalogue."""

    id: str
    label: str
    """The name in the hires dropdown. It is written into pictures: never change one."""
    architecture: str
    space: LatentSpace
    input_scale: LatentScale
    """The scale of the latents that the network takes and gives."""
    factor: float | None
    """The network's own factor; None where any from 1 to 2 is possible."""
    file: WeightFile
    licence: str
    source: str
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    """What the weights do not show, for `architectures.from_state_dict`."""


def _bundled(space: LatentSpace, size: int, sha256: str) -> Entry:
    return _own(
        f"bundled-{space.id}",
        f"Latent (neural {space.label})",
        "halfway",
        space,
        f"halfway-{space.id}.safetensors",
        size,
        sha256,
        factor=None,
    )


def _own(
    id: str,
    label: str,
    architecture: str,
    space: LatentSpace,
    file: str,
    size: int,
    sha256: str,
    factor: float | None,
) -> Entry:
    return Entry(
        id=id,
        label=label,
        architecture=architecture,
        space=space,
        input_scale=space.unet,
        factor=factor,
        file=WeightFile(file, None, size, sha256),
        licence="AGPL-3.0-or-later",
        source="this extension",
    )


def _sudo(
    name: str,
    label: str,
    architecture: str,
    space: LatentSpace,
    file: str,
    size: int,
    manifest: str,
    sha256: str | None = None,
) -> Entry:
    releases = (
        "https://github.com/styler00dollar/ComfyUI-sudo-latent-upscale/releases/download/models/"
    )
    # The SD1.5 files were first released under a name without this ending.
    renamed = file.endswith("_1.5.pth")
    return Entry(
        id=f"sudo-{name}",
        label=label,
        architecture=architecture,
        space=space,
        input_scale=RAW,
        factor=2,
        file=WeightFile(
            file,
            releases + file,
            size,
            sha256,
            manifest=manifest,
            fallback_url=releases + file.replace("_1.5.pth", ".pth") if renamed else None,
        ),
        licence="BSD-3-Clause",
        source="https://github.com/styler00dollar/ComfyUI-sudo-latent-upscale",
    )


def _city96(factor: float, space: LatentSpace, sha256: str) -> Entry:
    version = {SD15.id: "v1", SDXL.id: "xl"}[space.id]
    file = f"latent-upscaler-v2.1_SD{version}-x{float(factor)}.safetensors"
    revision = "99c65021fa947dfe3d71ec4e24793fe7533a3322"
    return Entry(
        id=f"city96-x{factor:g}-{space.id}",
        label=f"Latent (city96 x{factor:g}{' SDXL' if space is SDXL else ''})",
        architecture="city96",
        space=space,
        input_scale=RAW,
        factor=factor,
        file=WeightFile(
            file,
            f"https://huggingface.co/city96/SD-Latent-Upscaler/resolve/{revision}/{file}",
            2_385_200,
            sha256,
        ),
        licence="Apache-2.0",
        source="https://huggingface.co/city96/SD-Latent-Upscaler",
        hyperparameters={"scale": float(factor)},
    )


def _ttl(space: LatentSpace, sha256: str, git_blob: str) -> Entry:
    file = f"{space.id}_resizer.pt"
    repository = "Ttl/ComfyUi_NNLatentUpscale"
    commit = "08105da31dbd7a54569661e135835e73bd8064b0"
    return Entry(
        id=f"ttl-{space.id}",
        label=f"Latent (NNLatentUpscale{' SDXL' if space is SDXL else ''})",
        architecture="ttl",
        space=space,
        input_scale=LatentScale(0.13025),  # trained so, for SD1.5 as well
        factor=None,
        file=WeightFile(
            file,
            f"https://raw.githubusercontent.com/{repository}/{commit}/{file}",
            25_096_080,
            sha256,
            git_blob,
            fallback_url=f"https://github.com/{repository}/raw/{commit}/{file}",
        ),
        licence="GPL-3.0",
        source=f"https://github.com/{repository}",
    )


_ENTRIES = (
    _bundled(SD15, 3_021_568, "4d75c14a3392aebde3552f18287f1ca06f813a08442b548fa9896dbc3b786d5d"),
    _own(
        "sharp-sd15",
        "Latent (sharp SD1.5)",
        "halfway",
        SD15,
        "halfway-sharp-sd15.safetensors",
        3_021_568,
        "0b9bf5ecf3f9050d548eaceedf58d09454abe17b98c3d291c564d886746c214e",
        factor=None,
    ),
    _own(
        "compact-sd15",
        "Latent (compact SD1.5)",
        "compact",
        SD15,
        "compact-sd15-x2.safetensors",
        1_786_008,
        "a55c335df840ccee7611f2651ecf9373ba5b54a176aa8510f04bcc382f61ec7c",
        factor=2,
    ),
    _sudo(
        "swinfir-4x6-sd15",
        "Latent (SwinFIR 4x6)",
        "swinfir",
        SD15,
        "SwinFIR4x6_mse_200k_1.5.pth",
        28_657_488,
        "f618874497dbdbf2",
    ),
    _sudo(
        "dat-6x6-sd15",
        "Latent (DAT 6x6)",
        "dat",
        SD15,
        "DAT6x6_l1_eV2-b0_265k_1.5.pth",
        140_469_120,
        "b7e8ea9858c235da",
    ),
    _sudo(
        "dat-12x6-sd15",
        "Latent (DAT 12x6 contextual)",
        "dat",
        SD15,
        "DAT12x6_l1_eV2-b0_contextual_315k_1.5.pth",
        277_046_064,
        "be5aefcb08545e62",
    ),
    _sudo(
        "craft-7x6-sd15",
        "Latent (CRAFT 7x6)",
        "craft",
        SD15,
        "CRAFT7x6_l1_eV2-b0_150k_1.5.pth",
        184_614_288,
        "7e0b933982d45cfe",
    ),
    _bundled(SDXL, 3_021_568, "ef548859a943b057e37376de888843f823afac5b771c4296c049f2cc8d55e2cb"),
    _sudo(
        "swinfir-4x6-mse-sdxl",
        "Latent (SwinFIR 4x6 MSE SDXL)",
        "swinfir",
        SDXL,
        "SwinFIR4x6_mse_64k_sdxl.pth",
        28_657_488,
        "f618874497dbdbf2",
    ),
    _sudo(
        "swinfir-4x6-fft-sdxl",
        "Latent (SwinFIR 4x6 FFT SDXL)",
        "swinfir",
        SDXL,
        "SwinFIR4x6_fft_l1_94k_sdxl.pth",
        28_657_488,
        "f618874497dbdbf2",
    ),
    _sudo(
        "drct-l-sdxl",
        "Latent (DRCT-L SDXL)",
        "drct",
        SDXL,
        "DRCT-l_12x6_325k_l1_sdxl.pth",
        241_861_392,
        "fd81cdf00b9cda3c",
    ),
    _sudo(
        "drctfir-l-sdxl",
        "Latent (DRCT-FIR-L SDXL)",
        "drct",
        SDXL,
        "DRCTFIR-l_12x6_215k_l1_sdxl.pth",
        243_549_432,
        "15e1a80c8dc08b9d",
    ),
    _sudo(
        "drct-l-hfen-sdxl",
        "Latent (DRCT-L HFEN SDXL)",
        "drct",
        SDXL,
        "DRCT-l_12x6_160k_l1_vaeDecode_l1_hfen_sdxl.pth",
        241_861_392,
        "fd81cdf00b9cda3c",
    ),
    _sudo(
        "drct-l-fft-sdxl",
        "Latent (DRCT-L FFT SDXL)",
        "drct",
        SDXL,
        "DRCT-l_12x6_170k_l1_vaeDecode_l1_fft_sdxl.pth",
        241_861_392,
        "fd81cdf00b9cda3c",
    ),
    _city96(1.25, SD15, "13d41af7abb2b39b0c35742ac6d9e68137de933b188192bed9e00ff0f5dc6143"),
    _city96(1.5, SD15, "5681a6263c97a7b0b3c5051229d4438b270cff5ed95891a984e98cd193896a57"),
    _city96(2, SD15, "57ab5fe3429cafafe21aafe80c661ab2739ad837f58012a44e1f656670cd35f8"),
    _city96(1.25, SDXL, "331db5b11494d4a3dd66f569d8c9531eca2302f4de4d03688665a62cc6a327de"),
    _city96(1.5, SDXL, "af84a4cc658069c46115bb28bd156a798289dd42f3dc72f1da6cf8bb0760aef2"),
    _city96(2, SDXL, "cedf7806b0b27f883ae3c0d0466d63594d431fa5468d7ef41e55a1bffe38fe1e"),
    _ttl(
        SD15,
        "8fa1cb8168b305d556f2e8178c820b0a6956f4ba84ebc9443fac69be43ffd6fe",
        "f5c91926d12f3340099dc4fd8ff71a43fdf31934",
    ),
    _ttl(
        SDXL,
        "0bca261c96e136cb9e2f330f40386e6cbcaaf464cd39e9f7752c9e7b32e825e8",
        "a611e85506237312706bd49c8e2d8791f43f7303",
    ),
    _bundled(SD3, 3_049_240, "2a4ca865b1f209fc34a3049e85611bf7d4ad096eab3348a18773899d725a8010"),
    _bundled(FLUX, 3_049_240, "8bd050c7be9cf988323cf297bbb34769d12c2dc666c50d6f9e25f9719abc0ce4"),
)

CATALOG: Mapping[str, Entry] = {entry.id: entry for entry in _ENTRIES}

DEFAULTS: Mapping[str, str] = {
    SD15.id: "bundled-sd15",
    SDXL.id: "bundled-sdxl",
    SD3.id: "bundled-sd3",
    FLUX.id: "bundled-flux",
}
"""By space: the model that "Latent (neural)" stands for unless the user chose another."""


RECOMMENDED = ("sudo-swinfir-4x6-sd15", "sudo-swinfir-4x6-mse-sdxl")
"""What `install.py` fetches unless it is told otherwise."""


def entries(space: LatentSpace | None = None) -> Iterator[Entry]:
    """All entries, or those of one latent space, in the order of the dropdown."""
    return (entry for entry in CATALOG.values() if space is None or entry.space is space)


def by_label(label: str) -> Entry | None:
    """The entry with that dropdown label."""
    return next((entry for entry in CATALOG.values() if entry.label == label), None)


def by_file_name(name: str) -> Entry | None:
    """The entry whose weights are published, or kept here, under that file name."""
    return next((entry for entry in CATALOG.values() if name in entry.file.local_names), None)
