"""The segments of the transcripts, indexed by their words; those of the transcripts that are stored already, too."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TSVECTOR

from common.search import to_rows
from common.transcript import Transcript

revision = "0003"
down_revision = "0002"

# SQLite: an index beside the table, kept in step by triggers, which rows deleted with their job set off too. Words
# come in one blank apart: letters, marks and digits make them up.
_FTS5 = (
    "CREATE VIRTUAL TABLE segment_words USING fts5(words, content='segments', content_rowid='id', "
    "tokenize=\"unicode61 remove_diacritics 0 categories 'L* M* N*'\")",
    "CREATE TRIGGER segments_added AFTER INSERT ON segments BEGIN "
    "INSERT INTO segment_words(rowid, words) VALUES (new.id, new.words); END",
    "CREATE TRIGGER segments_deleted AFTER DELETE ON segments BEGIN "
    "INSERT INTO segment_words(segment_words, rowid, words) VALUES ('delete', old.id, old.words); END",
)


def upgrade() -> None:
    id_text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    segments = op.create_table(
        "segments",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False),
        sa.Column("job_id", id_text, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("start_s", sa.Float, nullable=False),
        sa.Column("end_s", sa.Float, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("words", sa.Text().with_variant(TSVECTOR, "postgresql"), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_segments"),
        sa.ForeignKeyConstraint(["job_id"], ["transcripts.job_id"], name="fk_segments_job_id", ondelete="CASCADE"),
    )
    op.create_index("ix_segments_job", "segments", ["job_id"])
    dialect = op.get_context().dialect.name
    if dialect == "postgresql":
        op.create_index("segment_words", "segments", ["words"], postgresql_using="gin")
    else:
        for statement in _FTS5:
            op.execute(statement)
    _index_what_is_stored(segments, dialect)


def _index_what_is_stored(segments: sa.Table, dialect: str) -> None:
    connection, last = op.get_bind(), ""
    stored = sa.table("transcripts", sa.column("job_id"), sa.column("body"))
    while page := connection.execute(
        sa.select(stored).where(stored.c.job_id > last).order_by(stored.c.job_id).limit(100)
    ).all():
        for job_id, body in page:
            rows = to_rows(job_id, Transcript.model_validate_json(body), dialect)
            if rows:
                connection.execute(segments.insert(), rows)
        last = page[-1].job_id


def downgrade() -> None:
    if op.get_context().dialect.name == "sqlite":
        op.execute("DROP TABLE segment_words")
    op.drop_table("segments")
