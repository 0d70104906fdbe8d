"""When prompts and pictures were removed."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

#: Columns that hold what users gave.
_TEXTS = (("items", "prompt"), ("items", "extra"), ("tasks", "prompt"), ("tasks", "error"), ("results", "report"))


def upgrade() -> None:
    """Forward."""
    for table, column in (
        ("batches", "prompts_removed"),
        ("results", "prompt_removed"),
        ("results", "pictures_removed"),
    ):
        op.add_column(table, sa.Column(column, sa.DateTime(timezone=True)))
    op.create_index("results_with_prompt", "results", ["prompt_removed", "finished"])
    op.create_index("results_with_pictures", "results", ["pictures_removed", "finished"])
    if op.get_context().dialect.name == "postgresql":
        # The planner's statistics would hold samples of them, and keep those after the rows are gone.
        for table, column in _TEXTS:
            op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET STATISTICS 0")


def downgrade() -> None:
    """Back: when something was removed is forgotten, and that it was."""
    if op.get_context().dialect.name == "postgresql":
        for table, column in _TEXTS:
            op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET STATISTICS -1")
    op.drop_index("results_with_pictures", "results")
    op.drop_index("results_with_prompt", "results")
    for table, column in (
        ("results", "pictures_removed"),
        ("results", "prompt_removed"),
        ("batches", "prompts_removed"),
    ):
        op.drop_column(table, column)
