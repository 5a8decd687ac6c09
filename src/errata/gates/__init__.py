"""Gates: which edit a prompt is routed to, and whether it acts. One file each."""
