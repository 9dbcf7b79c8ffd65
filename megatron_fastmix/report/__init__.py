"""What people look at: metrics, progress, pictures, tables and the report page."""
