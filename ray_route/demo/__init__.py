"""`ray-route demo`: a log of messages replayed over pods, and the check of the outcome."""
