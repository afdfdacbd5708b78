"""The `sttream` command."""
