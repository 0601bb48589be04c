"""``nas serve``: trained supernets over HTTP. See ``docs/service.md``."""
