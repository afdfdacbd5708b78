"""Run by Alembic, on the connection and inside the transaction that `Database.migrate` hands over."""

from __future__ import annotations

from alembic import context

from common.tables import metadata

# Batch mode: SQLite cannot change a column, Alembic then copies the table.
context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
