"""What was measured: tables of configurations, as files and as plans read them."""
