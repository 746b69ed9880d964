"""What decides: config, placement, feed, loop, publish, checkpoint, metrics, command line."""
