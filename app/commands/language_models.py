"""`footnote models chat …`: the language models of a tenant, and whether they may be elsewhere."""

from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal

import typer

from app.commands.client import ApiKey, Service, Url, with_service
from app.commands.output import AsJson, console, plain, print_json, print_table
from app.errors import InvalidInput, NotFound
from app.language_models import OLLAMA, Tier, Variant

MODELS = "/api/models/chat"
TENANT = "/api/tenant"
COLUMNS = ["model", "tier", "provider", "context", "per million in/out", "per hour", "state"]

chat = typer.Typer(
    help="List, register and remove language models; allow those in the cloud.",
    no_args_is_help=True,
)

Price = Annotated[str | None, typer.Option(help="In the currency of the costs.", metavar="AMOUNT")]


@chat.command("list")
def list_language_models(as_json: AsJson = False, url: Url = None, api_key: ApiKey = None) -> None:
    """List what questions can be answered by, in the order in which models are tried."""
    found = _call(url, api_key, "GET", MODELS)
    if as_json:
        print_json(found)
        return
    print_table(
        COLUMNS,
        (
            [
                one["name"],
                one["tier"],
                one["provider"] + (" (cloud)" if one["cloud"] else ""),
                f"{one['context_tokens']:,}",
                _pair(one),
                _amount(one["price_per_hour"]),
                _state(one),
            ]
            for one in found["models"]
        ),
        empty="There are no language models: answers are quoted, not written.",
        right="context",
    )
    allowed = "allowed" if found["cloud_models"] else "not allowed"
    console().print(f"Models in the cloud are {allowed}.")


@chat.command("add")
def add_language_model(
    name: Annotated[str, typer.Argument(help="How requests name it.", metavar="NAME")],
    tier: Annotated[Tier, typer.Option(help="Which tier it is of.")] = "interactive",
    provider: Annotated[str, typer.Option(help="Who serves it.", metavar="NAME")] = OLLAMA,
    served_as: Annotated[
        str, typer.Option(help="The provider's name for it, where that differs.", metavar="NAME")
    ] = "",
    context_tokens: Annotated[int | None, typer.Option(help="How much it reads.")] = None,
    prompt_price: Price = None,
    completion_price: Price = None,
    cached_price: Price = None,
    price_per_hour: Price = None,
    capability: Annotated[
        list[str] | None,
        typer.Option(help="json, tools, vision or thinking; may be repeated."),
    ] = None,
    variant: Annotated[
        Variant | None, typer.Option(help="What kind of variant of --baseline it is.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="The model that stands in for a variant.", metavar="NAME")
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Register a model; prices are per million tokens, or per hour of a busy slot."""
    prices = {
        "prompt_price_per_million": prompt_price,
        "completion_price_per_million": completion_price,
        "cached_price_per_million": cached_price,
        "price_per_hour": price_per_hour,
    }
    body: dict[str, Any] = {
        "name": name,
        "tier": tier,
        "provider": provider,
        "served_as": served_as,
        "context_tokens": context_tokens,
        "capabilities": capability or [],
        "variant": variant,
        "baseline": baseline,
        **{key: _checked(given) for key, given in prices.items() if given is not None},
    }
    added = _call(url, api_key, "POST", MODELS, json=body)
    if as_json:
        print_json(added)
        return
    console().print(plain(f"{name} is registered ({_state(added)})."))


@chat.command("remove")
def remove_language_model(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Remove a registered model; those of the configuration are removed there."""

    async def work(service: Service) -> Any:
        models = (await service.call("GET", MODELS))["models"]
        found = next((one for one in models if one["name"] == name), None)
        if found is None:
            raise NotFound(f"There is no model {name}.", hint="See `footnote models chat list`.")
        if found["id"] is None:
            raise InvalidInput(
                f"{name} is a model of the configuration.", hint="Remove it from the settings."
            )
        return await service.call("DELETE", f"{MODELS}/{found['id']}")

    removed = with_service(url, api_key, work)
    if as_json:
        print_json(removed)
        return
    console().print(plain(f"{name} is removed."))


@chat.command("cloud")
def allow_cloud(
    wanted: Annotated[
        Literal["on", "off"] | None,
        typer.Argument(help="Left out, it is only shown.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Let questions, and the passages found for them, go to models in the cloud, or keep them."""
    if wanted is None:
        tenant = _call(url, api_key, "GET", TENANT)
    else:
        tenant = _call(url, api_key, "PATCH", TENANT, json={"cloud_models": wanted == "on"})
    if as_json:
        print_json(tenant)
        return
    allowed = "allowed" if tenant["cloud_models"] else "not allowed"
    console().print(plain(f"Tenant {tenant['name']}: models in the cloud are {allowed}."))


def _call(url: str | None, api_key: str | None, method: str, path: str, **request: Any) -> Any:
    async def work(service: Service) -> Any:
        return await service.call(method, path, **request)

    return with_service(url, api_key, work)


def _checked(given: str) -> str:
    try:
        amount = Decimal(given)
    except InvalidOperation:
        amount = Decimal(-1)
    if not amount.is_finite() or amount < 0:
        raise InvalidInput(f"{given!r} is no price.", hint="Give a number of 0 or more, as in 2.5.")
    return str(amount)


def _pair(model: dict[str, Any]) -> str:
    prices = [model["prompt_price_per_million"], model["completion_price_per_million"]]
    return " / ".join(map(_amount, prices)) if any(map(Decimal, prices)) else "free"


def _amount(given: str) -> str:
    return f"{Decimal(given).normalize():f}"


def _state(model: dict[str, Any]) -> str:
    state = "usable" if model["usable"] else model["reason"]
    return f"{state}; {model['variant']} of {model['baseline']}" if model["variant"] else state
