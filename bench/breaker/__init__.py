"""The breaker: real services on a real server, seeded faults, a check that nothing is lost or twice."""
