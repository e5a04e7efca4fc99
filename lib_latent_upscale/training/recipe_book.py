"""The recipes by name: the published ones, what their authors tried, and the project's own.

The published trainings are those of shared/docs/training.md, by styler00dollar
(ComfyUI-sudo-latent-upscale), city96 (SD-Latent-Upscaler) and Ttl (ComfyUi_NNLatentUpscale). What
they do not tell is ours: sides of crops, averages of weights, the weight of the discriminator's
loss, and its learning rate.
"""

from __future__ import annotations

from dataclasses import replace

from .criterion import Term
from .networks import NetworkSpec
from .recipes import Recipe

SUDO = "https://github.com/styler00dollar/ComfyUI-sudo-latent-upscale"
CITY96 = "https://github.com/city96/SD-Latent-Upscaler"
TTL = "https://github.com/Ttl/ComfyUi_NNLatentUpscale"


# At this weight its gradient begins at half of that of L1 x 0.08.
_ADVERSARIAL = Term("adversarial", 1e-4)

_DAT = Recipe(
    name="dat-6x6",
    summary="DAT of 6 groups, L1 and a discriminator (SD1.5)",
    network=NetworkSpec("dat", {"depths": (6,) * 6}),
    terms=(Term("l1", 0.08), _ADVERSARIAL),
    optimizer="prodigy",
    learning_rate=0.1,
    batch=32,
    steps=265_000,
    notes="Published as DAT6x6_l1_eV2-b0_265k. 22-24 GB.",
    source=SUDO,
)

_DRCT = Recipe(
    name="drct-l-l1-xl",
    summary="DRCT-L of 12 groups, L1 (SDXL)",
    network=NetworkSpec("drct", {"groups": 12}),
    terms=(Term("l1", 0.08),),
    optimizer="adamw",
    learning_rate=1e-4,
    batch=40,
    steps=325_000,
    space="sdxl",
    notes="Published as DRCT-l_12x6_325k_l1_sdxl. About 35 GB.",
    source=SUDO,
)

_DECODED = replace(
    _DRCT,
    name="drct-l-hfen-xl",
    summary="DRCT-L tuned on decoded pictures with HFEN (SDXL)",
    terms=(Term("l1", 0.1), Term("hfen", 0.1), Term("l1", 1.0, on="picture")),
    batch=3,
    steps=160_000,
    notes="Published as DRCT-l_12x6_160k_l1_vaeDecode_l1_hfen_sdxl. Gradients go through the VAE: "
    "give --vae. Began from DRCT-L at 325k: --set network.weights=FILE.",
)

_SWINFIR = Recipe(
    name="swinfir-4x6-mse",
    summary="SwinFIR of 4 groups, MSE (SD1.5)",
    network=NetworkSpec("swinfir", {"depths": (6,) * 4}),
    terms=(Term("mse", 0.08),),
    optimizer="lamb",
    learning_rate=3e-4,
    batch=150,
    steps=100_000,
    processes=2,
    notes="Published as SwinFIR4x6_mse_200k_1.5: 100k steps on each of 2 GPUs, by the gloo "
    "backend (torchrun --nproc-per-node 2, --backend gloo).",
    source=SUDO,
)

_SWINFIR_XL = replace(
    _SWINFIR,
    name="swinfir-4x6-mse-xl",
    summary="SwinFIR of 4 groups, MSE (SDXL)",
    terms=(Term("mse"),),
    optimizer="prodigy",
    learning_rate=0.1,
    batch=140,
    steps=64_000,
    processes=1,
    space="sdxl",
    notes="Published as SwinFIR4x6_mse_64k_sdxl.",
)

