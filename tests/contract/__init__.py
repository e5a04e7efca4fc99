"""Contracts between the extension and a WebUI: the double, or a real one (`--webui DIR`)."""
