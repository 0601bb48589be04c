"""The page under ``/docs``: it describes the service and tries it, and needs nothing but the service itself."""

from importlib.resources import files

from starlette.responses import Response

__all__ = ["description_page"]

_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def description_page() -> Response:
    """Return the page; its script makes everything from ``openapi.json``."""
    folder = files("nas.service") / "assets"
    page, script = ((folder / name).read_text(encoding="utf-8") for name in ("docs.html", "docs.js"))
    headers = {"Content-Security-Policy": _POLICY}
    return Response(page.replace("/*SCRIPT*/", script), headers=headers, media_type="text/html")
