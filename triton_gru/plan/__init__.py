"""Plans: the choice of the kernel that serves a problem on a device, of its configuration, and the reasons."""
