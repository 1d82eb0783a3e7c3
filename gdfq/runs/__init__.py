"""One run of the method: its folder, its training whatever interrupts it, what it tells."""
