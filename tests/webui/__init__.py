"""Tests of the extension inside a double of the WebUI."""
