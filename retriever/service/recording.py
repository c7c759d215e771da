"""What the service keeps of searches and of what people do with them, where `--log` asks for it."""

import secrets
from typing import Any

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from two_tower.retriever.behaviour.log import BehaviourLog
from two_tower.retriever.records import SearchResult
from two_tower.retriever.search.retriever import Retriever
from two_tower.retriever.service.bodies import EventAnswer, EventBody, SearchBody
from two_tower.retriever.service.config import ServiceConfig
from two_tower.retriever.service.experiment import Experiment, InterleavedResult
from two_tower.retriever.service.failures import Failure, ServiceFailure
from two_tower.retriever.service.metrics import Metrics

ID_FIELD = "passage_id"


class Recording:
    """The log and the experiment of one service; without `config.log` it has neither."""

    def __init__(self, config: ServiceConfig, metrics: Metrics) -> None:
        self._name = config.name
        self.experiment: Experiment | None = None
        self._log: BehaviourLog | None = None
        if config.log is not None:
            self._log = BehaviourLog(config.log, days=config.log_days, count=metrics.count_records)
        if config.against is not None:
            self.experiment = Experiment(config.against, share=config.share)

    @property
    def is_on(self) -> bool:
        """Whether searches are kept."""
        return self._log is not None

    def seed(self, query: str, client_id: str | None) -> bytes | None:
        """Return the seed of a search that is interleaved, None for any other.

        The same person gets the same answer to the same query again.
        """
        if self.experiment is None or self._log is None:
            return None
        person = secrets.token_hex() if client_id is None else client_id
        seed = self._log.draw(person, query)
        return seed if self.experiment.takes(seed) else None

    def search(
        self, result: SearchResult, body: SearchBody, filter: Any, retriever: Retriever
    ) -> dict[str, str]:
        """Keep a search; return what its answer says of that."""
        if self._log is None:
            return {}
        query_id = self._log.new_query_id()
        about: dict[str, Any] = {
            "collection": retriever.collection,
            "fingerprint": retriever.bundle.fingerprint,
            "k": body.k,
            "filter": filter,
            "settings": body.settings and body.settings.model_dump(exclude_none=True),
            "stages_run": list(result.stages_run),
            "skipped": list(result.skipped),
            "answerable": result.answerable,
        }
        if isinstance(result, InterleavedResult):
            teams = list(result.teams)
            about["experiment"] = {"own": result.own, "other": result.other, "teams": teams}
        content = {
            "application": self._name,
            "query_id": query_id,
            "client_id": self._log.pseudonym(body.client_id),
            "user_query": result.query,
            "object_id_field": ID_FIELD,
            "query_response_id": query_id,
            "query_response_hit_ids": [hit.passage_id for hit in result.hits],
            "query_attributes": {name: v for name, v in about.items() if v is not None},
        }
        self._log.put("queries", content)
        return {"query_id": query_id}

    def event(self, body: EventBody) -> None:
        """Keep an event.

        Raises:
            ServiceFailure: there is no log, or no search that the event could be about.
        """
        if self._log is None:
            message = "this service keeps no log; start it with --log FOLDER"
            raise ServiceFailure(Failure(403, "no_log", message))
        if not self._log.is_own(body.query_id):
            message = "no search here had that query_id; expected one that /search answered with"
            raise ServiceFailure(Failure(404, "unknown_query", message))
        about = body.event_attributes
        attributes: dict[str, Any] = {
            "object": {"object_id": str(about.object.object_id), "object_id_field": ID_FIELD}
        }
        if about.position is not None:
            attributes["position"] = {"ordinal": about.position.ordinal}
        if about.rating is not None:
            attributes["rating"] = about.rating
        people = ("client_id", "user_id", "session_id")
        content = {
            "application": self._name,
            "action_name": body.action_name,
            "query_id": body.query_id,
            **{name: self._log.pseudonym(getattr(body, name)) for name in people},
            "event_attributes": attributes,
        }
        self._log.put("events", content)

    def close(self) -> None:
        """Write what is not written yet."""
        if self._log is not None:
            self._log.close()


def add_events(router: APIRouter, recording: Recording, *, check: Any) -> None:
    """Add `POST /events`; `check` looks at every request first."""

    @router.post(
        "/events", response_model=EventAnswer, status_code=202, dependencies=[Depends(check)]
    )
    async def event(body: EventBody, _: Request) -> Response:
        """Keep a click, a rating, or that a passage answers the query."""
        recording.event(body)
        return JSONResponse({"status": "accepted"}, 202)
