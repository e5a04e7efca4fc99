"""How fast the networks are: `python -m lib_latent_upscale.bench --help`."""
