"""Create all tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ID = sa.String(24)
DIGEST = sa.String(64)
NAME = sa.String(200)
MOMENT = sa.DateTime(timezone=True)

SCAN_STATES = ("SCANNING", "READY", "REJECTED")
JOB_STATES = ("QUEUED", "RUNNING", "FINALIZING", "SUCCEEDED", "FAILED", "CANCELLING", "CANCELLED")
JOB_WISHES = ("run", "cancel")
JOB_OUTCOMES = ("front_found", "infeasible", "cancelled", "failed")
FIDELITIES = ("proxy", "short", "full", "confirmed")
TRIAL_STATES = ("PROPOSED", "RUNNING", "MEASURED", "INFEASIBLE", "FAILED", "CANCELLED")
ATTEMPT_STATES = ("RUNNING", "SUCCEEDED", "FAILED", "LOST")


def _one_of(name: str, values: tuple[str, ...]) -> sa.Enum:
    return sa.Enum(*values, name=name, native_enum=False, create_constraint=True, length=16)


def upgrade() -> None:
    """Create the tables and their indexes."""
    op.create_table(
        "api_keys",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("prefix", sa.String(length=16), nullable=False),
        sa.Column("secret_sha256", DIGEST, nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("expires_at", MOMENT),
        sa.Column("revoked_at", MOMENT),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("prefix", name=op.f("uq_api_keys_prefix")),
    )
    op.create_table(
        "artifacts",
        sa.Column("id", ID, nullable=False),
        sa.Column("digest", DIGEST, nullable=False),
        sa.Column("role", NAME, nullable=False),
        sa.Column("media_type", NAME, nullable=False),
        sa.Column("file_name", NAME, nullable=False),
        sa.Column("size_bytes", sa.BigInteger()),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_artifacts")),
        sa.UniqueConstraint("digest", "role", name=op.f("uq_artifacts_digest_role")),
    )
    op.create_table(
        "datasets",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("state", _one_of("scanstate", SCAN_STATES), nullable=False),
        sa.Column("artifact", sa.JSON(), nullable=False),
        sa.Column("summary", sa.JSON()),
        sa.Column("problem", sa.JSON()),
        sa.Column("scan_owner", sa.Text()),
        sa.Column("scan_until", MOMENT),
        sa.Column("scans", sa.Integer(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_datasets")),
    )
    op.create_index(op.f("ix_datasets_state"), "datasets", ["state"])
    op.create_table(
        "devices",
        sa.Column("name", NAME, nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("fingerprint", DIGEST, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("seen_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_devices")),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("principal", NAME, nullable=False),
        sa.Column("key", NAME, nullable=False),
        sa.Column("request_digest", DIGEST, nullable=False),
        sa.Column("status", sa.Integer()),
        sa.Column("headers", sa.JSON()),
        sa.Column("body", sa.JSON()),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("principal", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index(op.f("ix_idempotency_keys_expires_at"), "idempotency_keys", ["expires_at"])
    op.create_table(
        "models",
        sa.Column("survey", sa.JSON()),
        sa.Column("id", ID, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("state", _one_of("scanstate", SCAN_STATES), nullable=False),
        sa.Column("artifact", sa.JSON(), nullable=False),
        sa.Column("summary", sa.JSON()),
        sa.Column("problem", sa.JSON()),
        sa.Column("scan_owner", sa.Text()),
        sa.Column("scan_until", MOMENT),
        sa.Column("scans", sa.Integer(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_models")),
    )
    op.create_index(op.f("ix_models_state"), "models", ["state"])
    op.create_table(
        "baselines",
        sa.Column("model_id", ID, nullable=False),
        sa.Column("dataset_id", ID, nullable=False),
        sa.Column("fingerprint", DIGEST, nullable=False),
        sa.Column("readings", sa.JSON(), nullable=False),
        sa.Column("measured_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(
            ["dataset_id"], ["datasets.id"], name=op.f("fk_baselines_dataset_id_datasets")
        ),
        sa.ForeignKeyConstraint(
            ["model_id"], ["models.id"], name=op.f("fk_baselines_model_id_models")
        ),
        sa.PrimaryKeyConstraint("model_id", "dataset_id", "fingerprint", name=op.f("pk_baselines")),
    )
    op.create_table(
        "jobs",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("model_id", ID, nullable=False),
        sa.Column("dataset_id", ID, nullable=False),
        sa.Column("state", _one_of("jobstate", JOB_STATES), nullable=False),
        sa.Column("wish", _one_of("jobwish", JOB_WISHES), nullable=False),
        sa.Column("outcome", _one_of("joboutcome", JOB_OUTCOMES)),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("spec_digest", DIGEST, nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("problem", sa.JSON()),
        sa.Column("next_number", sa.Integer(), nullable=False),
        sa.Column("next_recorded", sa.Integer(), nullable=False),
        sa.Column("next_event", sa.Integer(), nullable=False),
        sa.Column("spent_trials", sa.Integer(), nullable=False),
        sa.Column("spent_wall_s", sa.Double(), nullable=False),
        sa.Column("spent_device_s", sa.Double(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.Column("started_at", MOMENT),
        sa.Column("ended_at", MOMENT),
        sa.ForeignKeyConstraint(
            ["dataset_id"], ["datasets.id"], name=op.f("fk_jobs_dataset_id_datasets")
        ),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_jobs_model_id_models")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index("ix_jobs_created_at_id", "jobs", ["created_at", "id"])
    op.create_index(op.f("ix_jobs_dataset_id"), "jobs", ["dataset_id"])
    op.create_index(op.f("ix_jobs_model_id"), "jobs", ["model_id"])
    op.create_index("ix_jobs_state_created_at", "jobs", ["state", "created_at"])
    op.create_table(
        "events",
        sa.Column("job_id", ID, nullable=False),
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("kind", NAME, nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_events_job_id_jobs")),
        sa.PrimaryKeyConstraint("job_id", "seq", name=op.f("pk_events")),
    )
    op.create_table(
        "fronts",
        sa.Column("job_id", ID, nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("outcome", _one_of("joboutcome", JOB_OUTCOMES)),
        sa.Column("hypervolume", sa.Double()),
        sa.Column("baseline", sa.JSON(), nullable=False),
        sa.Column("nearest", sa.JSON(), nullable=False),
        sa.Column("binding", sa.JSON(), nullable=False),
        sa.Column("published_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_fronts_job_id_jobs")),
        sa.PrimaryKeyConstraint("job_id", "revision", name=op.f("pk_fronts")),
    )
    op.create_table(
        "job_transitions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("job_id", ID, nullable=False),
        sa.Column("before", _one_of("before", JOB_STATES)),
        sa.Column("after", _one_of("after", JOB_STATES), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_job_transitions_job_id_jobs")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_transitions")),
    )
    op.create_index(op.f("ix_job_transitions_job_id"), "job_transitions", ["job_id"])
    op.create_table(
        "leases",
        sa.Column("job_id", ID, nullable=False),
        sa.Column("owner", sa.Text()),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("expires_at", MOMENT),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_leases_job_id_jobs")),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_leases")),
    )
    op.create_table(
        "snapshots",
        sa.Column("job_id", ID, nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("arrays", sa.LargeBinary()),
        sa.Column("at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_snapshots_job_id_jobs")),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_snapshots")),
    )
    op.create_table(
        "trials",
        sa.Column("id", ID, nullable=False),
        sa.Column("job_id", ID, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("plan", sa.JSON(), nullable=False),
        sa.Column("plan_digest", DIGEST, nullable=False),
        sa.Column("fidelity", _one_of("fidelity", FIDELITIES), nullable=False),
        sa.Column("base", DIGEST, nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("agent", NAME, nullable=False),
        sa.Column("state", _one_of("trialstate", TRIAL_STATES), nullable=False),
        sa.Column("failure", sa.JSON()),
        sa.Column("artifacts", sa.JSON(), nullable=False),
        sa.Column("recorded", sa.Integer()),
        sa.Column("proposed_at", MOMENT, nullable=False),
        sa.Column("finished_at", MOMENT),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_trials_job_id_jobs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_trials")),
        sa.UniqueConstraint("job_id", "number", name=op.f("uq_trials_job_id_number")),
        sa.UniqueConstraint(
            "job_id",
            "plan_digest",
            "fidelity",
            "base",
            name=op.f("uq_trials_job_id_plan_digest_fidelity_base"),
        ),
        sa.UniqueConstraint("job_id", "recorded", name=op.f("uq_trials_job_id_recorded")),
    )
    op.create_index("ix_trials_job_id_state_number", "trials", ["job_id", "state", "number"])
    op.create_table(
        "attempts",
        sa.Column("id", ID, nullable=False),
        sa.Column("trial_id", ID, nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("state", _one_of("attemptstate", ATTEMPT_STATES), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("seconds", sa.JSON()),
        sa.Column("started_at", MOMENT, nullable=False),
        sa.Column("ended_at", MOMENT),
        sa.ForeignKeyConstraint(
            ["trial_id"], ["trials.id"], name=op.f("fk_attempts_trial_id_trials")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attempts")),
        sa.UniqueConstraint("trial_id", "epoch", name=op.f("uq_attempts_trial_id_epoch")),
    )
    op.create_index(
        "uq_attempts_live",
        "attempts",
        ["trial_id"],
        unique=True,
        sqlite_where=sa.text("state = 'RUNNING'"),
        postgresql_where=sa.text("state = 'RUNNING'"),
    )
    op.create_table(
        "front_members",
        sa.Column("job_id", ID, nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("trial_id", ID, nullable=False),
        sa.Column("plan_digest", DIGEST, nullable=False),
        sa.Column("readings", sa.JSON(), nullable=False),
        sa.Column("artifacts", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id", "revision"],
            ["fronts.job_id", "fronts.revision"],
            name="fk_front_members_revision_fronts",
        ),
        sa.ForeignKeyConstraint(
            ["trial_id"], ["trials.id"], name=op.f("fk_front_members_trial_id_trials")
        ),
        sa.PrimaryKeyConstraint("job_id", "revision", "position", name=op.f("pk_front_members")),
    )
    op.create_index(op.f("ix_front_members_trial_id"), "front_members", ["trial_id"])
    op.create_table(
        "readings",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("trial_id", ID, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("metric", NAME, nullable=False),
        sa.Column("device", NAME, nullable=False),
        sa.Column("statistic", sa.String(length=16), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("low", sa.Double(), nullable=False),
        sa.Column("high", sa.Double(), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.Column("split", sa.String(length=16)),
        sa.Column("ratio_value", sa.Double()),
        sa.Column("ratio_low", sa.Double()),
        sa.Column("ratio_high", sa.Double()),
        sa.Column("estimated", sa.Boolean(), nullable=False),
        sa.Column("warning", sa.Text()),
        sa.ForeignKeyConstraint(
            ["trial_id"], ["trials.id"], name=op.f("fk_readings_trial_id_trials")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_readings")),
        sa.UniqueConstraint(
            "trial_id",
            "metric",
            "device",
            "statistic",
            name=op.f("uq_readings_trial_id_metric_device_statistic"),
        ),
    )
    op.create_index("ix_readings_metric_trial_id", "readings", ["metric", "trial_id"])


def downgrade() -> None:
    """Drop them, dependents first."""
    for table in (
        "readings",
        "front_members",
        "attempts",
        "trials",
        "snapshots",
        "leases",
        "job_transitions",
        "fronts",
        "events",
        "jobs",
        "baselines",
        "models",
        "idempotency_keys",
        "devices",
        "datasets",
        "artifacts",
        "api_keys",
    ):
        op.drop_table(table)
