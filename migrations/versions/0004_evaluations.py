"""Keep what evaluations came to, for all jobs in the same circumstances."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

DIGEST = sa.String(64)


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "evaluations",
        sa.Column("circumstances", DIGEST, nullable=False),
        sa.Column("plan_digest", DIGEST, nullable=False),
        sa.Column("plan", sa.JSON(), nullable=False),
        sa.Column("outcome", sa.JSON(), nullable=False),
        sa.Column("artifacts", sa.JSON(), nullable=False),
        sa.Column("devices", sa.JSON(), nullable=False),
        sa.Column("trial_id", sa.String(24), nullable=False),
        sa.Column("known_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("circumstances", "plan_digest", name=op.f("pk_evaluations")),
    )
    op.create_index(
        "ix_evaluations_circumstances_known_at", "evaluations", ["circumstances", "known_at"]
    )


def downgrade() -> None:
    """Drop the table."""
    op.drop_index("ix_evaluations_circumstances_known_at", table_name="evaluations")
    op.drop_table("evaluations")
