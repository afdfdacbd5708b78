"""What every sttream service shares: settings, records, streams, the stage loop, the database.

Knows neither producer nor consumer.
"""

__version__ = "0.1.0"
