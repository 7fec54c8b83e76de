"""`footnote keys …`: straight in the database, because the first key has to come from somewhere."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer

from app.commands.output import AsJson, console, print_json, print_table, quiet_settings
from app.telemetry import configure_logging

if TYPE_CHECKING:
    from app.access import KeyRecord, KeyRing

Result = TypeVar("Result")

keys = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)


def _with_keys(work: Callable[["KeyRing"], Awaitable[Result]]) -> Result:
    # Heavy, and not for `footnote --help`.
    from app.access import KeyRing  # noqa: PLC0415
    from app.db.schema import ready_database  # noqa: PLC0415
    from app.db.session import open_engine, open_sessions  # noqa: PLC0415

    settings = quiet_settings()
    configure_logging(settings)

    async def run(url: str) -> Result:
        engine = open_engine(settings, url)
        try:
            return await work(KeyRing(open_sessions(engine)))
        finally:
            await engine.dispose()

    with ready_database(settings) as url:
        return asyncio.run(run(url))


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="Whose key it is, for people.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="read, write or admin; may be repeated.", show_default="read"),
    ] = None,
    collection: Annotated[
        list[str] | None,
        typer.Option("--collection", "-c", help="Limit it to these collections.", metavar="NAME"),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(help="An access group that it carries; may be repeated.", metavar="NAME"),
    ] = None,
    all_groups: Annotated[
        bool, typer.Option("--all-groups", help="Let it see documents of every access group.")
    ] = False,
    expires_in_days: Annotated[
        float | None, typer.Option(help="When it stops working.", min=0, metavar="DAYS")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is shown once."""
    expires_at = datetime.now(UTC) + timedelta(days=expires_in_days) if expires_in_days else None

    async def work(ring: "KeyRing") -> "tuple[KeyRecord, str]":
        return await ring.create(
            name,
            scopes=scope or ["read"],
            collections=collection,
            groups=None if all_groups else group or (),
            expires_at=expires_at,
        )

    record, token = _with_keys(work)
    if as_json:
        print_json({**_described(record), "key": token})
        return
    typer.echo(token)
    typer.echo("Keep it: it is not stored, and never shown again.", err=True)


@keys.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List all keys, revoked ones included."""
    records = _with_keys(lambda ring: ring.list())
    if as_json:
        print_json({"keys": [_described(record) for record in records]})
        return
    print_table(
        ["id", "name", "key", "scopes", "collections", "state", "last used"],
        (
            [
                record.id,
                record.name,
                f"{record.prefix}…",
                " ".join(sorted(record.scopes)),
                "all" if record.collections is None else " ".join(sorted(record.collections)),
                _state(record),
                f"{record.last_used_at:%Y-%m-%d}" if record.last_used_at else "never",
            ]
            for record in records
        ),
        empty="There are no keys yet.",
    )


@keys.command("revoke")
def revoke_key(
    key: Annotated[str, typer.Argument(help="Its id, its beginning (fn_…) or its name.")],
    as_json: AsJson = False,
) -> None:
    """Revoke a key; it is refused from the next request on."""
    record = _with_keys(lambda ring: ring.revoke(key))
    if as_json:
        print_json(_described(record))
        return
    console().print(f"Revoked {record.name} ({record.prefix}…).")


def _described(record: "KeyRecord") -> dict[str, Any]:
    return {
        name: sorted(cast("frozenset[str]", value)) if isinstance(value, frozenset) else value
        for name, value in asdict(record).items()
    }


def _state(record: "KeyRecord") -> str:
    if record.revoked_at:
        return f"revoked {record.revoked_at:%Y-%m-%d}"
    if record.expires_at is None:
        return "valid"
    passed = record.expires_at <= datetime.now(UTC)
    return f"{'expired' if passed else 'valid until'} {record.expires_at:%Y-%m-%d}"