_PUBLISHED = (
    _DAT,
    replace(
        _DAT,
        name="dat-12x6-contextual",
        summary="DAT of 12 groups, L1 and a discriminator, contextual loss at the end (SD1.5)",
        network=NetworkSpec("dat", {"depths": (6,) * 12}),
        terms=(
            *_DAT.terms,
            Term("contextual", 0.1, start=300_000, options={"band_width": 0.5}),
        ),
        batch=16,
        steps=315_000,
        notes="Published as DAT12x6_l1_eV2-b0_contextual_315k. From scratch the contextual loss "
        "converges too slowly; its author does not recommend it. When it began is not told. It "
        "wants the features of a classifier: see the command classifier, and --features.",
    ),
    replace(
        _DAT,
        name="craft-7x6",
        summary="CRAFT of 7 groups, L1 and a discriminator (SD1.5)",
        network=NetworkSpec("craft", {"depths": (6,) * 7}),
        batch=16,
        steps=150_000,
        notes="Published as CRAFT7x6_l1_eV2-b0_150k.",
    ),
    _SWINFIR,
    _SWINFIR_XL,
    replace(
        _SWINFIR_XL,
        name="swinfir-4x6-fft-l1-xl",
        summary="SwinFIR of 4 groups, FFT and L1 (SDXL)",
        terms=(Term("fft"), Term("l1")),
        steps=94_000,
        notes="Published as SwinFIR4x6_fft_l1_94k_sdxl.",
    ),
    _DRCT,
    replace(
        _DRCT,
        name="drctfir-l-l1-xl",
        summary="DRCT-L whose last convolution is a spatial-frequency block, L1 (SDXL)",
        network=NetworkSpec("drct", {"groups": 12, "spectral": True}),
        steps=215_000,
        notes="Published as DRCTFIR-l_12x6_215k_l1_sdxl. About 35 GB.",
    ),
    _DECODED,
    replace(
        _DECODED,
        name="drct-l-fft-xl",
        summary="DRCT-L tuned on decoded pictures with FFT (SDXL)",
        terms=(Term("l1", 0.1), Term("fft", 1.0), Term("l1", 1.0, on="picture")),
        steps=170_000,
        notes="Published as DRCT-l_12x6_170k_l1_vaeDecode_l1_fft_sdxl. As drct-l-hfen-xl.",
    ),
    Recipe(
        name="city96",
        summary="city96's stack of convolutions, L1, any factor",
        network=NetworkSpec("city96"),
        terms=(Term("l1"),),
        optimizer="adamw",
        learning_rate=5e-4 / 4,
        schedule="one-cycle",
        batch=4,
        steps=125_000,
        precision="fp32",
        factor=None,
        notes="Published for the factors 1.25, 1.5 and 2, each a training of its own on pairs of "
        "that factor. 500k samples; the rate is 5e-4 over the batch.",
        source=CITY96,
    ),
    Recipe(
        name="ttl",
        summary="Ttl's resizer for any factor from 1 to 2, decoded MSE, LPIPS and latent MSE",
        network=NetworkSpec("ttl"),
        terms=(
            Term("mse", 1.0, on="picture"),
            Term("lpips", 0.1, on="picture", options={"net": "vgg"}),
            Term("mse", 0.01),
        ),
        optimizer="adamw",
        learning_rate=2e-4,
        schedule="cosine",
        warm_up=200,
        batch=4,
        steps=100_000,
        factor=None,
        scale="0.13025",
        ema=0.0,
        clip=5.0,
        space="sdxl",
        notes="Pairs of random factors from 1 to 2.1 (prepare --factors). The picture that the "
        "decoded one is compared with is the decoded large latent; its author took the original. "
        "0.13025 for SD1.5, too.",
        source=TTL,
    ),
)

_BY_NAME = {recipe.name: recipe for recipe in _PUBLISHED}


def _tried(base: str, name: str, summary: str, notes: str, **changes: object) -> Recipe:
    changed: Recipe = replace(
        _BY_NAME[base],
        name=name,
        summary=summary,
        notes=notes,
        **changes,  # type: ignore[arg-type]
    )
    return changed


def _foreign(name: str, architecture: str, notes: str, **parameters: object) -> Recipe:
    return _tried(
        "dat-6x6",
        name,
        f"{architecture} at its published size, as dat-6x6",
        notes,
        network=NetworkSpec(architecture, parameters),
    )


