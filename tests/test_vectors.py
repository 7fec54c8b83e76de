import asyncio
import hashlib

import numpy as np
import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.db.vectors import add_vectors, known_vectors, register_model
from tests.passages import Source, add_collection, add_document, add_tenant, unit_vectors


async def model_of(engine: AsyncEngine, dimensions: int = 8) -> int:
    async with engine.begin() as connection:
        return await register_model(connection, name="m", digest="d", dimensions=dimensions)


async def test_a_model_is_registered_once_whoever_asks(engine: AsyncEngine) -> None:
    ids = await asyncio.gather(*(model_of(engine) for _ in range(5)))
    assert len(set(ids)) == 1


async def test_models_of_other_dimensions_live_side_by_side(connection: AsyncConnection) -> None:
    small = await register_model(connection, name="m", digest="small", dimensions=8)
    large = await register_model(connection, name="m", digest="large", dimensions=4096)
    assert small != large
    collection_id = await add_collection(connection, "books", large)
    one = await add_document(connection, collection_id, Source(["x"]), unit_vectors(0, 1, 4096))
    assert len(one.chunk_ids) == 1


async def test_a_vector_of_other_dimensions_is_refused(connection: AsyncConnection) -> None:
    model_id = await register_model(connection, name="m", digest="d", dimensions=8)
    collection_id = await add_collection(connection, "books", model_id)
    with pytest.raises(psycopg.errors.CheckViolation):
        await add_document(connection, collection_id, Source(["x"]), unit_vectors(0, 1, 9))


async def test_as_many_vectors_as_chunks_are_needed(connection: AsyncConnection) -> None:
    with pytest.raises(ValueError, match="2 chunks but 1 vectors"):
        await add_vectors(connection, 1, 1, 1, [1, 2], unit_vectors(0, 1, 8))


async def test_known_texts_give_their_vectors_back(connection: AsyncConnection) -> None:
    model_id = await register_model(connection, name="m", digest="d", dimensions=8)
    collection_id = await add_collection(connection, "books", model_id)
    given = unit_vectors(1, 2, 8)
    await add_document(connection, collection_id, Source(["one", "two"]), given)
    one, two, three = (hashlib.sha256(word.encode()).digest() for word in ("one", "two", "three"))
    known = await known_vectors(connection, 1, model_id, [one, two, three])
    assert set(known) == {one, two}
    np.testing.assert_allclose(known[one], given[0], atol=1e-3)
    np.testing.assert_allclose(known[two], given[1], atol=1e-3)


async def test_a_text_that_occurs_often_gives_one_vector(connection: AsyncConnection) -> None:
    """Also where its first passage has none of this model."""
    model_id = await register_model(connection, name="m", digest="d", dimensions=8)
    other_id = await register_model(connection, name="m", digest="of another", dimensions=8)
    given = unit_vectors(1, 1, 8)
    collections = [
        await add_collection(connection, name, of)
        for name, of in (("other", other_id), ("books", model_id))
    ]
    await add_document(connection, collections[0], Source(["one"]), unit_vectors(2, 1, 8))
    for number in range(3):
        source = Source(["one"], uri=f"file:///{number}")
        await add_document(connection, collections[1], source, given)
    one = hashlib.sha256(b"one").digest()
    known = await known_vectors(connection, 1, model_id, [one, one])
    assert set(known) == {one}
    np.testing.assert_allclose(known[one], given[0], atol=1e-3)


async def test_vectors_of_another_tenant_are_unknown(connection: AsyncConnection) -> None:
    model_id = await register_model(connection, name="m", digest="d", dimensions=8)
    collection_id = await add_collection(connection, "books", model_id)
    await add_document(connection, collection_id, Source(["one"]), unit_vectors(1, 1, 8))
    await add_tenant(connection, 2)
    assert not await known_vectors(connection, 2, model_id, [hashlib.sha256(b"one").digest()])
