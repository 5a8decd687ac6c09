"""Where cases come from: one file or package per benchmark."""
