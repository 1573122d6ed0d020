"""The description of the HTTP API: OpenAPI 3.1 at `/openapi.json`, and a page for people at `/docs`.

`operations` and `administration` are the table of all routes, each an `operation`, `answers` the bodies that are not
described elsewhere, and `document` makes the document of both. The schemas are those of the pydantic models that
validate what comes in and make what goes out; tests hold the table against Flask's own, and real answers against the
schemas.
"""

from services.gateway.openapi.document import document

__all__ = ["document"]
