"""The wire of reranking: what others call it, so that their clients fit."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from app.api.schemas import Milliseconds, Question, Text

MAX_DOCUMENTS = 1000


class RankedDocument(BaseModel):
    text: Text


class RerankBody(BaseModel):
    """What a client sends besides is ignored: each of the common ones adds something of its own."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model: Annotated[Text, Field(max_length=200)] = Field(
        default="", description="Left out: the service's own."
    )
    query: Question = Field(examples=["How long is the notice period?"])
    documents: Annotated[list[Text | RankedDocument], Field(min_length=1, max_length=MAX_DOCUMENTS)]
    top_n: Annotated[int, Field(strict=True, ge=1)] | None = None
    return_documents: StrictBool = False

    @property
    def texts(self) -> list[str]:
        return [one if isinstance(one, str) else one.text for one in self.documents]


class Reranked(BaseModel):
    """`index` is the place among the documents that were sent."""

    index: int
    relevance_score: float
    document: RankedDocument | None = None


class RerankReply(BaseModel):
    """In descending score, equal ones in the order that they were sent in."""

    model_config = ConfigDict(protected_namespaces=())

    model: str
    results: list[Reranked]
    took_ms: Milliseconds