_LIQUID = "Tried: looks like liquid. No small or efficient network of this kind did better."
_TRIED = (
    _tried(
        "dat-6x6",
        "dat-ssim",
        "DAT with SSIM on the latents",
        "Tried: SSIM of latents is negative unless nonnegative, and unstable then.",
        terms=(
            Term("l1", 0.08),
            Term("ssim", 0.08, options={"low": 0.0, "high": 1.0, "nonnegative": True}),
        ),
    ),
    _tried(
        "dat-6x6",
        "dat-ssim-decoded",
        "DAT with SSIM and MS-SSIM on decoded pictures",
        "Tried, without success. Give --vae.",
        terms=(
            Term("l1", 0.08),
            Term("ssim", 0.08, on="picture"),
            Term("ms_ssim", 0.08, on="picture"),
        ),
        batch=3,
    ),
    _foreign(
        "ditn",
        "DITN",
        _LIQUID,
        dim=60,
        ITL_blocks=4,
        SAL_blocks=4,
        UFONE_blocks=1,
        ffn_expansion_factor=2,
        patch_size=8,
    ),
    _foreign(
        "omnisr",
        "OmniSR",
        _LIQUID,
        num_feat=64,
        block_num=1,
        res_num=5,
        window_size=8,
        pe=True,
        bias=True,
    ),
    _foreign(
        "hat",
        "HAT",
        "Tried: promising, but always blurred.",
        embed_dim=180,
        depths=(6,) * 6,
        num_heads=(6,) * 6,
        window_size=16,
        compress_ratio=3,
        squeeze_factor=30,
        conv_scale=0.01,
        overlap_ratio=0.5,
        mlp_ratio=2,
    ),
    replace(
        _foreign(
            "grl",
            "GRL",
            "Tried: did not converge. Its stripes are 64 long: smaller crops are padded to that.",
            embed_dim=180,
            upsampler="pixelshuffle",
            depths=(4, 4, 8, 8, 8, 4, 4),
            num_heads_window=(3,) * 7,
            num_heads_stripe=(3,) * 7,
            window_size=32,
            stripe_size=(64, 64),
            stripe_groups=(None, None),
            stripe_shift=True,
            mlp_ratio=2,
            anchor_window_down_factor=4,
            local_connection=True,
        ),
        batch=8,
        crop=64,
    ),
    _tried(
        "dat-6x6",
        "dat-ffc",
        "DAT whose first and last convolutions are fast Fourier ones",
        "Tried: the loss hardly converges.",
        network=NetworkSpec("dat", {"depths": (6,) * 6}, fourier_ends=True),
    ),
    _tried(
        "swinfir-4x6-mse",
        "swinfir-prodigy",
        "SwinFIR with Prodigy (SD1.5)",
        "Tried with learning rates 1 and 0.1: massively unstable.",
        optimizer="prodigy",
        learning_rate=1.0,
    ),
    _tried(
        "dat-6x6",
        "dat-huber",
        "DAT with the Huber loss",
        "Not tried yet.",
        terms=(Term("huber", 0.08), _ADVERSARIAL),
    ),
    _tried(
        "dat-6x6",
        "dat-mse",
        "DAT with MSE",
        "Not tried yet: MSE was for SwinFIR only.",
        terms=(Term("mse", 0.08), _ADVERSARIAL),
    ),
    _tried(
        "dat-6x6",
        "dat-mbconv",
        "DAT with MBConv in place of its convolutions",
        "Not tried yet.",
        network=NetworkSpec("dat", {"depths": (6,) * 6}, mbconv=True),
    ),
    _tried(
        "dat-6x6",
        "dat-dropout",
        "DAT with dropout before its last convolution",
        "Not tried yet.",
        network=NetworkSpec("dat", {"depths": (6,) * 6}, dropout=0.5),
    ),
)

_OWN = (
    Recipe(
        name="compact",
        summary="the project's own small network, L1; trains on a CPU in hours",
        network=NetworkSpec("compact", {"dim": 64, "depth": 10}),
        terms=(Term("l1"),),
        optimizer="adamw",
        learning_rate=1e-3,
        optimizer_options={"betas": (0.9, 0.99), "weight_decay": 1e-4},
        schedule="cosine",
        warm_up=200,
        batch=16,
        steps=30_000,
        crop=24,
        scale="unet",
        ema=0.999,
        clip=1.0,
        notes="For every latent space.",
        source="this project",
    ),
    Recipe(
        name="halfway",
        summary="the project's own network, judged by decoded squares; trains on a CPU in an hour",
        network=NetworkSpec("halfway", soft_relu=0.01),
        terms=(
            Term("l1", 0.1),
            Term("l1", 0.3, options={"average": 4}),
            Term("psnr", 1.0, on="picture", options={"floor": 2e-3}),
        ),
        optimizer="muon",
        learning_rate=6e-4,
        optimizer_options={"centered": True, "rest": 0.05},
        schedule="cosine",
        warm_up=50,
        batch=8,
        steps=6_000,
        crop=20,
        factor=None,
        weighting="even",
        scale="unet",
        ema=0.998,
        clip=1.0,
        picture_side=14,
        notes="How the shipped networks were made, see models/README.md: from weights that the "
        "command halfway makes, --set network.weights=FILE. Give --decoder, and pairs of several "
        "factors up to 2. L1 of latents alone gives sharp pictures that are wrong; losses on "
        "decoded ones alone let the latents drift where a decoder does not show it. Hidden values "
        "are small, 0.05 to 0.5, and plain Muon and AdamW both put out whole layers of ReLUs: so "
        "its updates are centered, the biases slow, and ReLUs learn a little below zero.",
        source="this project",
    ),
)

RECIPES = {recipe.name: recipe for recipe in (*_PUBLISHED, *_TRIED, *_OWN)}
