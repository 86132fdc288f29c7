"""What gives words their part of speech and entity class: one file per annotator."""
