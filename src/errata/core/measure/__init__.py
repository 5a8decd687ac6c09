"""What measuring is: a benchmark yields cases, a protocol asks, a metric or a judge scores."""
