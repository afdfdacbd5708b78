"""Jobs that have ended and their transcripts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    id_text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    op.create_table(
        "jobs",
        sa.Column("id", id_text, nullable=False),
        sa.Column("run", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("priority", sa.Text, nullable=False),
        sa.Column("batch_id", sa.Text),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("attempts", sa.BigInteger, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("queued_ms", sa.BigInteger),
        sa.Column("started_ms", sa.BigInteger),
        sa.Column("finished_ms", sa.BigInteger, nullable=False),
        sa.Column("stored_ms", sa.BigInteger, nullable=False),
        sa.Column("worker", sa.Text),
        sa.Column("audio_s", sa.Float),
        sa.Column("language", sa.Text),
        sa.Column("error_type", sa.Text),
        sa.Column("error_detail", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
    )
    op.create_index("ix_jobs_finished", "jobs", ["finished_ms", "id"])
    op.create_index("ix_jobs_state_finished", "jobs", ["state", "finished_ms", "id"])
    op.create_index("ix_jobs_batch_finished", "jobs", ["batch_id", "finished_ms", "id"])
    op.create_table(
        "transcripts",
        sa.Column("job_id", id_text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("job_id", name="pk_transcripts"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_transcripts_job_id", ondelete="CASCADE"),
    )


def downgrade() -> None:
    op.drop_table("transcripts")
    op.drop_table("jobs")
