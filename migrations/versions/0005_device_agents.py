"""Keep agents of boards and what is ordered of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

ID = sa.String(24)
NAME = sa.String(200)
DIGEST = sa.String(64)
MOMENT = sa.DateTime(timezone=True)
AGENT_STATES = ("ACTIVE", "DRAINING")
ORDER_STATES = ("QUEUED", "LEASED", "DONE", "FAILED")


def _one_of(name: str, values: tuple[str, ...]) -> sa.Enum:
    return sa.Enum(*values, name=name, native_enum=False, create_constraint=True, length=16)


def upgrade() -> None:
    """Create the tables and their indexes."""
    op.create_table(
        "device_agents",
        sa.Column("name", NAME, nullable=False),
        sa.Column("device", NAME, nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("token_sha256", DIGEST, nullable=False),
        sa.Column("state", _one_of("agentstate", AGENT_STATES), nullable=False),
        sa.Column("quota", sa.Integer(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("seen_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(
            ["device"], ["devices.name"], name=op.f("fk_device_agents_device_devices")
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_device_agents")),
    )
    op.create_index("ix_device_agents_device", "device_agents", ["device"])
    op.create_table(
        "timing_orders",
        sa.Column("id", ID, nullable=False),
        sa.Column("job_id", ID, nullable=False),
        sa.Column("trial_id", ID, nullable=False),
        sa.Column("device", NAME, nullable=False),
        sa.Column("candidate", DIGEST, nullable=False),
        sa.Column("baseline", DIGEST, nullable=False),
        sa.Column("probe", DIGEST, nullable=False),
        sa.Column("compare", sa.String(16), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("width", sa.Double(), nullable=False),
        sa.Column("max_seconds", sa.Double(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("state", _one_of("orderstate", ORDER_STATES), nullable=False),
        sa.Column("agent", NAME, nullable=False),
        sa.Column("attempt", NAME, nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("leased_at", MOMENT),
        sa.Column("expires_at", MOMENT),
        sa.Column("result", sa.JSON()),
        sa.Column("times", DIGEST, nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("finished_at", MOMENT),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_timing_orders_job_id_jobs")),
        sa.ForeignKeyConstraint(
            ["trial_id"], ["trials.id"], name=op.f("fk_timing_orders_trial_id_trials")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_timing_orders")),
        sa.UniqueConstraint(
            "job_id",
            "trial_id",
            "device",
            "candidate",
            name=op.f("uq_timing_orders_job_id_trial_id_device_candidate"),
        ),
    )
    op.create_index("ix_timing_orders_job_id", "timing_orders", ["job_id"])
    op.create_index("ix_timing_orders_trial_id", "timing_orders", ["trial_id"])
    op.create_index("ix_timing_orders_device_state", "timing_orders", ["device", "state"])


def downgrade() -> None:
    """Drop the tables."""
    op.drop_table("timing_orders")
    op.drop_table("device_agents")
