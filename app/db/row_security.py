"""Which rows a search can read: the database itself keeps tenants apart, whatever a query asks.

Searches read as the role `footnote_reader`, which owns nothing and sees, of the tables below, the
rows of the tenant that its transaction names; where none is named it sees none. Whoever owns the
tables (writers, migrations, `footnote verify`) sees all of them, as before. See
docs/decisions/0027-searches-read-as-a-role-of-their-own.md.
"""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import DatabaseUnsuitable

READER = "footnote_reader"
TENANT_SETTING = "footnote.tenant_id"

# In a subquery, so that it is asked once for a statement and not for every row.
_TENANT = f"(SELECT nullif(current_setting('{TENANT_SETTING}', true), '')::int)"
OWN_ROWS = f"tenant_id = {_TENANT}"
OWN_COLLECTIONS = (
    f"collection_id = ANY (ARRAY(SELECT id FROM collections WHERE tenant_id = {_TENANT}))"  # noqa: S608 - constants
)

GUARDED = {
    "documents": OWN_ROWS,
    "document_versions": OWN_ROWS,
    "chunks": OWN_ROWS,
    "embeddings": OWN_ROWS,
    "token_vectors": OWN_ROWS,
    "postings": OWN_COLLECTIONS,
}
"""Condition on the rows that a reader sees, by table, in the order in which writers take them.

The partitions of `embeddings` have that of their parent, because searches name them; a reader has
no right to the leaves, which only their partition leads to.
"""
_UNGUARDED = ("collections", "embedding_models", "model_switches")
"""What a search also reads, and what no caller sees of it: who shares an index, and how large."""


def enter(tenant_id: int) -> str:
    """Statements by which a transaction becomes a reader for this tenant, until it ends."""
    return f"SET LOCAL {TENANT_SETTING} = {tenant_id:d}; {RETURN};"


LEAVE = "RESET ROLE"
RETURN = f"SET LOCAL ROLE {READER}"
"""For what a reader could only do slowly, within such a transaction."""


def guard(table: str, condition: str) -> list[str]:
    """Statements that keep all rows but these from whoever does not own the table."""
    return [
        f"DROP POLICY IF EXISTS tenant ON {table}",
        f"CREATE POLICY tenant ON {table} FOR SELECT USING ({condition})",
        f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
    ]


def unguard(table: str) -> list[str]:
    return [
        f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY",
        f"DROP POLICY IF EXISTS tenant ON {table}",
    ]


def grant(table: str) -> str:
    """Lets the role read a table, if there is the role."""
    return f"""
        DO $grant$ BEGIN
          IF to_regrole('{READER}') IS NOT NULL THEN
            GRANT SELECT ON {table} TO {READER};
          END IF;
        END $grant$
    """


MAKE_READER = f"""
DO $reader$
DECLARE
  readable text;
BEGIN
  BEGIN
    IF to_regrole('{READER}') IS NULL THEN
      CREATE ROLE {READER} NOLOGIN;
    END IF;
    IF NOT pg_has_role(current_user, '{READER}', CASE
      WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END)
    THEN
      EXECUTE format('GRANT {READER} TO %I', current_user);
    END IF;
  EXCEPTION WHEN insufficient_privilege THEN
    RAISE NOTICE 'an administrator must make the role {READER}, or grant it to %', current_user;
  END;
  IF to_regrole('{READER}') IS NULL THEN
    RETURN;
  END IF;
  FOR readable IN
    SELECT c.oid::regclass FROM pg_class AS c
    WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')
      AND (c.relname = ANY (ARRAY[{", ".join(f"'{table}'" for table in (*GUARDED, *_UNGUARDED))}])
        OR c.relname ~ '^embeddings_m[0-9]+$')
      AND NOT has_table_privilege('{READER}', c.oid, 'SELECT')
  LOOP
    EXECUTE format('GRANT SELECT ON %s TO {READER}', readable);
  END LOOP;
END $reader$
"""  # noqa: S608 - constants of this module
"""Makes the role and gives it its rights, as far as that is missing and the owner may do it."""

_CAN_READ = text(
    f"""
    SELECT coalesce(pg_has_role(to_regrole('{READER}'), CASE
      WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END
    ) AND has_table_privilege(to_regrole('{READER}'), 'chunks', 'SELECT'), false), current_user
    """
)


async def check_reader(connection: AsyncConnection) -> None:
    """Raise DatabaseUnsuitable, saying what to do, where searches could not become a reader."""
    can_read, user = (await connection.execute(_CAN_READ)).one()
    if not can_read:
        raise DatabaseUnsuitable(
            f"Searches read as the role {READER}, which the database's user {user} may not become.",
            hint=f"As an administrator run `CREATE ROLE {READER}` (if there is none) and `GRANT"
            f' {READER} TO "{user}"`, then `footnote migrate`; or set'
            " FOOTNOTE_ROW_LEVEL_SECURITY=off.",
        )
