"""Where the management package lives."""
