"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_identity = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Forward."""
    op.create_table(
        "batches",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("request_id", sa.String(64), unique=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False, index=True),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("settings", sa.JSON, nullable=False),
        sa.Column("prompts", sa.Integer, nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished", sa.DateTime(timezone=True)),
        sa.Index("batches_age", "created", "id"),
    )
    op.create_table(
        "items",
        sa.Column("batch", sa.String(32), sa.ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("checkpoint", sa.Text, primary_key=True),
        sa.Column("position", _identity, primary_key=True),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.Column("extra", sa.JSON, nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Index("items_key", "batch", "key"),
    )
    op.create_table(
        "tasks",
        sa.Column("id", _identity, primary_key=True, autoincrement=True),
        sa.Column("batch", sa.String(32), sa.ForeignKey("batches.id", ondelete="CASCADE"), nullable=False),
        sa.Column("checkpoint", sa.Text, nullable=False),
        sa.Column("key", sa.String(64), nullable=False, index=True),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.Column("confirms", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("worker", sa.String(32), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("losses", sa.Integer, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Index("tasks_of_batch", "batch", "key", unique=True),
        sa.Index("tasks_to_do", "batch", "checkpoint", "state", "losses", "id"),
        sa.Index("tasks_that_confirm", "batch", "confirms"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("seen", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "results",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("memorized", sa.Float, nullable=False),
        sa.Column("spurious", sa.Float, nullable=False),
        sa.Column("generalized", sa.Float, nullable=False),
        sa.Column("evaluations", sa.BigInteger, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("finished", sa.DateTime(timezone=True), nullable=False),
        sa.Column("report", sa.LargeBinary, nullable=False),
        sa.Index("results_age", "finished"),
    )
