"""What makes our own models: codecs, data and training. The library itself never imports it."""
