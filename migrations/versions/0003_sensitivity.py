"""Keep what single decisions do to a model: one profile per model, data and code version."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

DIGEST = sa.String(64)
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "sensitivity_profiles",
        sa.Column("model_digest", DIGEST, nullable=False),
        sa.Column("dataset_digest", DIGEST, nullable=False),
        sa.Column("code_version", sa.String(200), nullable=False),
        sa.Column("owner", sa.Text()),
        sa.Column("until", MOMENT),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("profile", sa.JSON()),
        sa.Column("problem", sa.Text()),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint(
            "model_digest",
            "dataset_digest",
            "code_version",
            name=op.f("pk_sensitivity_profiles"),
        ),
    )


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("sensitivity_profiles")
