"""What the page asks of the host."""

from __future__ import annotations

import traceback
from pathlib import Path
from urllib.parse import quote

from ..spaces import LatentSpace
from . import host


def chosen_space() -> LatentSpace | None:
    """The latent space of the checkpoint that is chosen; None where that is not known.

    Loads nothing: of a checkpoint that is not in memory, the file's header tells.
    """
    from modules import sd_models

    try:
        info = sd_models.select_checkpoint()
        # Not shared.sd_model, which loads one where there is none.
        loaded = sd_models.model_data.sd_model
        if getattr(loaded, "sd_checkpoint_info", None) is info and info is not None:
            return host.checkpoint_space(loaded)
        return host.checkpoint_file_space(info.filename) if info is not None else None
    except FileNotFoundError:  # no checkpoint at all
        return None


def pixel_upscalers() -> list[str]:
    """The names of the WebUI's upscalers of pictures."""
    from modules import shared

    return [upscaler.name for upscaler in shared.sd_upscalers if upscaler.name != "None"]


def interrupt() -> None:
    """Does what the Interrupt button does."""
    from modules import shared

    shared.state.interrupted = True


def show_part(done: int, total: int) -> None:
    """Puts the WebUI's progress bar at that part of what is done in several steps."""
    from modules import shared

    shared.state.job_count, shared.state.job_no = total, done
    shared.state.sampling_steps = shared.state.sampling_step = 0


def finish_task(task: str) -> None:
    """Tells the page's progress bar that there is no more to come. Twice is the same as once."""
    from modules import progress

    progress.finish_task(task)


def has_page_queue() -> bool:
    """Whether the page can show steps of what runs: not with --no-gradio-queue."""
    from modules import shared

    return not getattr(shared.cmd_opts, "no_gradio_queue", False)


def temporary_folder() -> str | None:
    """Where the WebUI keeps files for its page; None for the system's own place."""
    from modules import shared

    folder = getattr(shared.opts, "temp_dir", "")
    if not folder:
        return None
    Path(folder).mkdir(parents=True, exist_ok=True)
    return str(folder)


def address(path: Path) -> str:
    """The address of a file for the page, which is allowed to have it from then on."""
    from modules import shared, ui_tempdir

    ui_tempdir.register_tmp_file(shared.demo, str(path))
    return "file=" + quote(path.absolute().as_posix(), safe="/:")


def report(what: str) -> None:
    """Puts the error that is being handled on the console."""
    print(f"{what}\n{traceback.format_exc()}", flush=True)
