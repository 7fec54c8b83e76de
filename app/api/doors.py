"""The one table of who may call what, and how much he may send.

Every route has its line here; the service does not start with a route that has none. What matches
no line still asks for a key, so a mistake closes a door and never opens one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from re import Pattern
from typing import Literal

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.routing import compile_path
from starlette.types import Scope as AsgiScope

from app import access

Asks = access.Scope | Literal["visitor", "any key", "nobody"]


@dataclass(frozen=True, slots=True)
class Door:
    """One method of one path.

    `asks` is the scope that the key needs. A "visitor" may come without a key and sees nothing of
    anybody's then; "nobody" is not even asked for one. `limit` names the rate limit, `body` the
    size limit. `patient` is for replies that take as long as they take: a model writing, a file
    arriving, events following a job.
    """

    method: str
    path: str
    asks: Asks
    limit: Literal["requests", "uploads"] | None = "requests"
    body: Literal["small", "upload"] = "small"
    patient: bool = False


DOORS = (
    Door("GET", "/health", "nobody", limit=None),
    Door("GET", "/health/live", "nobody", limit=None),
    Door("GET", "/health/ready", "nobody", limit=None),
    Door("GET", "/metrics", "read", limit=None),
    Door("GET", "/api/load-balancer-stats", "read"),
    Door("GET", "/api/ollama-health", "read"),
    Door("GET", "/api/admin/instances", "admin"),
    Door("PATCH", "/api/admin/instances", "admin"),
    Door("GET", "/openapi.json", "nobody"),
    Door("GET", "/api/collections", "read"),
    Door("POST", "/api/collections", "write"),
    Door("GET", "/api/collections/{name}", "read"),
    Door("PATCH", "/api/collections/{name}", "admin"),
    Door("POST", "/api/collections/{name}/rebuild", "admin"),
    Door("DELETE", "/api/collections/{name}", "admin"),
    Door("GET", "/api/documents", "read"),
    Door("POST", "/api/documents", "write", limit="uploads", body="upload", patient=True),
    Door("GET", "/api/documents/{document_id}", "read"),
    Door("DELETE", "/api/documents/{document_id}", "write"),
    Door("GET", "/api/documents/{document_id}/content", "read"),
    Door("GET", "/api/documents/{document_id}/duplicates", "read"),
    Door("GET", "/api/collections/{name}/duplicates", "read"),
    Door("POST", "/api/documents/{document_id}/retry", "write"),
    Door("GET", "/api/jobs", "read"),
    Door("POST", "/api/jobs/retry", "write", patient=True),
    Door("GET", "/api/jobs/{job_id}", "read"),
    Door("POST", "/api/jobs/{job_id}/cancel", "write"),
    Door("POST", "/api/jobs/{job_id}/retry", "write"),
    Door("GET", "/api/jobs/{job_id}/events", "read", patient=True),
    Door("GET", "/api/ingestion", "read"),
    Door("GET", "/api/sources", "read"),
    Door("POST", "/api/sources", "write"),
    Door("GET", "/api/sources/{source_id}", "read"),
    Door("DELETE", "/api/sources/{source_id}", "write"),
    Door("POST", "/api/sources/{source_id}/sync", "write"),
    Door("GET", "/api/advanced-cache-stats", "read"),
    Door("DELETE", "/api/admin/cache", "admin"),
    Door("GET", "/api/models/embedding", "admin"),
    Door("GET", "/api/models/switches", "read"),
    Door("POST", "/api/models/switches", "admin", patient=True),
    Door("POST", "/api/models/switches/activate", "admin"),
    Door("POST", "/api/models/switches/rollback", "admin"),
    Door("POST", "/api/models/switches/drop", "admin"),
    Door("GET", "/api/models/chat", "read"),
    Door("POST", "/api/models/chat", "admin"),
    Door("DELETE", "/api/models/chat/{model_id}", "admin"),
    Door("GET", "/api/tenant", "read"),
    Door("PATCH", "/api/tenant", "admin"),
    Door("POST", "/api/search", "read"),
    Door("POST", "/v1/rerank", "read"),
    Door("POST", "/api/chat", "read", patient=True),
    Door("GET", "/api/conversations/{conversation_id}", "read"),
    Door("DELETE", "/api/conversations/{conversation_id}", "read"),
    Door("POST", "/api/feedback", "read"),
    Door("GET", "/api/costs", "admin"),
    Door("PUT", "/api/costs/budget", "admin"),
    Door("GET", "/api/admin/experiments", "admin"),
    Door("POST", "/api/admin/experiments", "admin"),
    Door("GET", "/api/admin/experiments/{name}", "admin"),
    Door("POST", "/api/admin/experiments/{name}/advance", "admin"),
    Door("POST", "/api/admin/experiments/{name}/rollback", "admin"),
    Door("POST", "/api/admin/experiments/{name}/finish", "admin"),
    Door("GET", "/", "visitor"),
    Door("POST", "/", "read", patient=True),
    Door("GET", "/documents/{document_id}", "visitor"),
    Door("GET", "/static/{name}", "nobody"),
)

UNKNOWN = Door("*", "unmatched", "any key")


class Doorway:
    """Finds the door of a request."""

    def __init__(self, doors: Iterable[Door]) -> None:
        self._fixed: dict[tuple[str, str], Door] = {}
        self._patterns: list[tuple[str, Pattern[str], Door]] = []
        for door in doors:
            if "{" in door.path:
                self._patterns.append((door.method, compile_path(door.path)[0], door))
            else:
                self._fixed[door.method, door.path] = door

    def find(self, method: str, path: str) -> Door:
        method = "GET" if method == "HEAD" else method
        fixed = self._fixed.get((method, path))
        if fixed is not None:
            return fixed
        for expected, pattern, door in self._patterns:
            if expected == method and pattern.match(path):
                return door
        return UNKNOWN


def door_of(scope: AsgiScope) -> Door:
    """The door that the outermost middleware found."""
    door: Door = scope["state"]["door"]
    return door


def routes_without_a_door(app: FastAPI) -> list[str]:
    known = {(door.method, door.path) for door in DOORS}
    return [
        f"{method} {route.path}"
        for route in iter_route_contexts(app.routes)
        for method in sorted((route.methods or {"GET"}) - {"HEAD"})
        if (method, route.path) not in known
    ]
