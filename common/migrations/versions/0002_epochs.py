"""The epoch of each queue's data in Redis: what tells an emptied server from the one that jobs were accepted on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "epochs",
        sa.Column("queue", sa.Text, nullable=False),
        sa.Column("epoch", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("queue", name="pk_epochs"),
    )


def downgrade() -> None:
    op.drop_table("epochs")
