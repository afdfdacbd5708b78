"""The HTTP service: takes jobs in, answers for them, hands transcripts out."""
