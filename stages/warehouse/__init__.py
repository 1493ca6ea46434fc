"""The warehouse: SQLAlchemy tables, ingestion and export to Parquet."""
