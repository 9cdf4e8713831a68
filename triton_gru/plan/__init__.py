"""From a problem and a device to a `Plan`: which kernel serves a call, in which configuration, and why."""
