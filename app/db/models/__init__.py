"""All tables. Procrastinate's own tables belong to it and are not modelled here."""

from app.db.models.access import ApiKey, Tenant
from app.db.models.conversations import Conversation, ConversationMessage, Feedback
from app.db.models.costs import Budget, BudgetAlert, Spending, UsageRecord
from app.db.models.documents import Blob, Collection, Document, DocumentVersion, IdempotencyKey
from app.db.models.experiments import Experiment, ExperimentOutcome
from app.db.models.language_models import LanguageModel
from app.db.models.model_servers import ModelServerChange
from app.db.models.passages import Chunk, Embedding, EmbeddingModel, Posting, StoredTokenVectors
from app.db.models.sources import RegisteredSource
from app.db.models.switches import ModelSwitch

__all__ = [
    "ApiKey",
    "Blob",
    "Budget",
    "BudgetAlert",
    "Chunk",
    "Collection",
    "Conversation",
    "ConversationMessage",
    "Document",
    "DocumentVersion",
    "Embedding",
    "EmbeddingModel",
    "Experiment",
    "ExperimentOutcome",
    "Feedback",
    "IdempotencyKey",
    "LanguageModel",
    "ModelServerChange",
    "ModelSwitch",
    "Posting",
    "RegisteredSource",
    "Spending",
    "StoredTokenVectors",
    "Tenant",
    "UsageRecord",
]
