"""What a converted folder lost against the original, on the device that will answer."""
