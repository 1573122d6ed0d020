"""Limits and models of tenants, users and keys, rotation of keys, the audit log, answers kept for a repeated write."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

LIMITS = (
    "requests_per_minute",
    "tokens_per_minute",
    "concurrent",
    "tokens_per_day",
    "tokens_per_month",
    "micros_per_day",
    "micros_per_month",
)


def upgrade() -> None:
    for table in ("tenants", "users", "keys"):
        for name in LIMITS[2 if table == "keys" else 0 :]:
            op.add_column(table, sa.Column(name, sa.BigInteger()))
        op.add_column(table, sa.Column("models", sa.JSON()))
    op.add_column("tenants", sa.Column("weight", sa.Float(), nullable=False, server_default="1"))
    for table, name in (("tenants", "share_cache"), ("tenants", "disabled"), ("keys", "disabled")):
        op.add_column(table, sa.Column(name, sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("keys", sa.Column("rotated_from", sa.String(28)))
    op.create_table(
        "audit_entries",
        sa.Column("id", sa.String(28), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("target", sa.String(128), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("request_id", sa.String(128)),
        sa.PrimaryKeyConstraint("id", name="pk_audit_entries"),
    )
    op.create_index("ix_audit_entries_tenant_id", "audit_entries", ["tenant", "id"])
    op.create_table(
        "stored_answers",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_stored_answers"),
    )
    op.create_index("ix_stored_answers_expires_at", "stored_answers", ["expires_at"])
