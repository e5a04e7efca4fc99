"""Lets the WebUI accept this extension's command-line argument; `install.py` acts on it."""

import argparse


def preload(parser: argparse.ArgumentParser) -> None:
    """Called by the WebUI with its own parser."""
    parser.add_argument(
        "--latent-upscale-fetch",
        choices=("none", "recommended", "all"),
        help="models of the Latent upscale extension to download at launch "
        "(in COMMANDLINE_ARGS; typed after launch.py it is not seen)",
    )
