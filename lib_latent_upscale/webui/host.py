"""What has to be asked of the host, and how each of the three is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..spaces import FLUX, SD3, SD15, SDXL, LatentSpace, find_space

# Keys that only checkpoints of one family have, in the layouts that the WebUIs load.
_TELLING_KEYS = (
    ("conditioner.embedders.0.", SDXL),
    ("model.diffusion_model.joint_blocks.", SD3),
    ("joint_blocks.", SD3),
    ("model.diffusion_model.double_blocks.", FLUX),
    ("double_blocks.", FLUX),
    ("cond_stage_model.", SD15),
)


def checkpoint_space(model: Any) -> LatentSpace | None:
    """The latent space of a loaded checkpoint; None for one that is not known here.

    By the numbers that the host itself scales latents with: they say the same in every host,
    and cannot be mistaken where a family's flag covers several VAEs.
    """
    forge = getattr(model, "forge_objects", None)
    # reForge, and A1111 for SD3: a format object.
    scale = getattr(model, "latent_format", None) or _path(
        forge, "unet", "model", "model_config", "latent_format"
    )
    factor = getattr(scale, "scale_factor", None)
    shift = getattr(scale, "shift_factor", None)
    channels = getattr(scale, "latent_channels", None)
    if factor is None:  # Forge: the VAE itself
        vae = _path(forge, "vae", "first_stage_model")
        factor, shift = getattr(vae, "scaling_factor", None), getattr(vae, "shift_factor", None)
        channels = _path(forge, "vae", "latent_channels")
    if factor is None:  # A1111
        factor = getattr(model, "scale_factor", None)
    if channels is None:
        channels = getattr(model, "latent_channels", None) or (16 if factor and shift else 4)
    if factor is None:
        return None
    return find_space(int(channels), float(factor), float(shift or 0.0))


def checkpoint_file_space(path: str | Path) -> LatentSpace | None:
    """The latent space of a checkpoint that is not loaded, by the keys in its file.

    None if they do not tell, as for a pickle, which is not opened.
    """
    if not str(path).endswith(".safetensors"):
        return None
    try:
        with safe_open(str(path), "pt") as file:
            keys = list(file.keys())
    except (SafetensorError, OSError):
        return None  # the host will say what is wrong with it
    for prefix, space in _TELLING_KEYS:
        if any(key.startswith(prefix) for key in keys):
            return space
    return None


def _path(value: Any, *names: str) -> Any:
    for name in names:
        value = getattr(value, name, None)
    return value


def load_checkpoint() -> Any:
    """The checkpoint that a job would run now, loaded. Raises what the host raises."""
    from modules import sd_models, shared

    # Forge's loads what it only noted when the user chose it.
    load = getattr(sd_models, "forge_model_reload", None) or sd_models.reload_model_weights
    load()
    return shared.sd_model


def device() -> torch.device:
    """The one that the host samples on."""
    from modules import devices

    return torch.device(devices.device)


def encode(checkpoint: Any, picture: Tensor) -> Tensor:
    """A picture (1, 3, H, W) from 0 to 1 as a latent (1, C, H/8, W/8), as in img2img."""
    from modules import devices, sd_samplers_common

    with devices.autocast():
        return sd_samplers_common.images_tensor_to_samples(picture, None, checkpoint)


def decode(checkpoint: Any, latent: Tensor) -> Tensor:
    """A latent (1, C, H, W) as a picture (3, 8H, 8W) from 0 to 1, as at the end of a job; NaN
    where the host gives up on a VAE that overflows."""
    from modules import devices, processing

    cpu = torch.device("cpu")
    try:
        with devices.autocast():
            (values,) = processing.decode_latent_batch(
                checkpoint, latent.to(device()), target_device=cpu, check_for_nans=True
            )
    except devices.NansException:
        return torch.full((3, 1, 1), torch.nan)
    return values.float() / 2 + 0.5


def resize(picture: Image, width: int, height: int, upscaler: str) -> Image:
    """A picture at another size by one of the host's upscalers of pictures."""
    from modules import images

    return images.resize_image(0, picture, width, height, upscaler_name=upscaler)


def queue() -> AbstractContextManager[Any]:
    """What who uses the device has to hold; it cannot be taken twice."""
    from modules import call_queue

    return call_queue.queue_lock


def api_has_passwords() -> bool:
    """Whether --api-auth is given."""
    from modules import shared

    return bool(shared.cmd_opts.api_auth)


def collect() -> None:
    """Gives memory back that is used no more."""
    from modules import devices

    devices.torch_gc()


def show(text: str) -> None:
    """Puts a text into the WebUI's progress bar."""
    from modules import shared

    shared.state.textinfo = text


def precision(device: torch.device) -> torch.dtype:
    """What networks run in on a device: half precision where the host's own do."""
    from modules import devices

    half = device.type == "cuda" and devices.dtype == torch.float16
    return torch.float16 if half else torch.float32


def interrupted() -> bool:
    """Whether the user pressed Interrupt or Skip."""
    from modules import shared

    return bool(shared.state.interrupted or shared.state.skipped)


def forget_skip() -> None:
    """Takes back a Skip that was for another picture, as the hosts do where a picture begins.

    X/Y/Z runs jobs one after the other, and what is done before a job's first picture would find
    the Skip that ended the last one's.
    """
    from modules import shared

    shared.state.skipped = False


def skip() -> None:
    """Does what the Skip button does: the host ends the picture that it works on."""
    from modules import shared

    shared.state.skipped = True


@contextmanager
def progress_text(text: str) -> Iterator[Callable[[float], None]]:
    """`text` and a percentage in the WebUI's progress bar, which stays where the job is.

    What the function gets is the part that is done. The text before comes back after.
    """
    from modules import shared

    state = shared.state
    before = getattr(state, "textinfo", None)

    def progress(part: float) -> None:
        state.textinfo = f"{text} ({part:.0%})"

    try:
        yield progress
    finally:
        state.textinfo = before


@contextmanager
def progress_bar(text: str) -> Iterator[Callable[[int, int | None], None]]:
    """The WebUI's progress bar, with `text` in it from the first call on.

    What the function gets is (done, in all or None). The job's own progress comes back after.
    """
    from modules import shared

    names = ("textinfo", "job_count", "job_no", "sampling_steps", "sampling_step")
    state = shared.state
    before = {name: getattr(state, name) for name in names if hasattr(state, name)}

    def progress(done: int, total: int | None) -> None:
        state.textinfo = text
        # The bar shows a job's part of the jobs, and a step's part of a job.
        state.job_count, state.job_no, state.sampling_steps = 1, 0, 1000
        state.sampling_step = 1000 * done // total if total else 0

    try:
        yield progress
    finally:
        for name, value in before.items():
            setattr(state, name, value)
