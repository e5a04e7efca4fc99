"""Measures the networks, beside the published code if there is a folder of it.

    python -m lib_latent_upscale.bench [--reference DIR] [--models NAME ...] [--sizes 64 ...]

Each network is called once for every precision, with the published code's and a large matrix
product, in rounds; figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from .compiled import compiled
from .jobs import two_jobs
from .measure import (
    Product,
    Seconds,
    hardware,
    interleaved,
    median,
    operations,
    peak_bytes,
    ratio,
    settle_allocator,
)
from .networks import MODELS
from .reference import published
from .report import HEADER, Report, Row, line


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    options = _parser().parse_args(arguments)
    settle_allocator()
    dtypes = {name: getattr(torch, name) for name in options.dtypes}
    products = {name: Product.on(options.device, dtype) for name, dtype in dtypes.items()}
    report = Report(
        hardware(options.device),
        torch.__version__,
        datetime.date.today().isoformat(),
        options.repeats,
        {name: _rate(product, options.repeats) for name, product in products.items()},
        [],
    )
    print(report.heading(), HEADER, sep="\n\n", flush=True)
    for name in options.models:
        for size in options.sizes:
            for row in measure(name, size, products, options):
                report.rows.append(row)
                print(line(row), flush=True)
                if options.json:  # as far as it got: a run takes a while
                    report.write_json(options.json)
    if options.plot:
        report.write_plot(options.plot)
    return 0


@torch.inference_mode()
def measure(
    name: str, size: int, products: dict[str, Product], options: argparse.Namespace
) -> Iterator[Row]:
    """The rows of one network at one size: one for each precision."""
    model = MODELS[name]
    network = model.build().to(options.device)
    x = torch.randn(1, 4, size, size, generator=torch.Generator().manual_seed(0)).to(options.device)
    flops = operations(model, network, size)
    calls: dict[str, Callable[[], Tensor]] = {}
    reference = published(options.reference, name, network) if options.reference else None
    if reference is not None:
        calls["published"] = partial(reference.to(options.device), x)
    for key in products:
        dtype = getattr(torch, key)
        calls[key] = partial(model.call, model.build().to(options.device, dtype), x.to(dtype))
    firsts, outputs = {}, {}
    for key, call in calls.items():
        started = time.perf_counter()
        outputs[key] = call().float()
        firsts[key] = time.perf_counter() - started
    peaks = {key: peak_bytes(call, options.device) for key, call in calls.items()}
    own = {key: compiled(model, x.to(getattr(torch, key))) for key in products if options.compile}
    compile_s = {key: seconds for key, (_, seconds) in own.items()}
    calls.update({f"compiled {key}": call for key, (call, _) in own.items()})
    everything: list[Callable[[], Tensor]] = [*calls.values(), *products.values()]
    seconds = interleaved(everything, options.repeats)
    taken = dict(zip(calls, seconds))
    for (key, product), product_taken in zip(products.items(), seconds[len(calls) :]):
        rate = flops / median(taken[key])
        first_job, second_job = two_jobs(model, size, options.device, getattr(torch, key))
        yield Row(
            model=name,
            size=size,
            dtype=key,
            median_ms=1e3 * median(taken[key]),
            first_call_ms=1e3 * firsts[key],
            gflop=flops / 1e9,
            gflop_per_s=rate / 1e9,
            share_of_product=rate / (product.operations / median(product_taken)),
            peak_mb=peaks[key] / 1e6,
            first_job=first_job,
            second_job=second_job,
            **(_beside(taken, outputs, peaks, key) if reference is not None else {}),
            **(_compiled(taken, key, compile_s[key]) if own else {}),
        )


def _beside(
    taken: dict[str, list[Seconds]], outputs: dict[str, Tensor], peaks: dict[str, int], key: str
) -> dict[str, float]:
    """The columns of a row that compare it with the published code."""
    expected = outputs["published"]
    ratios = ratio(taken["published"], taken[key])
    return {
        "published_ms": 1e3 * median(taken["published"]),
        "published_peak_mb": peaks["published"] / 1e6,
        "ratio": ratios.wall,
        "cpu_ratio": ratios.cpu,
        "error": float((outputs[key] - expected).norm() / expected.norm()),
    }


def _compiled(taken: dict[str, list[Seconds]], key: str, compile_s: float) -> dict[str, float]:
    """The columns of a row that tell of its compiled run."""
    seconds = taken[f"compiled {key}"]
    ratios = ratio(taken[key], seconds)
    return {
        "compiled_ms": 1e3 * median(seconds),
        "compile_s": compile_s,
        "compiled_ratio": ratios.wall,
        "compiled_cpu_ratio": ratios.cpu,
    }


def _rate(product: Product, repeats: int) -> float:
    product()
    return product.operations / median(interleaved([product], repeats)[0]) / 1e9


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lib_latent_upscale.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="DIR",
        help="folder of styler00dollar/ComfyUI-sudo-latent-upscale, to run beside ours",
    )
    parser.add_argument(
        "--models",
        nargs="+",
        choices=MODELS,
        default=list(MODELS),
        metavar="NAME",
        help=", ".join(MODELS),
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 96, 128], metavar="SIDE")
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=("float32", "bfloat16", "float16"),
        default=["float32", "bfloat16"],
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (5)")
    parser.add_argument("--compile", action="store_true", help="measure it compiled, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture; needs Pillow")
    return parser


if __name__ == "__main__":
    sys.exit(main())
