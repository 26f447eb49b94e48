"""Engine x Scenario -> LatencyReport: latencies with their state and their samples."""
