"""What VAE files hold, and diffusers' models made of them without a look at the web.

A single file says nothing of its configuration, which diffusers would fetch from the web; it is
read off the weights' shapes instead.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..weights.errors import WeightsError
from ..weights.pickles import LazyTensor, open_pickle
from .errors import TrainingError

_PREFIXES = ("first_stage_model.", "vae.", "")
"""Before a VAE's keys: in checkpoints of Stable Diffusion and FLUX, in others, alone."""
_PARTS = re.compile(r"(encoder|decoder|quant_conv|post_quant_conv)\.")
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of diffusers before 0.15, in which many VAE files are."""


def read(path: Path) -> dict[str, Tensor]:
    """The VAE's tensors in a file, without a checkpoint's other ones.

    Nothing in a pickle is run. Raises `TrainingError`.
    """
    if not path.is_file():
        raise TrainingError(f"{path}: no such file or folder of a VAE")
    try:
        if path.suffix.lower() == ".safetensors":
            with safe_open(str(path), "pt", device="cpu") as file:
                return _chosen(path, file.keys(), file.get_tensor)
        with open_pickle(path) as pickle:
            content = pickle.content
            if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
                content = content["state_dict"]
            if not isinstance(content, dict):
                raise TrainingError(f"{path} holds no weights of a VAE")
            lazy = {str(k): v for k, v in content.items() if isinstance(v, LazyTensor)}
            return _chosen(path, lazy, lambda key: pickle.tensor(lazy[key]))
    except (WeightsError, SafetensorError, OSError) as error:
        raise TrainingError(f"{path} cannot be read as a VAE: {error}") from error


def is_tiny(weights: Mapping[str, Tensor]) -> bool:
    """Whether these are of TAESD's encoder or decoder."""
    return "1.weight" in weights or is_tiny_encoder(weights)


def is_tiny_encoder(weights: Mapping[str, Tensor]) -> bool:
    """Whether these are of TAESD's encoder: its first layer has weights."""
    return "0.weight" in weights


def load_folder(path: Path) -> Any:
    """diffusers' AutoencoderKL or AutoencoderTiny in a folder. Raises `TrainingError`."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        name = config["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"{path} is no VAE in diffusers' layout (its config.json: {error}); name the folder "
            "'vae' of a model, or a VAE's file"
        ) from error
    diffusers = _diffusers()
    if name not in ("AutoencoderKL", "AutoencoderTiny"):
        raise TrainingError(f"{path} is a {name}; an AutoencoderKL or AutoencoderTiny is wanted")
    try:
        return getattr(diffusers, name).from_pretrained(
            str(path), local_files_only=True, low_cpu_mem_usage=False
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise TrainingError(f"{path} cannot be loaded as {name}: {error}") from error


def load_single(path: Path, weights: Mapping[str, Tensor]) -> Any:
    """diffusers' AutoencoderKL of a single file's `read` weights. Raises `TrainingError`."""
    diffusers = _diffusers()
    weights = {_renamed(key): value for key, value in weights.items()}
    config = kl_config(path, weights)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        try:
            model = diffusers.AutoencoderKL.from_single_file(
                dict(weights), config=folder, low_cpu_mem_usage=False
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise TrainingError(f"{path} cannot be loaded as a VAE: {error}") from error
    # diffusers leaves what the file lacks as it was drawn, without an error.
    if len(model.state_dict()) != len(weights):
        raise TrainingError(
            f"{path} is no whole VAE: {len(weights)} tensors, not {len(model.state_dict())}"
        )
    return model


def kl_config(path: Path, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """diffusers' configuration of an AutoencoderKL with these weights, off their shapes.

    The scaling factor is not in them, and not in this: latents here are raw.
    """
    original = "encoder.down.0.block.0.conv1.weight" in weights
    level, block = (
        ("encoder.down.{}", "block.{}.conv2") if original else
        ("encoder.down_blocks.{}", "resnets.{}.conv2")
    )  # fmt: skip
    name = f"{level}.{block}.weight"
    widths: list[int] = []
    while (key := name.format(len(widths), 0)) in weights:
        widths.append(weights[key].shape[0])
    if not widths or "decoder.conv_in.weight" not in weights:
        raise TrainingError(
            f"{path} holds no VAE: neither TAESD's keys nor those of an AutoencoderKL with its "
            "encoder and decoder"
        )
    layers = 0
    while name.format(0, layers) in weights:
        layers += 1
    attention = "encoder.mid.attn_1" if original else "encoder.mid_block.attentions"
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "block_out_channels": widths,
        "layers_per_block": layers,
        "latent_channels": weights["decoder.conv_in.weight"].shape[1],
        "norm_num_groups": 32,
        "use_quant_conv": "quant_conv.weight" in weights,
        "use_post_quant_conv": "post_quant_conv.weight" in weights,
        "mid_block_add_attention": any(key.startswith(attention) for key in weights),
    }


def _chosen(path: Path, keys: Iterable[str], tensor: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """The tensors of the VAE in a file, without what a checkpoint has before their keys."""
    names = list(keys)
    for prefix in _PREFIXES:
        wanted = [key for key in names if _PARTS.match(key.removeprefix(prefix))]
        wanted = [key for key in wanted if key.startswith(prefix)]
        if wanted:
            return {key.removeprefix(prefix): tensor(key) for key in wanted}
    if is_tiny(dict.fromkeys(names)):  # type: ignore[arg-type]
        return {key: tensor(key) for key in names}
    raise TrainingError(f"{path} holds no VAE: none of its {len(names)} tensors is one's")


def _renamed(key: str) -> str:
    for old, new in _OLD_ATTENTION.items():
        key = re.sub(rf"(attentions\.\d+)\.{old}\.", rf"\1.{new}.", key)
    return key


def _diffusers() -> Any:
    try:
        import diffusers
        from diffusers import AutoencoderKL, AutoencoderTiny  # noqa: F401
    # diffusers makes its own imports' errors these, and with an older torch than it knows it lacks
    # attributes.
    except (ImportError, RuntimeError, AttributeError) as error:
        raise TrainingError(
            "a VAE of this kind needs diffusers, of a version for this torch: pip install "
            f"diffusers ({error})"
        ) from error
    return diffusers
