"""Trials that train for others, and how far a training came."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

DIGEST = sa.String(64)

OLD_FIDELITIES = ("proxy", "short", "full", "confirmed")
FIDELITIES = (*OLD_FIDELITIES, "prepared")

OLD_UNIQUE = "uq_trials_job_id_plan_digest_fidelity_base"
UNIQUE = "uq_trials_job_id_plan_digest_fidelity_base_preparation"
IDENTITY = ["job_id", "plan_digest", "fidelity", "base"]

CHECK = "ck_trials_fidelity"


def _admits(values: tuple[str, ...]) -> str:
    return f"fidelity IN ({', '.join(repr(value) for value in values)})"


def upgrade() -> None:
    """Add the columns, and the preparation to what makes a trial unique."""
    with op.batch_alter_table("trials") as trials:
        trials.add_column(sa.Column("preparation", sa.JSON()))
        # A default for the rows that are there; the program writes every value itself.
        trials.add_column(
            sa.Column("preparation_key", DIGEST, nullable=False, server_default=sa.text("''"))
        )
        trials.add_column(sa.Column("found", sa.JSON()))
        trials.add_column(sa.Column("resume", DIGEST, nullable=False, server_default=sa.text("''")))
        trials.drop_constraint(op.f(CHECK), type_="check")
        trials.create_check_constraint(op.f(CHECK), sa.text(_admits(FIDELITIES)))
        trials.drop_constraint(op.f(OLD_UNIQUE), type_="unique")
        trials.create_unique_constraint(UNIQUE, [*IDENTITY, "preparation_key"])
    with op.batch_alter_table("trials") as trials:
        trials.alter_column("preparation_key", existing_type=DIGEST, server_default=None)
        trials.alter_column("resume", existing_type=DIGEST, server_default=None)


def downgrade() -> None:
    """Remove them, and the trials that cannot be told apart without them."""
    gone = "SELECT id FROM trials WHERE fidelity = 'prepared'"
    for table in ("readings", "attempts", "front_members"):
        op.execute(sa.text(f"DELETE FROM {table} WHERE trial_id IN ({gone})"))
    op.execute(sa.text("DELETE FROM trials WHERE fidelity = 'prepared'"))
    with op.batch_alter_table("trials") as trials:
        trials.drop_constraint(op.f(UNIQUE), type_="unique")
        trials.create_unique_constraint(OLD_UNIQUE, IDENTITY)
        trials.drop_constraint(op.f(CHECK), type_="check")
        trials.create_check_constraint(op.f(CHECK), sa.text(_admits(OLD_FIDELITIES)))
        trials.drop_column("resume")
        trials.drop_column("found")
        trials.drop_column("preparation_key")
        trials.drop_column("preparation")
