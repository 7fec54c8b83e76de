"""Usage with exact money, and what tenants may spend in a month.

Revision ID: 0011
Revises: 0010
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

MONEY = sa.Numeric(24, 12)


def upgrade() -> None:
    for name, kind, earlier in (
        ("tier", sa.Text(), "''"),
        ("provider", sa.Text(), "''"),
        ("collections", sa.ARRAY(sa.Text()), "'{}'"),
        ("mode", sa.Text(), "'generated'"),
        ("cached_tokens", sa.Integer(), "0"),
        ("took_ms", sa.Integer(), "0"),
        ("saved", MONEY, "0"),
    ):
        # The default is for rows from before, of which no version wrote any.
        op.add_column(
            "usage", sa.Column(name, kind, nullable=False, server_default=sa.text(earlier))
        )
        op.alter_column("usage", name, server_default=None)
    op.execute("UPDATE usage SET collections = ARRAY[collection]")
    op.drop_column("usage", "collection")
    op.alter_column("usage", "cost", type_=MONEY, postgresql_using="cost::numeric")
    op.create_check_constraint(
        op.f("ck_usage_mode"), "usage", "mode IN ('generated', 'interrupted', 'cached', 'reserved')"
    )
    op.create_table(
        "spending",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("month", sa.Date(), nullable=False),
        sa.Column("spent", MONEY, server_default=sa.text("0"), nullable=False),
        sa.Column("reserved", MONEY, server_default=sa.text("0"), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_spending_tenant_id_tenants")
        ),
        sa.PrimaryKeyConstraint("tenant_id", "month", name=op.f("pk_spending")),
    )
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "budgets",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("monthly_limit", MONEY, nullable=False),
        sa.Column("changed_at", moment, server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("monthly_limit >= 0", name=op.f("ck_budgets_monthly_limit")),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_budgets_tenant_id_tenants")
        ),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("pk_budgets")),
    )
    op.create_table(
        "budget_alerts",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("month", sa.Date(), nullable=False),
        sa.Column("percent", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("spent", MONEY, nullable=False),
        sa.Column("monthly_limit", MONEY, nullable=False),
        sa.Column("created_at", moment, server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_budget_alerts_tenant_id_tenants")
        ),
        sa.PrimaryKeyConstraint("tenant_id", "month", "percent", name=op.f("pk_budget_alerts")),
    )


def downgrade() -> None:
    op.drop_table("budget_alerts")
    op.drop_table("budgets")
    op.drop_table("spending")
    op.drop_constraint(op.f("ck_usage_mode"), "usage")
    op.alter_column("usage", "cost", type_=sa.Float(), postgresql_using="cost::float")
    op.add_column(
        "usage", sa.Column("collection", sa.Text(), nullable=False, server_default=sa.text("''"))
    )
    op.alter_column("usage", "collection", server_default=None)
    # Of several collections the schema before knew one.
    op.execute("UPDATE usage SET collection = coalesce(collections[1], '')")
    for name in ("saved", "took_ms", "cached_tokens", "mode", "collections", "provider", "tier"):
        op.drop_column("usage", name)
