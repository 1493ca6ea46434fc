"""The SQL database: engine, tables, upserts."""
