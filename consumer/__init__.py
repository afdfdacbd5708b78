"""The work: recordings to transcripts (transcriber) and transcripts to files and rows (writer)."""
