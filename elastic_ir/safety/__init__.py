"""Safety: what reading the files of strangers stands on. No torch here."""
