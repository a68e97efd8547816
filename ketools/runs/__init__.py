"""Long experiments: run, resume, record, report."""
